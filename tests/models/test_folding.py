"""Folded networks beside the same networks unfolded, in float64 and float32; and what must not be folded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cspnet
from cspnet.models.folding import fold_batch_norm
from tests.models.comparing import draw_images, relative_error
from tests.weights.scrambled import build_scrambled, scramble

# One network for each kind of block, stem and fusion; {name: convolutions with a BatchNorm}.
NETWORKS = {
    "cspdarknet_tiny": {},
    "cspresnet_cifar": {},
    "cspresnet10": {"fusion": "last"},
    "resnet10": {},
    "csresnext50_elastic": {},
    "csdarknet53_elastic": {},
    "csmobilenet_v2": {},
    "mobilenet_v2_darknet": {},
    "csppeleenet": {},
    "cspdensenet121": {"fusion": "first"},
    "timm/resnet18": {},
    "timm/cspresnet50": {},  # BatchNormAct2d: what stands behind the normalisation stays
    "timm/mobilenetv3_small_050": {},
    "torchvision/mobilenet_v2": {},
}


def count_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@torch.no_grad()
def check(model: nn.Module, images: Tensor, most: float) -> None:
    """Every BatchNorm is folded, the logits are the same, and the network itself is as it was."""
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model, images[:1])
    assert (folded.refusal, folded.num_left, folded.num_folded) == ("", 0, count_norms(model))
    assert folded.num_folded > 0
    assert count_norms(folded.model) == 0
    reference = model(images)
    assert reference.std() > 0
    assert relative_error(folded.model(images), reference) < most
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_the_unfolded_networks(name: str) -> None:
    model = build_scrambled(name, 1, num_classes=10, **NETWORKS[name])
    check(model, draw_images(2, 64), 1e-4)  # these weights enlarge each rounding
    check(model.double(), draw_images(2, 64).double(), 1e-10)


CFG = """[net]
height=64
width=64
channels=3
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[convolutional]
batch_normalize=1
filters=8
groups=4
size=3
pad=1
activation=mish
[shortcut]
from=-2
activation=linear
[convolutional]
filters=8
size=1
activation=leaky
[route]
layers=-1,-3
[convolutional]
filters=10
size=1
activation=linear
[avgpool]
"""


def test_a_darknet_cfg(tmp_path: Path) -> None:
    (tmp_path / "x.cfg").write_text(CFG)
    model = build_scrambled(f"cfg/{tmp_path / 'x.cfg'}", 2, num_classes=10).double()
    assert count_norms(model) == 2  # the third convolution has a bias instead
    check(model, draw_images(2, 64).double(), 1e-10)


def test_a_stem_of_patterns() -> None:
    model = cspnet.create_model("cspresnet_cifar", 10)
    stem = model.stem.conv1.conv
    assert not stem.weight.requires_grad
    scramble_all_but_the_stem(model)
    check(model, draw_images(2, 32), 1e-4)


def scramble_all_but_the_stem(model: nn.Module) -> None:
    stem = model.stem.conv1.conv.weight.clone()
    scramble(model, 3)
    with torch.no_grad():
        model.stem.conv1.conv.weight.copy_(stem)


def test_the_arithmetic_on_paper() -> None:
    """3 * (2x + 1 - 5) / sqrt(0.24 + 0.01) + 7 = 12 x - 17"""
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.01)
    for tensor, value in (
        *((conv.weight, 2.0), (conv.bias, 1.0), (norm.weight, 3.0), (norm.bias, 7.0)),
        *((norm.running_mean, 5.0), (norm.running_var, 0.24)),
    ):
        nn.init.constant_(tensor, value)
    folded = fold_batch_norm(nn.Sequential(conv, norm), torch.randn(1, 1, 2, 2))
    assert folded.num_folded == 1
    assert folded.model[0].weight.item() == pytest.approx(12)
    assert folded.model[0].bias.item() == pytest.approx(-17)
    assert isinstance(folded.model[1], nn.Identity)


def test_types_and_memory_formats_stay() -> None:
    model = build_scrambled("cspdarknet_tiny", 4, num_classes=10).to(memory_format=torch.channels_last)
    folded = fold_batch_norm(model, draw_images(1, 32)).model
    convs = [module for module in folded.modules() if isinstance(module, nn.Conv2d)]
    assert all(conv.weight.dtype is conv.bias.dtype is torch.float32 for conv in convs)
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convs)
    assert not folded.training


def test_synchronised_norms_are_norms() -> None:
    plain = build_scrambled("cspdarknet_tiny", 5, num_classes=10)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    folded = fold_batch_norm(synchronised, draw_images(1, 32))
    assert folded.num_folded == count_norms(plain)
    with torch.no_grad():
        assert relative_error(folded.model(draw_images(2, 32)), plain(draw_images(2, 32))) < 1e-5


def test_norms_without_scale_and_shift() -> None:
    model = scramble_plain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)))
    check(model.double(), draw_images(2, 8).double(), 1e-12)


def test_one_class() -> None:
    """Its only logit has no spread to be compared with."""
    check(build_scrambled("cspdarknet_tiny", 8, num_classes=1), draw_images(2, 32), 1e-4)


def test_a_classifier_of_zeros() -> None:
    model = build_scrambled("cspdarknet_tiny", 9, num_classes=4)
    nn.init.zeros_(model.get_classifier().weight)
    nn.init.zeros_(model.get_classifier().bias)
    assert fold_batch_norm(model, draw_images(1, 32)).num_folded == count_norms(model)


def scramble_plain(model: nn.Module) -> nn.Module:
    """Statistics of a batch, in all norms that keep some."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(draw_images(4, 8) * 3 + 1)
    return model.eval()


