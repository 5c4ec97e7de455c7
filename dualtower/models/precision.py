"""The precision and the memory order in which each tower computes; and which of them is fastest here.

Whether bfloat16 pays depends on the processor, the network and the size of its inputs: with AVX-512 but without AMX,
convolutions can gain two thirds while the matrices of a text tower lose as much. So it is measured, tower by tower:
on one core, by that core's own time, so that other processes on the machine do not sway the choice.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:  # torch too: a catalog on disk knows its precision, and is opened without torch
    import torch
    from torch import Tensor

    from dualtower.models.dual_tower import DualTower
    from dualtower.models.towers import Tower
    from dualtower.types import Features

__all__ = [
    "Precision",
    "TowerPrecision",
    "WantedPrecision",
    "computed",
    "inference_precision",
    "measure_precision",
    "preferred",
]

Precision = Literal["fp32", "bf16"]
WantedPrecision = Literal["auto", "fp32", "bf16"]
C = TypeVar("C")

GAIN = 1.1
"""How many times faster something less exact, or less usual, must be to be taken."""
ROWS, PASSES = 32, 2
"""Most rows of a timed pass, and passes of each candidate, of which the best counts."""


@dataclass(frozen=True)
class TowerPrecision:
    """How each tower computes; what stands on the towers, and the loss, computes in float32."""

    text: Precision = "fp32"
    """Precision of the text tower."""
    image: Precision = "fp32"
    """Precision of the image tower."""
    channels_last: bool | None = None
    """Memory order of the image tower's convolutions; None leaves it to the tower."""

    def __str__(self) -> str:
        order = ", contiguous" if self.channels_last is False else ""
        return f"text {self.text}, image {self.image}{order}"


def computed(tower: Tower, precision: Precision | None, *inputs: Tensor) -> Features:
    """What a tower makes of its inputs in a precision of its own; with None, in that of the autocast around it.

    Returns:
        Where a precision is given, float32 features, whatever they were computed in.
    """
    import torch

    device_type = inputs[0].device.type
    features: Features
    if precision is None or (precision == "fp32" and not torch.is_autocast_enabled(device_type)):
        features = tower(*inputs)
        return features
    with torch.autocast(device_type, torch.bfloat16, enabled=precision == "bf16"):
        features = tower(*inputs)
    return features._replace(pooled=features.pooled.float(), tokens=features.tokens.float())


def inference_precision(device: torch.device, wanted: WantedPrecision = "auto") -> TowerPrecision:
    """Return what the towers embed in where nothing is measured.

    Args:
        device: Where the model is.
        wanted: ``fp32``, ``bf16``, or ``auto``: bfloat16 on an accelerator that has it, else float32. On processors
            figures are then the same on every machine, up to rounding.
    """
    import torch

    if wanted == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        wanted = "bf16" if native else "fp32"
    return TowerPrecision(wanted, wanted)


def preferred(seconds: Mapping[C, float], gain: float = GAIN) -> C:
    """The first candidate that no other one outruns by more than `gain`.

    Args:
        seconds: Candidate -> time, the most exact and most usual candidate first.
        gain: Factor.
    """
    limit = gain * min(seconds.values())
    return next(candidate for candidate, taken in seconds.items() if taken <= limit)


def measure_precision(
    model: DualTower,
    tokens: Mapping[str, Tensor] | None,
    *,
    learns: tuple[bool, bool] = (False, False),
    seconds: float = 2.0,
    clock: Callable[[], float] = time.thread_time,
) -> TowerPrecision:
    """Try the towers on the processor in float32 and bfloat16, the image tower in both memory orders, and choose.

    The model, its statistics, the global random state and torch's threads stay as they are.

    Args:
        model: On the CPU.
        tokens: Texts such as it will see, ``[B, L]``, None where it has no text tower; images are made up, of its own
            size.
        learns: Whether the text and the image tower will also go backwards.
        seconds: Most time of one core to spend, about. Two rows are the least to pass, however slow the model.
        clock: Clock of this thread's work, in seconds.

    Returns:
        That of a tower which the model lacks is float32.
    """
    import torch

    settings, config, tower = model.config.image_settings, model.config.image, model.image_tower
    text: Precision = "fp32"
    image, channels_last = text, None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            pixels = torch.randint(0, 256, (ROWS, 3, settings.height, settings.width), dtype=torch.uint8)
            if model.text_tower is not None and tokens is not None:
                words = (tokens["input_ids"][:ROWS], tokens["attention_mask"][:ROWS])
                text, _ = preferred(_times(model.text_tower, words, (True,), learns[0], seconds / 4, clock))
            if tower is not None and config is not None:
                own = getattr(tower, "memory_format", None) != torch.contiguous_format
                orders = (own,) if learns[1] and config.channels_last is not None else (own, not own)
                seen = _times(tower, (pixels,), orders, learns[1], 3 * seconds / 4, clock)
                image, channels_last = preferred(seen)
    finally:
        torch.set_num_threads(threads)
    return TowerPrecision(text, image, channels_last)


def _times(
    tower: Tower,
    inputs: tuple[Tensor, ...],
    orders: Sequence[bool],
    learns: bool,
    seconds: float,
    clock: Callable[[], float],
) -> dict[tuple[Precision, bool], float]:
    """Candidate -> time of a pass; the candidates take turns."""
    import torch

    tower = copy.deepcopy(tower).train(learns)

    def one_pass(precision: Precision, channels_last: bool, rows: int) -> float:
        tower.order_memory(channels_last=channels_last)
        start = clock()
        with torch.set_grad_enabled(learns):
            pooled = computed(tower, precision, *(part[:rows] for part in inputs)).pooled
            if learns:
                pooled.sum().backward()
        taken = clock() - start
        tower.zero_grad()
        return taken

    candidates: list[tuple[Precision, bool]] = [(p, order) for p in ("fp32", "bf16") for order in orders]
    share = seconds / (len(candidates) * (PASSES + 1))
    per_row = min(one_pass(*candidates[0], 2) for _ in range(2)) / 2
    rows = max(2, int(min(share / max(per_row, 1e-9), ROWS)))
    times: dict[tuple[Precision, bool], float] = {}
    for number in range(PASSES + 1):
        for candidate in candidates:
            taken = one_pass(*candidate, rows)
            if number:  # the first pass of each prepares its kernels
                times[candidate] = min(taken, times.get(candidate, taken))
    return times
