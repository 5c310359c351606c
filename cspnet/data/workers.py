"""Reading processes: torch's DataLoader runs them; here is what becomes of them when something ends.

One that dies ends the run with a line that says why, and none outlives the process it reads for.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cspnet.data.shared import NO_ROOM
from cspnet.data.signs import Alarm, Signs, adopt, rest
from cspnet.errors import StalledError, UserError, WorkerError
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
        finally:
            rest()


def start_worker(number: int, rows: Tensor | None = None) -> None:
    """Set up a reading process, which is to note what it does in its row; torch has set its threads to one."""
    leave_with_parent()
    if rows is not None:
        adopt(rows[number])


def read_all(loader: DataLoader[T], signs: Signs | None = None) -> Iterator[T]:
    """Start a loader's processes; the iterator gives its items, and leaves no process behind.

    Args:
        loader: of a `TellingErrors`, with `start_worker` for its processes and, with signs, their `look_s` as timeout.
        signs: of these processes; None waits for ever.
    Raises:
        StalledError: (the iterator) there was no sign of life for too long.
        WorkerError: (the iterator) a process has died.
        UserError: (the iterator) reading an item raised it.
    """
    others = multiprocessing.active_children()
    with held_back_signals(), _kept_child_handler():
        items: Iterator[T] = iter(loader)
    processes = [process for process in multiprocessing.active_children() if process not in others]
    if signs is not None and not loader.num_workers:
        items = _read_in_time(items, signs)
    return _watch(items, processes, loader.prefetch_factor or 0, signs)


def _read_in_time(items: Iterator[T], signs: Signs) -> Iterator[T]:
    """Without processes: the items, none of which may take too long."""
    alarm = Alarm(signs)
    try:
        while True:
            with alarm.set():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
    finally:
        alarm.close()


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


def _watch(items: Iterator[T], processes: Sequence[BaseProcess], prefetch: int, signs: Signs | None) -> Iterator[T]:
    looked_s = time.monotonic()
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as error:
            if signs is not None and str(error).startswith("DataLoader timed out"):
                waited_s, looked_s = time.monotonic() - looked_s, time.monotonic()
                try:
                    signs.look(waited_s)
                except StalledError:
                    for process in processes:
                        process.kill()  # so that nobody waits for them when this is forgotten
                    raise
                continue
            # What torch raises depends on what it was doing; that a process has died does not.
            if dead := _find_dead(processes):
                raise WorkerError(_describe_death(dead, len(processes), prefetch)) from error
            raise
        if isinstance(item, UserError):
            del items  # the processes end now, not when the error's traceback, which holds this frame, is forgotten
            raise item
        yield item
        looked_s = time.monotonic()


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
