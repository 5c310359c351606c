"""Batches from workers: the same whatever reads them, and what happens to files that cannot be read."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cspnet.data.decode import Picture, open_picture
from cspnet.data.index import open_index
from cspnet.data.loader import Batch, EvalLoader, EvalPictures, Reader, TrainLoader, TrainPictures, default_workers
from cspnet.data.sampler import BatchPlan, epoch_order
from cspnet.data.samples import SampleIndex
from cspnet.data.transforms import EvalTransform, build_train_transform
from cspnet.recipe.schema import DataRecipe, Recipe
from cspnet.runtime.random import generator_at

CPU = torch.device("cpu")
SEED = 9
TRAIN = build_train_transform(Recipe(data=DataRecipe(train_px=16, shrink=False)))
EVAL = EvalTransform(16, 0.875, "bilinear")


def open_pictures(folder: Path) -> SampleIndex:
    return open_index(folder, root=str(folder.parent), cache_dir=None)


def reader_of(index: SampleIndex) -> Reader:
    return Reader(index, "apply", "fast")


def open_file(path: str | Path) -> Picture:
    return open_picture(Path(path).read_bytes(), decoder="pillow")


@pytest.fixture
def tree(picture_tree: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return shutil.copytree(picture_tree, tmp_path / "tree")


def create_train_loader(index: SampleIndex, workers: int = 0, batch_size: int = 4, **plan: int) -> TrainLoader:
    shares = {"accumulate": 1, "world_size": 1, "seed": SEED, **plan}
    pictures = TrainPictures(reader_of(index), TRAIN, SEED)
    return TrainLoader(pictures, BatchPlan(len(index), batch_size, **shares), 0, workers, 2, CPU)


def create_eval_loader(index: SampleIndex, workers: int = 0, rank: int = 0, world_size: int = 1) -> EvalLoader:
    return EvalLoader(EvalPictures(reader_of(index), EVAL), 4, rank, world_size, workers, 2, CPU)


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.images.numpy().tobytes() == y.images.numpy().tobytes()
        assert x.targets.tolist() == y.targets.tolist()
        assert (x.flipped.dtype, x.flipped.tolist()) == (torch.bool, y.flipped.tolist())
        assert x.bad == y.bad


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that this process reads from now on."""
    paths: list[str] = []

    def read_and_note(index: SampleIndex, sample: int) -> bytes:
        paths.append(index.path(sample))
        return read(index, sample)

    read = SampleIndex.read
    monkeypatch.setattr(SampleIndex, "read", read_and_note)
    return paths


def test_training_batches_are_those_of_their_addresses(picture_tree: Path) -> None:
    index = open_pictures(picture_tree / "train")
    batches = take(create_train_loader(index).start_at(0, 0), 14)
    for number, batch in enumerate(batches):
        epoch, step = divmod(number, 12)
        order = epoch_order(SEED, epoch, 48)
        assert batch.images.shape == (4, 16, 16, 3)
        assert batch.images.dtype == torch.uint8
        assert batch.bad == []
        for i in range(4):
            position = step * 4 + i
            path = Path(index.path(int(order[position])))
            assert int(batch.targets[i]) == index.classes.index(path.parent.name)
            reference, flip = TRAIN(open_file(path), generator_at(SEED, "augment", epoch, position), 16)
            assert np.array_equal(batch.images[i].numpy(), reference)
            assert bool(batch.flipped[i]) is flip
    assert 10 < sum(int(batch.flipped.sum()) for batch in batches) < 46, "of 56"


