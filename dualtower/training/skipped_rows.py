"""Rows whose images broke while a run went on: counted, named once, and listed in its report."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed as dist

from dualtower.data.loading import OnError, with_advice
from dualtower.errors import BrokenImage, RowError
from dualtower.sharding import rank, world_size

__all__ = ["SkippedRows"]

logger = logging.getLogger(__name__)

Entry = tuple[str, str, str, int]  # where, row, reason, times


class SkippedRows:
    """What this process met, and what all of them met before a stop.

    Args:
        on_error: ``raise`` stops at the first such row; ``skip`` goes on.
    """

    def __init__(self, on_error: OnError) -> None:
        self.on_error = on_error
        self._entries: dict[str, Entry] = {}

    def note(self, errors: Iterable[RowError]) -> None:
        """Take down the errors of one batch.

        Raises:
            BrokenImage: There is one, and rows are not to be skipped.
        """
        for error in errors:
            if self.on_error == "raise":
                raise with_advice(error)
            row = str(error.row)
            if row not in self._entries:
                logger.warning("%s; other rows of its batches stand in for it", error)
            self._add((error.where, row, error.reason, 1))

    def restore(self, entries: Sequence[Sequence[Any]]) -> None:
        """Go on from a checkpoint, which holds what all processes met: one of them takes it over."""
        if rank() == 0:
            for where, row, reason, times in entries:
                self._add((where, row, reason, times))

    def everywhere(self) -> list[Entry]:
        """What all processes met; all of them must ask."""
        parts: list[list[Entry]] = [list(self._entries.values())]
        if world_size() > 1:
            parts = [[] for _ in range(world_size())]
            dist.all_gather_object(parts, list(self._entries.values()))
        joined = SkippedRows("skip")
        for entry in (entry for part in parts for entry in part):
            joined._add(entry)
        return sorted(joined._entries.values())

    def errors(self) -> list[RowError]:
        """The same, for the report."""
        return [
            BrokenImage(where, row, f"{reason}; it broke after it was checked, and was left out of {times} batch(es)")
            for where, row, reason, times in self.everywhere()
        ]

    def _add(self, entry: Entry) -> None:
        where, row, reason, times = entry
        before = self._entries[row][3] if row in self._entries else 0
        self._entries[row] = (where, row, reason, before + times)
