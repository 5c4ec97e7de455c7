"""Measure a model on products: embed once, rank exactly in every direction, report with protocol."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch

from dualtower.data.image_columns import ImageColumn
from dualtower.data.items import ItemDataset
from dualtower.errors import DataError, UnknownName
from dualtower.evaluation.bootstrap import intervals
from dualtower.evaluation.breakdown import BreakdownRow, breakdown
from dualtower.evaluation.metrics import TieRule, chance_levels, per_query
from dualtower.evaluation.qrels import Qrels
from dualtower.evaluation.ranks import Ranks, both_ways, retrieval_ranks
from dualtower.evaluation.relevance import Relevance
from dualtower.evaluation.reports.report import Report
from dualtower.evaluation.topk import top_k
from dualtower.losses.similarity import Similarity
from dualtower.version import __version__

__all__ = ["Direction", "Encoder", "Evaluation", "Side", "check_measurable", "evaluate"]

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


@dataclass(frozen=True, eq=False)
class Direction:
    """One way of searching. Arrays over queries have an entry for each query with a relevant item.

    Attributes:
        queries: All queries.
        gallery: What is searched.
        ranks: Exact ranks.
        per_query: Metric -> float64 ``[N_q]``.
        groups: Product code of each query, int64 ``[N_q]``.
        similarity: Of the model.
        exclude: Gallery position of each query's own row, or None.
    """

    queries: Side
    gallery: Side
    ranks: Ranks
    per_query: Mapping[str, np.ndarray]
    groups: np.ndarray
    similarity: Similarity
    exclude: np.ndarray | None = None

    def top_hits(self, queries: np.ndarray, *, k: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """Best hits of some queries (positions among all): gallery positions, int64 ``[N, k]``, and scores."""
        return top_k(
            self.queries.embeddings[queries],
            self.gallery.embeddings,
            k=k,
            exclude=None if self.exclude is None else self.exclude[queries],
            similarity=self.similarity,
        )

    def relevant_to(self, query: int) -> np.ndarray:
        """Gallery positions that are relevant to a query."""
        return self.ranks.items[self.ranks.starts[query] : self.ranks.starts[query + 1]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The report of a model, and what it was made from.

    Attributes:
        report: Figures and protocol.
        directions: ``text_to_image``, ``image_to_text`` and, where products have several images, ``image_to_image``;
            of a model with one tower ``image_to_image`` or ``text_to_text`` alone.
        breakdowns: Attribute -> direction -> figures of each value.
        items: The catalog that was searched.
    """

    report: Report
    directions: Mapping[str, Direction]
    breakdowns: Mapping[str, Mapping[str, list[BreakdownRow]]]
    items: ItemDataset

    def to_dict(self) -> dict[str, Any]:
        """Plain values: those of the report, and ``breakdowns`` (attribute -> direction -> values) if there are any."""
        tables = {
            attribute: {name: [row.to_dict() for row in rows] for name, rows in of.items()}
            for attribute, of in self.breakdowns.items()
        }
        return self.report.to_dict() | ({"breakdowns": tables} if tables else {})


