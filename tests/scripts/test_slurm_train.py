"""The Slurm script, with stand-ins for srun and scontrol: it requeues itself and comes back behind its step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.training.whole_runs import (
    FLAGS,
    draw_pictures,
    find_rank,
    wait_for_step,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]

SRUN = """#!/usr/bin/env bash
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & tasks+=($!); done
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$(($? > code ? $? : code)); done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo localhost; else echo "$*" >>"$REQUEUED"; fi
"""


def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {"NTASKS": 2, "JOB_NUM_NODES": 1, "JOB_NODELIST": "localhost", "JOB_ID": os.getpid()}
    environment = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
    environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["bash", "scripts/slurm_train.sh", *flags],
        cwd=ROOT,
        env={**os.environ, **environment, "REQUEUED": str(folder / "requeued")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_it_comes_back_behind_its_step(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path / "pictures")
    flags = [*FLAGS, "--batch-size", "2", "--workers", "1", "--data-path", str(pictures)]
    flags += ["--output-dir", str(tmp_path / "run")]
    process = start(tmp_path, *flags)
    wait_for_step(process, tmp_path / "run", 8)
    for rank in (0, 1):
        os.kill(find_rank(tmp_path / "run", rank), signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    process = start(tmp_path, *flags)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "resumed from" in output
    assert len((tmp_path / "requeued").read_text().splitlines()) == 1


def test_a_run_without_a_folder_could_not_be_found_again(tmp_path: Path) -> None:
    process = start(tmp_path, "--data-path", str(tmp_path))
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, len(output.splitlines())) == (2, 1)
    assert "--output-dir DIR" in output
