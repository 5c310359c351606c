"""A moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ["Ema"]


class Ema:
    """average = decay * average + (1 - decay) * model, after every step; float buffers too, integer ones are copied.

    Args:
        model: the raw model; `module` starts as its copy.
        decay: share that is kept, in [0, 1).
        warmup: use min(decay, (1 + step) / (10 + step)), so that a short run forgets its random start.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.warmup = warmup

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model after update number `step` (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        averages, values = [], []
        for average, value in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)
