"""The time of the training steps, and how much of it the device stands still for want of data. Nothing waits for it."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from cspnet.data.feed import Batch

__all__ = ["Clock", "GpuWaits", "HostWaits", "Spent", "build_clock"]


@dataclass(frozen=True)
class Spent:
    """Some steps, what they did, and the time they took."""

    steps: int = 0
    images: int = 0
    """Pictures, over all processes."""
    flops: float = 0.0
    """Of this process, by the convention of `cspnet.training.meter`; 0 where they cannot be counted."""
    elapsed_s: float = 0.0
    data_s: float = 0.0
    """Of it waiting for data."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def images_per_s(self) -> float:
        """Pictures per second, over all processes."""
        return self.images / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def compute_images_per_s(self) -> float | None:
        """The same if no data had been waited for; None if nothing else was done."""
        computing_s = self.elapsed_s - self.data_s
        return self.images / computing_s if computing_s > 0 else None

    @property
    def data_wait_ratio(self) -> float:
        """Share of the time waiting for data, 0 to 1."""
        return min(1.0, self.data_s / self.elapsed_s) if self.elapsed_s > 0 else 0.0


class _Waits(Protocol):
    """Time between calls of `begin` and `end`, one after the other."""

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def read_s(self) -> float:
        """All of it that is known by now, in seconds."""


class HostWaits:
    """Waits of the process itself, for devices that compute while it waits for them."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._began_s = self._waited_s = 0.0

    def begin(self) -> None:
        """A batch is asked for."""
        self._began_s = self._now()

    def end(self) -> None:
        """It is there."""
        self._waited_s += self._now() - self._began_s

    def read_s(self) -> float:
        """All waits so far."""
        return self._waited_s


class GpuWaits:
    """How long a GPU stood still between its work on a batch and the next one.

    The process asks for a batch while the GPU is still at the last one. So its own waits say little: they last as long
    as the batch takes, even if the GPU is busy in nearly all of that time. An event in the GPU's queue comes to pass
    when all before it is done, but not before it was put there: between one that is queued when a batch is asked for
    and one that is queued when it has come, the GPU had nothing to do.

    Args:
        create_event: an event that keeps the time.
    """

    def __init__(self, create_event: Callable[[], Any] = lambda: torch.cuda.Event(enable_timing=True)) -> None:
        self._create_event = create_event
        self._began: Any = None
        self._pending: deque[tuple[Any, Any]] = deque()
        self._spare: list[Any] = []
        self._waited_ms = 0.0

    def begin(self) -> None:
        """A batch is asked for."""
        self._began = self._record()

    def end(self) -> None:
        """It is there, or on its way to the GPU in a queue that the GPU's work waits for."""
        self._pending.append((self._began, self._record()))
        self._collect()

    def read_s(self) -> float:
        """All waits that have ended on the GPU: all that there were, behind a host sync."""
        self._collect()
        return self._waited_ms / 1000

    def _record(self) -> Any:
        event = self._spare.pop() if self._spare else self._create_event()
        event.record()
        return event

    def _collect(self) -> None:
        while self._pending and self._pending[0][1].query():
            began, ended = self._pending.popleft()
            self._waited_ms += began.elapsed_time(ended)
            self._spare += (began, ended)


class Clock:
    """Runs while steps are trained, and stands still in between."""

    def __init__(self, waits: _Waits, now: Callable[[], float] = time.perf_counter) -> None:
        self._waits, self._now = waits, now
        self._done = Spent()
        self._elapsed_s = 0.0
        self._started_s: float | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """In this block it runs."""
        self._started_s = self._now()
        try:
            yield
        finally:
            self._stop()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """In this block it stands still, though it runs around it."""
        self._stop()
        try:
            yield
        finally:
            self._started_s = self._now()

    def _stop(self) -> None:
        if self._started_s is not None:
            self._elapsed_s += self._now() - self._started_s
        self._started_s = None

    def timing(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time that each is waited for is counted."""
        while True:
            self._waits.begin()
            batch = next(batches)
            self._waits.end()
            yield batch

    def advance(self, images: int, flops: float) -> None:
        """A step is done, or queued, with so many pictures of all processes and FLOPs of this one."""
        self._done += Spent(1, images, flops)

    def read(self) -> Spent:
        """All since the clock was made."""
        running_s = 0.0 if self._started_s is None else self._now() - self._started_s
        return self._done + Spent(elapsed_s=self._elapsed_s + running_s, data_s=self._waits.read_s())


def build_clock(device: torch.device) -> Clock:
    """The clock for a device."""
    return Clock(GpuWaits() if device.type == "cuda" else HostWaits())
