"""Reading processes: torch's DataLoader runs them; here is what becomes of them when something ends.

One that dies ends the run with a line that says why, and none outlives the process it reads for.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from cspnet.data.shared import NO_ROOM
from cspnet.errors import UserError, WorkerError
from cspnet.runtime.processes import held_back_signals, leave_with_parent

__all__ = ["TellingErrors", "read_all", "start_worker"]

T = TypeVar("T")

_LAST_BREATH_S = 1.0
"""A dying process closes its pipes a moment before it can be seen to have died."""


class TellingErrors(Dataset[Any]):
    """A data set whose UserErrors are items: as exceptions, torch would wrap them in the traceback of the worker."""

    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __getitem__(self, address: Any) -> Any:
        try:
            return self.items[address]
        except UserError as error:
            return error


def start_worker(number: int) -> None:
    """Set up a reading process; torch has set its threads to one."""
    leave_with_parent()


def read_all(loader: DataLoader[T]) -> Iterator[T]:
    """Start a loader's processes; the iterator gives its items, and leaves no process behind.

    Args:
        loader: of a `TellingErrors`, with `start_worker` for its processes.
    Raises:
        WorkerError: (the iterator) a process has died.
        UserError: (the iterator) reading an item raised it.
    """
    others = multiprocessing.active_children()
    with held_back_signals(), _kept_child_handler():
        items = iter(loader)
    processes = [process for process in multiprocessing.active_children() if process not in others]
    return _watch(items, processes, loader.prefetch_factor or 0)


@contextlib.contextmanager
def _kept_child_handler() -> Iterator[None]:
    """Whoever handles the end of child processes goes on to do so.

    torch's handler would raise wherever the program happens to be then, such as in the middle of a checkpoint. Without
    it, torch notices a death within five seconds, where the batch is awaited.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def _watch(items: Iterator[T], processes: Sequence[BaseProcess], prefetch: int) -> Iterator[T]:
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as error:
            # What torch raises depends on what it was doing; that a process has died does not.
            if dead := _find_dead(processes):
                raise WorkerError(_describe_death(dead, len(processes), prefetch)) from error
            raise
        if isinstance(item, UserError):
            del items  # the processes end now, not when the error's traceback, which holds this frame, is forgotten
            raise item
        yield item


def _find_dead(processes: Sequence[BaseProcess]) -> BaseProcess | None:
    """A process that has died, one that a signal killed first."""
    ready = wait([process.sentinel for process in processes], _LAST_BREATH_S) if processes else []
    ended = [process for process in processes if process.sentinel in ready]
    for process in ended:
        process.join()  # its exit code
    return min(ended, key=lambda process: process.exitcode or 0, default=None)


def _describe_death(process: BaseProcess, workers: int, prefetch: int) -> str:
    """Who died of what, the likely cause, and what to do."""
    code = process.exitcode or 0
    who = f"a process that read pictures (pid {process.pid})"
    if code >= 0:
        return f"{who} ended by itself, with exit code {code}; --workers 0 reads without processes and may show why"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    killed = f"{who} was killed by {name}"
    if name == "SIGKILL":
        return (
            f"{killed}: most likely the memory ran out; use fewer --workers (now {workers}), a smaller data.prefetch "
            f"(now {prefetch}) or a smaller --batch-size"
        )
    if name == "SIGBUS":
        return (
            f"{killed}: shared memory (/dev/shm) is full: {NO_ROOM}; or a shard was cut short while it was read: look "
            "at it with scripts/check_dataset.py"
        )
    if name in ("SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE"):
        return (
            f"{killed}: a fault in a library, perhaps at a damaged picture; scripts/check_dataset.py looks for these, "
            "--workers 0 shows where it happens, and data.decoder pillow takes another decoder"
        )
    return f"{killed}: somebody sent it that signal"
