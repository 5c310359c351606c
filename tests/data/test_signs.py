"""A disk that hangs ends the reading with the name of the file; one that is slow does not."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cspnet.data.index import open_index
from cspnet.data.loader import Batch, EvalLoader, EvalPictures, Reader, TrainLoader, TrainPictures
from cspnet.data.sampler import BatchPlan
from cspnet.data.samples import SampleIndex
from cspnet.data.signs import Signs
from cspnet.data.transforms import EvalTransform, build_train_transform
from cspnet.errors import StalledError
from cspnet.recipe.schema import DataRecipe, Recipe

TRAIN = build_train_transform(Recipe(data=DataRecipe(train_px=16)))
EVAL = EvalTransform(16, 0.875, "bilinear")
CPU = torch.device("cpu")
LIMIT_S = 1.0


@pytest.fixture
def index(picture_tree: Path) -> SampleIndex:
    return open_index(picture_tree / "train", root=str(picture_tree), cache_dir=None)


def start_training(index: SampleIndex, workers: int) -> Iterator[Batch]:
    pictures = TrainPictures(Reader(index, "apply", "fast"), TRAIN, 0)
    plan = BatchPlan(len(index), 4, 1, 1, 0)
    return TrainLoader(pictures, plan, 0, workers, 2, CPU, LIMIT_S).start_at(0, 0)


def start_validating(index: SampleIndex, workers: int) -> Iterator[Batch]:
    pictures = EvalPictures(Reader(index, "apply", "fast"), EVAL)
    return iter(EvalLoader(pictures, 4, 0, 1, workers, 2, CPU, timeout_s=LIMIT_S))


STARTS = pytest.mark.parametrize("start", [start_training, start_validating])
WORKERS = pytest.mark.parametrize("workers", [0, 2])
Start = Callable[[SampleIndex, int], Iterator[Batch]]


def act_at(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], object]) -> None:
    """Something that happens in front of the reading of each sample."""
    read = SampleIndex.read

    def act_and_read(index: SampleIndex, sample: int) -> bytes:
        act(sample)
        return read(index, sample)

    monkeypatch.setattr(SampleIndex, "read", act_and_read)


@STARTS
@WORKERS
def test_a_file_that_hangs_is_named(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start, workers: int
) -> None:
    """And nobody goes on to wait for it."""
    os.mkfifo(tmp_path / "pipe")
    act_at(monkeypatch, lambda sample: sample == 11 and (tmp_path / "pipe").read_bytes())
    others = set(multiprocessing.active_children())
    batches = start(index, workers)
    with pytest.raises(StalledError) as caught:
        for _ in range(12):
            next(batches)
    assert f"nothing has been read for 1 s (data.timeout_s), waiting for {index.path(11)}: " in str(caught.value)
    assert "\n" not in str(caught.value)
    for process in set(multiprocessing.active_children()) - others:
        process.join(60)
        assert process.exitcode is not None


@WORKERS
def test_every_file_that_hangs_is_named(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Each reading process at its own."""
    os.mkfifo(tmp_path / "pipe")
    act_at(monkeypatch, lambda sample: sample in (2, 6) and (tmp_path / "pipe").read_bytes())
    with pytest.raises(StalledError) as caught:
        next(start_validating(index, workers))
    assert index.path(2) in str(caught.value)
    assert (index.path(6) in str(caught.value)) is (workers == 2)


@WORKERS
def test_a_slow_disk_is_waited_for(index: SampleIndex, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """No batch comes for longer than the limit, and no picture takes so long."""
    act_at(monkeypatch, lambda sample: time.sleep(LIMIT_S / 2) if sample in range(4) else None)
    batches = start_validating(index, workers)
    started_s = time.monotonic()
    assert len(next(batches).images) == 4
    assert time.monotonic() - started_s > 1.9 * LIMIT_S
    assert sum(len(batch.images) for batch in batches) == len(index) - 4


@WORKERS
def test_a_loop_that_takes_its_time_is_no_hang(index: SampleIndex, workers: int) -> None:
    batches = start_training(index, workers)
    for _ in range(2):
        assert len(next(batches).images) == 4
        time.sleep(1.5 * LIMIT_S)
    assert sum(len(batch.images) for batch in itertools.islice(batches, 20)) == 80


@STARTS
def test_no_thread_outlives_the_reading(index: SampleIndex, start: Start) -> None:
    """One that ends together with the interpreter may abort it."""
    before = threading.enumerate()
    for _ in range(20):
        batches = start(index, 0)
        next(batches)
        del batches
        assert threading.enumerate() == before


def test_time_in_which_the_program_was_suspended_does_not_count() -> None:
    signs = Signs(1, 10.0, str)
    signs.rows[0, 0] = 3
    for _ in range(3):
        signs.look(3600.0)
    with pytest.raises(StalledError, match="waiting for 3: "):
        for _ in range(2):
            signs.look(3600.0)


def test_processes_that_are_at_nothing_are_told_too() -> None:
    signs = Signs(2, 10.0, str)
    with pytest.raises(StalledError, match="no process is at a picture"):
        for _ in range(6):
            signs.look(2.0)


def test_without_a_main_thread_nothing_is_interrupted(index: SampleIndex) -> None:
    counts: list[int] = []
    thread = threading.Thread(target=lambda: counts.extend(len(b.images) for b in start_validating(index, 0)))
    thread.start()
    thread.join(60)
    assert sum(counts) == len(index)


def test_what_is_no_file_is_not_read(picture_tree: Path, tmp_path: Path) -> None:
    """A pipe that nobody writes to, in the place of a picture that the index knows."""
    (tmp_path / "train" / "a").mkdir(parents=True)
    path = tmp_path / "train" / "a" / "0.jpg"
    path.write_bytes(next((picture_tree / "train" / "class_1").iterdir()).read_bytes())
    index = open_index(tmp_path / "train", root=str(tmp_path), cache_dir=None)
    path.unlink()
    os.mkfifo(path)
    (batch,) = start_validating(index, 0)
    assert batch.bad == [(str(path), "a pipe, a socket or a device, not a file")]


def test_what_is_no_file_is_left_out_and_told(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    picture = next((picture_tree / "train" / "class_1").iterdir())
    (folder / "1.jpg").write_bytes(picture.read_bytes())
    (folder / "2.jpg").symlink_to(picture)
    (folder / "round.jpg").symlink_to(folder / "round.jpg")
    os.mkfifo(folder / "0.jpg")
    told: list[str] = []
    index = open_index(tmp_path / "train", root=str(tmp_path), cache_dir=None, warn=told.append)
    assert [Path(index.path(i)).name for i in range(len(index))] == ["1.jpg", "2.jpg", "round.jpg"]
    assert told == [f"{folder / '0.jpg'}: a pipe, a socket or a device, not a file: left out"]
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(folder)  # the path of a socket must be short
        listener.bind("3.jpg")
        told.clear()
        open_index(tmp_path / "train", root=str(tmp_path), cache_dir=None, warn=told.append)
    assert told[0].endswith("left out, as are 1 more of the kind")
