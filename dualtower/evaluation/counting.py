"""Count, block by block, how many items score above each relevant one: the inner loop of exact ranks.

A block of scores is visited once for both directions, by one of several workers, each with its own
single-threaded matrix product; nothing larger than a block per worker is ever held. Within a block the relevant
pairs are taken out first, so that no item can out-rank itself by a rounding error; they are compared
among themselves at the end, by their exact scores. Of all other pairs the fast scores decide those that are
clearly above or below, and the few in between are computed exactly (see `scores`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from dualtower.errors import ConfigError
from dualtower.evaluation.counting_on_device import DEVICE_BLOCK, count_block
from dualtower.evaluation.relevance import Relevance
from dualtower.evaluation.scores import Scores
from dualtower.sharding import combine, shard
from dualtower.threads import single_thread_pool

__all__ = ["BLOCK", "count_irrelevant"]

BLOCK = (1024, 2048)  # queries x gallery items: large enough for the product, small enough for the cache
_PANEL = 128  # rows counted at a time, so that they are read from the cache; sums of a column must fit a byte
_LANE = 1024  # width of a block is a multiple; sums of 1024 / 8 flags must fit a byte
_FEW = 16  # with more thresholds on one line, sorting it beats comparing it with each


class _Side:
    """One direction: the thresholds of each line (row or column), and what has been counted against them."""

    def __init__(self, relevance: Relevance, scores: np.ndarray, slack: np.ndarray) -> None:
        self.starts, self.scores = relevance.starts, scores
        margin = slack[relevance.queries]
        self.low = np.nextafter(scores - margin, np.float32(-np.inf))
        self.high = np.nextafter(scores + margin, np.float32(np.inf))
        self.above = np.zeros(len(scores), np.int64)
        self.tied = np.zeros(len(scores), np.int64)
        self._lock = threading.Lock()

    def lines(self, first: int, last: int) -> Lines:
        """Thresholds of a range of lines, with counts of their own."""
        own = slice(self.starts[first], self.starts[last])
        starts = self.starts[first : last + 1] - self.starts[first]
        return Lines(starts, self.scores[own], self.low[own], self.high[own])

    def add(self, first: int, lines: Lines) -> None:
        """Add what a block has counted."""
        own = slice(self.starts[first], self.starts[first] + len(lines.scores))
        with self._lock:
            self.above[own] += lines.above
            self.tied[own] += lines.tied


class Lines:
    """Thresholds of the lines of one block. Arrays are ``[T]`` over thresholds; `starts` is ``[L + 1]`` over lines."""

    def __init__(self, starts: np.ndarray, scores: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        self.starts, self.scores, self.low, self.high = starts, scores, low, high
        self.counts = np.diff(starts)
        self.above = np.zeros(len(scores), np.int64)  # clearly above, and later those found above exactly
        self.possible = np.zeros(len(scores), np.int64)  # not clearly below
        self.tied = np.zeros(len(scores), np.int64)

    @property
    def of_threshold(self) -> np.ndarray:
        """Line of each threshold."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def crowded(self) -> np.ndarray:
        """Lines with so many thresholds that `slots` leaves them out."""
        return np.flatnonzero(self.counts > _FEW)

    def slots(self, first: int, last: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(lines, thresholds) such that the n-th of both belong together and no line comes twice."""
        counts = self.counts[first:last]
        counts = np.where(counts > _FEW, 0, counts)
        for slot in range(int(counts.max(initial=0))):
            chosen = np.flatnonzero(counts > slot)
            yield chosen, self.starts[first + chosen] + slot


@dataclass
class _Buffers:
    """What one worker writes to."""

    scores: torch.Tensor  # float32 [rows, width]
    flags: np.ndarray  # bool [_PANEL, width]


def count_irrelevant(
    scores: Scores,
    forward: tuple[Relevance, np.ndarray],
    backward: tuple[Relevance, np.ndarray] | None,
    *,
    excluded: np.ndarray | None,
    block: tuple[int, int] | None,
    device: torch.device | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Count the irrelevant items that score above each relevant pair, and those that tie with it.

    Args:
        scores: Q queries against G gallery items.
        forward: Relevance of the gallery to the queries, and the exact score of its pairs.
        backward: The transposed relevance with its scores, to rank the queries for each gallery item as well.
        excluded: Gallery position that does not count for each query, int ``[Q]``, -1 for none.
        block: Number of queries and of gallery items that are compared at a time; None is what suits the device.
        device: An accelerator that computes and compares; None or the CPU does it on every core.

    Returns:
        ``(above, tied)``, int64 ``[N]`` each, of the forward and (if asked for) the backward direction.
    """
    on_cores = _on_cores(device)
    block = block or (BLOCK if on_cores else DEVICE_BLOCK)
    if min(block) < 1:
        raise ConfigError(f"block is {block}; it must be at least 1 x 1")
    queries, gallery = scores.shape
    height, width = min(block[0], max(queries, 1)), _round_up(min(block[1], max(gallery, 1)), _LANE)
    rows = _Side(*forward, scores.row_slack)
    columns = None if backward is None else _Side(*backward, scores.column_slack)
    local = threading.local()

    def visit(corner: tuple[int, int]) -> None:
        row, column = (
            slice(corner[0], min(corner[0] + height, queries)),
            slice(corner[1], min(corner[1] + width, gallery)),
        )
        if device is not None and not on_cores:
            _visit_on_device(device, scores, forward[0], rows, columns, excluded, row, column)
            return
        if not hasattr(local, "buffers"):
            local.buffers = _Buffers(torch.empty(height, width), np.empty((_PANEL, width), bool))
        _visit(scores, forward[0], rows, columns, excluded, row, column, local.buffers)

    corners = [(r, c) for r in range(0, queries, height) for c in range(0, gallery, width)]
    with _full_precision():
        if on_cores:
            with single_thread_pool() as pool:
                for _ in pool.map(visit, shard(corners)):
                    pass
        else:
            for corner in shard(corners):
                visit(corner)
    counted = [(side.above, side.tied) for side in (rows, columns) if side is not None]
    combine(*(counts for pair in counted for counts in pair))
    return counted


def _on_cores(device: torch.device | None) -> bool:
    return device is None or device.type == "cpu"


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products in full float32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _visit(
    scores: Scores,
    relevance: Relevance,
    rows: _Side,
    columns: _Side | None,
    excluded: np.ndarray | None,
    row: slice,
    column: slice,
    buffers: _Buffers,
) -> None:
    """Compute one block of scores and count it in both directions."""
    n, m = row.stop - row.start, column.stop - column.start
    scores.block(row, column, buffers.scores[:n, :m])
    block = buffers.scores.numpy()[:n]
    block[:, m:] = -np.inf
    _take_out(block, relevance, excluded, row, column)
    by_row = rows.lines(row.start, row.stop)
    by_column = None if columns is None else columns.lines(column.start, column.stop)
    for first in range(0, n, _PANEL):
        panel = block[first : first + _PANEL]
        _compare_rows(panel, by_row, first, buffers.flags)
        if by_column is not None:
            _compare_columns(panel[:, :m], by_column, buffers.flags)
    _sort_and_count(block, by_row)
    _settle(block, by_row, lambda line, item: scores.exact(line + row.start, item + column.start))
    rows.add(row.start, by_row)
    if columns is not None and by_column is not None:
        _sort_and_count(block[:, :m].T, by_column)
        _settle(block[:, :m].T, by_column, lambda line, item: scores.exact(item + row.start, line + column.start))
        columns.add(column.start, by_column)


def _visit_on_device(
    device: torch.device,
    scores: Scores,
    relevance: Relevance,
    rows: _Side,
    columns: _Side | None,
    excluded: np.ndarray | None,
    row: slice,
    column: slice,
) -> None:
    """Compute one block of scores on a device and count it there in both directions."""
    block = scores.block_on(device, row, column)
    for lines, items in _out(relevance, excluded, row, column):
        block[torch.from_numpy(lines).to(device), torch.from_numpy(items).to(device)] = -torch.inf
    by_row = rows.lines(row.start, row.stop)
    count_block(block, by_row, lambda line, item: scores.exact(line + row.start, item + column.start))
    rows.add(row.start, by_row)
    if columns is not None:
        by_column = columns.lines(column.start, column.stop)
        count_block(block.T, by_column, lambda line, item: scores.exact(item + row.start, line + column.start))
        columns.add(column.start, by_column)


def _take_out(block: np.ndarray, relevance: Relevance, excluded: np.ndarray | None, row: slice, column: slice) -> None:
    """Set the relevant and the excluded pairs of a block below every threshold."""
    for lines, items in _out(relevance, excluded, row, column):
        block[lines, items] = -np.inf


def _out(
    relevance: Relevance, excluded: np.ndarray | None, row: slice, column: slice
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns within a block of the pairs that do not compete: the relevant and the excluded ones."""
    own = slice(relevance.starts[row.start], relevance.starts[row.stop])
    items = relevance.items[own] - column.start
    lines = np.repeat(np.arange(row.stop - row.start), relevance.counts[row])
    inside = (items >= 0) & (items < column.stop - column.start)
    yield lines[inside], items[inside]
    if excluded is not None:
        items = excluded[row] - column.start
        inside = (items >= 0) & (items < column.stop - column.start) & (excluded[row] >= 0)
        yield np.flatnonzero(inside), items[inside]


def _compare_rows(panel: np.ndarray, lines: Lines, first: int, flags: np.ndarray) -> None:
    """Count each row of a panel against its thresholds."""
    for chosen, thresholds in lines.slots(first, first + len(panel)):
        values = panel if len(chosen) == len(panel) else panel[chosen]
        out = flags[: len(chosen)]
        for limits, counts in ((lines.high, lines.above), (lines.low, lines.possible)):
            np.greater(values, limits[thresholds, None], out=out)
            # Eight flags at a time, as the bytes of a long integer: no byte overflows below 256 terms.
            packed = out.view(np.int64).reshape(len(chosen), -1, _LANE // 8).sum(2)
            counts[thresholds] += packed.view(np.uint8).reshape(len(chosen), -1).sum(1, dtype=np.int64)


def _compare_columns(panel: np.ndarray, lines: Lines, flags: np.ndarray) -> None:
    """Count each column of a panel against its thresholds."""
    for chosen, thresholds in lines.slots(0, panel.shape[1]):
        values = panel if len(chosen) == panel.shape[1] else panel[:, chosen]
        out = flags[: len(panel), : len(chosen)]
        for limits, counts in ((lines.high, lines.above), (lines.low, lines.possible)):
            np.greater(values, limits[None, thresholds], out=out)
            counts[thresholds] += np.add.reduce(out.view(np.uint8), axis=0, dtype=np.uint8)


def _sort_and_count(block: np.ndarray, lines: Lines) -> None:
    """Count the lines that have many thresholds: sort the line, look the thresholds up."""
    for line in lines.crowded:
        own = slice(lines.starts[line], lines.starts[line + 1])
        values = np.sort(block[line])
        lines.above[own] = len(values) - np.searchsorted(values, lines.high[own], side="right")
        lines.possible[own] = len(values) - np.searchsorted(values, lines.low[own], side="right")


def _settle(
    block: np.ndarray, lines: Lines, exact: Callable[[np.ndarray, np.ndarray], np.ndarray], step: int = 32
) -> None:
    """Decide the pairs whose fast scores are too near to a threshold, by their exact scores."""
    open_thresholds = np.flatnonzero(lines.possible > lines.above)
    owner = lines.of_threshold[open_thresholds]
    for start in range(0, len(open_thresholds), step):
        thresholds, line = open_thresholds[start : start + step], owner[start : start + step]
        values = block[line]
        near = (values > lines.low[thresholds, None]) & (values <= lines.high[thresholds, None])
        which, items = np.nonzero(near)
        found, limit = exact(line[which], items), lines.scores[thresholds][which]
        lines.above[thresholds] += np.bincount(which[found > limit], minlength=len(thresholds))
        lines.tied[thresholds] += np.bincount(which[found == limit], minlength=len(thresholds))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
