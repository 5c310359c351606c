"""Child processes: how many fit the machine, how they start, and that they end with the process that started them."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from types import FrameType

from cspnet.runtime.signals import STOP_SIGNALS

__all__ = ["CAN_FORK", "count_cores", "create_context", "held_back_signals", "leave_with_parent"]

CAN_FORK = sys.platform == "linux"
"""Elsewhere forking is not safe."""

_CGROUPS = Path("/sys/fs/cgroup")


def create_context() -> BaseContext:
    """How child processes start: forked where that is safe, so that they have the parent's memory without a copy."""
    return multiprocessing.get_context("fork" if CAN_FORK else None)


def count_cores(cgroups: Path = _CGROUPS) -> int:
    """The cores that this program may use: by its affinity, and by the share of time a container is given, rounded up.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (cpu.cfs_quota_us).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((cgroups / file).read_text() for file in files).split()
            if float(quota) > 0:  # max, which is no number, or -1: no limit
                cores = min(cores, max(1, math.ceil(float(quota) / float(period))))
    return cores


@contextlib.contextmanager
def held_back_signals() -> Iterator[None]:
    """Stop signals wait until the block is over; processes and threads that start in it have them held back for good.

    Called in a thread that is not the main one, it holds them back from what starts only.
    """
    with _deferred_handlers():
        if not hasattr(signal, "pthread_sigmask"):
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _deferred_handlers() -> Iterator[None]:
    """In the main thread Python's handlers of stop signals wait until the block is over.

    They run there though it has the signals blocked, if the system gives these to another thread, such as one of a
    library for linear algebra.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {number: handler for number in STOP_SIGNALS if callable(handler := signal.getsignal(number))}
    is_over = False

    def defer(number: int, frame: FrameType | None) -> None:
        if is_over:  # one before has raised while the handlers were put back
            handlers[signal.Signals(number)](number, frame)
        else:
            came.append(number)

    try:
        for number in handlers:
            signal.signal(number, defer)
        yield
    finally:
        is_over = True
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(came):
            handlers[signal.Signals(number)](number, None)


def leave_with_parent() -> None:
    """Called in a child process that was started among `held_back_signals`: it ends when the one that started it ends.

    Signals that ask a run to stop are its parent's business, also where all processes of a group or a service get them:
    a SIGTERM counts if the parent has sent it.
    """
    parent = multiprocessing.parent_process()
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)

    def end_after_parent() -> None:
        if parent:
            parent.join()
            os._exit(1)

    def heed_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(1)

    waits = [end_after_parent]
    if hasattr(signal, "sigwaitinfo"):
        waits.append(heed_parent)  # all threads of this process were born with the signal held back
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    for wait in waits:
        threading.Thread(target=wait, daemon=True).start()
