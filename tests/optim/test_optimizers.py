"""Parameter groups, and each optimizer's update against one written out in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from cspnet.models import create_model
from cspnet.models.depth import find_depths
from cspnet.optim.optimizers import build_optimizer, peak_lr, set_lr
from cspnet.recipe.schema import OptimRecipe

MODELS = {
    "cspnet": lambda: create_model("cspdarknet_tiny", num_classes=3),
    "torchvision": lambda: torchvision.models.resnet18(num_classes=3),
}


def names_by_decay(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[float, set[str]]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups: dict[float, set[str]] = {}
    for group in optimizer.param_groups:
        groups.setdefault(group["weight_decay"], set()).update(names[id(p)] for p in group["params"])
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    return groups


@pytest.mark.parametrize("create", MODELS.values(), ids=MODELS)
def test_everything_decays_by_default(create: object) -> None:
    model = create()
    optimizer = build_optimizer(model, OptimRecipe(weight_decay=0.01))
    assert names_by_decay(model, optimizer) == {0.01: {name for name, _ in model.named_parameters()}}


@pytest.mark.parametrize("create", MODELS.values(), ids=MODELS)
def test_norms_and_biases_can_be_spared(create: object) -> None:
    model = create()
    spared = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            spared |= {f"{path}.weight", f"{path}.bias"}
    optimizer = build_optimizer(model, OptimRecipe(weight_decay=0.01, decay_norm_and_bias=False))
    every = {name for name, _ in model.named_parameters()}
    assert names_by_decay(model, optimizer) == {0.01: every - spared, 0.0: spared}


def test_a_norm_without_a_telling_name_is_spared() -> None:
    model = torchvision.models.resnet18()
    optimizer = build_optimizer(model, OptimRecipe(weight_decay=0.01, decay_norm_and_bias=False))
    groups = names_by_decay(model, optimizer)
    assert {"layer2.0.downsample.1.weight", "layer2.0.downsample.1.bias", "fc.bias"} <= groups[0.0]
    assert {"layer2.0.downsample.0.weight", "fc.weight"} <= groups[0.01]


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_frozen_parameters_are_left_out(decay_norm_and_bias: bool) -> None:
    model = MODELS["cspnet"]()
    model.stages.requires_grad_(False)
    optimizer = build_optimizer(model, OptimRecipe(decay_norm_and_bias=decay_norm_and_bias))
    names = set().union(*names_by_decay(model, optimizer).values())
    assert names == {name for name, _ in model.named_parameters() if not name.startswith("stages.")}


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_parts_have_their_share_of_the_learning_rate(decay_norm_and_bias: bool) -> None:
    model = MODELS["cspnet"]()
    cfg = OptimRecipe(layer_decay=0.5, momentum=0.0, weight_decay=0.0, decay_norm_and_bias=decay_norm_and_bias)
    optimizer = build_optimizer(model, cfg, find_depths(model))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    set_lr(optimizer, 1.0)
    optimizer.step()
    shares = {"stem": 1 / 16, "stages.0": 1 / 8, "stages.1": 1 / 4, "stages.2": 1 / 2, "head": 1.0}
    for name, p in model.named_parameters():
        (share,) = (share for part, share in shares.items() if name.startswith(part + "."))
        torch.testing.assert_close(before[name] - p.detach(), torch.full_like(p, share), rtol=0, atol=1e-6)


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_updates_are_those_of_sgd(
    momentum: float, nesterov: bool, weight_decay: float, decay_norm_and_bias: bool
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5))
    cfg = OptimRecipe(
        momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, decay_norm_and_bias=decay_norm_and_bias
    )
    optimizer = build_optimizer(model, cfg)
    rng = np.random.default_rng(0)
    expected = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    velocity: dict[str, np.ndarray] = {}
    for lr in (0.5, 0.5, 0.1, 0.1, 0.02):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for name, p in model.named_parameters():
            grad = rng.normal(size=p.shape).astype(np.float32)
            p.grad = torch.from_numpy(grad.copy())
            decays = decay_norm_and_bias or grad.ndim > 1
            total = grad.astype(np.float64) + (weight_decay if decays else 0) * expected[name]
            velocity[name] = momentum * velocity[name] + total if name in velocity else total
            expected[name] = expected[name] - lr * (total + momentum * velocity[name] if nesterov else velocity[name])
        optimizer.step()
        for name, p in model.named_parameters():
            np.testing.assert_allclose(p.detach().numpy(), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("lr", "base_size", "global_batch_size", "expected"),
    [(0.1, None, 1024, 0.1), (0.1, 256, 256, 0.1), (0.1, 256, 1024, 0.4), (0.1, 256, 64, 0.025), (0.5, 100, 1, 0.005)],
)
def test_peak_lr_scales_with_the_global_batch(
    lr: float, base_size: int | None, global_batch_size: int, expected: float
) -> None:
    assert peak_lr(OptimRecipe(lr=lr, lr_base_size=base_size), global_batch_size) == pytest.approx(expected)


class SlowRmspropTf:
    """RMSprop as TensorFlow has it: averages start at 1, epsilon under the root, lr inside the momentum."""

    def __init__(self, cfg: OptimRecipe) -> None:
        self.cfg, self.eps = cfg, 1e-3 if cfg.eps is None else cfg.eps
        self.square: dict[str, np.ndarray] = {}
        self.velocity: dict[str, np.ndarray] = {}

    def step(self, weights: dict[str, np.ndarray], grads: dict[str, np.ndarray], lr: float) -> None:
        for name, grad in grads.items():
            grad = grad + self.cfg.weight_decay * weights[name]
            square = self.square.get(name, np.ones_like(grad))
            self.square[name] = self.cfg.alpha * square + (1 - self.cfg.alpha) * grad**2
            step = lr * grad / np.sqrt(self.square[name] + self.eps)
            self.velocity[name] = self.cfg.momentum * self.velocity.get(name, np.zeros_like(grad)) + step
            weights[name] = weights[name] - self.velocity[name]


class SlowAdam:
    """AdamW, and LAMB: gradients of norm at most 1, and a layer's step as long as its weights."""

    def __init__(self, cfg: OptimRecipe) -> None:
        self.cfg, self.count = cfg, 0
        self.eps = cfg.eps if cfg.eps is not None else 1e-6 if cfg.name == "lamb" else 1e-8
        self.mean: dict[str, np.ndarray] = {}
        self.square: dict[str, np.ndarray] = {}

    def step(self, weights: dict[str, np.ndarray], grads: dict[str, np.ndarray], lr: float) -> None:
        is_lamb, (beta1, beta2), decay = self.cfg.name == "lamb", self.cfg.betas, self.cfg.weight_decay
        self.count += 1
        norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
        for name, grad in grads.items():
            grad = grad / max(1.0, norm) if is_lamb else grad
            self.mean[name] = beta1 * self.mean.get(name, np.zeros_like(grad)) + (1 - beta1) * grad
            self.square[name] = beta2 * self.square.get(name, np.zeros_like(grad)) + (1 - beta2) * grad**2
            mean, square = self.mean[name] / (1 - beta1**self.count), self.square[name] / (1 - beta2**self.count)
            step = mean / (np.sqrt(square) + self.eps) + decay * weights[name]
            length, step_length = np.linalg.norm(weights[name]), np.linalg.norm(step)
            if is_lamb and decay and length and step_length:
                step = step * length / step_length
            weights[name] = weights[name] - lr * step


