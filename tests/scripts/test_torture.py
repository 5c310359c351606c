"""The short form of the torture: five kills, and the run ends as if there had been none."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds a run's processes in /proc")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_five_kills(tmp_path: Path, run_script: Run) -> None:
    done = run_script("scripts/torture.py", "--kills", 5, "--keep", tmp_path / "kept")
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = (line for line in done.stdout.splitlines() if "kills" in line)
    assert re.fullmatch(r"5 kills \(.*\), 1 processes: \d runs, all as the untouched one", told)
    logs = "".join(path.read_text() for path in (tmp_path / "kept").glob("run-*.log"))
    assert logs.count("resumed from") >= 1
    assert "Traceback" not in logs


@pytest.mark.parametrize("flags", [("--kills", "0"), ("--processes", "3"), ("--workers", "-1"), ("--keep", "HERE")])
def test_wrong_things_end_in_one_line(tmp_path: Path, fork_script: Run, flags: tuple[str, str]) -> None:
    (tmp_path / "mine").write_text("mine")
    done = fork_script("scripts/torture.py", flags[0], tmp_path if flags[1] == "HERE" else flags[1])
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
