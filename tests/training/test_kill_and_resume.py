"""A run killed with SIGKILL at any step and resumed ends with exactly the weights of the run that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT, draw_tree

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds a run's processes in /proc"),
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
TIMES = ("train/images_per_s", "train/data_wait_ratio")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """51 training pictures: six steps of eight and three that are left out of an epoch."""
    return draw_tree(tmp_path_factory.mktemp("killed"), classes=3, train=51, val=9)


def command(pictures: Path, folder: Path, processes: int, workers: int, *more: str) -> list[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    batch = ["--batch-size", str(4 // processes), "--workers", str(workers)]
    return [*launcher, "train.py", *FLAGS, *batch, "--data-path", str(pictures), "--output-dir", str(folder), *more]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(arguments: list[str]) -> str:
    process = start(arguments)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl without those fields that tell the time."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in whole]


def kill_run(folder: Path) -> None:
    """SIGKILL every process whose command line names the run's folder: launcher, ranks and workers."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
        except (OSError, ProcessLookupError):
            continue


def kill_after_step(arguments: list[str], folder: Path, step: int) -> None:
    process = start(arguments)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(record["step"] >= step for record in records(folder)):
            kill_run(folder)
            break
        time.sleep(0.005)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, f"the run ended before it could be killed:\n{output}"
    last = records(folder)[-1]["step"]
    assert step <= last < EPOCHS * STEPS_PER_EPOCH


def assert_same(a: Any, b: Any, where: str = "checkpoint") -> None:
    """Equal, bit for bit, all the way down."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def load_last(folder: Path) -> dict[str, Any]:
    content = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    for key in ("recipe", "versions"):  # the recipe tells the number of workers
        del content[key]
    return content


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def untouched(
    request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    folder = tmp_path_factory.mktemp("untouched") / "run"
    run(command(pictures, folder, request.param, 0))
    return request.param, folder


@pytest.mark.parametrize(("workers", "steps"), [(0, (3,)), (2, (8, 17))], ids=["no workers", "two workers"])
def test_killed_run_ends_as_if_untouched(
    untouched: tuple[int, Path], pictures: Path, tmp_path: Path, workers: int, steps: tuple[int, ...]
) -> None:
    processes, reference = untouched
    folder = tmp_path / "run"
    arguments = command(pictures, folder, processes, workers, "--resume", "auto")
    for step in steps:
        kill_after_step(arguments, folder, step)
    output = run(arguments)
    assert "resumed from" in output
    assert_same(load_last(folder), load_last(reference))
    assert records(folder) == records(reference)
    assert (folder / "summary.csv").read_text() == (reference / "summary.csv").read_text()
