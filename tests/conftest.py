"""Pictures that the tests draw for themselves, and ways to run the doors."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cspnet.runtime.heap import keep_freed_memory
from tests.forking import Forked

ROOT = Path(__file__).resolve().parent.parent

keep_freed_memory(torch.device("cpu"))  # networks come and go by the hundred


def draw_jpeg(path: Path, rng: np.random.Generator, width: int = 40, height: int = 32) -> None:
    """A smooth coloured JPEG: a few random patches, enlarged."""
    patches = rng.integers(0, 256, size=(5, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


def draw_tree(folder: Path, classes: int, train: int, val: int, seed: int = 0) -> Path:
    """folder/{train,val}/<class>/<n>.jpg with `train` and `val` pictures in all, dealt out to the classes in turn."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            draw_jpeg(folder / split / f"class_{i % classes}" / f"{i:04d}.jpg", rng, *rng.integers(30, 60, size=2))
    return folder


@pytest.fixture(scope="session")
def picture_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 classes, 48 training and 10 validation pictures of 30 to 60 px. Read only: copy it before changing it."""
    return draw_tree(tmp_path_factory.mktemp("pictures"), classes=4, train=48, val=10)


@pytest.fixture(autouse=True, scope="module")
def _what_was_imported_is_no_garbage() -> None:
    """Nor is it looked through for any: with all that the files before have imported, each time would take a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes are cached under the home folder: the tests have one of their own."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture
def fork_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `run_script`, in a copy of this process: what it imports is there already."""

    def run(
        *args: object, processes: int = 0, folder: Path = ROOT, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        how = {**_describe(args, processes), "cwd": folder}
        with Forked(**how, stdout=PIPE, stderr=PIPE, start_new_session=True) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture
def run_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script of the project from its root, as a person would: run_script("train.py", "--epochs", 1)."""

    def run(*args: object, processes: int = 0, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(**_describe(args, processes), capture_output=True, timeout=timeout)

    return run


def _describe(args: tuple[object, ...], processes: int) -> dict[str, Any]:
    """How a script starts, for Popen: under torchrun, or alone (0)."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] * (processes > 0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return {"args": [sys.executable, *launcher, *map(str, args)], "cwd": ROOT, "env": environment, "text": True}