@pytest.mark.parametrize("workers", [0, 2])
def test_alternating_flip_shows_both_sides_of_a_picture_in_two_epochs(picture_tree: Path, workers: int) -> None:
    index = open_pictures(picture_tree / "train")
    pictures = TrainPictures(reader_of(index), replace(TRAIN, flip="alternate"), SEED)
    loader = TrainLoader(pictures, BatchPlan(48, 4, 1, 1, SEED), 0, workers, 2, CPU)
    batches = take(loader.start_at(0, 0), 4 * 12)
    sides = np.empty((4, 48), dtype=bool)
    for epoch in range(4):
        mine = batches[12 * epoch : 12 * (epoch + 1)]
        sides[epoch, epoch_order(SEED, epoch, 48)] = np.concatenate([batch.flipped.numpy() for batch in mine])
        plain = take(create_train_loader(index).start_at(epoch, 0), 12)
        assert all(torch.equal(batch.images, other.images) for batch, other in zip(mine, plain, strict=True))
    assert np.array_equal(sides[1], ~sides[0])
    assert np.array_equal(sides[2:], sides[:2])
    assert 10 < sides[0].sum() < 38, "of 48: which side comes first is drawn for each picture"
    assert_same(take(loader.start_at(3, 20), 3), batches[3 * 12 + 5 : 3 * 12 + 8])


def test_workers_do_not_change_training_batches(picture_tree: Path) -> None:
    index = open_pictures(picture_tree / "train")
    whole = take(create_train_loader(index, workers=0).start_at(1, 0), 16)
    for workers in (1, 2):
        assert_same(take(create_train_loader(index, workers).start_at(1, 0), 16), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_in_the_middle_is_the_tail_of_the_whole(picture_tree: Path, workers: int) -> None:
    index = open_pictures(picture_tree / "train")
    whole = take(create_train_loader(index).start_at(0, 0), 15)
    assert_same(take(create_train_loader(index, workers).start_at(0, 28), 8), whole[7:])
    assert_same(take(create_train_loader(index, workers).start_at(0, 48), 3), whole[12:])


def test_nothing_before_the_start_is_read(picture_tree: Path, reads: list[str]) -> None:
    index = open_pictures(picture_tree / "train")
    take(create_train_loader(index).start_at(2, 36), 3)
    assert reads == [index.path(int(sample)) for sample in epoch_order(SEED, 2, 48)[36:48]]


def test_the_pictures_of_a_step_are_the_same_for_one_process_and_two(picture_tree: Path) -> None:
    index = open_pictures(picture_tree / "train")
    alone = take(create_train_loader(index, accumulate=2).start_at(0, 0), 12)
    plan = BatchPlan(48, 4, 1, 2, SEED)
    for rank in range(2):
        share = TrainLoader(TrainPictures(reader_of(index), TRAIN, SEED), plan, rank, 0, 2, CPU)
        assert_same(take(share.start_at(0, 0), 6), alone[rank::2])


def break_files(index: SampleIndex, *samples: int) -> list[str]:
    """Cut files off."""
    paths = [index.path(sample) for sample in samples]
    for path in paths:
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[:-100])
    return paths


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("broken", "replacement"), [((5,), 6), ((20, 21, 22), 23), ((47,), 0), ((11,), 12)])
def test_a_broken_training_picture_is_replaced_by_the_next_of_the_index(
    tree: Path, broken: tuple[int, ...], replacement: int, workers: int
) -> None:
    index = open_pictures(tree / "train")
    healthy = take(create_train_loader(index).start_at(0, 0), 12)
    paths = break_files(index, *broken)
    batches = take(create_train_loader(index, workers).start_at(0, 0), 12)
    order = epoch_order(SEED, 0, 48)
    for position, sample in enumerate(order.tolist()):
        step, i = divmod(position, 4)
        if sample in broken:
            reference, _ = TRAIN(open_file(index.path(replacement)), generator_at(SEED, "augment", 0, position), 16)
            assert np.array_equal(batches[step].images[i].numpy(), reference)
            assert int(batches[step].targets[i]) == int(index.labels[replacement])
        else:
            assert torch.equal(batches[step].images[i], healthy[step].images[i])
            assert batches[step].targets[i] == healthy[step].targets[i]
        assert batches[step].flipped[i] == healthy[step].flipped[i], "whatever is shown there: it is drawn first"
    # A picture that replaces others in vain is reported for each of them.
    expected = [paths[j:] for j in range(len(paths))]
    for batch, samples in zip(batches, order.reshape(12, 4).tolist(), strict=True):
        bad = [path for sample in samples if sample in broken for path in expected[broken.index(sample)]]
        assert [item.path for item in batch.bad] == bad
        assert all("truncated" in item.reason for item in batch.bad)


