"""Batches come in shared memory that is used again: never while somebody still has what lies there."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cspnet.data.feed import BadImage, Batch
from cspnet.data.loader import TrainLoader
from cspnet.data.sampler import BatchAddress, BatchPlan
from cspnet.data.shared import CAN_FORK, Pictures, Places, create_places


@dataclass(frozen=True)
class Patterns(Pictures):
    """Every picture is full of the number of its sample, and mirrored if 3 divides it; the sides differ by epoch."""

    sides: tuple[int, ...] = (4,)
    empty_from: int = 1000

    @property
    def max_px(self) -> int:  # type: ignore[override]
        return max(self.sides)

    def side_at(self, address: BatchAddress) -> int:
        return self.sides[address.epoch % len(self.sides)]

    def fill(self, address: BatchAddress, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[BadImage]]:
        if address.epoch >= self.empty_from:
            return np.empty(0, np.int64), np.empty(0, np.bool_), [BadImage("x.jpg", "gone")]
        pixels[:] = address.samples.astype(np.uint8)[:, None, None, None]
        return address.samples.astype(np.int64), address.samples % 3 == 0, []


def start(pictures: Patterns, workers: int, prefetch: int = 2) -> Iterator[Batch]:
    """Batches of 4 of 20 samples."""
    return TrainLoader(pictures, BatchPlan(20, 4, 1, 1, 0), 0, workers, prefetch, torch.device("cpu")).start_at(0, 0)


def is_right(batch: Batch) -> bool:
    numbers = batch.targets
    return bool((batch.images == numbers[:, None, None, None]).all()) and torch.equal(batch.flipped, numbers % 3 == 0)


@pytest.mark.parametrize("keep", [0, 1, 5, 100])
def test_no_batch_changes_while_somebody_has_it(keep: int) -> None:
    """However many are kept; beyond the places there are, each is in memory of its own."""
    expected = list(itertools.islice(start(Patterns((4, 8, 6)), 0), 60))
    kept: list[Batch] = []
    for batch, other in zip(start(Patterns((4, 8, 6)), 2), expected, strict=False):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.targets, other.targets)
        kept = [*kept, batch][-keep:] if keep else []
        assert all(map(is_right, kept))
        del batch


HOLDS = {
    "the batch": lambda images: images,
    "one row": lambda images: images[1:2],
    "a permutation": lambda images: images.permute(0, 3, 1, 2),
    "an array": lambda images: images.numpy()[2],
    "its storage": lambda images: images.untyped_storage(),
}


@pytest.mark.parametrize("name", HOLDS)
def test_a_place_is_taken_until_its_last_view_is_gone(name: str) -> None:
    places = Places(1, 48)
    place = places.take(48)
    assert place == 0
    places.at(place, (4, 2, 2, 3))[:] = 7
    images = places.receive(place, (4, 2, 2, 3))
    assert images.shape == (4, 2, 2, 3)
    assert bool((images == 7).all())
    held = HOLDS[name](images)
    del images
    gc.collect()
    assert places.take(48) is None
    del held
    gc.collect()
    assert places.take(48) == 0


@pytest.mark.skipif(not CAN_FORK, reason="forks")
def test_places_are_shared_with_a_forked_process() -> None:
    """Which finds them by the number that it got with them; no place reaches into its neighbours."""
    places = Places(3, 5000)
    taken = [places.take(5000) for _ in range(3)]
    assert sorted(place for place in taken if place is not None) == [0, 1, 2]

    def write() -> None:
        for place in range(3):
            Places.find(places.number).at(place, (5000,))[:] = 10 + place

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join()
    assert process.exitcode == 0
    for place in range(3):
        assert places.receive(place, (5000,)).unique().tolist() == [10 + place]


def test_what_does_not_fit_gets_no_place() -> None:
    places = Places(1, 4096)
    assert places.take(4097) is None
    assert places.take(4096) == 0
    assert places.take(1) is None


def test_more_memory_than_there_is_is_no_places() -> None:
    assert create_places(8, 1 << 58) is None


def test_they_are_gone_with_their_last_batch() -> None:
    places = Places(2, 4096)
    number, place = places.number, places.take(10)
    assert place is not None
    places.at(place, (10,))[:] = 3
    images = places.receive(place, (10,))
    del places
    gc.collect()
    with pytest.raises(KeyError):
        Places.find(number)
    assert images.tolist() == [3] * 10


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_of_which_nothing_can_be_read_is_empty(workers: int) -> None:
    batch = next(itertools.islice(start(Patterns(empty_from=1), workers), 5, None))
    assert (batch.images.shape, batch.targets.shape, batch.flipped.shape) == ((0, 4, 4, 3), (0,), (0,))
    assert batch.bad == [BadImage("x.jpg", "gone")]
