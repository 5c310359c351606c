"""From addresses to batches of uint8 pictures, in worker processes.

A batch is a function of its address alone: the workers hold no state, so their number cannot change a run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cspnet.data.decode import Picture, UnreadableImageError, open_picture
from cspnet.data.feed import BadImage, Batch, feed
from cspnet.data.sampler import BatchAddress, BatchPlan, eval_addresses
from cspnet.data.samples import SampleIndex
from cspnet.data.shared import FillsPlaces, Pictures, create_places, receive
from cspnet.data.signs import Signs, note
from cspnet.data.transforms import EvalTransform, TrainTransform
from cspnet.data.workers import TellingErrors, read_all, start_worker
from cspnet.errors import UserError
from cspnet.runtime.heap import give_back_freed_memory
from cspnet.runtime.processes import count_cores, create_context
from cspnet.runtime.random import generator_at

__all__ = [
    "BadImage",
    "Batch",
    "EvalLoader",
    "EvalPictures",
    "Reader",
    "ReadingError",
    "TrainLoader",
    "TrainPictures",
    "default_workers",
    "start_reading",
]

T = TypeVar("T")

_REPLACEMENT_TRIES = 100
DEFAULT_TIMEOUT_S = 180.0


def default_workers(local_size: int) -> int:
    """Reading processes per training process: its share of the cores this program may use, at most 8."""
    return max(1, min(8, count_cores() // local_size))


class ReadingError(Exception):
    """A fault of ours that came out at one picture, which the message names; the cause keeps its traceback."""


@dataclass(frozen=True)
class Reader:
    """How a sample of an index becomes a picture."""

    index: SampleIndex
    exif: Literal["apply", "ignore"]
    decoder: Literal["fast", "pillow"]

    def open(self, sample: int) -> Picture:
        """The picture of a sample.

        Raises:
            UnreadableImageError: it is missing or damaged; some damage comes out only where its pixels are used.
        """
        note(sample)
        return open_picture(self.index.read(sample), self.exif, self.decoder)

    def blame(self, sample: int, error: Exception) -> ReadingError:
        """What to raise from an error that nobody foresaw."""
        return ReadingError(f"{self.index.path(sample)}: {type(error).__name__}: {error}")


@dataclass(frozen=True)
class TrainPictures(Pictures):
    """Training batches by address."""

    reader: Reader
    transform: TrainTransform
    seed: int

    @property
    def max_px(self) -> int:  # type: ignore[override]
        """The largest side of a picture."""
        return self.transform.sizes.sizes()[-1]

    def side_at(self, address: BatchAddress) -> int:
        """The side of a batch's pictures, in pixels."""
        return self.transform.sizes.size_at(address.epoch)

    def path(self, sample: int) -> str:
        """Where a sample lies."""
        return self.reader.index.path(sample)

    def fill(self, address: BatchAddress, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[BadImage]]:
        """See `Pictures.fill`."""
        labels = np.empty(len(address.samples), dtype=np.int64)
        flipped = np.empty(len(address.samples), dtype=np.bool_)
        bad: list[BadImage] = []
        for i, (position, sample) in enumerate(zip(address.positions, address.samples, strict=True)):
            found = self.show(int(sample), address.epoch, int(position), pixels[i], bad)
            if found is None:
                return labels[:0], flipped[:0], bad
            shown, flipped[i] = found
            labels[i] = self.reader.index.labels[shown]
        return labels, flipped, bad

    def show(
        self, sample: int, epoch: int, position: int, out: np.ndarray, bad: list[BadImage]
    ) -> tuple[int, bool] | None:
        """Write a view of a sample to `out` (S, S, 3) uint8.

        An unreadable one is replaced by the next readable one of the index, which is seen with the same draws.

        Returns:
            The one that was shown, and whether the device is to mirror it; None if none can be read.
        """
        index = self.reader.index
        for i in range(min(_REPLACEMENT_TRIES, len(index))):
            shown = (sample + i) % len(index)
            rng = generator_at(self.seed, "augment", epoch, position)
            try:
                out[:], drawn = self.transform(self.reader.open(shown), rng, len(out))
                return shown, self.is_mirrored(shown, epoch, drawn)
            except UnreadableImageError as error:
                bad.append(BadImage(index.path(shown), str(error)))
            except UserError:
                raise
            except Exception as error:
                raise self.reader.blame(shown, error) from error
        return None

    def is_mirrored(self, sample: int, epoch: int, drawn: bool) -> bool:
        """Whether a sample is mirrored in an epoch: as its view has drawn it, or alternately.

        Source: alternating flip, arXiv 2404.00498.
        """
        if self.transform.flip == "random":
            return drawn
        return bool((generator_at(self.seed, "flip", sample).integers(2) + epoch) % 2)


