"""Each section of a cfg file against slow arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.darknet_small import ALL_KINDS, NET, TAIL, build, draw, first_layer, scramble


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


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
