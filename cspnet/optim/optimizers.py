"""The optimizer and its parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cspnet.recipe.schema import OptimRecipe

__all__ = ["build_optimizer", "peak_lr", "step_unless"]


_EPS = {"rmsprop_tf": 1e-3, "adamw": 1e-8, "lamb": 1e-6}  # TensorFlow's EfficientNet, torch, timm


def peak_lr(cfg: OptimRecipe, global_batch_size: int) -> float:
    """The learning rate of the recipe, scaled to the global batch if the recipe asks for it."""
    return cfg.lr * global_batch_size / cfg.lr_base_size if cfg.lr_base_size else cfg.lr


def _group_params(model: nn.Module, cfg: OptimRecipe) -> list[dict[str, Any]]:
    """All parameters; those of one dimension (norm scales and all biases) in a group without decay, if cfg says so."""
    params = [p for p in model.parameters() if p.requires_grad]
    if cfg.decay_norm_and_bias:
        return [{"params": params, "weight_decay": cfg.weight_decay}]
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": cfg.weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, cfg: OptimRecipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters, in torch's fused form where there is one.

    SGD without decay of norm scales and biases is Darknet's: its update takes the decay on the weights of convolutions
    alone, and the learning rate enters when the momentum is applied.
    Source: AlexeyAB/darknet src/convolutional_layer.c, update_convolutional_layer; timm optim/rmsprop_tf.py, lamb.py.
    """
    groups = _group_params(model, cfg)
    params = [p for group in groups for p in group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)
    if cfg.name == "sgd":
        sgd = torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum, nesterov=cfg.nesterov, fused=fused)
        if cfg.momentum:
            # torch makes them at the first step, without a value; were that one skipped, they would never get one.
            for param in params:
                sgd.state[param]["momentum_buffer"] = torch.zeros_like(param)
        return sgd
    eps = _EPS[cfg.name] if cfg.eps is None else cfg.eps
    if cfg.name == "adamw":
        return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=eps, fused=fused)

    from timm.optim.lamb import Lamb  # here, because timm takes a second to import
    from timm.optim.rmsprop_tf import RMSpropTF

    if cfg.name == "rmsprop_tf":
        return RMSpropTF(groups, lr=cfg.lr, alpha=cfg.alpha, momentum=cfg.momentum, eps=eps)
    return Lamb(groups, lr=cfg.lr, betas=cfg.betas, eps=eps)


def step_unless(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """One update, unless `skip` (a bool on the parameters' device) is set: weights and state are then untouched.

    torch's fused optimizers (SGD, AdamW) are told by the tensor, as its GradScaler tells them, and nothing waits for a
    GPU. The others have to be asked for: there the host waits.
    """
    if not optimizer.defaults.get("fused"):
        if not skip:
            optimizer.step()
        return
    optimizer.grad_scale, optimizer.found_inf = None, skip.float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
