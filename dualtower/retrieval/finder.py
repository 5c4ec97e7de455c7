"""From what a person asks, in words or with a picture, to a query of a store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dualtower.data.images import open_image, to_size
from dualtower.encoding import mix
from dualtower.errors import ConfigError, DataError, DualTowerError
from dualtower.model import DualTower
from dualtower.retrieval.indexing import check_model
from dualtower.retrieval.queries import Page, Query
from dualtower.retrieval.questions import SHARPER, Against, QueryPicture, Question, picture_digest
from dualtower.retrieval.rerank import RerankStage
from dualtower.retrieval.stages import Reorder, Stage, search_in_stages
from dualtower.retrieval.store import Store, open_store

__all__ = ["Against", "Finder", "QueryPicture", "Question", "open_finder"]

MOST_PIXELS = 25_000_000
"""Largest picture to search with: more than any camera's preview, less than what exhausts a server."""
MOST_DEPTH = 100
"""Rows that stages put in order: each costs one question some of the time of all others."""


class Finder:
    """Searches a store with a model.

    Args:
        store: Holds vectors of this model.
        model: Embeds questions.
        stages: Put the best rows of a search in order, one after the other; see `dualtower.retrieval.stages`.
        depth: Rows that they put in order, at most `MOST_DEPTH`.

    Raises:
        CatalogueError: The store holds vectors of another model.
        ConfigError: No such depth.
    """

    def __init__(self, store: Store, model: DualTower, *, stages: Sequence[Stage] = (), depth: int = 50) -> None:
        check_model(store.info, model)
        if not 1 <= depth <= MOST_DEPTH:
            raise ConfigError(f"cannot put the best {depth} rows in order; choose 1 to {MOST_DEPTH}")
        self.store, self.model = store, model.for_inference()
        self.stages, self.depth = tuple(stages), depth

    def find(self, question: Question) -> Page:
        """The next page of hits.

        Raises:
            DataError: There is nothing to search with.
            BrokenImage: The picture cannot be decoded.
            FilterError: The filter cannot be read.
            CursorError: The cursor is broken, or of another question.
        """
        (answer,) = self.find_many([question])
        if isinstance(answer, DualTowerError):
            raise answer
        return answer

    def find_many(self, questions: Sequence[Question]) -> list[Page | DualTowerError]:
        """Answer several questions, of which all texts go through the model together, and all pictures.

        Returns:
            For each question its page, or what is wrong with it.
        """
        answers: list[Page | DualTowerError | None] = [None] * len(questions)
        terms: list[_Terms | None] = []
        for i, question in enumerate(questions):
            try:
                terms.append(None if question.cursor else self._terms(question))
            except DualTowerError as error:
                answers[i] = error
                terms.append(None)
        texts = [text for asked in terms if asked for text in asked.texts]
        pictures = [asked.picture for asked in terms if asked and asked.picture is not None]
        embedded_texts = iter(self.model.encode_text(texts) if texts else ())
        embedded_pictures = iter(self.model.encode_image(pictures) if pictures else ())
        queries: dict[int, Query] = {}
        reorders: dict[int, list[Reorder]] = {}
        for i, (question, asked) in enumerate(zip(questions, terms, strict=True)):
            if answers[i] is not None:
                continue
            vectors = [next(embedded_texts) for _ in asked.texts] if asked else []
            if asked and asked.picture is not None:
                vectors.append(next(embedded_pictures))
            try:
                found = self.reorders(question)
                queries[i] = self._query(question, vectors)
                if found:
                    reorders[i] = found
            except DualTowerError as error:
                answers[i] = error
        for i, page in search_in_stages(self.store, queries, reorders, depth=self.depth).items():
            answers[i] = self._said(page) if isinstance(page, Page) else page
        return [answer for answer in answers if answer is not None]

    def similar(self, row_id: str, *, where: str = "", limit: int = 10, cursor: str | None = None) -> Page | None:
        """Products like one of the catalogue; None where there is no such row."""
        for kind in ("product", "image", "text"):
            if kind in self.store.info.kinds and (vector := self.store.vector(row_id, kind)) is not None:
                hidden = frozenset([row_id])
                return self._said(
                    self.store.search(Query(vector, kind, where, limit, cursor, without=hidden, key=row_id))
                )
        return None

    def reorders(self, question: Question) -> list[Reorder]:
        """What of the stages has something to say about a question; of a later page its cursor says all.

        Raises:
            DualTowerError: A stage refuses the question.
        """
        if question.cursor:
            return []
        return [reorder for stage in self.stages if (reorder := stage.for_question(question)) is not None]

    def _said(self, page: Page) -> Page:
        """A page, which says so where stages had nothing to say about it."""
        return replace(page, reranked=0) if self.stages and page.reranked is None else page

    def open_picture(self, content: bytes, *, for_page: bool = False) -> QueryPicture:
        """Decode a picture to search with; its size is looked at first.

        Args:
            content: Encoded.
            for_page: The question has a cursor, and its picture need not be seen again.

        Raises:
            BrokenImage: The picture cannot be decoded, or has more than `MOST_PIXELS`.
        """
        if for_page:
            return QueryPicture(None, picture_digest(content))
        settings = self.model.config.image_settings
        near = SHARPER * max(settings.width, settings.height)
        opened = open_image(content, max_pixels=MOST_PIXELS, near=near, where="search", row="picture")
        return QueryPicture(to_size(opened, settings), picture_digest(content))

    def _terms(self, question: Question) -> _Terms:
        """Raises: DataError, BrokenImage, ConfigError."""
        if not question.text.strip() and question.image is None:
            raise DataError("there is nothing to search with; give a text, a picture, or both")
        if not all(map(math.isfinite, _weights(question))):
            raise DataError(f"weights must be finite numbers, not {_weights(question)}")
        if question.against == "product":
            if _unwanted(question):
                raise ConfigError("unwanted words lead nowhere among fused products; search against image or text")
            return _Terms([], None)
        texts = [question.text.strip()] if question.text.strip() else []
        texts += _unwanted(question)
        if texts:
            self.model.config.require("text", "cannot search by text")
        if question.image is not None:
            self.model.config.require("image", "cannot search by image")
        return _Terms(texts, self._picture(question))

    def _picture(self, question: Question) -> Image.Image | None:
        """The picture of a question, decoded."""
        if question.image is None:
            return None
        return (self.open_picture(question.image) if isinstance(question.image, bytes) else question.image).image

    def _query(self, question: Question, vectors: Sequence[np.ndarray]) -> Query:
        vector = None
        if question.against == "product" and not question.cursor:
            picture = self._picture(question)
            vector = self.model.encode_product(text=[question.text.strip() or None], image=[picture])[0]
        elif vectors:
            unit = self.model.config.similarity == "cosine"
            vector = mix(vectors, _weights(question), unit=unit)
        return Query(
            vector,
            kind=question.compared_with(self.store.info.kinds),
            where=question.where,
            limit=question.limit,
            cursor=question.cursor,
            grouped=question.grouped,
            key=question.key(),
        )


