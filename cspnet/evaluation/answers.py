"""Two passes over the same pictures, picture by picture: whose answers are others, and whether for better or worse."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cspnet.runtime.distributed import World, gather_objects, sum_over_ranks

__all__ = ["Answers", "Changes", "compare_answers", "gather_answers"]


class Answers:
    """The highest classes of each picture of this process's share, and its target, in the order of the pass."""

    def __init__(self) -> None:
        self.top: list[Tensor] = []
        self.targets: list[Tensor] = []

    def note(self, top: Tensor, targets: Tensor) -> None:
        """Keep a batch's: (N, 5) highest classes, the highest first, and (N,) targets; nothing waits for the device."""
        self.top.append(top.clone())
        self.targets.append(targets.clone())

    @property
    def classes(self) -> list[Tensor]:
        """The highest class of each picture, batch by batch."""
        return [top[:, 0] for top in self.top]


def gather_answers(answers: Answers, num_samples: int, world: World) -> tuple[np.ndarray, np.ndarray]:
    """What all processes have noted, by the samples' numbers in their index.

    Returns:
        (num_samples, 5) int64 classes, the highest first (fewer columns if there are fewer classes), and
        (num_samples,) bool, whether a picture could be read. Picture i of process r is sample r + i * processes: see
        `cspnet.data.sampler.eval_addresses`.
    """
    own = None
    if answers.top:
        own = torch.cat(answers.top).cpu().numpy(), (torch.cat(answers.targets) >= 0).cpu().numpy()
    shares = gather_objects(world, own)
    width = max(share[0].shape[1] for share in shares if share is not None)
    top, is_readable = np.zeros((num_samples, width), np.int64), np.zeros(num_samples, bool)
    for rank, share in enumerate(shares):
        if share is not None:
            top[rank :: world.size], is_readable[rank :: world.size] = share
    return top, is_readable


@dataclass(frozen=True)
class Changes:
    """Readable pictures whose highest class is another one than in the reference."""

    changed: int
    right_to_wrong: int
    """Right in the reference, and not any more; never more than `changed`."""
    wrong_to_right: int


def compare_answers(answers: Answers, reference: Answers, world: World, device: torch.device) -> Changes:
    """The changes of all processes' shares; both passes must have seen the same pictures in the same order.

    Raises:
        ValueError: they have not.
    """
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    if answers.targets:
        targets, others = torch.cat(answers.targets), torch.cat(reference.targets)
        if not torch.equal(targets, others):
            raise ValueError("the two passes have not seen the same pictures")
        given, expected = torch.cat(answers.classes), torch.cat(reference.classes)
        is_right, was_right = given == targets, expected == targets
        counts[0] = ((given != expected) & (targets >= 0)).sum()
        counts[1] = (was_right & ~is_right).sum()
        counts[2] = (is_right & ~was_right).sum()
    sum_over_ranks(world, counts)
    return Changes(*counts.tolist())
