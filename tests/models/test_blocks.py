"""Blocks, the shortcut and the pools against the slow reference: same weights, same values, same gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cspnet.models.blocks import BLOCKS
from cspnet.models.layers import ConvNormAct, Shortcut, TwoWayPool
from cspnet.models.spec import Block, BlockSpec, ConvSpec, NetworkSpec, StemSpec
from tests.models import slow_reference as slow
from tests.models.slow_reference import Weights

SPEC = NetworkSpec(StemSpec((ConvSpec(8, 3),)), (), leaky_slope=slow.SLOPE)


def compare(module: nn.Module, reference: Callable[[Tensor, Weights], Tensor], x: Tensor) -> None:
    """In training, in double precision: the output, the input's gradient, and that of every parameter."""
    module = module.double().train()
    with torch.no_grad():
        for p in module.parameters():
            p.uniform_(0.5, 1.5) if p.ndim == 1 else p.normal_(0, 0.5)
    ours, theirs = x.double().requires_grad_(), x.double().requires_grad_()
    y = module(ours * 1)  # a leaf may not be changed in place, a network's inner tensor may
    copies = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    weights = Weights(copies)
    expected = reference(theirs * 1, weights)
    assert weights.used == set(copies)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    probe = torch.randn_like(expected)
    (y * probe).sum().backward()
    (expected * probe).sum().backward()
    assert ours.grad is not None and ours.grad.abs().max() > 0
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)
    for name, p in module.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name
        torch.testing.assert_close(p.grad, copies[name].grad, rtol=1e-7, atol=1e-9, msg=name)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("in_chs", "block"),
    [
        (8, BlockSpec("dark", 4, 8)),
        (8, BlockSpec("dark", 8, 8, groups=4)),
        (4, BlockSpec("dark", 4, 8)),
        (8, BlockSpec("bottleneck", 4, 8)),
        (8, BlockSpec("bottleneck", 8, 8, groups=4)),
        (4, BlockSpec("bottleneck", 4, 8)),
        (8, BlockSpec("bottleneck", 4, 4)),
        (8, BlockSpec("bottleneck", 4, 16, stride=2, groups=2)),
        (8, BlockSpec("basic", 8, 8)),
        (8, BlockSpec("basic", 4, 8, groups=2)),
        (8, BlockSpec("basic", 16, 16, stride=2)),
        (8, BlockSpec("dense", 16, 12)),
        (8, BlockSpec("two_way_dense", 6, 16)),
    ],
    ids=lambda value: f"{value.kind}-{value.mid_chs}-{value.out_chs}" if isinstance(value, BlockSpec) else None,
)
@pytest.mark.parametrize("side_px", [6, 5])
def test_blocks_are_the_papers(in_chs: int, block: BlockSpec, side_px: int) -> None:
    torch.manual_seed(0)
    module = BLOCKS[block.kind](in_chs, block, SPEC)
    compare(module, lambda x, w: slow.BLOCKS[block.kind](x, w, block.stride), draw(2, in_chs, side_px, side_px + 2))


@pytest.mark.parametrize("kind", ["elastic_dark", "elastic_bottleneck"])
@pytest.mark.parametrize("groups", [1, 2])
def test_elastic_blocks_are_the_papers(kind: Block, groups: int) -> None:
    torch.manual_seed(0)
    module = BLOCKS[kind](12, BlockSpec(kind, 4, 12, groups=groups), SPEC)
    compare(module, slow.BLOCKS[kind], draw(2, 12, 4, 6))