def open_finder(
    where: str | Path, model: str | None = None, *, device: str = "auto", rerank: int | None = None
) -> Finder:
    """Open a store with its model.

    Args:
        where: Folder of a catalogue, or ``milvus://host:port/name``.
        model: Folder or Hub id; default where the model lay when the store was made.
        device: Where it embeds questions, see `dualtower.device.find_device`.
        rerank: Put the best so many rows in order again with the model's re-ranker, see `RerankStage`.

    Raises:
        ConfigError: There is no such device, the model has no re-ranker, or `rerank` is not from 1 to `MOST_DEPTH`.
        CatalogueError: There is no such store, or it holds vectors of another model.
        ModelFolderError: There is no such model.
    """
    store = open_store(where)
    found = DualTower.from_pretrained(model or store.info.model).placed(device)
    if rerank is None:
        return Finder(store, found)
    found = found.for_inference()
    return Finder(store, found, stages=[RerankStage(found, store)], depth=rerank)


@dataclass(frozen=True, eq=False)
class _Terms:
    """What of a question goes through the towers; the picture is decoded already."""

    texts: list[str]
    picture: Image.Image | None


def _weights(question: Question) -> list[float]:
    """The weights of the terms, in their order."""
    weights = [question.text_weight] if question.text.strip() else []
    weights += [-question.unwanted_weight] * len(_unwanted(question))
    return weights + ([] if question.image is None else [question.image_weight])


def _unwanted(question: Question) -> list[str]:
    return [word.strip() for word in question.unwanted if word.strip()]
