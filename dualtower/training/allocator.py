"""Keep freed memory for the next step instead of handing it back to the operating system."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc's allocator reuse large blocks, on the CPU.

    By default glibc gives every freed block above 32 MiB back at once, so each step of a training faults the pages of
    its activations in anew, zeroed one by one. Small networks spend up to half of a step on that.

    The price is memory: blocks of other sizes lie between the kept ones, so the peak may rise by half. The setting
    holds for the whole process. On a GPU torch caches freed memory by itself.

    Returns:
        Whether the allocator took the setting; only glibc knows it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl, or a static build
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
