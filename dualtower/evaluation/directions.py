"""One way of searching: exact ranks, and what each query achieved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dualtower.data.items import ItemDataset
from dualtower.evaluation.metrics import per_query
from dualtower.evaluation.ranks import Ranks, both_ways, retrieval_ranks
from dualtower.evaluation.relevance import Relevance
from dualtower.evaluation.sides import Side
from dualtower.evaluation.topk import top_k
from dualtower.losses.similarity import Similarity

__all__ = ["Direction", "one_sided_direction", "two_sided_directions"]


@dataclass(frozen=True, eq=False)
class Direction:
    """One way of searching. Arrays over queries have an entry for each query with a relevant item.

    Attributes:
        queries: All queries.
        gallery: What is searched.
        ranks: Exact ranks.
        per_query: Metric -> float64 ``[N_q]``.
        groups: Product code of each query, int64 ``[N_q]``.
        similarity: Similarity of the model.
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


def two_sided_directions(
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
        directions |= one_sided_direction(images, images, relevance, items, similarity, ks, device)
    return directions


def one_sided_direction(
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
