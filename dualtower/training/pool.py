"""Which rows a training without labels may see: none whose image is held out to measure it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dualtower.data.items import ItemDataset
from dualtower.errors import DataError
from dualtower.evaluation import Section

__all__ = ["Pool", "pretraining_pool"]


@dataclass(frozen=True, eq=False)
class Pool:
    """The rows of a self-supervised training.

    Attributes:
        items: The rows.
        left_out: Rows of the training split whose image, byte for byte, is held out too.
        transductive: Whether the held-out images are among them.
    """

    items: ItemDataset
    left_out: int
    transductive: bool

    def section(self) -> Section:
        """What the report says of it."""
        items, split = self.items, self.items.split
        said = f"Trained on {len(items):,} rows of {items.card} ({split}), fingerprint `{items.fingerprint}`."
        if self.transductive:
            said += (
                " **Transductive**: the images of the validation and the test split, but no label of them, were "
                "trained on, so that the figures do not hold for images that are new."
            )
        elif self.left_out:
            said += f" {self.left_out:,} rows of the training split were left out, whose images are held out as well."
        figures = {
            "rows": len(items),
            "split": split,
            "fingerprint": items.fingerprint,
            "left_out": self.left_out,
            "transductive": self.transductive,
        }
        return Section("pool", "Training images", said, figures)


def pretraining_pool(train: ItemDataset, held_out: Sequence[ItemDataset], *, transductive: bool) -> Pool:
    """The rows to train on: those of the training split but copies of held-out images, or, transductive, all rows.

    Args:
        train: Training split.
        held_out: The other splits.
        transductive: Whether to train on their images too.

    Raises:
        DataError: Every image of the training split is held out as well.
    """
    if transductive:
        return Pool(ItemDataset.concatenate([train, *held_out]), 0, True)
    measured = {digest for items in held_out for digest in items.image_digests}
    kept = [row for row, digest in enumerate(train.image_digests) if digest not in measured]
    if not kept:
        raise DataError(f"{train.card}: all {len(train):,} images of the training split are held out as well")
    return Pool(train.select(kept) if len(kept) < len(train) else train, len(train) - len(kept), False)
