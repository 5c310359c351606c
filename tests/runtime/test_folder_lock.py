"""A folder is one process's at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cspnet.runtime.folder_lock import FolderLock
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="nothing is locked there")

HOLDS = """
import os, sys, time
from pathlib import Path
from cspnet.runtime.folder_lock import FolderLock
lock = FolderLock()
print(repr(lock.take(Path(sys.argv[1]), signs=True)), flush=True)
if os.fork() == 0:
    os.close(1)
    time.sleep(600)
print("forked", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds tmp_path and has forked another one."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["''\n", "forked\n"]
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_who_holds_it_is_named(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with FolderLock() as lock:
        assert lock.take(tmp_path, signs=True).startswith(f"process {holder.pid} on ")


def test_a_killed_process_holds_nothing(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """Nor does what it has forked, which lives on."""
    holder.kill()
    with FolderLock() as lock:  # while it is on its way out
        assert lock.take(tmp_path, signs=True) == ""
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_released_it_is_free(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with FolderLock() as lock:
        assert lock.take(tmp_path, signs=False) == lock.take(tmp_path, signs=True) == ""
    if not (child := os.fork()):
        os.write(writing, FolderLock().take(tmp_path, signs=False).encode() or b"free")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 300) == b"free"


def test_what_is_only_held_is_left_as_it_was(tmp_path: Path) -> None:
    with FolderLock() as lock:
        lock.take(tmp_path, signs=True)
    before = (tmp_path / ".lock").stat().st_mtime_ns
    time.sleep(0.01)
    with FolderLock() as lock:
        assert lock.take(tmp_path, signs=False) == ""
    assert (tmp_path / ".lock").stat().st_mtime_ns == before
