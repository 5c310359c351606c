"""A run that goes on with another number of processes: which pictures, which crops, which sums.

A process is a number here; test_elastic.py has real ones.
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cspnet.cli.build import build_train_loader, open_splits
from cspnet.cli.train import main
from cspnet.data.decode import open_picture
from cspnet.data.loader import Batch, TrainLoader
from cspnet.data.sampler import BatchAddress, epoch_order
from cspnet.data.transforms import build_train_transform
from cspnet.models import create_model
from cspnet.recipe.schema import AugmentRecipe, DataRecipe, Recipe, TrainRecipe
from cspnet.runtime.device import choose_device
from cspnet.runtime.distributed import World, read_world
from cspnet.runtime.random import generator_at
from cspnet.training.state import Sums, TrainState

CPU = torch.device("cpu")
SIZES = (1, 2, 4)
SEED, GLOBAL_BATCH, STEPS_PER_EPOCH = 11, 8, 6
SEAM = 3  # a checkpoint behind this step, in the middle of the first epoch
STEPS = STEPS_PER_EPOCH + 2


def create_recipe(pictures: Path, batch_size: int) -> Recipe:
    return Recipe(
        data=DataRecipe(root=str(pictures), train_px=16, workers=0),
        augment=AugmentRecipe(policy="trivial"),
        train=TrainRecipe(seed=SEED, global_batch=GLOBAL_BATCH, batch_size=batch_size),
    )


def create_loaders(recipe: Recipe, processes: int) -> list[TrainLoader]:
    """Those of all processes of a run."""
    splits = open_splits(recipe, World())
    return [build_train_loader(recipe, splits, World(rank, processes), CPU) for rank in range(processes)]


def hash_batch(addresses: list[BatchAddress], batches: list[Batch]) -> str:
    """Of what a step is given: places in the order, pictures, targets, pixels, and which are to be mirrored."""
    state = hashlib.sha256()
    for name in ("positions", "samples"):
        state.update(np.concatenate([getattr(address, name) for address in addresses]).tobytes())
    for name in ("targets", "images", "flipped"):
        state.update(torch.cat([getattr(batch, name) for batch in batches]).numpy().tobytes())
    return state.hexdigest()


def hash_steps(loaders: list[TrainLoader], first: int, end: int) -> list[str]:
    """A hash for each step from `first` on, of what all processes together are given, slice behind slice."""
    plan = loaders[0].plan
    at = (first // STEPS_PER_EPOCH, first % STEPS_PER_EPOCH * plan.global_batch_size)
    shares = [zip(plan.addresses(loader.rank, *at), loader.start_at(*at), strict=False) for loader in loaders]
    hashes = []
    for _ in range(first, end):
        slices = [next(share) for _ in range(plan.accumulate) for share in shares]
        hashes.append(hash_batch([address for address, _ in slices], [batch for _, batch in slices]))
    return hashes


@pytest.fixture(scope="module")
def expected(picture_tree: Path) -> list[str]:
    """The hashes of the steps, made without loaders: each picture of the order, seen with the draws of its place."""
    recipe = create_recipe(picture_tree, GLOBAL_BATCH)
    index, view = open_splits(recipe, World()).train, build_train_transform(recipe)
    hashes = []
    for step in range(STEPS):
        epoch, start = step // STEPS_PER_EPOCH, step % STEPS_PER_EPOCH * GLOBAL_BATCH
        positions = np.arange(start, start + GLOBAL_BATCH)
        samples = epoch_order(SEED, epoch, len(index))[positions]
        draws = [generator_at(SEED, "augment", epoch, int(position)) for position in positions]
        seen = [view(open_picture(index.read(int(i))), rng, 16) for i, rng in zip(samples, draws, strict=True)]
        images, flipped = (torch.from_numpy(np.stack(column)) for column in zip(*seen, strict=True))
        batch = Batch(images, torch.from_numpy(index.labels[samples].astype(np.int64)), flipped, [])
        hashes.append(hash_batch([BatchAddress(epoch, positions, samples)], [batch]))
    return hashes


@pytest.mark.parametrize("batch_size", [2, 8], ids=["slices of the same size", "a forward pass a process"])
@pytest.mark.parametrize(("before", "after"), list(itertools.product(SIZES, SIZES)))
def test_every_step_has_the_same_pictures_and_crops(
    picture_tree: Path, expected: list[str], before: int, after: int, batch_size: int
) -> None:
    recipe = create_recipe(picture_tree, batch_size)
    first, others = create_loaders(recipe, before), create_loaders(recipe, after)
    assert hash_steps(first, 0, SEAM) + hash_steps(others, SEAM, STEPS) == expected
    assert first[0].plan.batch_size == min(batch_size, GLOBAL_BATCH // before)


def test_hashes_tell_steps_apart(expected: list[str]) -> None:
    assert len(set(expected)) == STEPS


def create_state() -> TrainState:
    model = create_model("cspdarknet_tiny", 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return TrainState(model, optimizer, None, torch.amp.GradScaler("cpu", enabled=False), Sums(CPU), Sums(CPU))


@pytest.mark.parametrize(("before", "after"), list(itertools.product((1, 2, 3, 4), repeat=2)))
def test_nothing_that_was_summed_is_lost_or_counted_twice(before: int, after: int) -> None:
    state, saved = create_state(), []
    for rank in range(before):
        torch.manual_seed(100 + rank)
        state.window.values.copy_(torch.tensor([0.5, 1, 2, 4]) * 16**rank)
        state.epoch_sums.values.copy_(3 * state.window.values)
        saved.append(state.rank_to_dict())
    whole = torch.tensor([0.5, 1, 2, 4], dtype=torch.float64) * sum(16**rank for rank in range(before))
    window, epoch_sums = torch.zeros(2, 4, dtype=torch.float64)
    for rank in range(after):
        torch.manual_seed(200 + rank)
        state.load_rank_dicts(saved, rank, after)
        window += state.window.values
        epoch_sums += state.epoch_sums.values
        drawn = torch.rand(())
        torch.manual_seed((100 if rank < before else 200) + rank)
        assert drawn == torch.rand(())
    assert torch.equal(window, whole)
    assert torch.equal(epoch_sums, 3 * whole)


def describe_process(rank: int, local_rank: int, local_size: int) -> dict[str, str]:
    """torchrun's variables of one of four processes."""
    numbers = {"RANK": rank, "WORLD_SIZE": 4, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_size}
    return {**{name: str(number) for name, number in numbers.items()}, "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


def test_devices_and_reading_processes_are_those_of_the_own_machine(
    picture_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process 3 of 4, the second one on the second of two machines, with two GPUs and 12 cores each."""
    world = read_world(describe_process(rank=3, local_rank=1, local_size=2))
    monkeypatch.setattr("cspnet.data.loader.count_cores", lambda: 12)
    recipe = Recipe(data=DataRecipe(root=str(picture_tree)), train=TrainRecipe(batch_size=2))
    loader = build_train_loader(recipe, open_splits(recipe, World()), world, CPU)
    assert (loader.rank, loader.plan.world_size, loader.workers) == (3, 4, 6)
    taken: list[Any] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setattr("torch.backends.cudnn.benchmark", False)
    assert choose_device("cuda", world.local_rank) == torch.device("cuda", 1)
    assert taken == [torch.device("cuda", 1)]


def test_killed_before_its_first_checkpoint_a_run_begins_anew(
    picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", "cspdarknet_tiny", "--img-size", "32", "--workers", "0", "--device", "cpu", "--steps", "1"]
    flags += ["--global-batch", "8", "--log.tensorboard", "false", "--data-path", str(picture_tree)]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".step-00000002.pt.x.tmp").write_bytes(b"half a file")
    (tmp_path / "recipe.yaml").write_text("train: {seed: 5}\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 9}\n{"step": 2, "tr')
    assert main([*flags, "--output-dir", str(tmp_path), "--resume", "auto"]) == 0
    assert "resumed" not in capsys.readouterr().out
    assert [line.split(",")[0] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == ['{"step": 1'] * 2
    assert 'train/loss": 9' not in (tmp_path / "metrics.jsonl").read_text()
    assert not list((tmp_path / "checkpoints").glob(".*.tmp"))
