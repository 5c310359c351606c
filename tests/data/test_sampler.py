"""The order of pictures, and how processes and micro-batches share it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cspnet.data.sampler import BatchAddress, BatchPlan, epoch_order, eval_addresses
from cspnet.errors import DataError

WAYS = ((1, 4), (2, 2), (4, 1))
"""(processes, micro-batches) with the same global batch."""


def take(plan: BatchPlan, rank: int, count: int, epoch: int = 0, sample: int = 0) -> list[BatchAddress]:
    return list(itertools.islice(plan.addresses(rank, epoch, sample), count))


@pytest.mark.parametrize("num_samples", [1, 2, 97, 5000])
@pytest.mark.parametrize("epoch", [0, 1, 1000])
def test_an_order_is_a_permutation(num_samples: int, epoch: int) -> None:
    assert sorted(epoch_order(3, epoch, num_samples).tolist()) == list(range(num_samples))


def test_orders_differ_by_seed_and_epoch_and_not_by_a_mix_of_both() -> None:
    orders = {(seed, epoch): epoch_order(seed, epoch, 500) for seed in range(6) for epoch in range(6)}
    for (a, order_a), (b, order_b) in itertools.combinations(orders.items(), 2):
        # Two random orders of 500 agree in about one place.
        assert (order_a == order_b).sum() < 12, (a, b)
    for (seed, epoch), order in orders.items():
        assert np.array_equal(order, epoch_order(seed, epoch, 500))


def test_an_order_is_uniform() -> None:
    """Every picture comes to every place about equally often."""
    counts = np.zeros((5, 5))
    for epoch in range(4000):
        counts[np.arange(5), epoch_order(0, epoch, 5)] += 1
    assert np.abs(counts - 800).max() < 5 * np.sqrt(800 * 0.8)


@pytest.mark.parametrize(("world_size", "accumulate"), [*WAYS, (1, 1), (3, 2)])
@pytest.mark.parametrize("num_samples", [48, 53, 60])
def test_every_position_is_read_once_an_epoch(num_samples: int, world_size: int, accumulate: int) -> None:
    plan = BatchPlan(num_samples, 2, accumulate, world_size, seed=5)
    batches = plan.steps_per_epoch * accumulate
    for epoch in range(2):
        addresses = [a for rank in range(world_size) for a in take(plan, rank, batches, epoch)]
        assert {a.epoch for a in addresses} == {epoch}
        whole = plan.steps_per_epoch * 2 * accumulate * world_size
        assert num_samples - whole < 2 * accumulate * world_size
        assert sorted(np.concatenate([a.positions for a in addresses])) == list(range(whole))
        order = epoch_order(5, epoch, num_samples)
        assert all(np.array_equal(a.samples, order[a.positions]) for a in addresses)


def test_an_epoch_follows_the_other() -> None:
    plan = BatchPlan(53, 2, 3, 2, seed=5)
    assert plan.steps_per_epoch == 4
    addresses = take(plan, 1, 30)
    assert [a.epoch for a in addresses] == [0] * 12 + [1] * 12 + [2] * 6
    for mine, again in zip(addresses[12:], take(plan, 1, 18, epoch=1), strict=True):
        assert np.array_equal(mine.samples, again.samples)


def steps_of(plan: BatchPlan, steps: int) -> list[list[np.ndarray]]:
    """For each step its slices in the order micro-batch by micro-batch, rank by rank."""
    shares = [take(plan, rank, steps * plan.accumulate) for rank in range(plan.world_size)]
    return [
        [shares[r][step * plan.accumulate + m].samples for m in range(plan.accumulate) for r in range(plan.world_size)]
        for step in range(steps)
    ]


def test_the_same_global_batch_however_it_is_shared() -> None:
    whole, *others = (steps_of(BatchPlan(100, 3, accumulate, world, seed=1), 16) for world, accumulate in WAYS)
    flat = epoch_order(1, 0, 100)
    for step in range(8):
        assert set(np.concatenate(whole[step]).tolist()) == set(flat[step * 12 : (step + 1) * 12].tolist())
    for other in others:
        for a, b in zip(whole, other, strict=True):
            assert set(np.concatenate(a).tolist()) == set(np.concatenate(b).tolist())
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("world_size", "accumulate"), WAYS)
def test_starting_in_the_middle_is_the_tail_of_the_whole(world_size: int, accumulate: int) -> None:
    plan = BatchPlan(90, 2, accumulate, world_size, seed=2)
    for rank in range(world_size):
        whole = take(plan, rank, 25 * accumulate, epoch=3)
        for step in range(plan.steps_per_epoch + 1):
            count = len(whole) - step * accumulate
            tail = take(plan, rank, count, epoch=3, sample=step * plan.global_batch_size)
            for a, b in zip(tail, whole[step * accumulate :], strict=True):
                assert a.epoch == b.epoch
                assert np.array_equal(a.positions, b.positions)
                assert np.array_equal(a.samples, b.samples)


def test_fewer_pictures_than_a_step_takes() -> None:
    assert BatchPlan(24, 4, 3, 2, seed=0).steps_per_epoch == 1
    with pytest.raises(DataError, match=r"23 pictures, but a step takes 24 .*--batch-size"):
        BatchPlan(23, 4, 3, 2, seed=0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_validation_covers_every_sample_exactly_once(world_size: int, batch_size: int) -> None:
    for num_samples in {5 * world_size - 1, 5 * world_size, 5 * world_size + 1, 1, 2, 40}:
        shares = [list(eval_addresses(num_samples, batch_size, rank, world_size)) for rank in range(world_size)]
        seen = [int(i) for share in shares for address in share for i in address.samples]
        assert sorted(seen) == list(range(num_samples))
        assert all(0 < len(address.samples) <= batch_size for share in shares for address in share)
        sizes = [sum(len(address.samples) for address in share) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_a_process_may_have_nothing_to_validate() -> None:
    assert [len(list(eval_addresses(1, 4, rank, 3))) for rank in range(3)] == [1, 0, 0]


@pytest.mark.parametrize(("world_size", "accumulate"), WAYS)
@pytest.mark.parametrize("repeats", [2, 4, 8])
def test_repeated_augmentation_takes_each_picture_of_a_step_so_often(
    world_size: int, accumulate: int, repeats: int
) -> None:
    """Slice by slice the same for every split; a slow count over an epoch of 67 pictures in steps of 16."""
    plan = BatchPlan(67, 4, accumulate, world_size, seed=5, repeats=repeats)
    reference = BatchPlan(67, 16, 1, 1, seed=5, repeats=repeats)
    order = epoch_order(5, 0, 67).tolist()
    taken = {rank: take(plan, rank, 4 * accumulate) for rank in range(world_size)}
    for step, whole in enumerate(take(reference, 0, 4)):
        slices = [taken[rank][step * accumulate + micro] for micro in range(accumulate) for rank in range(world_size)]
        samples = np.concatenate([address.samples for address in slices]).tolist()
        assert samples == whole.samples.tolist()
        assert np.concatenate([a.positions for a in slices]).tolist() == list(range(16 * step, 16 * step + 16))
        different = order[16 * step // repeats : 16 * (step + 1) // repeats]
        assert {sample: samples.count(sample) for sample in different} == dict.fromkeys(different, repeats)
        assert all(samples[i] != samples[i - 1] for i in range(16)), "mixing would pair a picture with its copy"


def test_repeats_have_to_divide_a_step() -> None:
    with pytest.raises(DataError, match=r"augment\.repeats: a step takes 8 pictures, which is not a multiple of 3"):
        BatchPlan(100, 4, 1, 2, seed=0, repeats=3)
