"""A recipe through timm's parts: its schedule and groups are ours, it learns, and refuses what it would not follow."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = """
model: {name: cspdarknet_tiny}
data: {train_px: 32, train_scale: [0.5, 1.0], workers: 0, flip_prob: 0.0}
loss: {smoothing: 0.1}
optim: {lr: 0.05, decay_norm_and_bias: false}
schedule: {name: cosine, warmup_epochs: 1}
train: {batch_size: 8, epochs: 6, device: cpu, precision: fp32}
"""


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Two classes that any network tells apart: dark red and bright blue noise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for name, colour in (("a", (120, 20, 20)), ("b", (60, 60, 220))):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(colour, 20, (36, 36, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return tmp_path / "data"


def test_it_learns_and_tells(colours: Path, tmp_path: Path, fork_script: Run) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(SMALL)
    words = ("scripts/train_with_timm.py", "--recipe", recipe, "--data-path", colours, "--output-dir", tmp_path / "run")
    done = fork_script(*words)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert record == {"epoch": 6, "val/acc1": 100.0}
    assert done.stdout.splitlines()[-1] == " * Acc@1 100.000"
    again = fork_script(*words)
    assert again.returncode == 2 and "already holds a run" in again.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("--mix.darknet=mosaic", "mix.darknet: mosaic: is not among the settings"),
        ("--ema.decay=0.9", "ema.decay: 0.9: is not among"),
        ("--schedule.name=poly", "schedule.name: poly: only cosine"),
        ("--data.val=null", "data.val: a comparison needs"),
        ("--data-path=gone", "gone"),
    ],
)
def test_what_it_would_not_follow_is_an_error(
    setting: str, said: str, colours: Path, tmp_path: Path, fork_script: Run
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(SMALL)
    run = tmp_path / "run"
    done = fork_script(
        "scripts/train_with_timm.py", "--recipe", recipe, "--data-path", colours, "--output-dir", run, setting
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert said in line
    assert not run.exists()
