"""Measure a model on products: embed once, rank exactly in every direction, report with protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dualtower.data.items import ItemDataset
from dualtower.errors import DataError, UnknownName
from dualtower.evaluation.bootstrap import intervals
from dualtower.evaluation.breakdown import BreakdownRow, breakdown
from dualtower.evaluation.directions import Direction, one_sided_direction, two_sided_directions
from dualtower.evaluation.metrics import chance_levels
from dualtower.evaluation.protocol import protocol_of
from dualtower.evaluation.qrels import Qrels
from dualtower.evaluation.reports.report import Report
from dualtower.evaluation.sides import Encoder, embedded, is_one_sided, one_side, two_sides

__all__ = ["Evaluation", "evaluate"]


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
        seed: Seed of the resamples.
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
    directions = _searched(model, items, queries, missing, ks, batch_size=batch_size, progress=progress)
    report = Report(
        metrics={
            name: intervals(d.per_query, groups=d.groups, bootstrap=bootstrap, seed=seed)
            for name, d in directions.items()
        },
        chance={name: chance_levels(d.ranks, ks=ks) for name, d in directions.items()},
        protocol=protocol_of(model, items, queries, directions, ks=ks, bootstrap=bootstrap, seed=seed),
    )
    tables = {a: _break_down(a, directions, items, bootstrap=bootstrap, seed=seed) for a in breakdown}
    return Evaluation(report, directions, tables, items)


def _searched(
    model: Encoder,
    items: ItemDataset,
    queries: Qrels | None,
    missing: Literal["raise", "drop"],
    ks: Sequence[int],
    **encoding: Any,
) -> dict[str, Direction]:
    """Embed each side once, and rank in every direction that the model has towers for."""
    similarity, device = model.config.similarity, getattr(model, "device", None)
    if is_one_sided(model):
        asked, gallery, relevance = one_side(model, items, queries, missing)
        gallery = embedded(gallery, model, **encoding)
        asked = gallery if queries is None else embedded(asked, model, **encoding)
        return one_sided_direction(asked, gallery, relevance, items, similarity, ks, device)
    images, texts, relevance = two_sides(items, queries, missing)
    if not relevance.counts.any():
        raise DataError(f"{items.card}, split {items.split}: no text belongs to any of the images")
    images, texts = embedded(images, model, **encoding), embedded(texts, model, **encoding)
    among_images = queries is None
    return two_sided_directions(
        texts, images, relevance, items, similarity, ks, image_to_image=among_images, device=device
    )


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
