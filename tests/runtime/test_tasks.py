"""Tasks of pools: Ctrl-C at any moment ends a script that waits for some."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import start_group, wait_for_the_end_of


def stop(which: int, *command: object) -> tuple[int, str]:
    """Exit code and complaint of a script that Ctrl-C reaches behind the WHICH-th lock it takes; see the module."""
    process = start_group("-m", "tests.interrupted", which, *command)
    try:
        _, told = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail(f"at lock {which}: never ends")
    wait_for_the_end_of(process.pid)
    return process.returncode, told


@pytest.fixture(scope="module")
def shards(picture_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    assert stop(10**6, "scripts/pack_dataset.py", picture_tree, out, "--shard-size", 10) == (0, "")
    return out


@pytest.mark.parametrize("script", ["pack", "check", "draw", "read shards"])
def test_ctrl_c_behind_any_lock(script: str, picture_tree: Path, shards: Path, tmp_path: Path) -> None:
    """The pools' threads and processes wait for whoever has taken the lock."""
    command: dict[str, tuple[object, ...]] = {
        "pack": ("scripts/pack_dataset.py", picture_tree, tmp_path / "out", "--shard-size", 10),
        "check": ("scripts/check_dataset.py", picture_tree / "train"),
        "draw": ("scripts/draw_dataset.py", tmp_path / "out", "--train-per-class", 1, "--val-per-class", 1),
        "read shards": ("scripts/check_dataset.py", shards / "train"),
    }
    said = f"stopped, {tmp_path / 'out'} was not made" if script == "draw" else "interrupted"
    ends = []
    for which in range(1, 40, 3):
        ends.append(stop(which, *command[script], "--workers", 2))
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        if ends[-1] == (0, ""):
            break  # it takes fewer locks
    stopped = (1 if script == "draw" else 130, f"{Path(str(command[script][0])).name}: {said}\n")
    assert len(ends) > 2
    assert ends[:-1] == [stopped] * (len(ends) - 1)


TWICE = """
import signal, time
from concurrent.futures import ProcessPoolExecutor
from cspnet.runtime import tasks
from cspnet.runtime.processes import create_context, leave_with_parent
held_back = tasks.held_back_signals
def hear_before(times=[1]):
    if times.pop() if times else 0:
        signal.raise_signal(signal.SIGINT)
    return held_back()
try:
    with tasks.closing(ProcessPoolExecutor(2, create_context(), leave_with_parent)) as pool:
        for _ in range(4):
            tasks.submit(pool, time.sleep, 600)
        tasks.held_back_signals = hear_before
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print("ended")
"""


def test_ctrl_c_twice_ends_the_processes_too(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(TWICE)
    process = start_group(tmp_path / "x.py", variables={"PYTHONPATH": str(ROOT)}, forked=False)
    try:
        assert process.communicate(timeout=60) == ("ended\n", "")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    wait_for_the_end_of(process.pid)
