"""Whether embeddings still tell rows apart, or have collapsed into a point or onto a few directions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["Spread", "spread"]

POINT, DIRECTIONS = 0.02, 2.0


@dataclass(frozen=True)
class Spread:
    """How far embeddings lie apart.

    Attributes:
        deviation: Standard deviation of a coordinate of the unit vectors times the square root of their width, averaged
            over the coordinates: 1 where directions are spread evenly, 0 where all are one (X. Chen and K. He 2020,
            https://arxiv.org/abs/2011.10566, section 4.1).
        effective_rank: The exponential of the entropy of the centered vectors' singular values (O. Roy and M. Vetterli
            2007, "The effective rank"): how many directions they fill.
    """

    deviation: float
    effective_rank: float

    @property
    def collapsed(self) -> bool:
        """Whether all rows have become (nearly) one point, or lie on a line."""
        return self.deviation < POINT or self.effective_rank < DIRECTIONS


def spread(embeddings: np.ndarray) -> Spread:
    """Measure how far embeddings lie apart.

    Args:
        embeddings: float ``[N, D]`` of any lengths, of rows that differ.
    """
    vectors = embeddings.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
    deviation = float(vectors.std(0).mean() * math.sqrt(vectors.shape[1]))
    singular = np.linalg.svd(vectors - vectors.mean(0), compute_uv=False)
    shares = singular / max(singular.sum(), 1e-12)
    shares = shares[shares > 1e-12]
    return Spread(deviation, float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0)
