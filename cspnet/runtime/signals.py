"""Signals that ask a run to stop: Ctrl-C, SIGTERM, SIGUSR1 as schedulers send it ahead of a time limit, and SIGHUP of a
terminal that goes away, unless nohup has had it ignored.

The first one is noted, and the run stops at the next place where nothing is lost: behind a step, or between two batches
of a validation. A second one ends the process where it stands. Before there is anything to lose, one is enough; behind
the end of the work it is too late, and one more is needed.

Python's handlers run between two steps of the main thread, and none while that waits in a library for another process.
So the system writes the number of each signal to a socket as well, from which a thread reads it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import NoReturn

from cspnet.errors import EXIT_STOPPED
from cspnet.runtime.leaving import leave_at_once, leaves_by_force

__all__ = ["STOP_SIGNALS", "StopRequest", "Stopped", "heed_interrupts", "heed_stop_signals", "leaving_at_signals"]
__all__ += ["list_heeded", "run_program"]

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_SAME_REQUEST_S = 1.0
"""Launchers pass on what their whole group has been sent: what follows this closely is the same request."""


_UNHEEDED_S = 2.0
"""A main thread that has not heeded a signal by then waits for something."""

_has_begun = False
"""Whether a door of this process has heeded the stop signals."""


class Stopped(BaseException):
    """The run has been asked to stop; the message says by what and, once it is so, what is saved.

    Not an Exception: it goes past whatever handles errors, as KeyboardInterrupt does.
    """

    is_saved = False


class _Requests:
    """Signals, of which those that follow one closely are the same request, and one that comes later insists on it."""

    def __init__(self) -> None:
        self._first_s = 0.0
        self._was_late: bool | None = None

    def insist(self, *, too_late: bool = False) -> bool:
        """Called for each signal: whether the process should end where it stands.

        The first one that comes too late insists on nothing: an end that is under way, perhaps because of one from
        before, is given its time.
        """
        now_s = time.monotonic()
        if self._was_late is None or too_late > self._was_late:
            self._first_s, self._was_late = now_s, too_late
            return False
        return now_s - self._first_s > _SAME_REQUEST_S


class StopRequest:
    """Whether this process, which runs `program`, has been asked to stop."""

    def __init__(self, program: str = "") -> None:
        self.program = program
        self.signal_name = ""
        self.speaks = True
        """Whether this process answers a signal; of several, one should."""
        self._requests = _Requests()
        self.may_wait = False
        """Whether it is only noted."""
        self._ends = False

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """In this block a signal is noted, and whoever runs it asks for it. Elsewhere it raises Stopped; behind a block
        that an error or a Stopped has ended it is too late."""
        self.may_wait = True
        try:
            yield
        except BaseException:
            self.end()
            raise
        finally:
            self.may_wait = False

    def end(self) -> None:
        """All is done, and saved: from now on a signal is too late."""
        self._ends = True

    @property
    def is_too_late(self) -> bool:
        """Whether this process ends anyway: a signal changes neither what it says about that nor its exit code."""
        return self._ends or leaves_by_force()

    @property
    def is_made(self) -> bool:
        """Whether there was a signal."""
        return bool(self.signal_name)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self._requests.insist(too_late=self.is_too_late):
            os._exit(128 + number)
        if self.is_made:
            return
        self.signal_name = signal.Signals(number).name
        if self.is_too_late:
            return
        if not self.may_wait:
            said = _in_vain(signal.Signals(number))
            if _is_importing(frame):
                _leave_on_the_spot(f"{self.program}: {said}" if self.speaks else "", EXIT_STOPPED)
            raise Stopped(said)
        if self.speaks:
            _say(f"\n{self.signal_name}: saving behind this step, then stopping; again stops at once\n")


def _in_vain(number: signal.Signals) -> str:
    return f"stopped by {number.name}; there was nothing to save"


def _say(text: str) -> None:
    """Not print: the program may be in the middle of one. That nobody can read it is no reason to fail."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def _is_importing(frame: FrameType | None) -> bool:
    """Whether an import is under way there. What is raised within one may be swallowed by a module that tries out what
    there is, or pass through C++ that ends the process by SIGABRT for it, as PyTorch's does."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _leave_on_the_spot(text: str, code: int) -> NoReturn:
    """End the process. What has been printed may be in the middle of being written: it is given out if that works."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    if text and os.environ.get("RANK", "0") == "0":
        _say(f"{text}\n")
    leave_at_once(code)


