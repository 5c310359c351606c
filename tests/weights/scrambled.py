"""Networks in which every tensor has values of its own, so that nothing can be exchanged or left out unnoticed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cspnet

State = dict[str, Tensor]


@contextlib.contextmanager
def starting_at_zero() -> Iterator[None]:
    """Networks that are made in this block have zeros where they would draw: for those that are about to be filled."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_"):
            patch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor.data.zero_())
        yield


def create_blank(name: str, num_classes: int = 1000, **options: Any) -> nn.Module:
    """As `cspnet.create_model`, in half the time."""
    with starting_at_zero():
        return cspnet.create_model(name, num_classes, **options)


@torch.no_grad()
def scramble(model: nn.Module, seed: int) -> nn.Module:
    """Random weights; statistics near those of a batch, so that the outputs are neither one constant nor infinite."""
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.normal_(0, module.weight[0].numel() ** -0.5, generator=generator)
            if module.bias is not None:
                module.bias.normal_(generator=generator)
    for module in norms:
        module.weight.uniform_(0.5, 1.5, generator=generator)
        module.bias.normal_(0, 0.2, generator=generator)
        module.momentum = 1.0
    model.train()(torch.randn(2, 3, 64, 64, generator=generator))
    model.eval()
    for module in norms:
        module.momentum = 0.1
        module.running_mean += torch.randn(module.num_features, generator=generator) * 0.2
        module.running_var *= torch.empty_like(module.running_var).uniform_(0.5, 1.5, generator=generator)
    return model


def build_scrambled(name: str, seed: int, num_classes: int = 1000, **options: Any) -> nn.Module:
    return scramble(create_blank(name, num_classes, **options), seed)


def copy_state(model: nn.Module) -> State:
    return {key: value.clone() for key, value in model.state_dict().items()}


def check_equal(state: State, expected: State) -> None:
    """Bit for bit, types too."""
    assert state.keys() == expected.keys()
    for key, value in state.items():
        assert value.dtype == expected[key].dtype, key
        assert torch.equal(value, expected[key]), key


@torch.no_grad()
def relative_difference(a: nn.Module, b: nn.Module) -> float:
    """Largest difference of two networks' logits, in float64, relative to the largest logit. Both become float64."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    logits, reference = a.double().eval()(images), b.double().eval()(images)
    assert logits.shape == reference.shape
    assert reference.std() > 0.01
    return ((logits - reference).abs().max() / reference.abs().max()).item()
