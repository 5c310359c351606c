"""A folder is one process's at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from pathlib import Path

if os.name == "posix":
    import fcntl

__all__ = ["FolderLock"]

_FILE = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_PATIENCE_S = 2.0
"""A process that has just been killed may still be on its way out."""


class FolderLock:
    """Holds folders for this process, until it is released or the process ends, however that ends.

    The lock is one on a record (fcntl), which network file systems pass on to other machines and which forked processes
    do not inherit. Where the file system knows no locks, every folder is free.
    """

    def __init__(self) -> None:
        self._files: list[int] = []

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def take(self, folder: Path, *, signs: bool) -> str:
        """Hold a folder; empty if that has worked, or who holds it, as "process 12 on host".

        Args:
            folder: may be held already.
            signs: say there who holds it, which is all that is written; what is only held is left as it was.
        Raises:
            OSError: nothing can be written there.
        """
        if os.name != "posix":
            return ""
        file = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT, 0o666)
        until_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                is_taken = error.errno in _TAKEN
                if is_taken and time.monotonic() < until_s:
                    time.sleep(0.1)
                    continue
                holder = os.read(file, 300).decode(errors="replace").strip()
                os.close(file)
                return (holder or "a process that has just begun") if is_taken else ""
            break
        self._files.append(file)
        if signs:
            _sign(file)
        return ""

    def release(self) -> None:
        """Hold none any more."""
        while self._files:
            os.close(self._files.pop())


def _sign(file: int) -> None:
    with contextlib.suppress(OSError):  # a full disk: it is held all the same
        os.truncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
