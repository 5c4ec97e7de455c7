"""Which gallery items are relevant to which query, stored sparsely: memory grows with the relevant pairs only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dualtower.errors import ConfigError, QrelsError
from dualtower.evaluation.qrels import Qrels

__all__ = ["Relevance", "self_positions"]


@dataclass(frozen=True, eq=False)
class Relevance:
    """Relevant gallery positions of each query, with grades, in compressed rows.

    Query `q` owns the entries ``starts[q]:starts[q + 1]``.

    Attributes:
        starts: int64 ``[Q + 1]``.
        items: Gallery positions, int64 ``[N]``, ascending within a query.
        grades: float64 ``[N]``, above 0; 1 where relevance is binary.
        gallery_size: Number of gallery items G.
    """

    starts: np.ndarray
    items: np.ndarray
    grades: np.ndarray
    gallery_size: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> np.ndarray:
        """Number of relevant items of each query, int64 ``[Q]``."""
        return np.diff(self.starts)

    @property
    def queries(self) -> np.ndarray:
        """Query position of each entry, int64 ``[N]``."""
        return np.repeat(np.arange(len(self)), self.counts)

    @classmethod
    def from_pairs(
        cls,
        queries: Sequence[int] | np.ndarray,
        items: Sequence[int] | np.ndarray,
        grades: Sequence[float] | np.ndarray | None = None,
        *,
        shape: tuple[int, int],
    ) -> Relevance:
        """Build from (query position, gallery position) pairs in any order.

        Args:
            queries: int ``[N]``.
            items: int ``[N]``.
            grades: ``[N]``, or None for 1 everywhere.
            shape: Number of queries and of gallery items.

        Raises:
            ConfigError: A position is out of range, a pair is given twice, or a grade is not above 0.
        """
        q, g = np.asarray(queries, np.int64), np.asarray(items, np.int64)
        values = np.ones(len(q)) if grades is None else np.asarray(grades, np.float64)
        if len(q) and not (q.min() >= 0 and q.max() < shape[0] and g.min() >= 0 and g.max() < shape[1]):
            raise ConfigError(f"a relevant pair lies outside {shape[0]} queries x {shape[1]} gallery items")
        if not np.all(values > 0):
            raise ConfigError("grades of relevant items must be above 0; leave out what is irrelevant")
        order = np.lexsort((g, q))
        q, g, values = q[order], g[order], values[order]
        if np.any((np.diff(q) == 0) & (np.diff(g) == 0)):
            raise ConfigError("a (query, item) pair is given twice")
        return cls(np.searchsorted(q, np.arange(shape[0] + 1)), g, values, shape[1])

    @classmethod
    def from_products(
        cls, query_products: Sequence[str] | np.ndarray, gallery_products: Sequence[str] | np.ndarray
    ) -> Relevance:
        """Relevant is what shows the same product.

        Args:
            query_products: Product ids or codes, length Q.
            gallery_products: Product ids or codes, length G.
        """
        q, g = np.asarray(query_products), np.asarray(gallery_products)
        order = np.argsort(g, kind="stable")
        first = np.searchsorted(g, q, side="left", sorter=order)
        counts = np.searchsorted(g, q, side="right", sorter=order) - first
        starts = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
        items = order[np.repeat(first, counts) + within]  # the stable sort keeps positions ascending
        return cls(starts, items, np.ones(len(items)), len(g))

    @classmethod
    def from_qrels(
        cls, qrels: Qrels, gallery_ids: Sequence[str], *, missing: Literal["raise", "drop"] = "raise"
    ) -> Relevance:
        """Look the documents of a relevance file up in the gallery.

        Args:
            qrels: Q queries.
            gallery_ids: Row ids, length G. Where several items have one id (images of one row), a document of that
                id stands for each of them.
            missing: ``drop`` leaves out documents that the gallery lacks.

        Raises:
            QrelsError: Documents are not in the gallery (with ``raise``), or none of them is.
        """
        positions: dict[str, list[int]] = {}
        for i, row in enumerate(gallery_ids):
            positions.setdefault(row, []).append(i)
        judged = [(q, doc, grade) for q, docs in enumerate(qrels.relevant) for doc, grade in docs.items()]
        found = [(q, item, grade) for q, doc, grade in judged for item in positions.get(doc, ())]
        lost = sorted({doc for _, doc, _ in judged if doc not in positions})
        if lost and (missing == "raise" or not found):
            shown = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
            raise QrelsError(
                f"{len(lost)} document ids of {qrels.name} are not among the {len(positions)} ids of the gallery: "
                f"{shown}. Measure on the whole card, or drop them with missing='drop'"
            )
        queries, items, grades = np.array(found, np.float64).reshape(-1, 3).T
        return cls.from_pairs(queries, items, grades, shape=(len(qrels), len(gallery_ids)))

    def transpose(self) -> Relevance:
        """The same pairs with the gallery as queries: int ``[G]`` queries over Q items."""
        return Relevance.from_pairs(self.items, self.queries, self.grades, shape=(self.gallery_size, len(self)))

    def without(self, excluded: np.ndarray) -> Relevance:
        """Leave out one gallery position per query.

        Args:
            excluded: int ``[Q]``, -1 for none.
        """
        keep = self.items != np.asarray(excluded)[self.queries]
        starts = np.concatenate([[0], np.cumsum(keep)])[self.starts]
        return Relevance(starts, self.items[keep], self.grades[keep], self.gallery_size)


def self_positions(query_ids: Sequence[str], gallery_ids: Sequence[str]) -> np.ndarray:
    """Gallery position of each query's own row, int64 ``[Q]``, -1 where the gallery lacks it."""
    position = {row: i for i, row in enumerate(gallery_ids)}
    return np.array([position.get(row, -1) for row in query_ids], np.int64)
