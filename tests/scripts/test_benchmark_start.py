"""The benchmark of large data sets, on small ones: it opens what it makes, and cleans up."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("kind", ["list", "tree", "shards"])
def test_every_kind(tmp_path: Path, fork_script: Run, kind: str) -> None:
    flags = ("--kind", kind, "--samples", 1100, "--repeats", 1, "--folder", tmp_path)
    done = fork_script("scripts/benchmark_start.py", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    assert re.fullmatch(kind + r": 1,100 samples, \d+ bytes of memory a sample", first)
    assert [line.split(":")[0] for line in rest] == ["first start", "later starts"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [("--samples", 10), ("--repeats", 0), ("--folder", "nowhere"), ("--kind", "zip")])
def test_wrong_things_end_in_one_line(fork_script: Run, flags: tuple[object, ...]) -> None:
    done = fork_script("scripts/benchmark_start.py", *flags)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
