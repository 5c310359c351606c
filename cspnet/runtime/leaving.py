"""Leaving a process whose libraries might hold it up: those that wait for other processes do so at the very end too."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

__all__ = ["farewell", "leave", "leave_at_once", "leave_by_force", "leave_soon", "leaves_by_force"]

_by_force = False
_farewells: list[Callable[[], object]] = []
_SOON_S = 10.0


def leave_by_force() -> None:
    """From now on this process ends as soon as its door has said why."""
    global _by_force
    _by_force = True


def leaves_by_force() -> bool:
    """Whether it will."""
    return _by_force


def leave_soon(code: int) -> Callable[[], None]:
    """In a few seconds this process is ended, with this exit code, unless what is returned is called before.

    What an exception of a signal's handler has gone through may have kept a lock that whoever cleans up behind it waits
    for, as the queues to reading processes do.
    """
    is_done = threading.Event()

    def end() -> None:
        if not is_done.wait(_SOON_S):
            os._exit(code)

    threading.Thread(target=end, daemon=True).start()
    return is_done.set


@contextlib.contextmanager
def farewell(say: Callable[[], object]) -> Iterator[None]:
    """In this block, a process that leaves at once says this first, to others that would take it for dead."""
    _farewells.append(say)
    try:
        yield
    finally:
        _farewells.remove(say)


def leave_at_once(code: int) -> NoReturn:
    """End the process where it stands, in any thread."""
    for say in _farewells:
        with contextlib.suppress(Exception):
            say()
    os._exit(code)


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