@pytest.mark.parametrize("kind", ["elastic_dark", "elastic_bottleneck"])
@pytest.mark.parametrize("sides", [(5, 4), (4, 5)])
def test_elastic_blocks_refuse_odd_sides(kind: Block, sides: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 64"):
        BLOCKS[kind](8, BlockSpec(kind, 4, 8), SPEC)(draw(1, 8, *sides))


@pytest.mark.parametrize(
    ("block", "is_residual"),
    [
        (BlockSpec("inverted", 24, 8, expand_chs=24), True),
        (BlockSpec("inverted", 48, 8, expand_chs=24), True),  # two channels for each one
        (BlockSpec("inverted", 24, 12, expand_chs=24), False),
        (BlockSpec("inverted", 24, 8, stride=2, expand_chs=24), False),
        (BlockSpec("inverted", 8, 8), True),
        (BlockSpec("inverted", 16, 4, stride=2), False),
    ],
    ids=["expanded", "doubled", "wider", "strided", "plain", "plain-strided"],
)
@pytest.mark.parametrize("side_px", [6, 5])
def test_inverted_blocks_are_the_papers(block: BlockSpec, is_residual: bool, side_px: int) -> None:
    torch.manual_seed(0)
    module = BLOCKS["inverted"](8, block, SPEC)
    assert any(isinstance(m, Shortcut) for m in module.modules()) == is_residual
    expands = block.expand_chs > 0
    compare(module, lambda x, w: slow.inverted(x, w, block.stride, expands), draw(2, 8, side_px, side_px))


@pytest.mark.parametrize(
    ("shape", "earlier_shape"),
    [
        ((2, 6, 4, 4), (2, 6, 4, 4)),
        ((2, 6, 4, 4), (2, 4, 4, 4)),
        ((2, 4, 4, 4), (2, 6, 4, 4)),
        ((2, 6, 4, 4), (2, 6, 8, 8)),
        ((2, 6, 4, 4), (2, 3, 8, 8)),
        ((2, 3, 4, 4), (2, 6, 8, 8)),
        ((2, 6, 4, 4), (2, 6, 7, 7)),
        ((2, 6, 3, 3), (2, 4, 5, 5)),
        ((2, 6, 4, 3), (2, 4, 7, 5)),
        ((2, 6, 2, 2), (2, 6, 8, 8)),
        ((2, 6, 1, 1), (2, 4, 2, 2)),
        ((2, 6, 1, 1), (2, 4, 1, 2)),
        ((2, 6, 1, 4), (2, 4, 1, 8)),
        ((2, 6, 1, 1), (2, 6, 1, 1)),
    ],
)
def test_the_shortcut_adds_what_both_have(shape: tuple[int, ...], earlier_shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    pairs = []
    for add in (Shortcut(), slow.shortcut):
        x = draw(*shape).requires_grad_()
        earlier = draw(*earlier_shape).neg().requires_grad_()
        y = add(x, earlier)
        y.square().sum().backward()
        pairs.append((y.detach(), x.grad, earlier.grad, x.detach(), earlier.detach()))
    for value, reference in zip(*pairs, strict=True):
        assert torch.equal(value, reference)  # the last two: the inputs are left as they were


@pytest.mark.parametrize("side_px", [6, 5])
def test_peleenets_stem_is_the_papers(side_px: int) -> None:
    torch.manual_seed(0)

    def reference(x: Tensor, w: Weights) -> Tensor:
        strided = slow.conv(slow.conv(x, w.under("conv1")), w.under("conv2"), 2)
        return slow.conv(torch.cat([strided, slow.pool(x, best=True)], dim=1), w.under("conv3"))

    compare(TwoWayPool(8, SPEC), reference, draw(2, 8, side_px, side_px))


@pytest.mark.parametrize(
    "conv",
    [ConvSpec(6, 1), ConvSpec(6, 3, 2), ConvSpec(8, 3, 2, groups=4), ConvSpec(6, 7, 2), ConvSpec(6, 3, act=False)],
    ids=["1x1", "3x3-strided", "grouped", "7x7", "linear"],
)
def test_convolutions_are_the_papers(conv: ConvSpec) -> None:
    torch.manual_seed(0)
    module = ConvNormAct(8, conv, SPEC)
    compare(module, lambda x, w: slow.conv(x, w, conv.stride, conv.act), draw(2, 8, 7, 6))


@pytest.mark.parametrize("activation", ["relu", "silu", "mish"])
def test_blocks_take_the_activation_of_the_network(activation: str) -> None:
    by_hand = {
        "relu": lambda x: torch.where(x > 0, x, 0 * x),
        "silu": lambda x: x / (1 + torch.exp(-x)),
        "mish": lambda x: x * torch.tanh(torch.log1p(torch.exp(x))),
    }[activation]
    block = BLOCKS["bottleneck"](4, BlockSpec("bottleneck", 4, 4), replace(SPEC, activation=activation)).eval()
    x = draw(1, 4, 3, 3)
    conv1, conv2, conv3 = (lambda x, m=m: m.bn(m.conv(x)) for m in (block.conv1, block.conv2, block.conv3))
    with torch.no_grad():
        expected = by_hand(conv3(by_hand(conv2(by_hand(conv1(x))))) + x)
        torch.testing.assert_close(block(x), expected)
