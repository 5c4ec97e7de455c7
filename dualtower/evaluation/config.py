"""What an evaluation can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["EvaluationConfig"]


@dataclass(frozen=True)
class EvaluationConfig:
    """How the finished model is measured."""

    split: str = "test"
    """Split to measure on."""
    ks: tuple[int, ...] = (1, 5, 10)
    """Cut-offs of recall@K and hit@K."""
    qrels: Path | None = None
    """Relevance file (Marqo JSON or TREC); the gallery is then the whole card."""
    breakdown: tuple[str, ...] = ()
    """Attributes to break the figures down by."""
    bootstrap: int = 1000
    """Resamples behind the 95 % intervals."""
    batch_size: int = 256
    """Rows embedded at a time."""
    rerank: int = 50
    """How many of each query's best hits a re-ranker puts in order again, where the model has one."""
