"""The optimizer and its parameter groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cspnet.recipe.schema import OptimRecipe
from cspnet.runtime.device import load_compiler

__all__ = ["build_optimizer", "peak_lr", "set_lr", "step_unless"]


_EPS = {"rmsprop_tf": 1e-3, "adamw": 1e-8, "lamb": 1e-6}  # TensorFlow's EfficientNet, torch, timm


def peak_lr(cfg: OptimRecipe, global_batch_size: int) -> float:
    """The learning rate of the recipe, scaled to the global batch if the recipe asks for it."""
    return cfg.lr * global_batch_size / cfg.lr_base_size if cfg.lr_base_size else cfg.lr


def _group_params(model: nn.Module, cfg: OptimRecipe, depths: Mapping[nn.Parameter, int]) -> list[dict[str, Any]]:
    """The parameters that train: those of one dimension (norm scales and all biases) without decay, if cfg says so, and
    those of each depth with their share of the learning rate, `lr_scale`."""
    last = max(depths.values(), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_spared = parameter.ndim <= 1 and not cfg.decay_norm_and_bias
            behind = last - depths.get(parameter, last) if cfg.layer_decay < 1 else 0
            groups.setdefault((behind, is_spared), []).append(parameter)
    return [
        {
            "params": groups[behind, is_spared],
            "weight_decay": 0.0 if is_spared else cfg.weight_decay,
            "lr_scale": cfg.layer_decay**behind,
        }
        for behind, is_spared in sorted(groups)
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the next update: of each group its share."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def build_optimizer(
    model: nn.Module, cfg: OptimRecipe, depths: Mapping[nn.Parameter, int] | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters that are trained, in torch's fused form where there is one.

    Args:
        depths: of the parameters, for cfg.layer_decay: the deepest have the whole learning rate. None: all have it.
    Raises:
        DeviceError: PyTorch's compiler, which its optimizers need, does not load.

    SGD without decay of norm scales and biases is Darknet's: its update takes the decay on the weights of convolutions
    alone, and the learning rate enters when the momentum is applied.
    Source: AlexeyAB/darknet src/convolutional_layer.c, update_convolutional_layer; timm optim/rmsprop_tf.py, lamb.py.
    """
    load_compiler()
    groups = _group_params(model, cfg, depths or {})
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
