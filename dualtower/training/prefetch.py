"""Batches on the model's device, each on its way while the one before it is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from dualtower.types import Batch

__all__ = ["on_device"]


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Move batches to the device, on a GPU one batch ahead and beside the computation.

    The copies run in a stream of their own, and in truth at the same time only from pinned memory (see
    `Batch.pin_memory`).
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    copying = torch.cuda.Stream(device)
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            coming = batch.to(device, non_blocking=True), copying.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = coming
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """Let the computation wait for the copy, and its memory live until the computation is done with it."""
    stream = torch.cuda.current_stream(batch.product_codes.device)
    stream.wait_event(copied)

    def lent(tensor: torch.Tensor) -> torch.Tensor:
        tensor.record_stream(stream)
        return tensor

    return batch.each(lent)
