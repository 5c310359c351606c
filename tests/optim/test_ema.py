"""The moving average against torch's and against one written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cspnet.models import create_model
from cspnet.optim.ema import Ema

STEPS = 12


def create_net() -> nn.Module:
    torch.manual_seed(0)
    return create_model("cspdarknet_tiny", num_classes=4).train()


@torch.no_grad()
def disturb(model: nn.Module, step: int) -> None:
    """Change all parameters and, with a forward pass, all buffers."""
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p += 0.1 * torch.randn(p.shape, generator=generator)
    model(torch.randn(4, 3, 32, 32, generator=generator))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_parameters_follow_torchs_average(decay: float) -> None:
    model = create_net()
    ema = Ema(model, decay, warmup=False)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    reference.update_parameters(model)  # torch takes its first call as the start
    for step in range(STEPS):
        disturb(model, step)
        ema.update(model, step)
        reference.update_parameters(model)
        for value, expected in zip(ema.module.parameters(), reference.module.parameters(), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_floats_are_averaged_and_integers_copied(decay: float, warmup: bool) -> None:
    model = create_net()
    ema = Ema(model, decay, warmup)
    expected = {key: value.double() for key, value in model.state_dict().items() if value.is_floating_point()}
    start = {key: value.clone() for key, value in expected.items()}
    for step in range(STEPS):
        disturb(model, step)
        ema.update(model, step)
        kept = min(decay, (1 + step) / (10 + step)) if warmup else decay
        for key, value in model.state_dict().items():
            average = ema.module.state_dict()[key]
            if key in expected:
                expected[key] = kept * expected[key] + (1 - kept) * value.double()
                torch.testing.assert_close(average.double(), expected[key], rtol=1e-4, atol=1e-5)
            else:
                assert average.dtype == value.dtype == torch.int64
                assert average.item() == value.item() == step + 1
    assert any("running_mean" in key for key in expected)
    assert all(not torch.equal(expected[key], start[key]) for key in expected)


def test_the_average_is_a_model_of_its_own() -> None:
    model = create_net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ema = Ema(model, 0.9, warmup=False)
    assert all(torch.equal(ema.module.state_dict()[key], value) for key, value in before.items())
    assert not any(module.training for module in ema.module.modules())
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert model.training and all(p.requires_grad for p in model.parameters())
    disturb(model, 0)
    assert all(torch.equal(ema.module.state_dict()[key], value) for key, value in before.items())
    changed = {key: value.clone() for key, value in model.state_dict().items()}
    ema.update(model, 0)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in changed.items())