# What must not be folded


class _Pair(nn.Module):
    """A convolution, a norm, and some code of its own between them."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.code = conv, norm, forward

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


class _Standardized(nn.Conv2d):
    """A convolution that takes its scale out of its weights, so that nothing can be folded into them."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight.std())


def _call(net: nn.Module, x: Tensor) -> Tensor:
    return net.norm(net.conv(x))


def _read_twice(net: nn.Module, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) + y.mean() * 1e-9


def _read_through_a_view(net: nn.Module, x: Tensor) -> Tensor:
    y = net.conv(x)
    z = net.norm(y)
    return z + y[:, :1]


def _changed_in_place(net: nn.Module, x: Tensor) -> Tensor:
    y = net.conv(x)
    F.relu_(y)
    return net.norm(y)


def _called_twice(net: nn.Module, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)) + net.norm(x)


def _convolved_twice(net: nn.Module, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)) + net.conv(x)


def _norm_first(net: nn.Module, x: Tensor) -> Tensor:
    return net.conv(net.norm(x))


def _not_a_module(net: nn.Module, x: Tensor) -> Tensor:
    return net.norm(F.conv2d(x, net.conv.weight, net.conv.bias))


LEFT: dict[str, Callable[[], nn.Module]] = {
    "read by something else, a billionth of it": lambda: _pair(_read_twice),
    "read through a view": lambda: _pair(_read_through_a_view),
    "changed in place": lambda: _pair(_changed_in_place),
    "a norm that is called twice": lambda: _pair(_called_twice),
    "a convolution that is called twice": lambda: _pair(_convolved_twice),
    "a norm before the convolution": lambda: _pair(_norm_first),
    "a convolution that is no module": lambda: _pair(_not_a_module),
    "weights that are made anew": lambda: _Pair(_call, _Standardized(3, 3, 1, bias=False), nn.BatchNorm2d(3)),
    "no running statistics": lambda: _Pair(
        _call, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
    ),
    "a convolution with one more dimension behind it": lambda: nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.Unflatten(0, (1, -1)), nn.BatchNorm3d(1)
    ),
}  # fmt: skip


def _pair(forward: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    return _Pair(forward, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_alone(case: str) -> None:
    torch.manual_seed(6)
    model = LEFT[case]().eval()
    if "statistics" not in case and "dimension" not in case:
        scramble_plain(model)
    found = fold_batch_norm(model, draw_images(1, 8))
    assert (found.num_folded, found.refusal) == (0, "")
    assert found.model is model
    assert found.num_left == count_norms(model)


class _LooksAtItsWeights(nn.Module):
    """Reads a convolution's weights beside calling it: the structure allows the fold, the numbers do not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.conv.weight.mean()


class _LooksAtItsNorm(_LooksAtItsWeights):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.norm.eps


class _ManyOutputs(_LooksAtItsWeights):
    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        return [self.norm(self.conv(x))]


class _OfOneType(_LooksAtItsWeights):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) @ torch.ones(8, 8)


REFUSED = {
    "other numbers": (_LooksAtItsWeights, "logits of the folded network are up to"),
    "it looks at its norm": (_LooksAtItsNorm, "eps"),
    "no logits": (_ManyOutputs, "not logits"),
    "float32 only": (_OfOneType, "dtype"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_fold_that_cannot_be_shown_right_is_refused(case: str) -> None:
    create, words = REFUSED[case]
    torch.manual_seed(7)
    model = scramble_plain(create()) if case != "no logits" else create()
    found = fold_batch_norm(model, draw_images(1, 8))
    assert found.model is model
    assert (found.num_folded, found.num_left) == (0, 1)
    assert words in found.refusal
    assert "\n" not in found.refusal
