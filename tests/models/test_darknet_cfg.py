"""Darknet cfg files: the authors' networks by number, sections against slow arithmetic, refusals by their words."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cspnet.errors import ModelError
from cspnet.models.darknet_cfg import DarknetCfgNet, create_cfg_model, parse_cfg, read_cfg_text
from cspnet.models.layers import Shortcut
from tests.models.darknet_cfgs import CFGS, resnet50

NET = "[net]\nheight=8\nwidth=8\nchannels=4\n"  # four lines
TAIL = "[avgpool]\n[convolutional]\nfilters=3\nactivation=linear\n[softmax]\n"

# convolutions, convolution weights (M), learnable (M), BFLOPs, bytes of the .weights file where published or derived
SIZES = {
    "csdarknet53": (73, 27.606, 27.6422, 13.071, 110_710_068),
    "csdarknet53_omega": (73, 27.606, 27.6422, 13.071, 110_710_068),
    "csdarknet53_elastic": (119, 19.045, 19.0816, 7.745, 76_468_020),
    "csresnet50": (60, 21.567, 21.6078, 8.972, 86_592_180),
    "csresnet50_omega": (60, 21.567, 21.6078, 8.972, 86_592_180),
    "csresnet50_elastic": (99, 29.796, 29.8484, 9.367, 119_600_820),
    "csresnext50": (60, 20.499, 20.5575, 7.933, 82_459_316),
    "csresnext50_omega": (60, 20.499, 20.5575, 7.933, 82_459_316),
    "csresnext50_elastic": (99, 16.858, 16.9163, 5.452, 67_894_964),
    "csmobilenet_v2": (59, 2.513, 2.5414, 0.764, 10_273_812),
    "mobilenet_v2_darknet": (54, 3.471, 3.5060, 0.859, None),
    "enetb0": (83, 4.808, 4.8537, 0.915, None),
    "resnet10": (10, 5.240, 5.2450, 2.274, 20_995_764),
    "resnet50_darknet": (50, 22.734, 22.7805, 9.749, None),
    "resnext50_darknet": (50, 22.191, 22.2523, 10.119, None),
    "darknet": (8, 7.314, 7.3194, 0.967, None),
    "darknet53": (53, 41.573, 41.6099, 18.576, None),
}

# Each layer's channels x side; ~ where it has an activation and it is linear; < and the layers it reads, where they
# are not the one before; * and how often. As the Darknet program prints them when it loads the authors' files.
PROGRAMS = {
    "csmobilenet_v2": """
        32x112 16x112 32x112<0 32x112*2 16x112~ 32x112<5,1 48x112 48x56 48x112<7 96x56 24x56~ 72x56 144x56 24x56~
        24x56~<11 72x56<15,8 72x56 72x28 72x56<17 144x28 32x28~ 96x28 192x28 32x28~ 32x28~<21 96x28 192x28 32x28~
        32x28~<25 96x28 192x28 64x28~ 192x28 384x28 64x28~ 64x28~<32 192x28 384x28 64x28~ 64x28~<36 192x28 384x28
        64x28~ 64x28~<40 136x28<44,18 192x28 192x14 192x28<46 384x14 96x14~ 288x14 576x14 96x14~ 96x14~<50 288x14
        576x14 96x14~ 96x14~<54 288x14<58,47 288x14 288x7 288x14<60 576x7 160x7~ 480x7 960x7 160x7~ 160x7~<64 480x7
        960x7 160x7~ 160x7~<68 480x7 960x7 320x7~ 608x7<75,61 640x7 640x1 1000x1~ 1000x1
    """,
    "csresnet50": """
        64x128 64x64 128x64 64x64<1 64x64*3 128x64~ 128x64<4 64x64*2 128x64~ 128x64<8 64x64*2 128x64~ 128x64<12
        128x64 256x64<17,2 128x64 128x32 256x32~ 128x32<20 256x32~ 128x32*2 256x32~ 256x32<23 128x32*2 256x32~
        256x32<27 128x32*2 256x32~ 256x32<31 256x32 512x32<36,21 256x32 256x16 512x16~ 256x16<39 512x16~ 256x16*2
        512x16~ 512x16<42 256x16*2 512x16~ 512x16<46 256x16*2 512x16~ 512x16<50 256x16*2 512x16~ 512x16<54 256x16*2
        512x16~ 512x16<58 512x16 1024x16<63,40 512x16 512x8 1024x8 512x8<66 1024x8 512x8*2 1024x8~ 1024x8<69 512x8*2
        1024x8~ 1024x8<73 1024x8 2048x8<78,67 1024x8 1024x1 1000x1~ 1000x1
    """,
    "csresnext50": """
        64x128 64x64 128x64 64x64<1 64x64 128x64*2 128x64~ 128x64<4 128x64*2 128x64~ 128x64<8 128x64*2 128x64~
        128x64<12 128x64 256x64<17,2 256x64 256x32 256x32~ 256x32<20 256x32~ 256x32*2 256x32~ 256x32<23 256x32*2
        256x32~ 256x32<27 256x32*2 256x32~ 256x32<31 256x32 512x32<36,21 512x32 512x16 512x16~ 512x16<39 512x16~
        512x16*2 512x16~ 512x16<42 512x16*2 512x16~ 512x16<46 512x16*2 512x16~ 512x16<50 512x16*2 512x16~ 512x16<54
        512x16*2 512x16~ 512x16<58 512x16 1024x16<63,40 1024x16 1024x8*2 1024x8<66 1024x8*3 1024x8~ 1024x8<69
        1024x8*2 1024x8~ 1024x8<73 1024x8 2048x8<78,67 2048x8 2048x1 1000x1~ 1000x1
    """,
    "resnet10": """
        64x128 64x64*2 64x64~ 64x64<1 128x32 128x32~ 128x32<4 256x16 256x16~ 256x16<7 512x8 512x8~ 512x8<10 512x1
        1000x1~ 1000x1
    """,
}

# Every kind of section in one small network of 32 px; the numbers are the layers'.
ALL_KINDS = """
[net]
height=32
width=32
channels=3
[convolutional]     # 0: 16 px
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[maxpool]           # 1: 8 px
size=2
stride=2
[convolutional]     # 2
batch_normalize=1
filters=12
activation=mish
[route]             # 3
layers=1
[convolutional]     # 4
batch_normalize=1
filters=8
size=3
pad=1
groups=2
activation=swish
[convolutional]     # 5
batch_normalize=1
filters=12
activation=linear
[shortcut]          # 6: 12 channels and 8
from=-3
activation=leaky
[route]             # 7: the second 6 of 12
layers=-1
groups=2
group_id=1
[maxpool]           # 8: 4 px
size=2
stride=2
[upsample]          # 9: 8 px
stride=2
[route]             # 10: 6 + 12
layers=-1, 2
[avgpool]           # 11
[convolutional]     # 12
filters=5
activation=relu
[convolutional]     # 13
filters=18
activation=logistic
[scale_channels]    # 14
from=-4
[convolutional]     # 15: 4 px
batch_normalize=1
filters=20
size=3
stride=2
padding=1
activation=relu6
[convolutional]     # 16
batch_normalize=1
filters=20
activation=linear
[shortcut]          # 17: 20 channels at 4 px and 18 at 8 px
from=14
activation=linear
[dropout]           # 18
probability=.5
[avgpool]           # 19
[convolutional]     # 20
filters=7
activation=linear
[softmax]           # 21
groups=1
[cost]              # 22
type=sse
"""


def build(text: str, num_classes: int = 1000) -> DarknetCfgNet:
    return DarknetCfgNet(parse_cfg(text, "x.cfg"), num_classes)


def build_meta(text: str, num_classes: int = 1000) -> DarknetCfgNet:
    with torch.device("meta"):
        return build(text, num_classes)


def first_layer(body: str, chs: int = 4, side_px: int = 8) -> nn.Module:
    net = f"[net]\nheight={side_px}\nwidth={side_px}\nchannels={chs}\n"
    return build(net + body + TAIL, 3).layers[0]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape)


@torch.no_grad()
def scramble(net: DarknetCfgNet) -> DarknetCfgNet:
    """Values under which no BatchNorm, bias or scale is neutral."""
    for conv, bn in net.darknet_convs():
        if conv.bias is not None:
            conv.bias.normal_(0, 0.5)
        if bn is not None:
            bn.weight.uniform_(0.5, 1.5)
            bn.bias.normal_(0, 0.5)
            bn.running_mean.normal_(0, 0.5)  # type: ignore[union-attr]
            bn.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    net.darknet_convs()[-1][0].weight.normal_(0, 0.5)
    return net


# ------------------------------------------------------------------------------------------------ the authors' networks


def count_bflops(net: DarknetCfgNet) -> float:
    """As Darknet prints them: 2 per weight and position, size² per pooled value, 1 per added value; in 10⁹."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            counts.append(2 * module.weight.numel() * output[0, 0].numel())
        elif isinstance(module, nn.MaxPool2d):
            counts.append(module.kernel_size**2 * output[0].numel())
        elif isinstance(module, Shortcut):
            counts.append(output[0].numel())

    hooks = [module.register_forward_hook(count) for module in net.modules()]
    net.eval()(torch.empty(1, net.in_chs, net.input_px, net.input_px, device="meta"))
    for hook in hooks:
        hook.remove()
    return sum(counts) / 1e9


