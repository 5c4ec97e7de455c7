"""Which rows make a split: named splits of the source, or a rule by hash where the source has only one."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from dualtower.data.cards import DataCard, is_pattern
from dualtower.data.layout import SPLIT_WORDS
from dualtower.data.sources import OpenSource, open_source
from dualtower.errors import CardError, UnknownSplit, brief, did_you_mean

__all__ = ["EVERYTHING", "Share", "hashed", "split_names", "split_parts"]

Share = tuple[float, float]  # rows whose hash lies in [low, high)
EVERYTHING: Share = (0.0, 1.0)
HELD_OUT = {"validation", "test"}

logger = logging.getLogger(__name__)


def split_names(card: DataCard, *, source: str | Path | None = None) -> list[str]:
    """The splits that `load_items` knows for this card and source, without ``all``.

    Raises:
        SourceError: The source is missing, empty or unreadable.
        CardError: The card's splits do not fit its source.
    """
    if card.source.synthetic is not None:
        from dualtower.data.synthetic.catalog import SPLITS

        return list(SPLITS)
    opened = open_source(card, source=source)
    return list(_named(card, opened)) or list(_hash_ranges(card))


def split_parts(card: DataCard, opened: OpenSource, split: str) -> list[tuple[str, Share]]:
    """The splits of the source that `split` is made of, each with the range of hashes that belongs to it.

    Raises:
        UnknownSplit: There is no such split.
        CardError: The card names a split that the source lacks.
    """
    if named := _named(card, opened):
        if split == "all":
            return [(name, EVERYTHING) for name in dict.fromkeys(named.values())]
        if split not in named:
            raise UnknownSplit(f"split of {card.name}", split, [*named, "all"])
        return [(named[split], EVERYTHING)]
    ranges = {**_hash_ranges(card), "all": EVERYTHING}
    if split not in ranges:
        raise UnknownSplit(f"split of {card.name}", split, ranges)
    (whole,) = opened.splits
    return [(whole, ranges[split])]


def hashed(codes: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each value, given by its `product_code`: the same on every machine, in every run."""
    return codes.astype(np.float64) / 2.0**63


def _named(card: DataCard, opened: OpenSource) -> dict[str, str]:
    """Split -> split of the source; empty where the source is to be divided by hash."""
    wanted = card.splits.named or {name: name for name in opened.splits}
    named = {split: split if is_pattern(name) else name for split, name in wanted.items()}
    lacking = {split: name for split, name in named.items() if name not in opened.splits}
    # A single split may be all that there is of a source, as long as the card names no more than the usual splits.
    is_alone = len(opened.splits) == 1 and all(split == name for split, name in lacking.items())
    if is_alone and card.splits.by_hash is not None and not opened.splits.keys() & HELD_OUT:
        return {}
    if lacking and not (is_alone and len(lacking) < len(named)):
        split, name = next(iter(lacking.items()))
        raise CardError(
            f"{opened.where}: no split {brief(name, 40)!r}, which the card names as {brief(split, 40)}; the source has "
            f"{brief(', '.join(opened.splits))}.{did_you_mean(SPLIT_WORDS.get(name, name), opened.splits)}"
        )
    if lacking:
        logger.warning("%s has no split %s, only %s", opened.where, ", ".join(lacking), ", ".join(opened.splits))
    return {split: name for split, name in named.items() if split not in lacking}


def _hash_ranges(card: DataCard) -> dict[str, Share]:
    rule = card.splits.by_hash
    assert rule is not None
    held_out = rule.test + rule.validation
    return {"train": (held_out, 1.0), "validation": (rule.test, held_out), "test": (0.0, rule.test)}
