"""A folder of class folders becomes two lists that train.py reads."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cspnet.data.index import open_index
from tests.conftest import draw_jpeg

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, count in (("cat", 10), ("guinea pig", 3)):
        for i in range(count):
            draw_jpeg(tmp_path / "pets" / name / f"no {i}.jpg", rng)
    return tmp_path / "pets"


def test_every_picture_is_in_one_list_and_each_class_in_both(pets: Path, fork_script: Run) -> None:
    done = fork_script("scripts/make_lists.py", pets, "--val-share", "0.2")
    assert done.returncode == 0, done.stderr
    split = {name: open_index(pets / f"{name}_list.txt", root=str(pets), cache_dir=None) for name in ("train", "val")}
    listed = [index.path(i) for index in split.values() for i in range(len(index))]
    assert sorted(listed) == sorted(map(str, pets.glob("*/*.jpg")))
    assert Counter(split["val"].labels.tolist()) == {0: 2, 1: 1}
    for index in split.values():
        assert index.classes == ("cat", "guinea pig")
        for i in range(len(index)):
            assert Path(index.path(i)).parent.name == index.classes[index.labels[i]]


def test_the_same_seed_makes_the_same_lists(pets: Path, fork_script: Run) -> None:
    texts = []
    for seed in (1, 1, 2):
        assert fork_script("scripts/make_lists.py", pets, "--val-share", "0.5", "--seed", seed).returncode == 0
        texts.append((pets / "val_list.txt").read_text())
        for file in pets.glob("*.txt"):
            file.unlink()
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("share", ["0", "1", "-1", "nan"])
def test_an_impossible_share_writes_nothing(pets: Path, fork_script: Run, share: str) -> None:
    done = fork_script("scripts/make_lists.py", pets, "--val-share", share)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert not list(pets.glob("*.txt"))


def test_the_folder_above_the_splits_is_refused(tmp_path: Path, fork_script: Run) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(3):
            draw_jpeg(tmp_path / split / "cat" / f"{i}.jpg", rng)
    done = fork_script("scripts/make_lists.py", tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"give {tmp_path / 'train'}" in done.stderr
    assert not list(tmp_path.glob("*.txt"))


def test_lists_that_are_there_stay(pets: Path, fork_script: Run) -> None:
    (pets / "val_list.txt").write_text("mine\n")
    done = fork_script("scripts/make_lists.py", pets)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert [file.name for file in pets.glob("*.txt")] == ["val_list.txt"]
    assert (pets / "val_list.txt").read_text() == "mine\n"
