"""From what a person asks, in words or with an image, to a query of a store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dualtower.data.transforms.images import open_image, to_size
from dualtower.errors import ConfigError, DataError, DualTowerError
from dualtower.models.dual_tower import DualTower
from dualtower.models.encoding import mix
from dualtower.search.ingest.embed import check_model
from dualtower.search.queries import Page, Query
from dualtower.search.requests import SHARPER, QueryImage, SearchRequest, Target, image_digest
from dualtower.search.reranking import RerankStage
from dualtower.search.stages import Reorder, Stage, search_in_stages
from dualtower.search.store import Store, open_store

__all__ = ["QueryImage", "SearchEngine", "SearchRequest", "Target", "open_engine"]

MAX_PIXELS = 25_000_000
"""Largest image to search with: more than any camera's preview, less than what exhausts a server."""
MAX_RERANK_DEPTH = 100
"""Rows that stages put in order: each costs one request some of the time of all others."""


class SearchEngine:
    """Searches a store with a model.

    Args:
        store: Holds vectors of this model.
        model: Embeds requests.
        stages: Put the best rows of a search in order, one after the other; see `dualtower.search.stages`.
        depth: Rows that they put in order, at most `MAX_RERANK_DEPTH`.

    Raises:
        CatalogError: The store holds vectors of another model.
        ConfigError: No such depth.
    """

    def __init__(self, store: Store, model: DualTower, *, stages: Sequence[Stage] = (), depth: int = 50) -> None:
        check_model(store.info, model)
        if not 1 <= depth <= MAX_RERANK_DEPTH:
            raise ConfigError(f"cannot put the best {depth} rows in order; choose 1 to {MAX_RERANK_DEPTH}")
        self.store, self.model = store, model.for_inference()
        self.stages, self.depth = tuple(stages), depth

    def find(self, request: SearchRequest) -> Page:
        """The next page of hits.

        Raises:
            DataError: There is nothing to search with.
            BrokenImage: The image cannot be decoded.
            FilterError: The filter cannot be read.
            CursorError: The cursor is broken, or of another request.
        """
        (answer,) = self.find_many([request])
        if isinstance(answer, DualTowerError):
            raise answer
        return answer

    def find_many(self, requests: Sequence[SearchRequest]) -> list[Page | DualTowerError]:
        """Answer several requests, of which all texts go through the model together, and all images.

        Returns:
            For each request its page, or what is wrong with it.
        """
        answers: list[Page | DualTowerError | None] = [None] * len(requests)
        terms: list[_Terms | None] = []
        for i, request in enumerate(requests):
            try:
                terms.append(None if request.cursor else self._terms(request))
            except DualTowerError as error:
                answers[i] = error
                terms.append(None)
        texts = [text for asked in terms if asked for text in asked.texts]
        images = [asked.image for asked in terms if asked and asked.image is not None]
        embedded_texts = iter(self.model.encode_text(texts) if texts else ())
        embedded_images = iter(self.model.encode_image(images) if images else ())
        queries: dict[int, Query] = {}
        reorders: dict[int, list[Reorder]] = {}
        for i, (request, asked) in enumerate(zip(requests, terms, strict=True)):
            if answers[i] is not None:
                continue
            vectors = [next(embedded_texts) for _ in asked.texts] if asked else []
            if asked and asked.image is not None:
                vectors.append(next(embedded_images))
            try:
                found = self.reorders(request)
                queries[i] = self._query(request, vectors)
                if found:
                    reorders[i] = found
            except DualTowerError as error:
                answers[i] = error
        for i, page in search_in_stages(self.store, queries, reorders, depth=self.depth).items():
            answers[i] = self._with_rerank_note(page) if isinstance(page, Page) else page
        return [answer for answer in answers if answer is not None]

    def similar(self, row_id: str, *, where: str = "", limit: int = 10, cursor: str | None = None) -> Page | None:
        """Products like one of the catalog; None where there is no such row."""
        for vector_name in ("product", "image", "text"):
            if (
                vector_name in self.store.info.vector_names
                and (vector := self.store.vector(row_id, vector_name)) is not None
            ):
                hidden = frozenset([row_id])
                return self._with_rerank_note(
                    self.store.search(Query(vector, vector_name, where, limit, cursor, without=hidden, key=row_id))
                )
        return None

    def reorders(self, request: SearchRequest) -> list[Reorder]:
        """What of the stages has something to say about a request; of a later page its cursor says all.

        Raises:
            DualTowerError: A stage refuses the request.
        """
        if request.cursor:
            return []
        return [reorder for stage in self.stages if (reorder := stage.for_request(request)) is not None]

    def _with_rerank_note(self, page: Page) -> Page:
        """A page, which says so where stages had nothing to say about it."""
        return replace(page, reranked=0) if self.stages and page.reranked is None else page

    def decode_query_image(self, content: bytes, *, for_page: bool = False) -> QueryImage:
        """Decode an image to search with; its size is looked at first.

        Args:
            content: Encoded.
            for_page: The request has a cursor, and its image need not be seen again.

        Raises:
            BrokenImage: The image cannot be decoded, or has more than `MAX_PIXELS`.
        """
        if for_page:
            return QueryImage(None, image_digest(content))
        settings = self.model.config.image_settings
        near = SHARPER * max(settings.width, settings.height)
        opened = open_image(content, max_pixels=MAX_PIXELS, near=near, where="search", row="image")
        return QueryImage(to_size(opened, settings), image_digest(content))

    def _terms(self, request: SearchRequest) -> _Terms:
        """Raises: DataError, BrokenImage, ConfigError."""
        if not request.text.strip() and request.image is None:
            raise DataError("there is nothing to search with; give a text, an image, or both")
        if not all(map(math.isfinite, _weights(request))):
            raise DataError(f"weights must be finite numbers, not {_weights(request)}")
        if request.target == "product":
            if _negative_texts(request):
                raise ConfigError("negative texts lead nowhere among fused products; search against image or text")
            return _Terms([], None)
        texts = [request.text.strip()] if request.text.strip() else []
        texts += _negative_texts(request)
        if texts:
            self.model.config.require("text", "cannot search by text")
        if request.image is not None:
            self.model.config.require("image", "cannot search by image")
        return _Terms(texts, self._image(request))

    def _image(self, request: SearchRequest) -> Image.Image | None:
        """The image of a request, decoded."""
        if request.image is None:
            return None
        return (self.decode_query_image(request.image) if isinstance(request.image, bytes) else request.image).image

    def _query(self, request: SearchRequest, vectors: Sequence[np.ndarray]) -> Query:
        vector = None
        if request.target == "product" and not request.cursor:
            image = self._image(request)
            vector = self.model.encode_product(text=[request.text.strip() or None], image=[image])[0]
        elif vectors:
            unit = self.model.config.similarity == "cosine"
            vector = mix(vectors, _weights(request), unit=unit)
        return Query(
            vector,
            vector_name=request.compared_with(self.store.info.vector_names),
            where=request.where,
            limit=request.limit,
            cursor=request.cursor,
            group_by_product=request.group_by_product,
            key=request.key(),
        )