OTHERS = {"rmsprop_tf": SlowRmspropTf, "adamw": SlowAdam, "lamb": SlowAdam}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    "settings", [{}, {"weight_decay": 0.0}, {"eps": 0.1, "momentum": 0.5, "alpha": 0.7, "betas": (0.8, 0.95)}]
)
def test_updates_are_those_of_the_other_optimizers(name: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5))
    cfg = OptimRecipe(**{"name": name, "weight_decay": 0.02, **settings})
    optimizer, slow = build_optimizer(model, cfg), OTHERS[name](cfg)
    rng = np.random.default_rng(0)
    expected = {key: p.detach().double().numpy().copy() for key, p in model.named_parameters()}
    for lr in (0.05, 0.05, 0.01, 0.01, 0.002):
        for group in optimizer.param_groups:
            group["lr"] = lr
        grads = {key: rng.normal(size=p.shape).astype(np.float32) for key, p in model.named_parameters()}
        for key, p in model.named_parameters():
            p.grad = torch.from_numpy(grads[key].copy())
        slow.step(expected, {key: grad.astype(np.float64) for key, grad in grads.items()}, lr)
        optimizer.step()
        for key, p in model.named_parameters():
            np.testing.assert_allclose(p.detach().numpy(), expected[key], rtol=1e-4, atol=1e-5)
