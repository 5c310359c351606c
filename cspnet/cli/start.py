"""Where the commands start: signals are heeded while the program is still being imported, which takes a while."""

from __future__ import annotations

import signal
from collections.abc import Callable

from cspnet.runtime.signals import leaving_at_signals, run_program

__all__ = ["train", "validate"]


def train() -> int:
    """train.py, and `cspnet-train` once the package is installed; the exit code."""

    def load() -> Callable[[], int]:
        from cspnet.cli.train import main

        return main

    return run_program("train.py", load)


def validate() -> int:
    """validate.py, and `cspnet-validate`; the exit code."""
    with leaving_at_signals({signal.SIGINT: 130}, "validate.py"):
        from cspnet.cli.validate import main
    return main()