@contextlib.contextmanager
def heed_interrupts(program: str) -> Iterator[None]:
    """In this block Ctrl-C raises KeyboardInterrupt as ever, but within an import it ends the process, with exit code
    130. Where it is ignored, or handled by somebody else, that is left so."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            _leave_on_the_spot(f"{program}: interrupted", 130)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is handle:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _watched(request: StopRequest) -> Iterator[None]:
    """In this block a thread does what the main thread cannot while it waits."""
    ours, systems = socket.socketpair()
    systems.setblocking(False)
    before = signal.set_wakeup_fd(systems.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(ours, request), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        systems.close()  # the thread ends


def _watch(numbers: socket.socket, request: StopRequest) -> None:
    first: signal.Signals | None = None
    requests = _Requests()
    with numbers:
        while True:
            try:
                said = numbers.recv(1)
            except TimeoutError:
                numbers.settimeout(None)
                if first is not None:
                    _answer_for_main_thread(request, first)
                continue
            if not said:
                return
            if said[0] not in STOP_SIGNALS:
                continue
            if requests.insist(too_late=request.is_too_late):
                os._exit(128 + said[0])
            if first is None:
                first = signal.Signals(said[0])
                numbers.settimeout(_UNHEEDED_S)


def _answer_for_main_thread(request: StopRequest, number: signal.Signals) -> None:
    if request.is_made or request.is_too_late:
        return
    if not request.may_wait:
        if request.speaks:
            _say(f"\n{request.program}: {_in_vain(number)}\n")
        leave_at_once(EXIT_STOPPED)
    if request.speaks:
        _say("\nstopping once the other processes have come; again stops at once\n")


def list_heeded() -> list[signal.Signals]:
    """The stop signals, without SIGHUP where whoever started this process has had it ignored."""
    is_ignored = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if not (is_ignored and number is signal.SIGHUP)]


@contextlib.contextmanager
def leaving_at_signals(codes: Mapping[signal.Signals, int], program: str) -> Iterator[None]:
    """In this block, which imports and has nothing to lose, each of these signals ends the process with its code."""

    def leave(number: int, frame: FrameType | None) -> None:
        _say(f"{program}: {_in_vain(signal.Signals(number))}\n")
        os._exit(codes[signal.Signals(number)])

    before = {number: signal.signal(number, leave) for number in codes}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextlib.contextmanager
def heed_stop_signals(program: str) -> Iterator[StopRequest]:
    """Handle the stop signals of this process, which runs `program`; behind the block, whoever did before does."""
    global _has_begun
    request = StopRequest(program)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in list_heeded()}
    _has_begun = True
    try:
        with _watched(request):
            yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def run_program(program: str, load: Callable[[], Callable[[], int]]) -> int:
    """A program whose door heeds the stop signals, from the first import on; the exit code to end the process with.

    Until the door heeds them, a signal ends the program on the spot, as nothing is lost. Once it no longer does, a
    signal is too late: the program says how it ends, and ends with its own exit code, only sooner. Launchers stop those
    that are left when the first one has ended. A second signal ends it where it stands, as ever, and so does Ctrl-C in
    Python's own last moments.

    Args:
        load: imports the door, which is what it returns.
    """
    global _has_begun
    _has_begun = False
    code: int | None = None
    is_asked, requests = False, _Requests()

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked
        if code is not None:
            os._exit(code)
        if requests.insist():
            os._exit(128 + number)
        if not _has_begun:
            _leave_on_the_spot(f"{program}: {_in_vain(signal.Signals(number))}", EXIT_STOPPED)
        is_asked = True

    def ignore() -> None:
        for number in heeded:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)

    heeded = list_heeded()
    for number in heeded:
        signal.signal(number, handle)
    # Called last, as nothing else has been imported yet. Behind that Python gives up its handlers, and takes half a
    # second to end. Should a library hang there, Ctrl-C ends it.
    atexit.register(ignore)
    code = load()()
    if is_asked:
        os._exit(code)
    return code