def evaluate(
    model: Encoder,
    items: ItemDataset,
    *,
    queries: Qrels | None = None,
    missing: Literal["raise", "drop"] = "raise",
    ks: Sequence[int] = (1, 5, 10),
    bootstrap: int = 1000,
    seed: int = 0,
    breakdown: Sequence[str] = (),
    batch_size: int = 256,
    progress: bool = False,
) -> Evaluation:
    """Measure text -> image and image -> text retrieval, and image -> image where products have several images.

    Without `queries`, the texts are all captions of all rows, equal captions of one product merged into one; the
    images are all images of all rows; relevant is what belongs to the same product. With five captions for each
    image that is the protocol of COCO retrieval (X. Chen et al., arXiv:1504.00325; A. Karpathy and L. Fei-Fei, CVPR
    2015), whose "R@K" is `hit@K` here. Image -> image leaves out each query's own image.

    With `queries`, their texts search the images of all `items` (so pass the whole card), and backwards
    each relevant image searches the texts of the queries. A document id names a row and stands for every image of
    it: each is an item of the gallery, with the grade of the row.

    With a model that has one tower, images search images or texts search texts: each query finds the others of its
    product, and never itself. The texts of `queries` then search all captions of the rows.

    Args:
        model: Encodes texts and images.
        items: N rows.
        queries: A relevance file (`load_qrels`).
        missing: What to do with its document ids that `items` lacks.
        ks: Cut-offs of recall and hit.
        bootstrap: Resamples behind the 95 % intervals, by product; 0 for none.
        seed: Of the resamples.
        breakdown: Attributes to break the figures down by.
        batch_size: Rows embedded at a time.
        progress: Show progress bars.

    Raises:
        QrelsError: The relevance file does not fit the products.
        DataError: There are no images or no texts, or no query has a relevant item.
        ConfigError: There are `queries`, and the model has no text tower.
        UnknownName: No such attribute.
    """
    for attribute in breakdown:
        if attribute not in items.columns.attributes:
            raise UnknownName("attribute", attribute, items.columns.attributes)
    device = getattr(model, "device", None)
    if _is_one_sided(model):
        asked, gallery, relevance = _one_side(model, items, queries, missing)
        gallery = _embedded(gallery, model, batch_size=batch_size, progress=progress)
        asked = gallery if queries is None else _embedded(asked, model, batch_size=batch_size, progress=progress)
        directions = _one_direction(asked, gallery, relevance, items, model.config.similarity, ks, device)
    else:
        images, texts, relevance = _sides(items, queries, missing)
        if not relevance.counts.any():
            raise DataError(f"{items.card}, split {items.split}: no text belongs to any of the images")
        images = _embedded(images, model, batch_size=batch_size, progress=progress)
        texts = _embedded(texts, model, batch_size=batch_size, progress=progress)
        directions = _directions(
            texts,
            images,
            relevance,
            items,
            model.config.similarity,
            ks,
            image_to_image=queries is None,
            device=device,
        )
    report = Report(
        metrics={
            name: intervals(d.per_query, groups=d.groups, bootstrap=bootstrap, seed=seed)
            for name, d in directions.items()
        },
        chance={name: chance_levels(d.ranks, ks=ks) for name, d in directions.items()},
        protocol=_protocol(model, items, queries, directions, ks=ks, bootstrap=bootstrap, seed=seed),
    )
    tables = {a: _break_down(a, directions, items, bootstrap=bootstrap, seed=seed) for a in breakdown}
    return Evaluation(report, directions, tables, items)


def _sides(
    items: ItemDataset, queries: Qrels | None, missing: Literal["raise", "drop"]
) -> tuple[Side, Side, Relevance]:
    """Images and texts, without embeddings yet, and which images are relevant to which text."""
    images = _images_of(items)
    if queries is not None:
        return (images, *_asked(queries, images, items, missing))
    texts = _texts_of(items)
    return images, texts, Relevance.from_products(items.codes[texts.rows], items.codes[images.rows])


def _one_side(
    model: Encoder, items: ItemDataset, queries: Qrels | None, missing: Literal["raise", "drop"]
) -> tuple[Side, Side, Relevance]:
    """Queries and gallery of a model with one tower, without embeddings yet, and what is relevant to what."""
    (modality,) = model.config.modalities
    gallery = _images_of(items) if modality == "image" else _texts_of(items)
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


def _is_one_sided(model: Encoder) -> bool:
    return len(getattr(model.config, "modalities", ("image", "text"))) == 1


def check_measurable(model: Encoder, items: ItemDataset) -> None:
    """Refuse, before a training rather than after it, products on which a model with one tower cannot be measured.

    Raises:
        DataError: The products lack its side, or no two of them belong together.
    """
    if _is_one_sided(model):
        _one_side(model, items, None, "raise")


def _asked(
    queries: Qrels, gallery: Side, items: ItemDataset, missing: Literal["raise", "drop"]
) -> tuple[Side, Relevance]:
    """The texts of a relevance file, and which items of a gallery are relevant to them."""
    relevance = Relevance.from_qrels(queries, items.columns.ids.at(gallery.rows), missing=missing)
    rows = _best_rows(relevance, gallery.rows)
    return Side(NOTHING, rows, list(queries.ids), list(queries.texts)), relevance


def _images_of(items: ItemDataset) -> Side:
    """All images of all rows."""
    stored, with_images, numbers = items.gallery()
    if not len(with_images):
        raise DataError(f"{items.card}, split {items.split}: there are no images to search{_ALONE}")
    return Side(NOTHING, with_images, _keys(items, with_images, numbers, "image"), images=stored)


def _texts_of(items: ItemDataset) -> Side:
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


def _embedded(side: Side, model: Encoder, *, batch_size: int, progress: bool) -> Side:
    if side.texts is not None:
        embeddings = model.encode_text(side.texts, batch_size=batch_size, progress=progress)
    else:
        embeddings = model.encode_image(side.images, batch_size=batch_size, progress=progress)
    return replace(side, embeddings=np.asarray(embeddings, np.float32))