@dataclass(frozen=True)
class EvalPictures(Pictures):
    """Validation batches by address. A picture that cannot be read is never replaced: it is black, with target -1."""

    reader: Reader
    transform: EvalTransform

    @property
    def max_px(self) -> int:  # type: ignore[override]
        """The side of a picture."""
        return self.transform.size_px

    def side_at(self, address: BatchAddress) -> int:
        """The side of a batch's pictures, in pixels."""
        return self.transform.size_px

    def path(self, sample: int) -> str:
        """Where a sample lies."""
        return self.reader.index.path(sample)

    def fill(self, address: BatchAddress, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[BadImage]]:
        """See `Pictures.fill`."""
        index = self.reader.index
        labels = index.labels[address.samples].astype(np.int64)
        bad: list[BadImage] = []
        for i, sample in enumerate(address.samples):
            try:
                pixels[i] = self.transform(self.reader.open(int(sample)))
            except UnreadableImageError as error:
                bad.append(BadImage(index.path(int(sample)), str(error)))
                pixels[i], labels[i] = 0, -1
            except UserError:
                raise
            except Exception as error:
                raise self.reader.blame(int(sample), error) from error
        return labels, np.zeros(len(labels), dtype=np.bool_), bad


class _Addresses(Sampler[Any]):
    """An iterator of addresses in the form the DataLoader asks for."""

    def __init__(self, addresses: Callable[[], Iterator[Any]]) -> None:
        self.addresses = addresses

    def __iter__(self) -> Iterator[Any]:
        return self.addresses()


def _as_is(batch: Any) -> Any:
    return batch


def start_reading(
    items: Dataset[T],
    addresses: Callable[[], Iterator[Any]],
    workers: int,
    prefetch: int,
    device: torch.device,
    signs: Signs | None = None,
) -> Iterator[T]:
    """The items of a data set at addresses, in their order; on the host, and pinned if the device is a GPU.

    Args:
        signs: of so many workers, to be looked at when an item does not come; None waits for ever.
    """
    if workers:
        give_back_freed_memory()
    loader: DataLoader[T] = DataLoader(
        TellingErrors(items),
        batch_size=None,  # an address is a whole batch
        sampler=_Addresses(addresses),
        collate_fn=_as_is,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=device.type == "cuda",
        multiprocessing_context=create_context() if workers else None,
        timeout=signs.look_s if signs is not None and workers else 0,
        worker_init_fn=functools.partial(start_worker, rows=signs.rows if signs is not None else None),
        generator=torch.Generator(),  # the loader draws a seed at each start: not from the generator of the model
    )
    return read_all(loader, signs)


def _start_batches(
    pictures: Pictures,
    addresses: Callable[[], Iterator[BatchAddress]],
    batch_size: int,
    workers: int,
    prefetch: int,
    device: torch.device,
    timeout_s: float,
) -> Iterator[Batch]:
    """The batches at addresses, of at most `batch_size` pictures, on the device."""
    signs = Signs(workers, timeout_s, pictures.path)
    if not workers:
        return feed(start_reading(pictures, addresses, 0, prefetch, device, signs), device)
    # One for each batch that is being made or waits, and for the few that the loop has or is about to take.
    filling = FillsPlaces(pictures, create_places(workers * prefetch + 3, batch_size * 3 * pictures.max_px**2))
    sent = start_reading(filling, lambda: filling.give_places(addresses()), workers, prefetch, device, signs)
    return feed(map(receive, sent), device)


@dataclass(frozen=True)
class TrainLoader:
    """The training batches of one process, on the device as `cspnet.data.feed` puts them there."""

    pictures: TrainPictures
    plan: BatchPlan
    rank: int
    workers: int
    prefetch: int
    device: torch.device
    timeout_s: float = DEFAULT_TIMEOUT_S
    """How long no reading process may give a sign of life."""

    def start_at(self, epoch: int, sample: int) -> Iterator[Batch]:
        """Batches without end, from `sample` pictures into `epoch`; nothing before them is read."""
        return _start_batches(
            self.pictures,
            lambda: self.plan.addresses(self.rank, epoch, sample),
            self.plan.batch_size,
            self.workers,
            self.prefetch,
            self.device,
            self.timeout_s,
        )


@dataclass(frozen=True)
class EvalLoader:
    """The validation batches of one process, on the device; together the processes read every picture exactly once."""

    pictures: EvalPictures
    batch_size: int
    rank: int
    world_size: int
    workers: int
    prefetch: int
    device: torch.device
    limit: int | None = None
    """Stop after this many pictures of the split (over all processes)."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """How long no reading process may give a sign of life."""

    @property
    def num_samples(self) -> int:
        """Pictures that all processes read together."""
        return (
            len(self.pictures.reader.index) if self.limit is None else min(self.limit, len(self.pictures.reader.index))
        )

    @property
    def common_batches(self) -> int:
        """Batches that every process has at least."""
        return -(-(self.num_samples // self.world_size) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return _start_batches(
            self.pictures,
            lambda: eval_addresses(self.num_samples, self.batch_size, self.rank, self.world_size),
            self.batch_size,
            self.workers,
            self.prefetch,
            self.device,
            self.timeout_s,
        )
