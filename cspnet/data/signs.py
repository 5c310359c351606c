"""Signs of life of whatever reads pictures: which one it is at, seen by the process that waits for them.

A disk that hangs gives no error: whoever reads from it waits for ever. So each reading process notes the picture it
opens, in memory that it shares with the one it reads for, and that one looks there when it has waited for a while.
What counts is the time in which it was seen to wait, and nothing moved: a slow disk is not a dead one, and a program
that was suspended for an hour has not waited for an hour.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from cspnet.errors import StalledError
from cspnet.runtime.processes import CAN_FORK

__all__ = ["Alarm", "Signs", "adopt", "note", "rest"]

_LOOK_S = 5.0
"""At least this often."""
_RAISE_S = 5.0
"""How long a thread may take to be interrupted."""
_RESTS = -1

_row = torch.zeros(2, dtype=torch.int64).numpy().data
"""Of this process: the number of the sample it is at, and how often that has changed."""


def note(sample: int) -> None:
    """This process is about to open a sample."""
    _row[0] = sample
    _row[1] += 1


def rest() -> None:
    """This process is done with what it was asked for."""
    note(_RESTS)


def adopt(row: Tensor) -> None:
    """From now on this process notes there what it does."""
    global _row
    _row = row.numpy().data
    rest()


class Signs:
    """What some processes are at, and for how long that has not changed."""

    def __init__(self, workers: int, limit_s: float, path_of: Callable[[int], str]) -> None:
        """
        Args:
            workers: reading processes; 0: this one.
            limit_s: how long one may wait without a sign of any of them.
            path_of: where a sample lies.
        """
        self.limit_s = limit_s
        self.look_s = min(_LOOK_S, limit_s / 5)
        self.path_of = path_of
        count = max(1, workers)
        if CAN_FORK or not workers:
            # Not in /dev/shm, which may be full.
            self.rows = torch.frombuffer(mmap.mmap(-1, 16 * count), dtype=torch.int64).view(count, 2)
        else:
            self.rows = torch.zeros(count, 2, dtype=torch.int64).share_memory_()
        self.rows[:, 0] = _RESTS
        self._seen = self.rows.tolist()
        self._still_s = [0.0] * count

    def look(self, waited_s: float) -> None:
        """Look once, after having waited for so long since the last time.

        Raises:
            StalledError: somebody has been at the same picture, or everybody at none, for the whole limit.
        """
        waited_s = min(waited_s, 2 * self.look_s)  # and not suspended in between
        for i, row in enumerate(self.rows.tolist()):
            self._still_s[i] = self._still_s[i] + waited_s if row == self._seen[i] else 0.0
            self._seen[i] = row
        stuck = [i for i, still_s in enumerate(self._still_s) if still_s >= self.limit_s]
        at_one = [i for i in stuck if self._seen[i][0] != _RESTS]
        if at_one or len(stuck) == len(self._seen):
            raise StalledError(self._describe(at_one))

    def _describe(self, which: list[int]) -> str:
        paths = [self.path_of(self._seen[i][0]) for i in which]
        where = f"waiting for {', '.join(dict.fromkeys(paths))}" if paths else "and no process is at a picture"
        return (
            f"nothing has been read for {self.limit_s:g} s (data.timeout_s), {where}: does the disk hang? go on with "
            "--resume auto; if it is slow and not broken, allow more"
        )


class Alarm:
    """Ends what the main thread reads by itself when it takes longer than the limit of its signs; to be closed."""

    def __init__(self, signs: Signs) -> None:
        self.signs = signs
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._is_reading = False
        self._verdict: StalledError | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "pthread_kill"):
            self._thread.start()

    def close(self) -> None:
        """No more will be read.

        Behind this the thread is gone: one that were still to forget the signs' tensor while the interpreter ends would
        wait for that in C++, and abort the process.
        """
        self._is_over.set()
        is_here = threading.current_thread() is self._thread  # which collects garbage
        if self._thread.is_alive() and not is_here and not sys.is_finalizing():
            self._thread.join()

    @contextlib.contextmanager
    def set(self) -> Iterator[None]:
        """For a block that reads.

        Raises:
            StalledError: it hung. If that cannot be raised, as the system does not let the thread go, the process ends
                with the line.
        """
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_kill"):
            yield
            return
        adopt(self.signs.rows[0])
        before = signal.signal(signal.SIGALRM, self._interrupt)
        try:
            with self._lock:
                self._is_reading = True
            yield
        finally:
            with self._lock:
                self._is_reading = False
            signal.signal(signal.SIGALRM, before or signal.SIG_DFL)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._verdict is not None:
            raise self._verdict

    def _watch(self) -> None:
        looked_s = time.monotonic()
        while not self._is_over.wait(self.signs.look_s):
            waited_s, looked_s = time.monotonic() - looked_s, time.monotonic()
            if not self._is_reading:
                continue
            try:
                self.signs.look(waited_s)
            except StalledError as error:
                self._verdict = error
                with self._lock:
                    if self._is_reading:
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
                if not self._is_over.wait(_RAISE_S) and self._is_reading:
                    os.write(2, f"{Path(sys.argv[0]).name}: error: {error}\n".encode())
                    os._exit(error.exit_code)
                return
