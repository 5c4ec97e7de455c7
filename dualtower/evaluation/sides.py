"""What is compared: all texts, all images, or the queries of a relevance file, and what is relevant to what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from dualtower.data.image_columns import ImageColumn
from dualtower.data.items import ItemDataset
from dualtower.errors import DataError
from dualtower.evaluation.qrels import Qrels
from dualtower.evaluation.relevance import Relevance

__all__ = [
    "Encoder",
    "Side",
    "check_measurable",
    "embedded",
    "image_side",
    "is_one_sided",
    "one_side",
    "text_side",
    "two_sides",
]

NOTHING = np.empty((0, 0), np.float32)
"""Embeddings of a side that has not been embedded yet."""
_ALONE = "; rows with one side are measured by --task product-to-product, or by a model with one tower"


class Encoder(Protocol):
    """What `evaluate` needs of a model; `DualTower` is one."""

    @property
    def config(self) -> Any: ...
    @property
    def fingerprint(self) -> str: ...
    def encode_text(self, texts: list[str], *, batch_size: int = ..., progress: bool = ...) -> np.ndarray: ...
    def encode_image(self, images: Any, *, batch_size: int = ..., progress: bool = ...) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Side:
    """Texts or images that are queries in one direction and gallery in the other, or in the same.

    Attributes:
        embeddings: float32 ``[N, D]``.
        rows: Row of the catalog that each came from, int64 ``[N]``. A query of a relevance file stands for its
            most relevant row, or -1 if it has none.
        keys: Tells queries apart across models: id of the query; or row id, with ``#2``, ``#3`` ... behind it for
            further captions or images of the row.
        texts: The texts, or None for images.
        images: The undecoded images, or None for texts.
    """

    embeddings: np.ndarray
    rows: np.ndarray
    keys: list[str]
    texts: list[str] | None = None
    images: ImageColumn | None = None


def check_measurable(model: Encoder, items: ItemDataset) -> None:
    """Refuse, before a training rather than after it, products on which a model with one tower cannot be measured.

    Raises:
        DataError: The products lack its side, or no two of them belong together.
    """
    if is_one_sided(model):
        one_side(model, items, None, "raise")


def is_one_sided(model: Encoder) -> bool:
    return len(getattr(model.config, "modalities", ("image", "text"))) == 1


def two_sides(
    items: ItemDataset, queries: Qrels | None, missing: Literal["raise", "drop"]
) -> tuple[Side, Side, Relevance]:
    """Images and texts, without embeddings yet, and which images are relevant to which text."""
    images = image_side(items)
    if queries is not None:
        return (images, *_asked(queries, images, items, missing))
    texts = text_side(items)
    return images, texts, Relevance.from_products(items.codes[texts.rows], items.codes[images.rows])


def one_side(
    model: Encoder, items: ItemDataset, queries: Qrels | None, missing: Literal["raise", "drop"]
) -> tuple[Side, Side, Relevance]:
    """Queries and gallery of a model with one tower, without embeddings yet, and what is relevant to what."""
    (modality,) = model.config.modalities
    gallery = image_side(items) if modality == "image" else text_side(items)
    if queries is not None:
        model.config.require("text", "the queries of a relevance file are texts")
        texts, relevance = _asked(queries, gallery, items, missing)
        return texts, gallery, relevance
    codes = items.codes[gallery.rows]
    if len(np.unique(codes)) == len(codes):
        raise DataError(
            f"{items.card}, split {items.split}: no two {modality}s belong to one product, so none has "
            "another one to find; let columns.product_id of the card name what several rows share"
        )
    return gallery, gallery, Relevance.from_products(codes, codes)


def _asked(
    queries: Qrels, gallery: Side, items: ItemDataset, missing: Literal["raise", "drop"]
) -> tuple[Side, Relevance]:
    """The texts of a relevance file, and which items of a gallery are relevant to them."""
    relevance = Relevance.from_qrels(queries, items.columns.ids.at(gallery.rows), missing=missing)
    rows = _best_rows(relevance, gallery.rows)
    return Side(NOTHING, rows, list(queries.ids), list(queries.texts)), relevance


def image_side(items: ItemDataset) -> Side:
    """All images of all rows."""
    stored, with_images, numbers = items.gallery()
    if not len(with_images):
        raise DataError(f"{items.card}, split {items.split}: there are no images to search{_ALONE}")
    return Side(NOTHING, with_images, _keys(items, with_images, numbers, "image"), images=stored)


def text_side(items: ItemDataset) -> Side:
    """All captions of all rows, equal captions of one product merged into one."""
    first: dict[tuple[str, str], tuple[int, int]] = {}  # (caption, product) -> row, number of the caption in it
    for row, (product, captions) in enumerate(zip(items.columns.product_ids, items.columns.texts, strict=True)):
        for number, caption in enumerate(captions):
            first.setdefault((caption, product), (row, number))
    if not first:
        raise DataError(f"{items.card}, split {items.split}: there are no texts to search with{_ALONE}")
    rows, numbers = np.array(list(first.values()), np.int64).T
    return Side(NOTHING, rows, _keys(items, rows, numbers, "caption"), [text for text, _ in first])


def _keys(items: ItemDataset, rows: np.ndarray, numbers: np.ndarray, what: str) -> list[str]:
    """The row's id for its first caption or image, ``id#2`` for its second."""
    pairs = zip(items.columns.ids.at(rows), numbers, strict=True)
    keys = [row_id + (f"#{number + 1}" if number else "") for row_id, number in pairs]
    taken: set[str] = set()
    for key in keys if numbers.any() else ():
        if key in taken:
            raise DataError(f"{items.card}: id {key!r} of a row also means the second {what} of another; rename it")
        taken.add(key)
    return keys


def _best_rows(relevance: Relevance, gallery_rows: np.ndarray) -> np.ndarray:
    """Row of the catalog that is most relevant to each query, -1 where none is."""
    rows = np.full(len(relevance), -1)
    order = np.lexsort((-relevance.items, relevance.grades))  # the last write wins: best grade, then first item
    rows[relevance.queries[order]] = gallery_rows[relevance.items[order]]
    return rows


def embedded(side: Side, model: Encoder, *, batch_size: int, progress: bool) -> Side:
    if side.texts is not None:
        embeddings = model.encode_text(side.texts, batch_size=batch_size, progress=progress)
    else:
        embeddings = model.encode_image(side.images, batch_size=batch_size, progress=progress)
    return replace(side, embeddings=np.asarray(embeddings, np.float32))
