"""From addresses to batches of uint8 pictures, in worker processes.

A batch is a function of its address alone: the workers hold no state, so their number cannot change a run.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cspnet.data.decode import UnreadableImageError, read_rgb
from cspnet.data.index import SampleIndex
from cspnet.data.sampler import BatchAddress, BatchPlan, eval_addresses
from cspnet.data.transforms import EvalTransform, TrainTransform
from cspnet.runtime.random import generator_at

__all__ = ["BadImage", "Batch", "EvalLoader", "EvalPictures", "TrainLoader", "TrainPictures", "default_workers"]

_REPLACEMENT_TRIES = 100


class BadImage(NamedTuple):
    """A picture that could not be read."""

    path: str
    reason: str


class Batch(NamedTuple):
    """`images` (N, H, W, 3) uint8; `targets` (N,) int64, -1 where a validation picture could not be read."""

    images: Tensor
    targets: Tensor
    bad: list[BadImage]


def default_workers(local_size: int) -> int:
    """Reading processes per training process: its share of the cores this program may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // local_size))


@dataclass(frozen=True)
class TrainPictures(Dataset[Batch]):
    """Training batches by address."""

    index: SampleIndex
    transform: TrainTransform
    seed: int
    exif: Any

    def __getitem__(self, address: BatchAddress) -> Batch:
        side = self.transform.sizes.size_at(address.epoch)
        images = np.empty((len(address.samples), side, side, 3), dtype=np.uint8)
        targets = np.empty(len(address.samples), dtype=np.int64)
        bad: list[BadImage] = []
        for i, (position, sample) in enumerate(zip(address.positions, address.samples, strict=True)):
            rng = generator_at(self.seed, "augment", address.epoch, int(position))
            try:
                image, targets[i] = self._read(int(sample), bad)
            except UnreadableImageError:  # an empty batch tells the caller, who raises where the run can be ended well
                return Batch(torch.empty(0, side, side, 3, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), bad)
            images[i] = self.transform(image, rng, side)
        return Batch(torch.from_numpy(images), torch.from_numpy(targets), bad)

    def _read(self, sample: int, bad: list[BadImage]) -> tuple[Any, int]:
        """Picture and label; an unreadable one is replaced by the next readable one of the index, with its label."""
        for i in range(min(_REPLACEMENT_TRIES, len(self.index))):
            replacement = (sample + i) % len(self.index)
            path = self.index.path(replacement)
            try:
                return read_rgb(path, self.exif), int(self.index.labels[replacement])
            except UnreadableImageError as error:
                bad.append(BadImage(path, str(error)))
        raise UnreadableImageError(f"no readable picture from {bad[-1].path} on")


@dataclass(frozen=True)
class EvalPictures(Dataset[Batch]):
    """Validation batches by address. A picture that cannot be read is never replaced: it is black, with target -1."""

    index: SampleIndex
    transform: EvalTransform
    exif: Any

    def __getitem__(self, address: BatchAddress) -> Batch:
        side = self.transform.size_px
        images = np.zeros((len(address.samples), side, side, 3), dtype=np.uint8)
        targets = self.index.labels[address.samples].astype(np.int64)
        bad: list[BadImage] = []
        for i, sample in enumerate(address.samples):
            path = self.index.path(int(sample))
            try:
                images[i] = self.transform(read_rgb(path, self.exif))
            except UnreadableImageError as error:
                bad.append(BadImage(path, str(error)))
                targets[i] = -1
        return Batch(torch.from_numpy(images), torch.from_numpy(targets), bad)


class _Addresses(Sampler[BatchAddress]):
    """An iterator of addresses in the form the DataLoader asks for."""

    def __init__(self, addresses: Callable[[], Iterator[BatchAddress]]) -> None:
        self.addresses = addresses

    def __iter__(self) -> Iterator[BatchAddress]:
        return self.addresses()


def _as_is(batch: Any) -> Any:
    return batch


def _create_loader(
    pictures: Dataset[Batch],
    addresses: Callable[[], Iterator[BatchAddress]],
    workers: int,
    prefetch: int,
    pin_memory: bool,
) -> DataLoader[Batch]:
    # Forking shares the index with the workers as it is; elsewhere than on Linux it is not safe.
    context = multiprocessing.get_context("fork") if workers and sys.platform == "linux" else None
    return DataLoader(
        pictures,
        batch_size=None,  # an address is a whole batch
        sampler=_Addresses(addresses),
        collate_fn=_as_is,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
        multiprocessing_context=context,
        generator=torch.Generator(),  # the loader draws a seed at each start: not from the generator of the model
    )


@dataclass(frozen=True)
class TrainLoader:
    """The training batches of one process."""

    pictures: Dataset[Batch]
    plan: BatchPlan
    rank: int
    workers: int
    prefetch: int
    pin_memory: bool

    def start_at(self, epoch: int, sample: int) -> Iterator[Batch]:
        """Batches without end, from `sample` pictures into `epoch`; nothing before them is read."""
        loader = _create_loader(
            self.pictures,
            lambda: self.plan.addresses(self.rank, epoch, sample),
            self.workers,
            self.prefetch,
            self.pin_memory,
        )
        return iter(loader)


@dataclass(frozen=True)
class EvalLoader:
    """The validation batches of one process; together the processes read every picture exactly once."""

    pictures: EvalPictures
    batch_size: int
    rank: int
    world_size: int
    workers: int
    prefetch: int
    pin_memory: bool
    limit: int | None = None
    """Stop after this many pictures of the split (over all processes)."""

    @property
    def num_samples(self) -> int:
        """Pictures that all processes read together."""
        return len(self.pictures.index) if self.limit is None else min(self.limit, len(self.pictures.index))

    def __iter__(self) -> Iterator[Batch]:
        loader = _create_loader(
            self.pictures,
            lambda: eval_addresses(self.num_samples, self.batch_size, self.rank, self.world_size),
            self.workers,
            self.prefetch,
            self.pin_memory,
        )
        return iter(loader)
