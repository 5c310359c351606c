"""Leaving a process whose libraries might hold it up: those that wait for other processes do so at the very end too."""

from __future__ import annotations

import os
import sys

__all__ = ["leave", "leave_by_force", "leaves_by_force"]

_by_force = False


def leave_by_force() -> None:
    """From now on this process ends as soon as its door has said why."""
    global _by_force
    _by_force = True


def leaves_by_force() -> bool:
    """Whether it will."""
    return _by_force


def leave(code: int) -> int:
    """Called last by a door: the exit code, or the end of the process."""
    if _by_force:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # its reader has gone
                continue
        os._exit(code)
    return code
