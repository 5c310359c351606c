"""Pictures that the tests draw for themselves, and ways to run the doors."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


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


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes are cached under the home folder: the tests have one of their own."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp() / "home"))


def _become(words: list[str], folder: Path, out: Path, err: Path) -> NoReturn:
    """In a forked process: be `python3 WORDS` in a folder, and end."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, file in ((1, out), (2, err)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ["OMP_NUM_THREADS"] = "1"
        sys.argv = words
        sys.path.insert(0, str(ROOT / Path(words[0]).parent))
        warnings.resetwarnings()
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@pytest.fixture
def fork_script(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `run_script`, for what starts no processes, in a copy of this one: what it imports is there already."""

    def run(*args: object, folder: Path = ROOT, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        output = tmp_path_factory.mktemp("forked")
        words, out, err = list(map(str, args)), output / "out", output / "err"
        if not (child := os.fork()):
            _become(words, folder, out, err)
        deadline = time.monotonic() + timeout
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise subprocess.TimeoutExpired(words, timeout)
            time.sleep(0.005)
        code = os.waitstatus_to_exitcode(ended[1])
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())

    return run


@pytest.fixture
def run_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script of the project from its root, as a person would: run_script("train.py", "--epochs", 1)."""

    def run(*args: object, processes: int = 0, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable]
        if processes:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [*launcher, *map(str, args)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)

    return run
