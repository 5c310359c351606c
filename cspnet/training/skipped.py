"""What became of the latest steps, found out without waiting.

`train_step` decides on the device. What it decided is copied to the host beside the work and read one step later, when
that step has ended in any case: a GPU always has the next one to do.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from cspnet.training.state import Progress
from cspnet.training.step import StepResult

__all__ = ["Fate", "LatestSteps"]


class Fate(NamedTuple):
    """What became of a step."""

    step: int
    """Updates before it."""
    epoch: int
    samples_done: int
    """Pictures of the epoch's order that were used up before it, over all processes."""
    is_skipped: bool
    has_bad_loss: bool
    """A loss of this process was not finite."""


class LatestSteps:
    """The steps whose fate has not been read yet."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[tuple[int, int, int], Tensor, torch.cuda.Event | None]] = deque()

    def note(self, before: Progress, result: StepResult) -> None:
        """A step, with the progress before it."""
        flags, copied = torch.stack([result.is_skipped, result.has_bad_loss]), None
        if flags.is_cuda:
            host = torch.empty(2, dtype=torch.bool, pin_memory=True)
            flags = host.copy_(flags, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._waiting.append(((before.step, before.epoch, before.samples_done), flags, copied))

    def read(self, leave: int) -> Fate | None:
        """The oldest one, once more than `leave` are waiting; waits until it has ended."""
        if len(self._waiting) <= leave:
            return None
        place, flags, copied = self._waiting.popleft()
        if copied is not None:
            copied.synchronize()
        is_skipped, has_bad_loss = flags.tolist()
        return Fate(*place, is_skipped, has_bad_loss)

    def forget(self) -> None:
        """The run goes on from elsewhere."""
        self._waiting.clear()
