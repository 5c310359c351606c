"""The optimizer and its parameter groups."""

from __future__ import annotations

import torch
from torch import nn

from cspnet.recipe.schema import OptimRecipe

__all__ = ["build_optimizer", "peak_lr"]


def peak_lr(cfg: OptimRecipe, global_batch_size: int) -> float:
    """The learning rate of the recipe, scaled to the global batch if the recipe asks for it."""
    return cfg.lr * global_batch_size / cfg.lr_base_size if cfg.lr_base_size else cfg.lr


def build_optimizer(model: nn.Module, cfg: OptimRecipe) -> torch.optim.SGD:
    """SGD over all parameters, in torch's fused form where the device has one.

    With decay_norm_and_bias off, what has one dimension (norm scales and all biases) does not decay, as in Darknet.
    Source: AlexeyAB/darknet src/convolutional_layer.c, update_convolutional_layer (decay on weights only).
    """
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": params, "weight_decay": cfg.weight_decay}]
    if not cfg.decay_norm_and_bias:
        groups = [
            {"params": [p for p in params if p.ndim > 1], "weight_decay": cfg.weight_decay},
            {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)
    return torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum, nesterov=cfg.nesterov, fused=fused)
