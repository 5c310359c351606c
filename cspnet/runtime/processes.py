"""Child processes that stop when, and only when, the process that started them says so or ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

__all__ = ["held_back_interrupts", "leave_with_parent"]


@contextlib.contextmanager
def held_back_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the block is over; processes that are started in it never see one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_with_parent() -> None:
    """Called in a child process: from now on it ends as soon as the process that started it does, however that ends.

    Ctrl-C is not its business any more, and whatever its parent does at a SIGTERM is not what it does.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def wait() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
