"""Blocks and stages as the papers describe them, written out slowly, with the weights taken from a state_dict by name.

Convolutions are sums of shifted products, BatchNorm is its formula with the statistics of the batch, nothing is shared
with the package. Weights that are used are noted, so that a test can see that none was left over.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

SLOPE = 0.1


@dataclass
class Weights:
    """Parameters by name, under a prefix."""

    values: dict[str, Tensor]
    prefix: str = ""
    used: set[str] = field(default_factory=set)

    def __getitem__(self, key: str) -> Tensor:
        self.used.add(self.prefix + key)
        return self.values[self.prefix + key]

    def under(self, key: str) -> Weights:
        return Weights(self.values, f"{self.prefix}{key}.", self.used)


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, SLOPE * x)


def normalise(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    var = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(var + 1e-5) * scale[:, None, None] + shift[:, None, None]


def convolve(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Padding size // 2; the number of groups follows from the widths."""
    n, chs, height, width = x.shape
    out_chs, group_chs, size, _ = weight.shape
    pad = size // 2
    padded = x.new_zeros(n, chs, height + 2 * pad, width + 2 * pad)
    padded[:, :, pad : pad + height, pad : pad + width] = x
    out_height, out_width = (height + 2 * pad - size) // stride + 1, (width + 2 * pad - size) // stride + 1
    groups = chs // group_chs
    assert groups * group_chs == chs, "the weight is for another width"
    each = out_chs // groups
    outputs = []
    for group in range(groups):
        part = padded[:, group * group_chs : (group + 1) * group_chs]
        kernel = weight[group * each : (group + 1) * each]
        total = x.new_zeros(n, each, out_height, out_width)
        for i in range(size):
            for j in range(size):
                rows = torch.arange(out_height) * stride + i
                columns = torch.arange(out_width) * stride + j
                total = total + torch.einsum("nchw,oc->nohw", part[:, :, rows][:, :, :, columns], kernel[:, :, i, j])
        outputs.append(total)
    return torch.cat(outputs, dim=1)


def conv(x: Tensor, w: Weights, stride: int = 1, act: bool = True) -> Tensor:
    """Convolution, BatchNorm, activation."""
    y = normalise(convolve(x, w["conv.weight"], stride), w["bn.weight"], w["bn.bias"])
    return leaky(y) if act else y


def conv_part(x: Tensor, w: Weights, rows: slice, act: bool) -> Tensor:
    """The same with some of the output channels: one of the two 1x1 convolutions of the Darknet files."""
    y = normalise(convolve(x, w["conv.weight"][rows]), w["bn.weight"][rows], w["bn.bias"][rows])
    return leaky(y) if act else y


def pool(x: Tensor, best: bool) -> Tensor:
    """2x2 with stride 2; at an odd edge over the pixels that are there."""
    rows = []
    for i in range(0, x.shape[2], 2):
        row = []
        for j in range(0, x.shape[3], 2):
            window = x[:, :, i : i + 2, j : j + 2]
            row.append(window.amax((2, 3)) if best else window.mean((2, 3)))
        rows.append(torch.stack(row, dim=-1))
    return torch.stack(rows, dim=-2)


