"""Freed memory of the host: kept for the next tensor instead of being given back to the system.

glibc takes a block of 32 MiB or more from the system and gives it back as soon as it is freed, and the system clears
each of its pages anew when it is first written to. A training step on a CPU allocates gigabytes of such blocks, the
same ones in each step: docs/BENCHMARKS.md has what that costs.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["give_back_freed_memory", "keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_TUNED_BY_HAND = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

_keeps = False


def keep_freed_memory(device: torch.device) -> bool:
    """Keep what this process frees from now on, where `device` is the CPU; whether that is done.

    Nothing is changed elsewhere than with glibc, or where the environment says how its heap is to behave.
    """
    global _keeps
    if device.type != "cpu" or sys.platform != "linux" or any(name in os.environ for name in _TUNED_BY_HAND):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    # All blocks lie in the heap then, and its end is never cut off: mallopt(3).
    _keeps = bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
    return _keeps


def give_back_freed_memory() -> None:
    """Give back what was kept: before a process is forked, which would hold on to it as long as it lives."""
    if _keeps:
        ctypes.CDLL(None).malloc_trim(0)
