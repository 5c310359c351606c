"""Batches in shared memory: how they come from the reading processes without being copied.

Fresh shared memory is cleared page by page when it is first written to, and mapped again where it is read: for pictures
of 224 px that takes a tenth of the time of making them. So batches are written to a few places made once, before the
processes start; a place is used again when nobody has the batch that lies in it any more.
"""

from __future__ import annotations

import itertools
import math
import mmap
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from cspnet.data.feed import BadImage, Batch
from cspnet.data.sampler import BatchAddress
from cspnet.errors import WorkerError
from cspnet.runtime.processes import CAN_FORK

__all__ = [
    "NO_ROOM",
    "FillsPlaces",
    "Pictures",
    "Places",
    "SentBatch",
    "create_places",
    "create_shared",
    "receive",
]

NO_ROOM = "make it larger (docker run --shm-size=8g), or read without processes: --workers 0"


class Pictures(Dataset[Batch], ABC):
    """Batches of pictures by address."""

    max_px: int
    """The largest side of a picture."""

    @abstractmethod
    def side_at(self, address: BatchAddress) -> int:
        """The side of a batch's pictures, in pixels."""

    @abstractmethod
    def fill(self, address: BatchAddress, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[BadImage]]:
        """Write the pictures of a batch to `pixels` (N, S, S, 3) uint8.

        Returns:
            Their labels (N,) int64, whether the device is to mirror them (N,) bool, and what could not be read. No
            labels at all: nothing could be read, and the caller is to end the run where that can be done well.
        """

    def path(self, sample: int) -> str:
        """Where a sample lies, for messages."""
        return f"sample {sample}"

    def shape_at(self, address: BatchAddress) -> tuple[int, int, int, int]:
        """The shape of a batch's images."""
        side = self.side_at(address)
        return len(address.samples), side, side, 3

    def __getitem__(self, address: BatchAddress) -> Batch:
        images = torch.empty(self.shape_at(address), dtype=torch.uint8)
        return SentBatch(images, *self.fill(address, images.numpy())).receive()


def create_shared(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor to be filled; in a reading process it lies in shared memory, so that sending it copies nothing.

    torch would share it in a thread of its own, where an error is printed and the batch awaited for ever.

    Raises:
        WorkerError: there is no shared memory left.
    """
    tensor = torch.empty(tuple(shape), dtype=dtype)
    if get_worker_info() is None or not tensor.numel():
        return tensor
    try:
        return tensor.share_memory_()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise WorkerError(
            f"no room for a batch of {tensor.nbytes:,} bytes in shared memory (/dev/shm): {NO_ROOM} ({reason})"
        ) from error


class Places:
    """Memory for a few batches, shared with the processes that are forked after it was made.

    The process that made it says which place a batch goes to (`take`), another one fills it (`at`), and the first one
    has it as a tensor (`receive`). The place is free again when that tensor and all its views are gone: no batch is
    overwritten while anybody has it.
    """

    _living: ClassVar[weakref.WeakValueDictionary[int, Places]] = weakref.WeakValueDictionary()
    _numbers: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, count: int, size: int) -> None:
        """`count` places of `size` bytes, which are taken from the system as they are first used.

        Raises:
            OSError: there is not that much.
        """
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, count * self.size)  # anonymous: not in /dev/shm, and gone with its processes
        self._free = deque(range(count))
        self.number = next(self._numbers)
        self._living[self.number] = self

    @classmethod
    def find(cls, number: int) -> Places:
        """Those of a number, in any of the processes that share them."""
        return cls._living[number]

    def take(self, size: int) -> int | None:
        """A free place for `size` bytes, which is not free any more; None if there is none."""
        return self._free.popleft() if self._free and size <= self.size else None

    def at(self, place: int, shape: Sequence[int]) -> np.ndarray:
        """The bytes of a place: an array of that shape, uint8."""
        start = place * self.size
        return np.frombuffer(self._memory, np.uint8, math.prod(shape), start).reshape(tuple(shape))

    def receive(self, place: int, shape: Sequence[int]) -> Tensor:
        """What was written to a place, uint8; the place is free once it is forgotten."""
        pixels = np.frombuffer(self._memory, np.uint8, math.prod(shape), place * self.size)
        # torch's storage holds the array as long as there is a view of it.
        weakref.finalize(pixels, self._free.append, place).atexit = False
        return torch.from_numpy(pixels).view(tuple(shape))


def create_places(count: int, size: int) -> Places | None:
    """`count` places of `size` bytes for processes that are about to be forked; None where that cannot be."""
    try:
        return Places(count, size) if CAN_FORK else None
    except OSError:  # not that much: let each batch ask for what it needs
        return None


class _Where(NamedTuple):
    """A batch's images in one of the `Places`."""

    places: int
    place: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SentBatch:
    """A batch on its way to the main process: everything but the pixels is copied."""

    images: Tensor | _Where
    labels: np.ndarray
    flipped: np.ndarray
    bad: list[BadImage]

    def receive(self) -> Batch:
        """The batch; once only."""
        if isinstance(self.images, _Where):
            number, place, shape = self.images
            images = Places.find(number).receive(place, shape)
        else:
            images = self.images
        labels, flipped = torch.from_numpy(self.labels), torch.from_numpy(self.flipped)
        return Batch(images[: len(labels)], labels, flipped, self.bad)

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU can copy from by itself; torch's DataLoader calls this in its own thread."""
        return self.receive().pin_memory()


def receive(sent: SentBatch | Batch) -> Batch:
    """A batch that has arrived: as it was sent, or pinned already."""
    return sent.receive() if isinstance(sent, SentBatch) else sent


class FillsPlaces(Dataset[SentBatch]):
    """Batches by address and place."""

    def __init__(self, pictures: Pictures, places: Places | None) -> None:
        """Without places, every batch is in shared memory of its own."""
        self.pictures = pictures
        self.places = places

    def __getitem__(self, address_and_place: tuple[BatchAddress, int | None]) -> SentBatch:
        address, place = address_and_place
        shape = self.pictures.shape_at(address)
        if place is None or self.places is None:
            images = create_shared(shape, torch.uint8)
            return SentBatch(images, *self.pictures.fill(address, images.numpy()))
        found = self.pictures.fill(address, self.places.at(place, shape))
        return SentBatch(_Where(self.places.number, place, shape), *found)

    def give_places(self, addresses: Iterable[BatchAddress]) -> Iterator[tuple[BatchAddress, int | None]]:
        """Addresses, each with a free place, if there is one at the time it is asked for."""
        for address in addresses:
            size = math.prod(self.pictures.shape_at(address))
            yield address, self.places.take(size) if self.places is not None else None
