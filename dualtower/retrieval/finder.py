"""From what a person asks, in words or with a picture, to a query of a store."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from dualtower.data.images import open_image, to_size
from dualtower.encoding import mix
from dualtower.errors import ConfigError, DataError, DualTowerError
from dualtower.model import DualTower
from dualtower.retrieval.indexing import check_model
from dualtower.retrieval.queries import Page, Query
from dualtower.retrieval.store import Store, open_store

__all__ = ["Against", "Finder", "QueryPicture", "Question", "open_finder"]

Against = Literal["image", "text", "product"]
MOST_PIXELS = 25_000_000
"""Of a picture to search with: more than any camera's preview, less than what exhausts a server."""
SHARPER = 3
"""Times the model's size that a large picture is decoded to before it is resized, as Pillow's `reducing_gap` of 3."""


@dataclass(frozen=True, eq=False)
class QueryPicture:
    """A picture to search with, decoded.

    Attributes:
        image: At the size that the model sees; None where a page's cursor has the vector already.
        digest: Of the encoded bytes.
    """

    image: Image.Image | None
    digest: str


@dataclass(frozen=True)
class Question:
    """What a person asks for.

    Attributes:
        text: Words; may be empty.
        image: Encoded picture, or one that `Finder.open_picture` has opened; None for none.
        unwanted: Words to lead away from.
        text_weight: Of the words.
        image_weight: Of the picture.
        unwanted_weight: Of each of the unwanted words.
        against: Vectors to compare with. ``image`` finds pictures, ``text`` titles; ``product``, in catalogues that
            have fused vectors, finds products like one that has this title and picture.
        where: A filter.
        limit: Hits per page.
        cursor: Of the page before; then text and picture may be left out.
        grouped: One hit per product.
    """

    text: str = ""
    image: bytes | QueryPicture | None = None
    unwanted: tuple[str, ...] = ()
    text_weight: float = 1.0
    image_weight: float = 1.0
    unwanted_weight: float = 0.5
    against: Against = "image"
    where: str = ""
    limit: int = 10
    cursor: str | None = None
    grouped: bool = True

    def key(self) -> str:
        """A hash of what its vector is made from; empty where there is nothing."""
        if not self.text.strip() and self.image is None and not self.unwanted:
            return ""
        picture = _digest(self.image) if isinstance(self.image, bytes) else self.image and self.image.digest
        return repr((self.text, picture, self.unwanted, self.text_weight, self.image_weight, self.unwanted_weight))


class Finder:
    """Searches a store with a model.

    Args:
        store: Holds vectors of this model.
        model: Embeds questions.

    Raises:
        CatalogueError: The store holds vectors of another model.
    """

    def __init__(self, store: Store, model: DualTower) -> None:
        check_model(store.info, model)
        self.store, self.model = store, model.for_inference()

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
        for i, (question, asked) in enumerate(zip(questions, terms, strict=True)):
            if answers[i] is not None:
                continue
            vectors = [next(embedded_texts) for _ in asked.texts] if asked else []
            if asked and asked.picture is not None:
                vectors.append(next(embedded_pictures))
            try:
                queries[i] = self._query(question, vectors)
            except DualTowerError as error:
                answers[i] = error
        for i, page in zip(queries, self.store.search_many(list(queries.values())), strict=True):
            answers[i] = page
        return [answer for answer in answers if answer is not None]

    def similar(self, row_id: str, *, where: str = "", limit: int = 10, cursor: str | None = None) -> Page | None:
        """Products like one of the catalogue; None where there is no such row."""
        for kind in ("product", "image", "text"):
            if kind in self.store.info.kinds and (vector := self.store.vector(row_id, kind)) is not None:
                hidden = frozenset([row_id])
                return self.store.search(Query(vector, kind, where, limit, cursor, without=hidden, key=row_id))
        return None

    def open_picture(self, content: bytes, *, for_page: bool = False) -> QueryPicture:
        """Decode a picture to search with; its size is looked at first.

        Args:
            content: Encoded.
            for_page: The question has a cursor, and its picture need not be seen again.

        Raises:
            BrokenImage: The picture cannot be decoded, or has more than `MOST_PIXELS`.
        """
        if for_page:
            return QueryPicture(None, _digest(content))
        settings = self.model.config.image_settings
        near = SHARPER * max(settings.width, settings.height)
        opened = open_image(content, max_pixels=MOST_PIXELS, near=near, where="search", row="picture")
        return QueryPicture(to_size(opened, settings), _digest(content))

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
        return _Terms(texts + _unwanted(question), self._picture(question))

    def _picture(self, question: Question) -> Image.Image | None:
        """Of a question, decoded."""
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
            kind=question.against,
            where=question.where,
            limit=question.limit,
            cursor=question.cursor,
            grouped=question.grouped,
            key=question.key(),
        )


def open_finder(where: str | Path, model: str | None = None, *, device: str = "auto") -> Finder:
    """Open a store with its model.

    Args:
        where: Folder of a catalogue, or ``milvus://host:port/name``.
        model: Folder or Hub id; default where the model lay when the store was made.
        device: Where it embeds questions, see `dualtower.device.find_device`.

    Raises:
        ConfigError: There is no such device.
        CatalogueError: There is no such store, or it holds vectors of another model.
        ModelFolderError: There is no such model.
    """
    store = open_store(where)
    return Finder(store, DualTower.from_pretrained(model or store.info.model).placed(device))


@dataclass(frozen=True, eq=False)
class _Terms:
    """What of a question goes through the towers; the picture is decoded already."""

    texts: list[str]
    picture: Image.Image | None


def _weights(question: Question) -> list[float]:
    """Of the terms, in their order."""
    weights = [question.text_weight] if question.text.strip() else []
    weights += [-question.unwanted_weight] * len(_unwanted(question))
    return weights + ([] if question.image is None else [question.image_weight])


def _unwanted(question: Question) -> list[str]:
    return [word.strip() for word in question.unwanted if word.strip()]


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()
