"""Where the commands start: signals are heeded while the program is still being imported, which takes a while."""

from __future__ import annotations

import signal

from cspnet.errors import EXIT_STOPPED
from cspnet.runtime.signals import leaving_at_signals, list_heeded

__all__ = ["train", "validate"]


def train() -> int:
    """train.py, and `cspnet-train` once the package is installed; the exit code."""
    with leaving_at_signals(dict.fromkeys(list_heeded(), EXIT_STOPPED), "train.py"):
        from cspnet.cli.train import main
    return main()


def validate() -> int:
    """validate.py, and `cspnet-validate`; the exit code."""
    with leaving_at_signals({signal.SIGINT: 130}, "validate.py"):
        from cspnet.cli.validate import main
    return main()
