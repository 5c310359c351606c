"""The batch size with which training is fastest (train.batch_size auto): tried at the start of a run, kept for good."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import truediv
from typing import Any

import torch

from cspnet.cli.build import Splits
from cspnet.cli.build_run import Place
from cspnet.cli.measure_speed import take_turns
from cspnet.cli.trial import Trial
from cspnet.data.sampler import BatchPlan
from cspnet.data.transforms import build_sizes
from cspnet.errors import CheckpointError, DeviceError, RecipeError
from cspnet.recipe.batch import settle_batch
from cspnet.recipe.schema import Recipe
from cspnet.runtime.distributed import gather_objects
from cspnet.runtime.memory import (
    MARGIN,
    can_be_measured,
    describe_memory,
    find_largest,
    free_host_bytes,
    peak_host_bytes,
    resident_bytes,
)

__all__ = ["HostRoom", "choose_size", "list_sizes", "measure_sizes", "settle_batch_size", "show_rates", "try_sizes"]

SMALLEST = 8
"""BatchNorm's statistics are poor below it."""
ENOUGH = 0.98
"""The smallest batch that has so much of every larger one's speed is taken: larger ones need other learning rates."""
MOSTLY = 0.95
"""It has so much of it in two thirds of the rounds, too: else chance would favour small ones where the pace jumps."""
MOST_LEFT_OUT = 0.1
"""Sizes whose steps leave out more of an epoch's pictures are not tried, unless there are no others."""
GAIN = 1.01
"""What counts as faster on the way up; after two sizes in a row that are not, larger ones are not tried."""
ROUNDS = 9
"""In which those that were tried take turns."""

_DEFAULT = 64
"""Where nothing is trained."""


def settle_batch_size(
    recipe: Recipe, splits: Splits, place: Place, checkpoint: Mapping[str, Any] | None, *, trains: bool
) -> Recipe:
    """The recipe; for train.batch_size auto with a number: that of the checkpoint's steps, or else the one found.

    All processes train on drawn pictures at the same time, so that each has what it will have of the machine.

    Raises:
        DataError: there are fewer pictures than train.global_batch.
        RecipeError: train.global_batch cannot be shared out evenly, or train.micro_batch is a number where one is to be
            found.
        DeviceError: not even the smallest batch fits.
        CheckpointError: its steps cannot be shared out by so many processes.
    """
    if recipe.train.batch_size != "auto":
        return recipe
    passes = recipe.train.accumulate * place.world.size
    sizes = list_sizes(len(splits.train), passes, recipe.augment.repeats)
    if not trains:
        number = max((size for size in sizes if size <= _DEFAULT), default=sizes[0])
    elif checkpoint is not None:
        saved = checkpoint["global_batch_size"]
        if saved % passes:
            raise CheckpointError(
                f"train.batch_size: the run's steps take {saved} pictures, which {passes} forward passes "
                "(processes x train.accumulate) cannot share out evenly; use another number of either"
            )
        number = saved // passes
        place.console.say(f"batch size {number} (auto): that of the run's steps so far")
    elif recipe.train.global_batch is not None:
        share, _ = settle_batch(replace(recipe.train, batch_size=recipe.train.global_batch), place.world.size)
        BatchPlan(len(splits.train), share, 1, place.world.size, recipe.train.seed, recipe.augment.repeats)  # checks
        sizes = [size for size in range(1, share + 1) if share % size == 0 and size >= min(SMALLEST, share)]
        number = _find(recipe, splits, place, sizes)
    else:
        waste = "; larger ones leave out more than a tenth of an epoch" * (2 * sizes[-1] * passes <= len(splits.train))
        number = _find(recipe, splits, place, sizes, waste)
    return replace(recipe, train=replace(recipe.train, batch_size=number))


def list_sizes(num_samples: int, passes: int, repeats: int) -> list[int]:
    """Batch sizes to try, each twice the one before: a step of `passes` of them is a multiple of `repeats`, there are
    pictures enough for it, and an epoch of such steps leaves hardly any out."""
    first = repeats // math.gcd(repeats, passes)
    sizes = [first]
    while 2 * sizes[-1] * passes <= num_samples:
        sizes.append(2 * sizes[-1])
    sizes = [size for size in sizes if size >= SMALLEST] or sizes[-1:]
    return [size for size in sizes if num_samples % (size * passes) <= MOST_LEFT_OUT * num_samples] or sizes[:1]


def choose_size(rates: Mapping[int, Sequence[float]]) -> int:
    """The smallest of {size: its rate in each round} that is, round by round, about as fast as every larger one."""
    return min(
        size
        for size, own in rates.items()
        if all(_is_about_as_fast(own, other) for larger, other in rates.items() if larger > size)
    )


