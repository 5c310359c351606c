"""Two passes over the same pictures, picture by picture: whose answers are others, and whether for better or worse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cspnet.runtime.distributed import World, sum_over_ranks

__all__ = ["Answers", "Changes", "compare_answers"]


class Answers:
    """The highest class of each picture of this process's share, and its target, in the order of the pass."""

    def __init__(self) -> None:
        self.classes: list[Tensor] = []
        self.targets: list[Tensor] = []

    def note(self, top: Tensor, targets: Tensor) -> None:
        """Keep a batch's; nothing waits for the device."""
        self.classes.append(top[:, 0].clone())
        self.targets.append(targets.clone())


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