def test_no_readable_training_picture_at_all(tree: Path) -> None:
    index = open_pictures(tree / "train")
    for i in range(len(index)):
        Path(index.path(i)).write_bytes(b"")
    batch = next(create_train_loader(index).start_at(0, 0))
    assert len(batch.images) == len(batch.targets) == len(batch.flipped) == 0
    assert {item.path for item in batch.bad} == {index.path(i) for i in range(48)}


def test_validation_reads_every_picture_in_its_order(picture_tree: Path, reads: list[str]) -> None:
    index = open_pictures(picture_tree / "val")
    loader = create_eval_loader(index)
    batches = list(loader)
    assert loader.num_samples == 10
    assert reads == [index.path(i) for i in range(10)]
    assert [len(batch.images) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch.targets for batch in batches]).tolist() == index.labels.tolist()
    assert [batch.flipped.tolist() for batch in batches] == [[False] * 4, [False] * 4, [False] * 2]
    images = np.concatenate([batch.images.numpy() for batch in batches])
    assert all(np.array_equal(images[i], EVAL(open_file(index.path(i)))) for i in range(10))


def test_workers_do_not_change_validation_batches(picture_tree: Path) -> None:
    index = open_pictures(picture_tree / "val")
    alone = list(create_eval_loader(index))
    for workers in (1, 2):
        assert_same(list(create_eval_loader(index, workers)), alone)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("limit", [None, 7])
def test_processes_share_the_validation_split(
    picture_tree: Path, reads: list[str], world_size: int, limit: int | None
) -> None:
    index = open_pictures(picture_tree / "val")
    for rank in range(world_size):
        loader = EvalLoader(EvalPictures(reader_of(index), EVAL), 2, rank, world_size, 0, 2, CPU, limit)
        assert loader.num_samples == (limit or 10)
        list(loader)
    assert sorted(reads) == [index.path(i) for i in range(limit or 10)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_validation_picture_is_never_replaced(tree: Path, workers: int) -> None:
    index = open_pictures(tree / "val")
    healthy = list(create_eval_loader(index))
    (path,) = break_files(index, 6)
    batches = list(create_eval_loader(index, workers))
    assert_same([batches[0], batches[2]], [healthy[0], healthy[2]])
    assert batches[1].targets.tolist() == [*index.labels[4:6].tolist(), -1, int(index.labels[7])]
    assert not batches[1].images[2].any()
    for i in (0, 1, 3):
        assert torch.equal(batches[1].images[i], healthy[1].images[i])
    assert [item.path for item in batches[1].bad] == [path]
    assert "truncated" in batches[1].bad[0].reason


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_draws_nothing_from_the_generators_of_the_process(picture_tree: Path, workers: int) -> None:
    train, val = open_pictures(picture_tree / "train"), open_pictures(picture_tree / "val")
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    take(create_train_loader(train, workers).start_at(0, 0), 3)
    list(create_eval_loader(val, workers))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tobytes() == before[1]
    assert random.getstate() == before[2]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not tell the cores of a process")
@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(1, 1, 1), (2, 1, 2), (64, 1, 8), (16, 4, 4), (15, 4, 3), (4, 8, 1)]
)
def test_workers_by_default(monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, workers: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert default_workers(processes) == workers


def test_the_size_of_a_batch_follows_its_epoch(picture_tree: Path) -> None:
    index = open_pictures(picture_tree / "train")
    transform = build_train_transform(Recipe(data=DataRecipe(train_px=80, start_px=16, ramp_epochs=(1, 3))))
    pictures = TrainPictures(reader_of(index), transform, SEED)
    loader = TrainLoader(pictures, BatchPlan(len(index), 24, 1, 1, SEED), 0, 0, 2, CPU)
    sides = [tuple(batch.images.shape[1:3]) for batch in take(loader.start_at(0, 0), 10)]
    assert sides == [(side, side) for side in (16, 16, 48, 80, 80) for _ in range(2)]
    (later,) = take(loader.start_at(2, 24), 1)
    assert tuple(later.images.shape[1:3]) == (48, 48)