def _directions(
    texts: Side,
    images: Side,
    relevance: Relevance,
    items: ItemDataset,
    similarity: Similarity,
    ks: Sequence[int],
    *,
    image_to_image: bool,
    device: torch.device | None,
) -> dict[str, Direction]:
    def direction(queries: Side, gallery: Side, ranks: Ranks) -> Direction:
        groups = items.codes[queries.rows[ranks.judged]]
        return Direction(queries, gallery, ranks, per_query(ranks, ks=ks), groups, similarity)

    forward, backward = both_ways(texts.embeddings, images.embeddings, relevance, similarity=similarity, device=device)
    directions = {
        "text_to_image": direction(texts, images, forward),
        "image_to_text": direction(images, texts, backward),
    }
    codes = items.codes[images.rows]
    if image_to_image and len(np.unique(codes)) < len(codes):
        relevance = Relevance.from_products(codes, codes)
        directions |= _one_direction(images, images, relevance, items, similarity, ks, device)
    return directions


def _one_direction(
    queries: Side,
    gallery: Side,
    relevance: Relevance,
    items: ItemDataset,
    similarity: Similarity,
    ks: Sequence[int],
    device: torch.device | None,
) -> dict[str, Direction]:
    """Images search images, or texts search texts; what searches its own side does not find itself."""
    own = np.arange(len(gallery.keys)) if queries is gallery else None
    ranks = retrieval_ranks(
        queries.embeddings, gallery.embeddings, relevance, exclude=own, similarity=similarity, device=device
    )
    groups = items.codes[queries.rows[ranks.judged]]
    name = "image_to_image" if gallery.texts is None else "text_to_text"
    return {name: Direction(queries, gallery, ranks, per_query(ranks, ks=ks), groups, similarity, own)}


def _break_down(
    attribute: str, directions: Mapping[str, Direction], items: ItemDataset, *, bootstrap: int, seed: int
) -> dict[str, list[BreakdownRow]]:
    values = items.columns.attributes[attribute]
    return {
        name: breakdown(
            d.per_query,
            values.at(d.queries.rows[d.ranks.judged]),
            groups=d.groups,
            bootstrap=bootstrap,
            seed=seed,
        )
        for name, d in directions.items()
    }


def _protocol(
    model: Encoder,
    items: ItemDataset,
    queries: Qrels | None,
    directions: Mapping[str, Direction],
    *,
    ks: Sequence[int],
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    return {
        "card": items.card,
        "split": items.split,
        "data_fingerprint": items.fingerprint,
        "rows": len(items),
        "rows_left_out": len(items.skipped),
        **_sizes_of_rows(items, directions.values(), captions=queries is None),
        "relevance": f"qrels {queries.name}" if queries else "same product",
        "model_fingerprint": model.fingerprint,
        "computed": getattr(model, "computes", {}),
        "similarity": model.config.similarity,
        "directions": {name: _sizes(d, ks) for name, d in directions.items()},
        "ties": "expected",
        "intervals": {
            "level": 0.95,
            "method": "bootstrap by product",
            "where_all_resamples_agree": "Clopper-Pearson",
            "resamples": bootstrap,
            "seed": seed,
        },
        "versions": {
            "dualtower": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        },
    }


def _sizes_of_rows(items: ItemDataset, directions: Collection[Direction], *, captions: bool) -> dict[str, Any]:
    """How many captions and images the rows have."""
    sizes: dict[str, Any] = {}
    if captions and any(direction.gallery.texts is not None for direction in directions):
        total = sum(map(len, items.columns.texts))
        sizes |= {"captions": total, "captions_per_row": total / len(items)}
    with_images = [len(direction.gallery.keys) for direction in directions if direction.gallery.images is not None]
    return sizes | ({"images": with_images[0], "images_per_row": with_images[0] / len(items)} if with_images else {})


def _sizes(direction: Direction, ks: Sequence[int]) -> dict[str, Any]:
    """What one must know of a direction to read its figures."""
    ranks = direction.ranks

    def bound(ties: TieRule) -> dict[str, float]:
        return {
            name: figure.value for name, figure in intervals(per_query(ranks, ks=ks, ties=ties), bootstrap=0).items()
        }

    return {
        "queries": len(ranks.judged),
        "queries_without_relevant": len(ranks) - len(ranks.judged),
        "gallery": len(direction.gallery.rows),
        "own_row_excluded": direction.exclude is not None,
        "relevant_per_query": len(ranks.items) / len(ranks.judged),
        "queries_with_ties": len(np.unique(ranks.queries[ranks.tied > 0])),
        "chance": chance_levels(ranks, ks=ks),
        "optimistic": bound("optimistic"),
        "pessimistic": bound("pessimistic"),
    }
