"""Where and in what the commands compute, told in one line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dualtower.models.dual_tower import DualTower
    from dualtower.models.precision import WantedPrecision

__all__ = ["say_where", "to_place"]


def to_place(model: DualTower, device: str, precision: WantedPrecision = "auto") -> DualTower:
    """Move a model to the device that a command was told, and say so on stderr."""
    placed = model.placed(device, precision)
    say_where(placed)
    return placed


def say_where(model: DualTower) -> None:
    """One line on stderr, where it mixes with no result."""
    from dualtower.device import computing_line

    print(computing_line(model.computes), file=sys.stderr)
