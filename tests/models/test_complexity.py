"""Counts against hand-made sums, against PyTorch's own counter, and against timm's networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cspnet.errors import ModelError
from cspnet.models import create_model
from cspnet.models.complexity import Complexity, count_complexity, count_forward_macs
from cspnet.models.layers import Shortcut
from cspnet.models.zoo import ZOO
from tests.models.darknet_cfgs import CFGS


class Small(nn.Module):
    """One of each layer that counts, and some that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.shortcut = Shortcut()
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.bn(self.conv1(x)).relu())
        x = self.shortcut(self.conv2(x), x)
        return self.fc(self.global_pool(x).flatten(1))


def test_a_small_network_by_hand() -> None:
    # 3 x 16 x 16 -> conv1: 8 x 8 x 8 -> pool: 8 x 4 x 4 -> conv2, shortcut: 8 x 4 x 4 -> fc: 10
    weights = 8 * 3 * 9, 8 * 2 * 9, 8 * 10
    macs = weights[0] * 64 + weights[1] * 16 + weights[2]
    assert count_complexity(Small(), 16) == Complexity(
        params=sum(weights) + 8 + 2 * 8 + 10,
        conv_weights=sum(weights),
        macs=macs,
        bflops=(2 * macs + 9 * 128 + 128) / 1e9,
        activations=512 + 128 + 10,
        cio=(768 + 512) + (128 + 128) + (8 + 10),
    )


def test_other_sizes_and_channels() -> None:
    conv = nn.Conv2d(1, 2, 1, bias=False)
    assert count_complexity(conv, 5, in_chs=1) == Complexity(2, 2, 50, 100 / 1e9, 50, 75)


def test_a_layer_called_twice_works_twice_and_weighs_once() -> None:
    conv = nn.Conv2d(3, 3, 1, bias=False)
    assert count_complexity(nn.Sequential(conv, conv), 4) == Complexity(9, 9, 2 * 144, 4 * 144 / 1e9, 96, 192)


@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
@pytest.mark.parametrize("kernel_px", [2, (2, 2)])
def test_local_pools_count_as_in_darknet(pool: Any, kernel_px: Any) -> None:
    assert count_complexity(pool(kernel_px), 8).bflops == 4 * 3 * 4 * 4 / 1e9


def test_the_model_stays_as_it_is() -> None:
    model = Small().half()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_complexity(model, 16)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    for key, value in model.state_dict().items():
        assert value.device.type == "cpu"
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    ("input_px", "in_chs", "said"),
    [(0, 3, "from 1 on"), (16, 0, "from 1 on"), (16, 4, "4 x 16 x 16: Invalid channel")],
)
def test_an_impossible_picture_is_refused(input_px: int, in_chs: int, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        count_complexity(Small(), input_px, in_chs)


def test_a_picture_smaller_than_the_kernel_is_refused() -> None:
    with pytest.raises(ModelError, match="3 x 4 x 4: Calculated padded input"):
        count_complexity(nn.Conv2d(3, 8, 5), 4)


class Traffic(TorchDispatchMode):
    """Counts what convolutions and matrix products read and write, without knowing of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.written = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self.read += args[0].numel()
            self.written += result.numel()
        elif func is torch.ops.aten.addmm.default:
            self.read += args[1].numel()
            self.written += result.numel()
        return result


@pytest.mark.parametrize("name", ["cspdarknet_tiny", "timm/resnet18"])
def test_a_real_forward_pass_counts_the_same_and_changes_nothing(name: str) -> None:
    model = create_model(name, 10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    assert count_forward_macs(model, 64, torch.device("cpu")) == count_complexity(model, 64).macs
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_forward_pass_that_fails_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1))
    with pytest.raises(RuntimeError):
        count_forward_macs(model, 8, torch.device("cpu"))
    assert all(module.training and not module._forward_hooks for module in model.modules())


def test_a_forward_pass_that_draws_leaves_the_generator() -> None:
    class Draws(Small):
        def forward(self, images: torch.Tensor) -> Any:
            return super().forward(images + torch.rand_like(images))

    model, generator = Draws(), torch.get_rng_state()
    count_forward_macs(model, 16, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(
    "name", ["torchvision/resnet18", "torchvision/mobilenet_v2", "timm/cspresnext50", "cspdarknet_tiny"]
)
def test_the_counts_are_those_of_pytorchs_operators(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name).eval()
        images = torch.empty(1, 3, 96, 96)
    flops, traffic = FlopCounterMode(display=False), Traffic()
    with torch.no_grad(), flops, traffic:
        model(images)
    counted = count_complexity(model, 96)
    assert 2 * counted.macs == flops.get_total_flops()
    assert (counted.activations, counted.cio) == (traffic.written, traffic.read + traffic.written)


@pytest.mark.parametrize(
    ("name", "input_px", "gmacs"),
    [
        ("cspdarknet53", 256, 6.534),
        ("cspdarknet53", 224, 5.003),
        ("cspresnet50", 256, 4.517),
        ("cspresnet50", 224, 3.459),
        ("cspresnext50", 256, 4.015),
        ("cspresnext50", 224, 3.074),
    ],
)
def test_timms_networks_cost_the_same(name: str, input_px: int, gmacs: float) -> None:
    with torch.device("meta"):
        ours, theirs = create_model(name), create_model(f"timm/{name}")
    counted, expected = count_complexity(ours, input_px), count_complexity(theirs, input_px)
    assert (counted.params, counted.conv_weights) == (expected.params, expected.conv_weights)
    assert (counted.macs, counted.activations, counted.cio) == (expected.macs, expected.activations, expected.cio)
    assert round(counted.macs / 1e9, 3) == gmacs


@pytest.mark.parametrize("name", sorted(CFGS.keys() & ZOO.keys()))
def test_a_native_network_costs_what_its_cfg_file_costs(name: str) -> None:
    with torch.device("meta"):
        native, cfg = create_model(name), create_model("cfg/x", text=CFGS[name]())
    counted, reference = (count_complexity(model, ZOO[name].input_px) for model in (native, cfg))
    for key in ("params", "conv_weights", "macs", "bflops"):
        assert getattr(counted, key) == getattr(reference, key), key