def shortcut(x: Tensor, earlier: Tensor) -> Tensor:
    """Element by element: out(n, c, i, j) = x(n, c, i, j) + earlier(n, c, i * stride, j * stride) where both are."""
    steps = [-(-earlier.shape[d] // x.shape[d]) for d in (2, 3)]
    out = x.clone()
    for c in range(min(x.shape[1], earlier.shape[1])):
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                out[:, c, i, j] = x[:, c, i, j] + earlier[:, c, i * steps[0], j * steps[1]]
    return out


def dark(x: Tensor, w: Weights, stride: int = 1) -> Tensor:
    return shortcut(conv(conv(x, w.under("conv1")), w.under("conv2")), x)


def bottleneck(x: Tensor, w: Weights, stride: int = 1) -> Tensor:
    y = conv(conv(x, w.under("conv1")), w.under("conv2"), stride)
    return leaky(shortcut(conv(y, w.under("conv3"), act=False), x))


def basic(x: Tensor, w: Weights, stride: int = 1) -> Tensor:
    return leaky(shortcut(conv(conv(x, w.under("conv1"), stride), w.under("conv2"), act=False), x))


def dense(x: Tensor, w: Weights, stride: int = 1) -> Tensor:
    return torch.cat([x, conv(conv(x, w.under("conv1")), w.under("conv2"))], dim=1)


def two_way_dense(x: Tensor, w: Weights, stride: int = 1) -> Tensor:
    short, long = w.under("branch1"), w.under("branch2")
    a = conv(conv(x, short.under("0")), short.under("1"))
    b = conv(conv(conv(x, long.under("0")), long.under("1")), long.under("2"))
    return torch.cat([x, a, b], dim=1)


def elastic(x: Tensor, w: Weights, convs: int) -> Tensor:
    """The halves of the channels at two resolutions; with three convolutions the last has no activation."""
    half = x.shape[1] // 2
    outputs = []
    for name, y in (("high", x[:, :half]), ("low", pool(x[:, half:], best=True))):
        for i in range(convs):
            y = conv(y, w.under(f"branches.{name}.{i}"), act=i < 2)
        outputs.append(y)
    high, low = outputs
    doubled = x.new_zeros(high.shape)
    for i in range(high.shape[2]):
        for j in range(high.shape[3]):
            doubled[:, :, i, j] = low[:, :, i // 2, j // 2]
    return shortcut(torch.cat([high, doubled], dim=1), x)


def elastic_dark(x: Tensor, w: Weights, stride: int = 1) -> Tensor:
    return elastic(x, w, convs=2)


def elastic_bottleneck(x: Tensor, w: Weights, stride: int = 1) -> Tensor:
    return leaky(elastic(x, w, convs=3))


def inverted(x: Tensor, w: Weights, stride: int = 1, expands: bool = True) -> Tensor:
    y = conv(x, w.under("conv1")) if expands else x
    y = conv(conv(y, w.under("conv2"), stride), w.under("conv3"), act=False)
    return x + y if y.shape == x.shape else y


BLOCKS = {
    "dark": dark,
    "bottleneck": bottleneck,
    "basic": basic,
    "dense": dense,
    "two_way_dense": two_way_dense,
    "elastic_dark": elastic_dark,
    "elastic_bottleneck": elastic_bottleneck,
}


def cross_stage(
    x: Tensor,
    w: Weights,
    kind: str,
    depth: int,
    *,
    fusion: str,
    gamma: float,
    slices: bool,
    down_stride: int,
    split_act: bool,
    block_first: bool,
    pool_at: str = "none",
    down_pool: bool = False,
) -> Tensor:
    """Figure 3 of CSPNet: part 1, a share gamma, goes to the end; part 2 through the blocks.

    b: transition, concatenation, transition ("csp"); c: concatenation, transition ("first"); d: transition,
    concatenation ("last").
    """
    if down_stride:
        x = conv(x, w.under("conv_down"), down_stride)
    if down_pool:
        x = pool(x, best=True)
    if slices:
        chs = round(gamma * x.shape[1])
        part1, part2 = x[:, :chs], x[:, chs:]
    else:
        entry = w.under("conv_exp")
        chs = round(gamma * entry["conv.weight"].shape[0])
        part1 = conv_part(x, entry, slice(None, chs), split_act)
        part2 = conv_part(x, entry, slice(chs, None), split_act)
    for i in range(depth):
        part2 = BLOCKS[kind](part2, w.under(f"blocks.{i}"))
    if fusion in ("csp", "last"):
        part2 = conv(part2, w.under("conv_transition_b"))
    y = torch.cat([part2, part1] if block_first else [part1, part2], dim=1)
    if pool_at == "before":
        y = pool(y, best=False)
    if fusion in ("csp", "first"):
        y = conv(y, w.under("conv_transition"))
    return pool(y, best=False) if pool_at == "behind" else y