def open_engine(
    where: str | Path, model: str | None = None, *, device: str = "auto", rerank: int | None = None
) -> SearchEngine:
    """Open a store with its model.

    Args:
        where: Folder of a catalog, or ``milvus://host:port/name``.
        model: Folder or Hub id; default where the model lay when the store was made.
        device: Where it embeds requests, see `dualtower.device.find_device`.
        rerank: Put the best so many rows in order again with the model's re-ranker, see `RerankStage`.

    Raises:
        ConfigError: There is no such device, the model has no re-ranker, or `rerank` is not from 1 to
            `MAX_RERANK_DEPTH`.
        CatalogError: There is no such store, or it holds vectors of another model.
        ModelFolderError: There is no such model.
    """
    store = open_store(where)
    found = DualTower.from_pretrained(model or store.info.model).placed(device)
    if rerank is None:
        return SearchEngine(store, found)
    found = found.for_inference()
    return SearchEngine(store, found, stages=[RerankStage(found, store)], depth=rerank)


@dataclass(frozen=True, eq=False)
class _Terms:
    """What of a request goes through the towers; the image is decoded already."""

    texts: list[str]
    image: Image.Image | None


def _weights(request: SearchRequest) -> list[float]:
    """The weights of the terms, in their order."""
    weights = [request.text_weight] if request.text.strip() else []
    weights += [-request.negative_weight] * len(_negative_texts(request))
    return weights + ([] if request.image is None else [request.image_weight])


def _negative_texts(request: SearchRequest) -> list[str]:
    return [word.strip() for word in request.negative_texts if word.strip()]
