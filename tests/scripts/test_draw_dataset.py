"""The demo's pictures: seeded, complete or absent, with the held-out ones really held out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.processes import members_of, start_group, wait_for_the_end_of

Run = Callable[..., subprocess.CompletedProcess[str]]


def draw(fork_script: Run, folder: Path, *flags: object) -> dict[str, bytes]:
    done = fork_script("scripts/draw_dataset.py", folder, *flags)
    assert done.returncode == 0, done.stderr
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.jpg"))}


def test_a_picture_depends_on_its_address_alone(tmp_path: Path, fork_script: Run) -> None:
    few = draw(fork_script, tmp_path / "few", "--train-per-class", 2, "--val-per-class", 1, "--workers", 1)
    more = draw(fork_script, tmp_path / "more", "--train-per-class", 3, "--val-per-class", 2, "--workers", 2)
    other = draw(fork_script, tmp_path / "other", "--train-per-class", 2, "--val-per-class", 1, "--seed", 1)
    assert len(few) == 12 * 3
    assert len(more) == 12 * 5
    assert few == {name: more[name] for name in few}
    assert all(few[name] != other[name] for name in few)
    assert len(set(more.values())) == len(more)  # no picture twice: none of val is in train
    with Image.open(tmp_path / "few" / next(iter(few))) as image:
        assert image.format == "JPEG"
        assert image.size == (72, 72)


def test_mean_colours_do_not_tell_the_class(tmp_path: Path, fork_script: Run) -> None:
    """The nearest class mean in colour statistics does little better than chance (1 in 12) on held-out pictures."""
    draw(fork_script, tmp_path / "set", "--train-per-class", 25, "--val-per-class", 10, "--size", 48)

    def statistics(split: str) -> tuple[np.ndarray, np.ndarray]:
        features, labels = [], []
        for label, folder in enumerate(sorted((tmp_path / "set" / split).iterdir())):
            for file in sorted(folder.iterdir()):
                with Image.open(file) as image:
                    pixels = np.asarray(image, dtype=np.float64).reshape(-1, 3)
                features.append(np.concatenate([pixels.mean(0), pixels.std(0)]))
                labels.append(label)
        return np.stack(features), np.asarray(labels)

    (train, train_labels), (val, val_labels) = statistics("train"), statistics("val")
    scale = train.std(0)
    means = np.stack([train[train_labels == label].mean(0) for label in range(12)])
    guesses = np.linalg.norm((val[:, None] - means[None]) / scale, axis=2).argmin(1)
    assert (guesses == val_labels).mean() < 0.25


def test_a_folder_in_use_stays_as_it_is(tmp_path: Path, fork_script: Run) -> None:
    (tmp_path / "notes.txt").write_text("mine\n")
    done = fork_script("scripts/draw_dataset.py", tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_is_one_line(tmp_path: Path) -> None:
    process = start_group("scripts/draw_dataset.py", tmp_path / "out", "--train-per-class", 100000, "--workers", 2)
    while len(members_of(process.pid)) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(next(number for number in members_of(process.pid) if number != process.pid), signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, len(told.splitlines())) == (2, 1)
    assert "was killed (out of memory?): use fewer --workers" in told
    wait_for_the_end_of(process.pid)
    assert not list(tmp_path.iterdir())
