"""Counts, not averages of averages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["EvalResult", "count_correct", "count_hits", "rank_classes"]


def rank_classes(logits: Tensor) -> Tensor:
    """The five highest classes of (N, K) logits, or all if there are fewer, the highest first: (N, 5) int64."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


def count_hits(top: Tensor, targets: Tensor) -> Tensor:
    """`count_correct` from what `rank_classes` gives."""
    hits = top == targets.unsqueeze(1)
    return torch.stack([hits[:, 0].sum(), hits.sum()])


def count_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """How many targets are the highest logit, and how many are among the five highest (or among all, if fewer).

    Args:
        logits: (N, K).
        targets: (N,) int64; a negative one is never right.
    Returns:
        (2,) int64 on the same device.
    """
    return count_hits(rank_classes(logits), targets)


@dataclass(frozen=True)
class EvalResult:
    """The outcome of a validation."""

    correct1: int
    correct5: int
    num_samples: int
    num_unreadable: int
    """Pictures that could not be read; they are counted in num_samples, and as wrong."""
    loss: float
    """Mean cross entropy of the readable pictures."""

    @property
    def acc1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * self.correct1 / self.num_samples

    @property
    def acc5(self) -> float:
        """Top-5 accuracy in percent."""
        return 100 * self.correct5 / self.num_samples

    def __str__(self) -> str:
        return f" * Acc@1 {self.acc1:.3f} Acc@5 {self.acc5:.3f}"

    def to_dict(self) -> dict[str, Any]:
        """The counts and the percentages."""
        return {**asdict(self), "acc1": self.acc1, "acc5": self.acc5}
