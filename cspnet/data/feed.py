"""A batch, and its way to the device.

On a GPU the copy has a stream of its own. Steps are handed to the GPU faster than it takes them, so while it works on
one batch the next has been asked for and is copied beside the work, into the other one of two places. No batch is
taken from the reading processes before the loop asks for it, so there is nothing to forget at a checkpoint.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BadImage", "Batch", "feed"]


class BadImage(NamedTuple):
    """A picture that could not be read."""

    path: str
    reason: str


class Batch(NamedTuple):
    """`images` (N, H, W, 3) uint8; `targets` (N,) int64, -1 where a validation picture could not be read; `flipped`
    (N,) bool, which pictures are still to be mirrored (`cspnet.data.mixing.mirror`): none in validation."""

    images: Tensor
    targets: Tensor
    flipped: Tensor
    bad: list[BadImage]

    def pin_memory(self) -> Batch:
        """In memory that a GPU can copy from by itself; torch's DataLoader calls this in its own thread."""
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), self.flipped.pin_memory(), self.bad)


def feed(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches of the host, on the device if that is a GPU; as they are elsewhere.

    Args:
        batches: on a GPU their tensors should be pinned; if they are not, the host waits for each copy.
        device: where to.
    Returns:
        The batches in their order. On a GPU the tensors of one are overwritten once the next but one is asked for:
        whatever is made of them has to be queued, on the current stream, before the next one is asked for.
    """
    return _copy_beside(batches, device) if device.type == "cuda" else batches


class _Place:
    """Memory on the device that one batch after another is copied to; it is made anew only when one needs more."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.images = torch.empty(0, dtype=torch.uint8, device=device)
        self.targets = torch.empty(0, dtype=torch.int64, device=device)
        self.flipped = torch.empty(0, dtype=torch.bool, device=device)
        self.free = torch.cuda.Event()
        """Behind all that was queued with the batch that lies here."""
        self.free.record(torch.cuda.current_stream(device))

    def fit(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Room for a batch: its images, its targets, and its flags."""
        images, targets = batch.images.numel(), batch.targets.numel()
        if images > len(self.images) or targets > len(self.targets):
            self.images = torch.empty(images, dtype=torch.uint8, device=self.device)
            self.targets = torch.empty(targets, dtype=torch.int64, device=self.device)
            self.flipped = torch.empty(targets, dtype=torch.bool, device=self.device)
            # The allocator gives what earlier work may still be using, as far as the order on this stream goes.
            self.free.record(torch.cuda.current_stream(self.device))
        return self.images[:images].view(batch.images.shape), self.targets[:targets], self.flipped[:targets]


def _copy_beside(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    copies = torch.cuda.Stream(device)
    places = itertools.cycle((_Place(device), _Place(device)))
    for batch in batches:
        place = next(places)
        images, targets, flipped = place.fit(batch)
        copies.wait_event(place.free)
        with torch.cuda.stream(copies):
            # The pinned memory is safe: its allocator waits for the copy before it gives it away again.
            images.copy_(batch.images, non_blocking=True)
            targets.copy_(batch.targets, non_blocking=True)
            flipped.copy_(batch.flipped, non_blocking=True)
        work = torch.cuda.current_stream(device)
        work.wait_stream(copies)
        yield Batch(images, targets, flipped, batch.bad)
        place.free.record(torch.cuda.current_stream(device))
