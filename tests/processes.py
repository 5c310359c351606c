"""Processes that tests start, stop and count."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.conftest import ROOT
from tests.forking import Forked

__all__ = ["free_port", "heed_ctrl_c", "is_alive", "members_of", "start_group", "wait_for_the_end_of"]


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def start_group(
    *command: object, variables: Mapping[str, str] | None = None, forked: bool = True
) -> subprocess.Popen[str]:
    """A script of the project as the leader of a process group, its output in pipes; forked, or as a person would."""
    return (Forked if forked else subprocess.Popen)(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    )


def heed_ctrl_c() -> None:
    """For a process that is about to start: Ctrl-C does what it does in a terminal, and so does closing that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # what a shell or nohup starts in the background ignores them


def members_of(group: int) -> list[int]:
    """The processes of a group that have not ended. Source: proc(5), /proc/[pid]/stat."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = file.read_text().rpartition(")")[2].split()[:3]
            found += [int(file.parent.name)] * (int(its_group) == group and state != "Z")
    return found


def is_alive(process: int) -> bool:
    """Whether it has not ended. Source: as `members_of`."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def parent_of(process: int) -> int:
    """Source: proc(5), /proc/[pid]/stat."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def wait_for_the_end_of(group: int) -> None:
    """Returns when no process of a group is left, within 30 s."""
    deadline = time.monotonic() + 30
    while members_of(group):
        assert time.monotonic() < deadline
        time.sleep(0.01)
