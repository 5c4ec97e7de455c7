"""Which rows of the joined batch belong together: positives are a mask, not a diagonal.

The masks come from product codes, block by block, so that a tiled loss never needs the whole one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dualtower.errors import ConfigError, UnknownName

__all__ = ["EVERYTHING", "Positives", "Relations", "prepare"]

Positives = Literal["product", "ignore", "pair"]
"""What another row of the same product is to an anchor.

``product``
    A positive, like its own pair. The rule everywhere in dualtower, and "false negative attraction" in Huynh
    et al., "Boosting Contrastive Self-Supervised Learning with False Negative Cancellation" (WACV 2022).
``ignore``
    Neither positive nor negative: only the own pair attracts ("false negative elimination" there).
``pair``
    A negative, as in plain CLIP. It is here to be compared with.
"""

EVERYTHING = slice(None)


@dataclass(frozen=True)
class Relations:
    """How the rows of a joined batch relate, as two numberings of its rows (int32 ``[N]``).

    Rows are positives of each other where `same` is equal, negatives where `near` differs, and neither where
    only `near` is equal.
    """

    same: Tensor
    near: Tensor

    @classmethod
    def of(cls, product_codes: Tensor, positives: Positives = "product") -> Relations:
        """Number the rows of a batch.

        Args:
            product_codes: Product codes, int64 ``[N]``.
            positives: What another row of the same product is.

        Raises:
            UnknownName: No such kind of positives.
        """
        if positives not in get_args(Positives):
            raise UnknownName("kind of positives", positives, get_args(Positives))
        rows = torch.arange(len(product_codes), device=product_codes.device, dtype=torch.int32)
        if positives == "pair":
            return cls(rows, rows)
        groups = torch.unique(product_codes, return_inverse=True)[1].to(torch.int32)  # half the bytes to compare
        return cls(groups, groups) if positives == "product" else cls(rows, groups)

    def positive(self, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> Tensor:
        """Mask of the positive pairs of one block, bool ``[R, C]``."""
        return self.same[rows].unsqueeze(1) == self.same[columns]

    def negative(self, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> Tensor:
        """Mask of the negative pairs of one block, bool ``[R, C]``."""
        return self.near[rows].unsqueeze(1) != self.near[columns]

    def ignored(self, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> Tensor | None:
        """Mask of the pairs that are neither, bool ``[R, C]``, or None where there can be none."""
        if self.near is self.same:
            return None
        return ~(self.positive(rows, columns) | self.negative(rows, columns))

    def counts(self) -> tuple[Tensor, Tensor]:
        """Count the positives of each row and the rows that are not ignored by it, int64 ``[N]`` each."""
        positives = torch.bincount(self.same)[self.same]
        return positives, len(self.same) - torch.bincount(self.near)[self.near] + positives


def prepare(image: Tensor, text: Tensor, product_codes: Tensor) -> tuple[Tensor, Tensor]:
    """Check the shapes of a joined batch and promote half precision to float32.

    Raises:
        ConfigError: The shapes do not fit each other.
    """
    if image.ndim != 2 or image.shape != text.shape or product_codes.shape != image.shape[:1] or not len(image):
        raise ConfigError(
            f"a loss takes image [N, D], text [N, D] and products [N] of one joined batch, N > 0, not "
            f"{list(image.shape)}, {list(text.shape)} and {list(product_codes.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    return image.to(dtype), text.to(dtype)
