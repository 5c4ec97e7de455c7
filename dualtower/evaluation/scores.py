"""What the score of a pair is, to the last bit, and how far a fast product may stray from it.

The score of a pair is its dot product (or minus half its squared distance) in float64, rounded to float32.
Two items tie when these numbers are equal. A blocked float32 product gives slightly different bits for
the same pair in blocks of different shape, so it only decides the clear cases; `Scores.exact` decides the rest.
Ranks therefore depend neither on the block size, nor on threads, nor on the order of the gallery.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch
from torch import Tensor

from dualtower.errors import ConfigError
from dualtower.losses.similarity import Similarity

__all__ = ["Scores"]

_UNIT_ROUNDOFF = 2.0**-24
_PAIR_NUMBERS = 1 << 20  # float64 numbers per side that `exact` holds at a time: 8 MB


class Scores:
    """Scores between Q queries and G gallery items.

    Rounding errors of a float32 dot product of D terms behave like a random walk and stay below a small
    multiple of ``sqrt(D) u |q| |g|`` (N. J. Higham and T. Mary, "A new approach to probabilistic rounding error
    analysis", SIAM J. Sci. Comput. 41(5), 2019). `row_slack` and `column_slack` are twice that: six standard
    deviations in the worst case, in which all terms have one sign and the vectors are parallel.

    Args:
        queries: Embeddings ``[Q, D]``, cast to float32.
        gallery: Embeddings ``[G, D]``.
        similarity: ``cosine`` (rows are normalized where they are not), ``dot``, or ``euclidean`` (the smaller
            the distance, the higher the score).

    Attributes:
        row_slack: Largest difference between a fast and an exact score of each query, float32 ``[Q]``.
        column_slack: The same for each gallery item, float32 ``[G]``.

    Raises:
        ConfigError: Wrong shapes, numbers that are not finite, or an unknown similarity.
    """

    def __init__(
        self, queries: np.ndarray | Tensor, gallery: np.ndarray | Tensor, similarity: Similarity = "cosine"
    ) -> None:
        if similarity not in get_args(Similarity):
            raise ConfigError(f"no similarity {similarity!r}; known: {', '.join(get_args(Similarity))}")
        self.similarity = similarity
        self.queries, query_norms = _checked(queries, "queries", unit=similarity == "cosine")
        self.gallery, gallery_norms = _checked(gallery, "gallery", unit=similarity == "cosine")
        if self.queries.shape[1] != self.gallery.shape[1]:
            raise ConfigError(
                f"queries have {self.queries.shape[1]} dimensions, the gallery has {self.gallery.shape[1]}"
            )
        left, right = self.queries, self.gallery
        if similarity == "euclidean":  # -|q - g|^2 / 2 = q.g - |q|^2 / 2 - |g|^2 / 2, as one product
            left = np.column_stack([left, -(query_norms**2) / 2, np.ones_like(query_norms)]).astype(np.float32)
            right = np.column_stack([right, np.ones_like(gallery_norms), -(gallery_norms**2) / 2]).astype(np.float32)
            query_norms, gallery_norms = _norms(left), _norms(right)
        self._left, self._right = torch.from_numpy(left), torch.from_numpy(right)
        unit = (2 * np.sqrt(left.shape[1]) + 4) * _UNIT_ROUNDOFF
        self.row_slack = (unit * query_norms * gallery_norms.max(initial=0)).astype(np.float32)
        self.column_slack = (unit * gallery_norms * query_norms.max(initial=0)).astype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of queries and of gallery items."""
        return len(self.queries), len(self.gallery)

    def block(self, rows: slice | np.ndarray, columns: slice, out: Tensor) -> None:
        """Write the fast scores of a block of pairs to `out`, float32."""
        torch.mm(self._left[rows], self._right[columns].T, out=out)

    def block_on(self, device: torch.device, rows: slice, columns: slice) -> Tensor:
        """The fast scores of a block of pairs, computed on a device."""
        return torch.mm(self._left[rows].to(device), self._right[columns].to(device).T)

    def exact(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The scores of pairs.

        Args:
            rows: Query positions, int ``[N]``.
            columns: Gallery positions, int ``[N]``.

        Returns:
            float32 ``[N]``.
        """
        scores = np.empty(len(rows), np.float32)
        step = max(1, _PAIR_NUMBERS // max(1, self.queries.shape[1]))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            q = self.queries[rows[part]].astype(np.float64)
            g = self.gallery[columns[part]].astype(np.float64)
            if self.similarity == "euclidean":
                q -= g
                scores[part] = np.einsum("nd,nd->n", q, q) / -2
            else:
                scores[part] = np.einsum("nd,nd->n", q, g)
        return scores


def _checked(vectors: np.ndarray | Tensor, what: str, *, unit: bool) -> tuple[np.ndarray, np.ndarray]:
    """Float32 rows in one piece of memory, and their norms."""
    array = vectors.detach().cpu().float().numpy() if isinstance(vectors, Tensor) else np.asarray(vectors)
    if array.ndim != 2:
        raise ConfigError(f"{what} must be embeddings [N, D], not an array of shape {array.shape}")
    array = np.ascontiguousarray(array, dtype=np.float32)
    norms = _norms(array)
    broken = np.flatnonzero(~np.isfinite(norms))
    if len(broken):
        raise ConfigError(f"{what}: {len(broken)} of {len(array)} embeddings are not finite, first row {broken[0]}")
    if unit and np.any(np.abs(norms - 1) > 1e-5):
        array = array / np.maximum(norms, np.finfo(np.float32).tiny)[:, None].astype(np.float32)
        norms = _norms(array)
    return array, norms


def _norms(array: np.ndarray) -> np.ndarray:
    """Lengths of the rows, float64 ``[N]``."""
    norms = np.empty(len(array))
    for start in range(0, len(array), 4096):
        part = array[start : start + 4096].astype(np.float64)
        norms[start : start + 4096] = np.sqrt(np.einsum("nd,nd->n", part, part))
    return norms
