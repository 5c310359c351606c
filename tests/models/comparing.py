"""Pictures, errors and statistics for tests that compare two networks."""

from __future__ import annotations

import torch
from torch import nn


def draw_images(batch: int, side_px: int, chs: int = 3) -> torch.Tensor:
    """The same normal values each time."""
    return torch.randn(batch, chs, side_px, side_px, generator=torch.Generator().manual_seed(7))


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    assert value.shape == reference.shape
    return ((value - reference).abs().max() / reference.abs().max()).item()


@torch.no_grad()
def scramble_norms(model: nn.Module, seed: int) -> None:
    """Random scales and shifts, and running statistics near those of a batch: a fresh BatchNorm would hide mistakes."""
    torch.manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.weight.uniform_(0.5, 1.5)
        module.bias.normal_(0, 0.2)
        module.momentum = 1.0
    model.train()(draw_images(4, 64))
    model.eval()
    for module in norms:
        module.momentum = 0.1
        module.running_mean += torch.randn_like(module.running_mean) * 0.2 * module.running_var.sqrt()
        module.running_var *= torch.empty_like(module.running_var).uniform_(0.5, 1.5)
