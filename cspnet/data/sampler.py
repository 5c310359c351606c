"""Which pictures a process reads in which step: functions of the recipe, so runs start anywhere.

The order of an epoch is one permutation, a function of (seed, epoch). Step after step takes the next global batch of
it; inside a step, slice s = micro-batch * processes + rank takes the s-th batch_size pictures. So one process with two
micro-batches and two processes with one see the same pictures in the same step.

With repeated augmentation a step of G places takes G / repeats pictures of the order, all of them `repeats` times, one
round after the other: the copies of a picture stand apart, in other slices where there are several, and each place has
draws of its own. An epoch has as many steps as without.
Source: Augment your batch, arXiv 1901.09335; MultiGrain, arXiv 1902.05509 (repeated augmentation).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cspnet.errors import DataError
from cspnet.runtime.random import generator_at

__all__ = ["BatchAddress", "BatchPlan", "epoch_order", "eval_addresses"]


@dataclass(frozen=True)
class BatchAddress:
    """One batch of one process.

    `samples` are numbers in the index, `positions` the places in the epoch's order (both int64, one a picture).
    """

    epoch: int
    positions: np.ndarray
    samples: np.ndarray


def epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """The order of an epoch: a permutation of range(num_samples), int64."""
    return generator_at(seed, "order", epoch).permutation(num_samples)


@dataclass(frozen=True)
class BatchPlan:
    """How a run's pictures are shared out.

    Raises:
        DataError: there are fewer pictures than one step takes, or a step cannot take each `repeats` times.
    """

    num_samples: int
    batch_size: int
    accumulate: int
    world_size: int
    seed: int
    repeats: int = 1
    """How often a step takes each of its pictures."""

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            raise DataError(
                f"the training split has {self.num_samples} pictures, but a step takes {self.global_batch_size} "
                f"({self.batch_size} per process x {self.accumulate} micro-batches x {self.world_size} processes); "
                "use a smaller --batch-size, --accumulate or --global-batch, whichever it is set by"
            )
        if self.global_batch_size % self.repeats:
            raise DataError(
                f"augment.repeats: a step takes {self.global_batch_size} pictures, which is not a multiple of "
                f"{self.repeats}; use another number or another --batch-size"
            )

    @property
    def global_batch_size(self) -> int:
        """Pictures per step."""
        return self.batch_size * self.accumulate * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps in an epoch; the rest of the order, less than a step, is left out."""
        return self.num_samples // self.global_batch_size

    def addresses(self, rank: int, epoch: int, sample: int) -> Iterator[BatchAddress]:
        """One process's batches, micro-batch by micro-batch and without end, from `sample` pictures into `epoch`."""
        while True:
            order = epoch_order(self.seed, epoch, self.num_samples)
            for step_start in range(sample, self.num_samples - self.global_batch_size + 1, self.global_batch_size):
                for micro in range(self.accumulate):
                    start = step_start + (micro * self.world_size + rank) * self.batch_size
                    positions = np.arange(start, start + self.batch_size)
                    different = self.global_batch_size // self.repeats
                    places = step_start // self.repeats + (positions - step_start) % different
                    yield BatchAddress(epoch, positions, order[places])
            epoch, sample = epoch + 1, 0


def eval_addresses(num_samples: int, batch_size: int, rank: int, world_size: int) -> Iterator[BatchAddress]:
    """One process's share of a validation split: every sample belongs to exactly one process; shares may be empty."""
    mine = np.arange(rank, num_samples, world_size)
    for start in range(0, len(mine), batch_size):
        samples = mine[start : start + batch_size]
        yield BatchAddress(0, samples, samples)
