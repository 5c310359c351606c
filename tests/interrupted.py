"""Signals at the worst moments. For a script of the project: python -m tests.interrupted WHICH SCRIPT [ARGUMENTS].

Ctrl-C reaches the main thread when it has taken one of threading's locks, such as that of a task or of an event, the
WHICH-th time, and before it could note that it has. In nature that takes a signal within a microsecond or, if another
thread works at that moment, within milliseconds.
"""

from __future__ import annotations

import runpy
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["act_at_line", "interrupt"]


def interrupt(which: int) -> None:
    """From now on, in this process and in those that it forks."""
    enter, left = threading.Condition.__enter__, which

    def enter_and_hear(condition: threading.Condition) -> bool:
        nonlocal left
        entered = enter(condition)
        if threading.get_ident() == threading.main_thread().ident:
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)
        return entered

    threading.Condition.__enter__ = enter_and_hear  # type: ignore[method-assign]


def act_at_line(which: int, act: Callable[[], object]) -> None:
    """Something is done ahead of the WHICH-th line that this thread executes from now on."""
    left = which

    def trace(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                act()
        return trace

    frame: FrameType | None = sys._getframe()
    while frame := frame and frame.f_back:
        frame.f_trace = trace
    sys.settrace(trace)


if __name__ == "__main__":
    interrupt(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
