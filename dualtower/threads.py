"""Threads that each compute on one core, which beats one computation on all cores wherever there are many of them."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

__all__ = ["advised_threads", "background_thread", "busy_cores", "single_thread_pool"]

_STAT = Path("/proc/stat")


@contextmanager
def single_thread_pool() -> Iterator[ThreadPoolExecutor]:
    """As many workers as torch has threads, each computing on one.

    Such workers never wait for each other, which an operation on several threads does at its end. The number of
    threads is a setting of each thread: without it every worker would start threads of its own.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # MKL's setting is everybody's
    try:
        with ThreadPoolExecutor(threads, "worker", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                yield pool
            finally:
                pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C nobody wants what still waits
    finally:
        torch.set_num_threads(threads)


def background_thread() -> ThreadPoolExecutor:
    """One worker that computes on one core and, on Linux, stands back when others want it."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, "background", initializer=_lower_priority)
    pool.submit(int).result()  # it has begun
    torch.set_num_threads(threads)  # MKL's setting is everybody's
    return pool


def busy_cores(seconds: float = 0.2) -> float:
    """How many cores are busy while this thread sleeps; 0 where the system does not say it, as Linux does."""
    if not _STAT.exists():
        return 0.0
    (idle, total), cores = _core_times(), os.cpu_count() or 1
    time.sleep(seconds)
    idle_then, total_then = _core_times()
    return cores * (1 - (idle_then - idle) / max(1, total_then - total))


def _core_times() -> tuple[int, int]:
    """Ticks that all cores together have been idle, and all ticks."""
    ticks = [int(word) for word in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def advised_threads(threads: int, taken: float, cores: int) -> int:
    """How many threads of one computation fit beside other programs: fewer than `threads` where these take their cores.

    The threads of an operation wait for each other at its end. Where another program holds the core of one of them, all
    stand still, thousands of times a second.
    """
    return max(1, min(threads, cores - math.floor(taken + 0.5)))


def _lower_priority() -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":  # where every thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
