"""Threads that each compute on one core, which beats one computation on all cores wherever there are many of them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

__all__ = ["background_thread", "single_thread_pool"]


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


def _lower_priority() -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":  # where every thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