@pytest.mark.parametrize("name", CFGS)
def test_the_authors_networks_have_their_size(name: str) -> None:
    num_convs, weights, params, bflops, file_bytes = SIZES[name]
    net = build_meta(CFGS[name]())
    convs = net.darknet_convs()
    assert len(convs) == num_convs
    assert round(sum(conv.weight.numel() for conv, _ in convs) / 1e6, 3) == weights
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 4) == params
    assert round(count_bflops(net), 3) == bflops
    if file_bytes is not None:  # header, then for each: weights and one bias, or shift, scale, mean and variance
        numbers = sum(conv.weight.numel() + conv.out_channels * (1 if bn is None else 4) for conv, bn in convs)
        assert 20 + 4 * numbers == file_bytes


def test_a_classifier_before_the_pool_costs_more_and_weighs_the_same() -> None:
    before, behind = (build_meta(resnet50(pool_first=pool_first)) for pool_first in (False, True))
    assert sum(p.numel() for p in before.parameters()) == sum(p.numel() for p in behind.parameters())
    assert (round(count_bflops(before), 3), round(count_bflops(behind), 3)) == (10.007, 9.749)


@pytest.mark.parametrize("name", PROGRAMS)
def test_layer_by_layer(name: str) -> None:
    text = CFGS[name]()
    net = build_meta(text)
    sizes: list[str] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert output.shape[2] == output.shape[3]
        sizes.append(f"{output.shape[1]}x{output.shape[2]}")

    for layer in net.layers:
        layer.register_forward_hook(note)
    net.eval()(torch.empty(1, 3, net.input_px, net.input_px, device="meta"))
    program = []
    for section, layer, size, sources in zip(parse_cfg(text, name)[1:], net.layers, sizes, net.sources, strict=True):
        named = sources if section.name == "route" else sources[1:]
        linear = "~" if isinstance(getattr(layer, "act", None), nn.Identity) else ""
        program.append(size + linear + ("<" + ",".join(map(str, named)) if named else ""))
    expected: list[str] = []
    for token in PROGRAMS[name].split():
        line, _, times = token.partition("*")
        expected += [line] * int(times or 1)
    assert program == expected


