"""torch.compile, where it pays."""

from __future__ import annotations

import logging

from dualtower.models.dual_tower import DualTower

__all__ = ["compile_towers"]

logger = logging.getLogger(__name__)


def compile_towers(model: DualTower) -> None:
    """Compile the towers in place; the heads and the loss are too small to gain.

    Every batch is padded to its own longest text, so the text tower is compiled for all lengths at once: a program
    made for one length would be made anew in nearly every step. A tower of which the compiler can make no such program
    stays as it is, and the log says so.
    """
    if model.image_tower is not None:
        model.image_tower.compile()
    if model.text_tower is None or model.config.text is None:
        return
    if model.text_tower.compiles_for_all_lengths:
        model.text_tower.compile(dynamic=True)
    else:
        logger.warning(
            "the text tower %r is not compiled: torch.compile would compile it anew for every length of text",
            model.config.text.name,
        )
