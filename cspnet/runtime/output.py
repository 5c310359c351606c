"""Standard output and error of a run, which goes on without them: a log on a full disk, a reader that has gone, a lost
terminal, or none from the beginning."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

__all__ = ["settle_output", "steady_output", "tell_last"]

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""What does not come back; a disk may have room again."""


class _Steady:
    """A stream whose writes do not fail. What cannot be written is lost."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """As a stream's; characters that it cannot show, as of a file name that is no text, come as `\\udcff`."""
        try:
            return self.stream.write(text)
        except UnicodeEncodeError:
            encoding = self.stream.encoding or "ascii"
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """As a stream's."""
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno in _GONE:
            _send_nowhere(self.stream)


def _send_nowhere(stream: TextIO) -> None:
    """From now on all that is written to a stream is dropped, also what waits in it for the end of the process."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


@contextlib.contextmanager
def steady_output() -> Iterator[None]:
    """In this block, and in processes forked in it, nothing fails because its output cannot be written."""
    before = sys.stdout, sys.stderr
    # Closed from the beginning: what is opened next would be taken for them by libraries that print.
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(nowhere)
    sys.stdout, sys.stderr = (
        _Steady(stream or os.fdopen(number, "w", closefd=False)) for number, stream in enumerate(before, 1)
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            _settle(stream)


def _settle(stream: TextIO | None) -> None:
    """At its end Python writes what waits in a stream, and gives another exit code if it cannot."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        _send_nowhere(stream)  # type: ignore[arg-type]


def settle_output() -> None:
    """What waits in stdout is written, or lost without a word and with no other exit code."""
    _settle(sys.stdout)


def tell_last(text: str) -> None:
    """A line on stderr about how a program ends, which must not change its exit code."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr)
    _settle(sys.stderr)