def _is_about_as_fast(own: Sequence[float], other: Sequence[float]) -> bool:
    ratios = sorted(map(truediv, own, other))
    return statistics.median(ratios) >= ENOUGH and ratios[len(ratios) // 3] >= MOSTLY


def show_rates(rates: Mapping[int, Sequence[float]]) -> str:
    """Medians, as '8: 100.0, 16: 120.0'."""
    return ", ".join(f"{size}: {statistics.median(each):,.1f}" for size, each in rates.items())


def measure_sizes(
    sizes: list[int], attempt: Callable[[int], float], say: Callable[[str], None] = lambda text: None
) -> dict[int, list[float]]:
    """{size: its rate in each round}, from the smallest on, as far as that pays and fits. `attempt` gives the rate of a
    size, which is 0 if it does not fit.

    A machine changes its pace, so only what was measured in turns is compared, round by round; on the way up just to
    see where to end. What was found so far is said.
    """
    tried = _climb(sizes, attempt, say)
    if len(tried) > 1:
        say(f"batch size: {tried[0]} to {tried[-1]} in turns ...")
    work = {size: functools.partial(attempt, size) for size in tried}
    rates = take_turns(work, ROUNDS, warm_up=False, shows=False)
    for size, each in rates.items():
        if not all(each):
            say(f"batch size {size}: does not fit any more")
    return {size: each for size, each in rates.items() if all(each)}


def _climb(sizes: list[int], attempt: Callable[[int], float], say: Callable[[str], None]) -> list[int]:
    """The sizes up to where one does not fit, or the second in a row does not pay."""
    leader, vain = 0, 0
    for number, size in enumerate(sizes):
        other = attempt(leader) if leader else 0.0
        rate = attempt(size)
        if not rate:
            say(f"batch size {size}: does not fit")
            return sizes[:number]
        say(f"batch size {size}: {rate:,.1f} images/s" + f", and {leader} at the same time {other:,.1f}" * bool(leader))
        leader, vain = (size, 0) if rate > GAIN * other else (leader, vain + 1)
        if vain == 2:
            return sizes[: number + 1]
    return sizes


class HostRoom:
    """Whether the host's memory is likely to have room for a batch, where the network is trained there: what takes more
    than there is gets no error, but is killed."""

    def __init__(self, place: Place, side_px: int) -> None:
        self._picture_bytes = 3 * side_px**2 * torch.float32.itemsize
        self._asks = not can_be_measured(place.device)
        self._sharers = place.world.local_size
        self._before = resident_bytes()
        self._largest = 0

    def is_likely(self, size: int) -> bool:
        """Whether what the largest batch so far has taken is there as many times as this one is larger."""
        if not self._asks or not self._largest or size <= self._largest:
            return True
        # What was freed before may have been room enough for the first batch, but it is not for any number of pictures.
        taken = max(peak_host_bytes() - self._before, self._largest * self._picture_bytes)
        room = resident_bytes() + free_host_bytes() / self._sharers
        return self._before + taken * size / self._largest <= (1 - MARGIN) * room

    def note(self, size: int) -> None:
        """It has been tried."""
        self._largest = max(self._largest, size)


def try_sizes(trial: Trial, sizes: list[int], host: HostRoom) -> dict[int, list[float]]:
    """Images per second of the slowest process at each size, of which `host` keeps what they take: `measure_sizes`."""
    world, device = trial.place.world, trial.place.device

    def attempt(size: int) -> float:
        own = 0.0

        def train(size: int) -> None:
            nonlocal own
            own = size / trial.time_step(size)

        fits = False
        if host.is_likely(size):
            fits = find_largest([size], train, device) is not None
            host.note(size)
        return min(gather_objects(world, own if fits else 0.0))

    return measure_sizes(sizes, attempt, trial.place.console.say)


def _find(recipe: Recipe, splits: Splits, place: Place, sizes: list[int], why_no_larger: str = "") -> int:
    if isinstance(recipe.train.micro_batch, int):
        raise RecipeError(
            f"train.batch_size auto and train.micro_batch {recipe.train.micro_batch}: both say what a forward pass "
            "takes; give --batch-size a number, or leave --micro-batch out"
        )
    largest = f" to {sizes[-1]}" * (len(sizes) > 1)
    place.console.say(f"batch size: trying {sizes[0]}{largest} (train.batch_size auto){why_no_larger} ...")
    side_px = build_sizes(recipe.data).sizes()[-1]
    rates = try_sizes(Trial(recipe, splits.num_classes, place), sizes, HostRoom(place, side_px))
    if not rates:
        raise DeviceError(
            f"train.batch_size: not even {sizes[0]} pictures fit on {describe_memory(place.device)}: use a smaller "
            "--img-size, --grad-checkpointing, or another --model"
        )
    number = choose_size(rates)
    tried = f"medians of {ROUNDS} rounds in turns, {show_rates(rates)}"
    tried += "; more are no faster, or do not fit" if max(rates) < sizes[-1] else ""
    lr = "" if recipe.optim.lr_base_size else f"; lr stays {recipe.optim.lr:g} (--lr-base-size N scales it)"
    place.console.say(f"batch size {number} (auto), by images/s of a process on drawn pictures ({tried}){lr}")
    return number
