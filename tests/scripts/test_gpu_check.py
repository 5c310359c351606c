"""scripts/gpu_check.sh where there is no GPU: what it would run can be run, and it refuses in a line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

SMALL = {"MODELS": "cspdarknet_tiny", "SIZE": "32", "BATCH": "2", "REPEATS": "1"}


def gpu_check(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", ROOT / "scripts" / "gpu_check.sh", *map(str, words)],
        env={**os.environ, "PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_each_command_is_one(fork_script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """Each script takes the flags that it is given, all but the last one."""
    lines = gpu_check("--list", "--data", tmp_path, **SMALL).stdout.splitlines()
    assert len(lines) == 13
    for line in lines:
        name, _, command = line.partition("|")
        words = [str(tmp_path) if word == "DIR" else word for word in command.split()]
        if name == "tests":
            assert words == ["-m", "pytest", "-m", "gpu", "-rs"]
            continue
        done = fork_script(*words, "--unknown-flag")
        assert (done.returncode, "--unknown-flag: unknown flag" in done.stderr) == (2, True), (line, done.stderr)


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = gpu_check("--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"gpu_check.sh: error: {sys.executable} sees no CUDA GPU; nothing was run\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available() or bool(shutil.which("nvidia-smi")), reason="is about no GPU")
def test_without_a_gpu_nothing_is_installed(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    for name in ("gpu_check.sh", "environment.sh"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    command = ["bash", tmp_path / "scripts" / "gpu_check.sh"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gpu_check.sh: error: there is no CUDA GPU; nothing was installed or run\n"
    assert [path.name for path in tmp_path.iterdir()] == ["scripts"]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag: str) -> None:
    done = gpu_check(flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert "gpu_check.sh --data DIR" in done.stdout
    assert "set -uo" not in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "/nowhere"], "--data /nowhere: no such folder"),
        (["--data"], "--data: names nothing"),
        (["--dta", "x"], "--dta: unknown"),
    ],
)
def test_bad_words(words: list[str], said: str) -> None:
    done = gpu_check(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_failure_is_in_the_table_and_the_code(tmp_path: Path) -> None:
    """Played by an interpreter that sees a GPU and fails at each benchmark."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\necho "ran $2"\n[ "$1" = -m ]\n')
    fake.chmod(0o755)
    (tmp_path / "a data set").mkdir()
    done = gpu_check("--out", tmp_path / "out", "--data", tmp_path / "a data set", PYTHON=str(fake), **SMALL)
    assert done.returncode == 1
    table = (tmp_path / "out" / "table.txt").read_text().splitlines()
    assert done.stdout.splitlines()[-len(table) :] == table
    codes = {line.split()[0]: line.split()[1] for line in table[1:]}
    assert codes.pop("tests") == "0"
    assert set(codes.values()) == {"1"}
    assert len(codes) == 12
    assert (tmp_path / "out" / "tests.log").read_text() == "ran pytest\n"
    assert (tmp_path / "out" / "loader.log").read_text() == f"ran {tmp_path / 'a data set'}\n"
