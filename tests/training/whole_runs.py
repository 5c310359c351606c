"""A small run with everything on that draws at random or remembers, and whether two of them are the same."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cspnet.cli.compare_runs import compare_runs, find_difference, read_records
from tests.conftest import ROOT, draw_tree
from tests.forking import Forked, list_forks
from tests.processes import heed_ctrl_c, is_alive, parent_of

__all__ = [
    "EPOCHS",
    "FLAGS",
    "STEPS_PER_EPOCH",
    "assert_same",
    "assert_same_runs",
    "command",
    "draw_pictures",
    "find_processes",
    "kill_after_step",
    "run",
    "start",
    "wait_for_step",
]

EPOCHS, STEPS_PER_EPOCH = 4, 6
# Everything that draws at random or remembers is on; a global batch is 8 pictures for one process and for two.
FLAGS = (
    *(
        "--model",
        "cspdarknet_tiny",
        "--model-kwargs",
        "{drop_rate: 0.2, drop_path_rate: 0.3}",
        "--img-size",
        "32",
        "--device",
        "cpu",
    ),
    *("--precision", "fp32", "--epochs", str(EPOCHS), "--accumulate", "2", "--lr", "0.05", "--nesterov"),
    *("--cutmix", "1.0", "--cutmix-prob", "0.7", "--smoothing", "0.1", "--clip-grad", "5", "--ema.decay", "0.9"),
    *("--mixup", "0.4", "--reprob", "0.3", "--aa", "trivial", "--adversarial.lr", "2"),
    *("--sched", "cosine", "--warmup-steps", "3", "--print-freq", "1", "--checkpoint.every_steps", "2"),
    *("--log.tensorboard", "false"),
)


def command(pictures: Path, folder: Path, processes: int, workers: int, *more: str) -> list[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    batch = ["--batch-size", str(4 // processes), "--workers", str(workers)]
    return [*launcher, "train.py", *FLAGS, *batch, "--data-path", str(pictures), "--output-dir", str(folder), *more]


def start(arguments: list[str], forked: bool = True) -> subprocess.Popen[str]:
    """A run as the leader of a process group; forked, or as a person would."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return (Forked if forked else subprocess.Popen)(
        arguments,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    )


def run(arguments: list[str], forked: bool = True) -> str:
    """A run from its start to its end; its output."""
    process = start(arguments, forked)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def find_processes(folder: Path, variable: str = "") -> list[int]:
    """The living whose command line names the run's folder (launcher, ranks, workers), and that have a variable."""
    found = [number for number in list_forks(folder, variable) if is_alive(number)]
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            has_it = not variable or variable.encode() in (entry / "environ").read_bytes().split(b"\0")
            if has_it and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return sorted(set(found))


def find_rank(folder: Path, rank: int) -> int:
    """The process of a rank, which has begun those that read for it; numbers do not tell, for they begin anew."""
    processes = find_processes(folder, f"RANK={rank}")
    return next(process for process in processes if parent_of(process) not in processes)


def kill_run(folder: Path) -> None:
    """SIGKILL everything of a run."""
    for process in find_processes(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Returns when a run has written the record of a step, or has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(record["step"] >= step for record in read_records(folder)):
            return
        time.sleep(0.005)


def kill_after_step(arguments: list[str], folder: Path, step: int, forked: bool = True) -> None:
    """Start a run and kill it, with all its processes, when it has done a step and saved one, which it does beside."""
    process = start(arguments, forked)
    wait_for_step(process, folder, step)
    while process.poll() is None and not list((folder / "checkpoints").glob("step-*.pt")):
        time.sleep(0.005)
    kill_run(folder)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, f"the run ended before it could be killed:\n{output}"
    last = read_records(folder)[-1]["step"]
    assert step <= last < EPOCHS * STEPS_PER_EPOCH


def assert_same(a: Any, b: Any) -> None:
    """Equal, bit for bit, all the way down."""
    assert find_difference(a, b, "checkpoint") is None


def draw_pictures(folder: Path) -> Path:
    """51 training pictures: six steps of eight and three that are left out of an epoch."""
    return draw_tree(folder, classes=3, train=51, val=9)


def assert_same_runs(folder: Path, reference: Path) -> None:
    """The same state, records and rows at the end."""
    difference = compare_runs(folder, reference)
    assert difference is None, difference
