"""What a process gives back of its memory."""

from __future__ import annotations

import ctypes
import gc
import sys

import pyarrow as pa

__all__ = ["release_unused_memory"]


def release_unused_memory() -> None:
    """Return to the system what a large step has left to the allocators of Arrow and, with glibc, of C."""
    gc.collect()  # what refers to itself in a circle still holds its arrays
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