@pytest.mark.parametrize(("name", "num_activations"), [("csdarknet53", 72), ("csresnet50", 55), ("csresnext50", 55)])
def test_omega_is_the_same_network_with_mish_everywhere(name: str, num_activations: int) -> None:
    plain, omega = (build_meta(CFGS[key]()) for key in (name, f"{name}_omega"))
    slopes = [module.negative_slope for module in plain.modules() if isinstance(module, nn.LeakyReLU)]
    assert slopes == [0.1] * num_activations
    assert sum(isinstance(module, nn.Mish) for module in omega.modules()) == num_activations
    assert not any(isinstance(module, nn.LeakyReLU) for module in omega.modules())
    assert [(k, v.shape) for k, v in plain.state_dict().items()] == [
        (k, v.shape) for k, v in omega.state_dict().items()
    ]
    assert plain.sources == omega.sources


@torch.no_grad()
@pytest.mark.parametrize("name", ["csdarknet53_elastic", "csresnext50_elastic"])
def test_elastic_networks_run_on_multiples_of_64_px(name: str) -> None:
    net = build(CFGS[name](), 5).eval()
    logits = net(draw(2, 3, 64, 128))
    assert logits.shape == (2, 5)
    assert not torch.allclose(logits[0], logits[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "text",
    [ALL_KINDS, *(CFGS[name]() for name in ("csresnext50_omega", "csdarknet53_elastic", "csmobilenet_v2", "enetb0"))],
    ids=["all kinds", "csresnext50_omega", "csdarknet53_elastic", "csmobilenet_v2", "enetb0"],
)
def test_gradients_reach_every_parameter(text: str) -> None:
    net = build(text, 10).train()
    F.cross_entropy(net(draw(4, 3, 64, 64)), torch.tensor([1, 2, 3, 4])).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


# --------------------------------------------------------------------------------------------------------- each section


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "size", "stride", "padding", "groups"),
    [
        ("size=3\npad=1", 3, 1, 1, 1),
        ("size=3\nstride=2\npad=1\ngroups=2", 3, 2, 1, 2),
        ("size=3\npadding=2", 3, 1, 2, 1),
        ("size=3\npad=1\npadding=2", 3, 1, 1, 1),
        ("size=7\nstride=2\npad=1", 7, 2, 3, 1),
        ("size=2\npad=1\nstride=3", 2, 3, 1, 1),
        ("stride=2\ngroups=4\npad=1", 1, 2, 0, 4),
    ],
)
def test_convolution(options: str, size: int, stride: int, padding: int, groups: int) -> None:
    layer = first_layer(f"[convolutional]\nfilters=8\n{options}\nactivation=linear\n", side_px=9)
    x = draw(2, 4, 9, 9).double()
    out_px = (9 + 2 * padding - size) // stride + 1
    wide = torch.zeros(2, 4, 9 + 2 * padding, 9 + 2 * padding, dtype=torch.float64)
    wide[:, :, padding : padding + 9, padding : padding + 9] = x
    conv = layer.double().conv
    conv.bias.normal_()
    expected = torch.empty(2, 8, out_px, out_px, dtype=torch.float64)
    for c in range(8):
        first = c // (8 // groups) * (4 // groups)
        for i in range(out_px):
            for j in range(out_px):
                window = wide[:, first : first + 4 // groups, i * stride :, j * stride :][:, :, :size, :size]
                expected[:, c, i, j] = (window * conv.weight[c]).sum((1, 2, 3)) + conv.bias[c]
    torch.testing.assert_close(layer(x), expected)


def mish(x: float) -> float:
    return x * math.tanh(math.log1p(math.exp(x)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("activation=linear", lambda x: x),
        ("activation=leaky", lambda x: x if x > 0 else 0.1 * x),
        ("activation=relu", lambda x: max(x, 0.0)),
        ("activation=relu6", lambda x: min(max(x, 0.0), 6.0)),
        ("activation=mish", mish),
        ("activation=swish", lambda x: x * sigmoid(x)),
        ("activation=logistic", sigmoid),
        ("", sigmoid),  # Darknet's default for a convolution
    ],
)
def test_activations(name: str, function: Callable[[float], float]) -> None:
    layer = first_layer(f"[convolutional]\nfilters=1\n{name}\n", chs=1)
    layer.conv.weight.fill_(1)
    values = torch.linspace(-9, 9, 64)
    expected = torch.tensor([function(value) for value in values.tolist()])
    torch.testing.assert_close(layer(values.reshape(1, 1, 8, 8)).flatten(), expected)


def slow_maxpool(x: Tensor, size: int, stride: int, padding: int) -> Tensor:
    side_px = x.shape[2]
    out_px = (side_px + padding - size) // stride + 1
    y = torch.full((*x.shape[:2], out_px, out_px), -math.inf)
    for i in range(out_px):
        for j in range(out_px):
            for row in range(i * stride - padding // 2, i * stride - padding // 2 + size):
                for column in range(j * stride - padding // 2, j * stride - padding // 2 + size):
                    if 0 <= row < side_px and 0 <= column < side_px:
                        y[:, :, i, j] = torch.maximum(y[:, :, i, j], x[:, :, row, column])
    return y


@pytest.mark.parametrize("side_px", [5, 6, 7, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    ("size", "padding"), [(1, None), (2, None), (2, 0), (3, None), (3, 1), (3, 0), (4, None), (5, 3)]
)
def test_maxpool(size: int, stride: int, padding: int | None, side_px: int) -> None:
    option = "" if padding is None else f"padding={padding}\n"
    layer = first_layer(f"[maxpool]\nsize={size}\nstride={stride}\n{option}", side_px=side_px)
    x = draw(2, 4, side_px, side_px) - 5  # below zero, where zero padding would win
    torch.testing.assert_close(layer(x), slow_maxpool(x, size, stride, size - 1 if padding is None else padding))


def test_the_usual_maxpool_is_pytorchs_with_ceil_mode() -> None:
    layer = first_layer("[maxpool]\nstride=2\n", side_px=7)  # Darknet's default size is the stride
    x = draw(1, 4, 7, 7).requires_grad_()
    expected = F.max_pool2d(x, 2, 2, ceil_mode=True)
    assert expected.shape == (1, 4, 4, 4)
    torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert x.grad is not None and x.grad.sum() == 4 * 16


@pytest.mark.parametrize(
    ("chs", "from_chs", "stride"), [(6, 6, 1), (6, 4, 1), (4, 6, 1), (6, 4, 2), (4, 4, 2), (4, 6, 4)]
)
def test_shortcut(chs: int, from_chs: int, stride: int) -> None:
    net = build(
        f"[net]\nheight=8\nwidth=8\nchannels=4\n[convolutional]\nfilters={from_chs}\n"
        f"[convolutional]\nfilters={chs}\nstride={stride}\n[shortcut]\nfrom=-2\nactivation=leaky\n" + TAIL,
        3,
    )
    assert net.sources[2] == (1, 0)
    x, earlier = draw(2, chs, 8 // stride, 8 // stride), draw(2, from_chs, 8, 8) * 2
    expected = x.clone()
    for c in range(min(chs, from_chs)):
        for i in range(8 // stride):
            for j in range(8 // stride):
                expected[:, c, i, j] += earlier[:, c, i * stride, j * stride]
    expected = torch.where(expected > 0, expected, 0.1 * expected)
    torch.testing.assert_close(net.layers[2](x, earlier), expected)


def test_shortcut_is_linear_by_default() -> None:
    net = build(NET + "[convolutional]\nfilters=4\n[convolutional]\nfilters=4\n[shortcut]\nfrom=0\n" + TAIL, 3)
    x, earlier = draw(1, 4, 8, 8), draw(1, 4, 8, 8)
    torch.testing.assert_close(net.layers[2](x, earlier), x + earlier)


@pytest.mark.parametrize("group_id", [0, 1, 2])
def test_route_takes_the_same_part_of_each_layer(group_id: int) -> None:
    two = "[convolutional]\nfilters=6\n[convolutional]\nfilters=9\n"
    net = build(f"{NET}{two}[route]\nlayers = -1, 0\ngroups=3\ngroup_id={group_id}\n{TAIL}", 3)
    assert net.sources[2] == (1, 0)
    last, first = draw(2, 9, 4, 4), draw(2, 6, 4, 4)
    channels = [last[:, 3 * group_id + c] for c in range(3)] + [first[:, 2 * group_id + c] for c in range(2)]
    assert torch.equal(net.layers[2](last, first), torch.stack(channels, dim=1))
    assert net.num_features == 5


def test_upsample_avgpool_scale_channels() -> None:
    x, scale = draw(2, 3, 4, 4), draw(2, 3, 1, 1)
    body = "[avgpool]\n[convolutional]\nfilters=4\n[scale_channels]\nfrom=0\nactivation=relu\n"
    net = build(f"{NET}[upsample]\n{body}[upsample]\nstride=3\n{TAIL}", 3)
    twice, pool, _, scaled, thrice = net.layers[:5]
    assert net.sources[3] == (2, 0)
    torch.testing.assert_close(pool(x)[1, 2, 0, 0], sum(x[1, 2].flatten()) / 16)
    for layer, stride in ((twice, 2), (thrice, 3)):
        y = layer(x)
        assert y.shape == (2, 3, 4 * stride, 4 * stride)
        assert all(
            torch.equal(y[:, :, i, j], x[:, :, i // stride, j // stride])
            for i in range(4 * stride)
            for j in range(4 * stride)
        )
    expected = torch.stack([torch.stack([x[n, c] * scale[n, c, 0, 0] for c in range(3)]) for n in range(2)])
    assert (expected < 0).any()
    torch.testing.assert_close(scaled(scale, x), expected.clamp(min=0))


def test_dropout_scales_in_training_only() -> None:
    layer = first_layer("[dropout]\nprobability=.75\n")
    x = torch.ones(4, 4, 32, 32)
    assert torch.equal(layer.eval()(x), x)
    y = layer.train()(x)
    assert set(y.unique().tolist()) == {0.0, 4.0}
    assert 0.22 < (y == 4).float().mean() < 0.28


@torch.no_grad()
def test_a_whole_network_is_what_its_file_says() -> None:
    net = scramble(build(ALL_KINDS, 7)).eval()
    state = net.state_dict()

    def conv(i: int, x: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
        key = f"layers.{i}"
        x = F.conv2d(x, state[f"{key}.conv.weight"], state.get(f"{key}.conv.bias"), stride, padding, groups=groups)
        if f"{key}.bn.weight" not in state:
            return x
        mean, var, weight, bias = (
            state[f"{key}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    images = draw(2, 3, 32, 32)
    y1 = F.max_pool2d(F.leaky_relu(conv(0, images, 2, 1), 0.1), 2, 2)
    y2 = F.mish(conv(2, y1))
    y5 = conv(5, F.silu(conv(4, y1, 1, 1, 2)))
    y6 = F.leaky_relu(torch.cat([y5[:, :8] + y1, y5[:, 8:]], 1), 0.1)
    y9 = F.max_pool2d(y6[:, 6:], 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    y10 = torch.cat([y9, y2], 1)
    y13 = torch.sigmoid(conv(13, F.relu(conv(12, y10.mean((2, 3), keepdim=True)))))
    y14 = y10 * y13
    y16 = conv(16, conv(15, y14, 2, 1).clamp(0, 6))
    y17 = torch.cat([y16[:, :18] + y14[:, :, ::2, ::2], y16[:, 18:]], 1)
    logits = conv(20, y17.mean((2, 3), keepdim=True))[:, :, 0, 0]
    assert logits.std() > 0.1
    torch.testing.assert_close(net(images), logits)


# --------------------------------------------------------------------------------------------------- the network's face


@pytest.mark.parametrize("order", ["pool first", "classifier first"])
def test_num_classes_replaces_the_last_convolutions_filters(order: str) -> None:
    net = build_meta(resnet50(pool_first=order == "pool first"), 10)
    shape = net.get_submodule(net.classifier_name).weight.shape
    assert tuple(shape) == (10, 2048, 1, 1)
    assert (net.num_classes, net.num_features, net.in_chs, net.input_px) == (10, 2048, 3, 256)
    assert net(torch.empty(2, 3, 96, 64, device="meta")).shape == (2, 10)


@torch.no_grad()
def test_the_order_of_pool_and_classifier_does_not_change_the_logits() -> None:
    conv, pool = "[convolutional]\nfilters=5\nactivation=linear\n", "[avgpool]\n"
    entry = NET + "[convolutional]\nfilters=6\nsize=3\npad=1\nbatch_normalize=1\nactivation=leaky\n"
    first, last = build(entry + pool + conv, 5), build(entry + conv + pool, 5)
    last.load_state_dict({key.replace("layers.2", "layers.1"): value for key, value in first.state_dict().items()})
    x = draw(2, 4, 8, 8)
    torch.testing.assert_close(last.eval()(x), first.eval()(x))


def test_convolutions_in_the_files_order_under_darknets_numbers() -> None:
    net = build_meta(ALL_KINDS, 7)
    modules = dict(net.named_modules())
    numbers = [0, 2, 4, 5, 12, 13, 15, 16, 20]
    assert [(id(conv), id(bn)) for conv, bn in net.darknet_convs()] == [
        (id(modules[f"layers.{i}.conv"]), id(modules.get(f"layers.{i}.bn"))) for i in numbers
    ]
    assert net.classifier_name == "layers.20.conv"
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {f"layers.{i}.conv.weight" for i in numbers} | {f"layers.{i}.conv.bias" for i in (12, 13, 20)}
    keys |= {f"layers.{i}.bn.{part}" for i in numbers if i not in (12, 13, 20) for part in parts}
    assert set(net.state_dict()) == keys
    assert {bn.eps for _, bn in net.darknet_convs() if bn} == {1e-5}


def test_initial_weights() -> None:
    net = build(CFGS["resnet10"](), 1000)
    *convs, (classifier, no_bn) = net.darknet_convs()
    for conv, bn in convs:
        std = math.sqrt(2 / (conv.out_channels * conv.kernel_size[0] ** 2))
        assert conv.weight.std().item() == pytest.approx(std, rel=0.03)
        assert bn is not None and (bn.weight == 1).all() and (bn.bias == 0).all()
    assert no_bn is None and classifier.bias is not None and not classifier.bias.any()
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not build(ALL_KINDS).layers[13].conv.bias.any()


@torch.no_grad()
def test_outputs_are_freed_as_soon_as_nobody_reads_them() -> None:
    conv = "[convolutional]\nfilters=4\nactivation=leaky\n"
    # 0 to 3; 4 adds 0; nobody reads 5; 6 reads 4 twice; 7 pools; 8 classifies
    net = build(f"{NET}{conv * 4}[shortcut]\nfrom=0\n{conv}[route]\nlayers=-2,-2\n[avgpool]\n{conv}", 4).eval()
    refs: list[weakref.ref[Tensor]] = []
    alive: list[set[int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        refs.append(weakref.ref(output))
        alive.append({i for i, ref in enumerate(refs) if ref() is not None})

    for layer in net.layers:
        layer.register_forward_hook(note)
    net(draw(1, 4, 8, 8))
    assert alive == [{0}, {0, 1}, {0, 1, 2}, {0, 2, 3}, {0, 3, 4}, {4, 5}, {4, 6}, {6, 7}, {7, 8}]


# ------------------------------------------------------------------------------------------------------ the file's text


def test_comments_spaces_line_ends_and_repeated_keys() -> None:
    text = "; a comment\r\n\r\n[ net ]\r\n  height = 8 # px\r\n\theight=9\r\n[route] ; two\r\nlayers = -1, -4\r\n"
    net, route = parse_cfg(text, "x.cfg")
    assert (net.name, net.line, net.options) == ("net", 3, {"height": "8"})  # the first counts, as in Darknet
    assert (route.name, route.line, route.options) == ("route", 6, {"layers": "-1,-4"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.cfg: no [section] in it; expected a Darknet cfg file"),
        ("# only this\n", "x.cfg: no [section] in it; expected a Darknet cfg file"),
        ("\nfilters=3\n", "x.cfg:2: 'filters=3': expected a [section] first"),
        ("[net]\nheight\n", "x.cfg:2: 'height': expected key=value or [section]"),
        ("[net]\n[maxpool\n", "x.cfg:2: '[maxpool': expected key=value or [section]"),
        ("[net]\n=3\n", "x.cfg:2: '=3': expected key=value or [section]"),
        ("[maxpool]\n", "x.cfg:1: [maxpool]: expected [net] as the first section"),
        ("[net]\nwidth=8\n", "x.cfg:1: [net]: height is missing"),
        ("[net]\nheight=8\nwidth=8\n", "x.cfg:1: [net]: channels is missing"),
        ("[net]\nheight=8\nwidth=9\n", "x.cfg:3: [net]: width=9: expected a square input, height=8"),
        ("[net]\nheight=0\n", "x.cfg:2: [net]: height=0: expected a number from 1 on"),
        (NET, "x.cfg:1: [net]: the file has no layers"),
        (
            NET + "[avgpool]\n",
            "x.cfg:5: [avgpool]: the file ends without a [convolutional] section, which would be the classifier",
        ),
        (
            NET + "[convolutional]\nfilters=3\n",
            "x.cfg:5: [convolutional]: 8 x 8 px are left at the end: expected an [avgpool] before it",
        ),
        (
            NET + "[convolutional]\nbatch_normalize=1\nfilters=3\n[avgpool]\n",
            "x.cfg:6: [convolutional]: batch_normalize=1: the last convolution is the classifier: expected none",
        ),
        (
            NET + "[convolutional]\nfilters=many\n[avgpool]\n",
            "x.cfg:6: [convolutional]: filters=many: expected a whole number",
        ),
        (
            NET + "[convolutional]\nfilters=3\n[avgpool]\n[route]\nlayers=-1\n",
            "x.cfg:8: [route]: expected only avgpool, dropout, softmax, cost behind the last convolution",
        ),
        (
            NET + "[convolutional]\nfilters=3\n[softmax]\n[avgpool]\n",
            "x.cfg:8: [avgpool]: expected nothing behind softmax and cost",
        ),
    ],
)
def test_a_file_that_is_no_classification_network(text: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(text)
    assert str(caught.value) == message


CONV_KEYS = "filters, size, stride, pad, padding, groups, batch_normalize, activation"
ACTIVATIONS = "linear, leaky, relu, relu6, mish, swish, logistic"
NO_NUMBER = "expected a whole number"


@pytest.mark.parametrize(
    ("body", "message"),
    [  # the body's first line is line 5
        (
            "[lstm]\noutput=3",
            "5: [lstm]: sections of this kind are not supported (supported: convolutional, maxpool, avgpool, route, "
            "shortcut, scale_channels, upsample, dropout, softmax, cost)",
        ),
        ("[convolutional]\nsize=3", "5: [convolutional]: filters is missing"),
        ("[convolutional]\nfilters=4.0", f"6: [convolutional]: filters=4.0: {NO_NUMBER}"),
        ("[convolutional]\nfilters=", f"6: [convolutional]: filters=: {NO_NUMBER}"),
        ("[convolutional]\nfilters=1_0", f"6: [convolutional]: filters=1_0: {NO_NUMBER}"),
        ("[convolutional]\nfilters=4\nsize=0", "7: [convolutional]: size=0: expected a number from 1 on"),
        ("[convolutional]\nfilters=4\nstride=-2", "7: [convolutional]: stride=-2: expected a number from 1 on"),
        ("[convolutional]\nfilters=4\npadding=-1", "7: [convolutional]: padding=-1: expected a number from 0 on"),
        (
            "[convolutional]\nfilters=4\nbatch_normalize=2",
            "7: [convolutional]: batch_normalize=2: expected a number from 0 to 1",
        ),
        (
            "[convolutional]\nfilters=6\ngroups=4",
            "7: [convolutional]: groups=4: does not divide the 4 channels before and the 6 behind",
        ),
        (
            "[convolutional]\nfilters=4\nsize=9",
            "5: [convolutional]: a window of 9 px does not fit the 8 x 8 px that reach it",
        ),
        (
            "[convolutional]\nfilters=4\nactivation=elu",
            f"7: [convolutional]: activation=elu: not supported (supported: {ACTIVATIONS})",
        ),
        *(
            (
                f"[convolutional]\nfilters=4\n{option}",
                f"7: [convolutional]: {option}: not supported (supported: {CONV_KEYS})",
            )
            for option in ("dilation=2", "antialiasing=1", "binary=1", "xnor=1", "share_index=0", "flipped=1", "Size=3")
        ),
        (
            "[maxpool]\nmaxpool_depth=1",
            "6: [maxpool]: maxpool_depth=1: not supported (supported: size, stride, padding)",
        ),
        ("[maxpool]\nsize=2\npadding=2", "7: [maxpool]: padding=2: expected a number from 0 to 1"),
        ("[avgpool]\nsize=2", "6: [avgpool]: size=2: not supported (supported: no options)"),
        ("[route]", "5: [route]: layers is missing"),
        ("[route]\nlayers=-1", "6: [route]: layers=-1: there is no layer -1 before this one, which is layer 0"),
        (
            "[avgpool]\n[route]\nlayers=-1,1",
            "7: [route]: layers=-1,1: there is no layer 1 before this one, which is layer 1",
        ),
        ("[avgpool]\n[route]\nlayers=a", "7: [route]: layers=a: expected the whole numbers of layers"),
        ("[avgpool]\n[route]\nlayers=-1,", "7: [route]: layers=-1,: expected the whole numbers of layers"),
        (
            "[dropout]\nprobability=0\n[avgpool]\n[route]\nlayers=0,1",
            "9: [route]: layers=0,1: layers of different sizes (1 x 1, 8 x 8 px) cannot be joined",
        ),
        ("[avgpool]\n[route]\nlayers=0\ngroups=3", "8: [route]: groups=3: does not divide the 4 channels"),
        (
            "[avgpool]\n[route]\nlayers=0\ngroups=2\ngroup_id=2",
            "9: [route]: group_id=2: expected a number from 0 to 1",
        ),
        ("[shortcut]\nfrom=-2", "6: [shortcut]: from=-2: there is no layer -2 before this one, which is layer 0"),
        ("[avgpool]\n[shortcut]", "6: [shortcut]: from is missing"),
        ("[avgpool]\n[shortcut]\nfrom=0,0", "7: [shortcut]: from=0,0: expected one layer"),
        (
            "[avgpool]\n[shortcut]\nfrom=0\nweights_type=per_feature",
            "8: [shortcut]: weights_type=per_feature: not supported (supported: from, activation)",
        ),
        (
            "[avgpool]\n[upsample]\n[shortcut]\nfrom=0",
            "8: [shortcut]: from=0: cannot add 1 x 1 px to 2 x 2 px: expected the same size or a multiple",
        ),
        (
            "[avgpool]\n[scale_channels]\nfrom=0\nscale_wh=1",
            "8: [scale_channels]: scale_wh=1: not supported (supported: from, activation)",
        ),
        (
            "[upsample]\n[scale_channels]\nfrom=0",
            "7: [scale_channels]: from=0: expected 4 x 1 x 1 in front, as that layer has 4 channels, not 4 x 16 x 16",
        ),
        ("[upsample]\nscale=2", "6: [upsample]: scale=2: not supported (supported: stride)"),
        ("[dropout]", "5: [dropout]: probability is missing"),
        *(
            (
                f"[dropout]\nprobability={value}",
                f"6: [dropout]: probability={value}: expected a number from 0 up to, not with, 1",
            )
            for value in ("1", "-0.1", "nan", "half")
        ),
        ("[softmax]\ngroups=2", "6: [softmax]: groups=2: expected a number from 1 to 1"),
        ("[softmax]\ntree=a.tree", "6: [softmax]: tree=a.tree: not supported (supported: groups)"),
    ],
)
def test_refusals_name_file_line_and_section(body: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(f"{NET}{body}\n{TAIL}", 3)
    assert str(caught.value) == f"x.cfg:{message}"


def test_options_that_change_nothing_are_accepted() -> None:
    body = "[convolutional]\nfilters=4\ndilation=1\nxnor=0\n[shortcut]\nfrom=-1\nweights_type=none\n"
    assert len(build(NET + body + TAIL, 3).layers) == 5


# -------------------------------------------------------------------------------------------------------------- by name


def test_from_a_file_by_relative_and_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "nets" / "small.cfg"
    path.parent.mkdir()
    path.write_text(NET + TAIL, encoding="utf-8-sig")  # with the mark that some editors put in front
    for name in ("cfg/nets/small.cfg", f"cfg/{path}"):
        assert read_cfg_text(name) == NET + TAIL
        assert create_cfg_model(name, 6, {})(draw(2, 4, 8, 8)).shape == (2, 6)


def test_text_takes_the_files_place() -> None:
    net = create_cfg_model("cfg/gone.cfg", 3, {"text": ALL_KINDS, "bn_momentum": 0.01})
    assert {bn.momentum for _, bn in net.darknet_convs() if bn} == {0.01}
    assert net.num_classes == 3
    with pytest.raises(ModelError, match=r"^nets/a\.cfg:1: \[maxpool\]: expected \[net\] as the first section$"):
        create_cfg_model("cfg/nets/a.cfg", 3, {"text": "[maxpool]"})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.weights").write_bytes(bytes(range(256)))
    for path, problem in (
        (tmp_path / "gone.cfg", f"cannot read {tmp_path}/gone.cfg: No such file or directory"),
        (tmp_path, f"cannot read {tmp_path}: Is a directory"),
        (tmp_path / "x.weights", f"{tmp_path}/x.weights is not a text file; expected a Darknet cfg file"),
    ):
        with pytest.raises(ModelError) as caught:
            create_cfg_model(f"cfg/{path}", 10, {})
        assert str(caught.value) == f"model cfg/{path}: {problem}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "mish"}, "unknown option activation; it has bn_momentum, text"),
        ({"bn_momentum": 0}, "bn_momentum=0: use a number above 0, up to 1"),
        ({"bn_momentum": True}, "bn_momentum=True: use a number above 0, up to 1"),
        ({"bn_momentum": "0.1"}, "bn_momentum='0.1': use a number above 0, up to 1"),
        ({"text": b"[net]"}, "option text: expected the text of a cfg file, not bytes"),
    ],
)
def test_options_of_a_model(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        create_cfg_model("cfg/x.cfg", 10, {"text": ALL_KINDS, **options})
    assert str(caught.value) == f"model cfg/x.cfg: {message}"
