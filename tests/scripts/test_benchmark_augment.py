"""The benchmark of how training pictures are made: it measures every way beside the peer's, and takes no nonsense."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / f"{i}.jpg")
    return tmp_path


def test_every_way(fork_script: Run, pictures: Path) -> None:
    flags = ("--size", 32, "--repeats", 1, "--step-model", "cspdarknet_tiny", "--batch-size", 2)
    done = fork_script("scripts/benchmark_augment.py", pictures, *flags)
    assert (done.returncode, done.stderr) == (0, "")
    views = [line for line in done.stdout.splitlines() if "images/s per core" in line]
    assert [line.split("  ")[0] for line in views][:2] == ["random_resized", "darknet"]
    assert views[0].count("1.000 (1.000 to 1.000) x random_resized") == 1
    assert views[-1].startswith("torchvision ") and views[-1].endswith("1.000 (1.000 to 1.000) x torchvision")
    assert sum(line.endswith("% of the step") for line in done.stdout.splitlines()) == 8


@pytest.mark.parametrize("flags", [("--repeats", 0), ("--step-model", "nonesuch"), ("--size", "large"), ("--size", -1)])
def test_wrong_things_end_in_one_line(fork_script: Run, pictures: Path, flags: tuple[object, ...]) -> None:
    done = fork_script("scripts/benchmark_augment.py", pictures, *flags)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_without_pictures(fork_script: Run, tmp_path: Path) -> None:
    done = fork_script("scripts/benchmark_augment.py", tmp_path)
    assert done.returncode == 2
    assert "no pictures" in done.stderr
