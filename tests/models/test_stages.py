"""The stage's variants, and whole networks with another fusion and gamma, against the slow reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cspnet.errors import ModelError
from cspnet.models import create_model
from cspnet.models.rows.entry import csp
from cspnet.models.spec import (
    Block,
    BlockSpec,
    ConvSpec,
    Fusion,
    NetworkSpec,
    StagePool,
    StageSpec,
    StemSpec,
    partition,
)
from cspnet.models.stages import CrossStage
from tests.models import slow_reference as slow
from tests.models.slow_reference import Weights
from tests.models.test_blocks import compare, draw

GROWTH = 6


def create_stage(stage: StageSpec, in_chs: int, fusion: Fusion | None, gamma: float | None) -> CrossStage:
    torch.manual_seed(0)
    spec = NetworkSpec(StemSpec((ConvSpec(in_chs, 3),)), (stage,), leaky_slope=slow.SLOPE)
    if fusion is not None or gamma is not None:
        spec = partition(spec, fusion, gamma)
    module = CrossStage(in_chs, spec.stages[0], spec)
    assert module.stage.out_chs == module(draw(1, in_chs, 8, 8)).shape[1]
    return module


def sliced_dense(kind: Block, in_chs: int, depth: int, **values: Any) -> StageSpec:
    half = in_chs // 2
    blocks = tuple(BlockSpec(kind, 4, half + GROWTH * (i + 1)) for i in range(depth))
    return StageSpec(blocks, split="slice", cross_chs=half, block_chs=half, fusion="csp", transition_chs=10, **values)


@pytest.mark.parametrize("block_first", [False, True], ids=["cross-block", "block-cross"])
@pytest.mark.parametrize("gamma", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("fusion", ["csp", "first", "last"])
@pytest.mark.parametrize("kind", ["dark", "bottleneck", "basic", "elastic_bottleneck"])
def test_residual_stages_are_the_papers(kind: Block, fusion: Fusion, gamma: float, block_first: bool) -> None:
    # Widths that tell the parts apart: 16 channels are divided, 12 enter, 10 leave.
    row = csp(2, 2, 12, 8, 8, 8, 10, kind=kind, block_first=block_first, split_act=gamma != 0.5)
    module = create_stage(row, 6, fusion, gamma)
    assert (module.stage.cross_chs, module.stage.block_chs) == (16 * gamma, 16 - 16 * gamma)

    def reference(x: Tensor, w: Weights) -> Tensor:
        return slow.cross_stage(
            x,
            w,
            kind,
            2,
            fusion=fusion,
            gamma=gamma,
            slices=False,
            down_stride=2,
            split_act=gamma != 0.5,
            block_first=block_first,
        )

    compare(module, reference, draw(2, 6, 8, 8))


@pytest.mark.parametrize("side", [8, 7])
def test_a_pool_behind_the_first_convolution(side: int) -> None:
    """Convolved at the full size, then halved; at an odd edge a pixel alone is its own largest."""
    row = replace(csp(1, 2, 12, 8, 8, 8, 10, kind="basic"), down=ConvSpec(12, 3), down_pool=True)
    module = create_stage(row, 6, None, None)
    assert module.stage.stride == 2

    def reference(x: Tensor, w: Weights) -> Tensor:
        return slow.cross_stage(
            x,
            w,
            "basic",
            1,
            fusion="csp",
            gamma=0.5,
            slices=False,
            down_stride=1,
            split_act=True,
            block_first=False,
            down_pool=True,
        )

    compare(module, reference, draw(2, 6, side, side))


@pytest.mark.parametrize("pool", ["none", "before", "behind"])
@pytest.mark.parametrize("gamma", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("fusion", ["csp", "first", "last"])
@pytest.mark.parametrize("kind", ["dense", "two_way_dense"])
def test_dense_stages_are_the_papers(kind: Block, fusion: Fusion, gamma: float, pool: StagePool) -> None:
    block_first = gamma == 0.25
    module = create_stage(sliced_dense(kind, 16, 3, pool=pool, block_first=block_first), 16, fusion, gamma)
    grown = 16 - 16 * gamma + 3 * GROWTH
    assert module.stage.blocks[-1].out_chs == grown
    assert module.stage.out_chs == (16 * gamma + grown if fusion == "last" else 10)

    def reference(x: Tensor, w: Weights) -> Tensor:
        return slow.cross_stage(
            x,
            w,
            kind,
            3,
            fusion=fusion,
            gamma=gamma,
            slices=True,
            down_stride=0,
            split_act=True,
            block_first=block_first,
            pool_at=pool,
        )

    compare(module, reference, draw(2, 16, 5, 6))


@pytest.mark.parametrize("gamma", [0.25, 0.5, 0.75])
def test_the_first_transition_keeps_its_share(gamma: float) -> None:
    block_chs = 8 + 3 * GROWTH
    module = create_stage(sliced_dense("dense", 16, 3, part_chs=block_chs // 2), 16, None, gamma)
    assert module.stage.part_chs == (16 - 16 * gamma + 3 * GROWTH) / 2
    assert module.conv_transition_b.conv.out_channels == module.stage.part_chs


@pytest.mark.parametrize("block_first", [False, True])
def test_stages_that_share_their_input(block_first: bool) -> None:
    """CSPMobileNet: one 1x1 convolution, a depthwise one across, inverted blocks beside it."""
    blocks = (BlockSpec("inverted", 12, 4, stride=2), BlockSpec("inverted", 16, 4, expand_chs=8))
    stage = StageSpec(
        blocks,
        ConvSpec(6, 1),
        split="share",
        cross=ConvSpec(6, 3, 2, groups=6),
        cross_chs=6,
        block_chs=6,
        block_first=block_first,
    )

    def reference(x: Tensor, w: Weights) -> Tensor:
        x = slow.conv(x, w.under("conv_down"))
        cross = slow.conv(x, w.under("conv_cross"), 2)
        y = slow.inverted(x, w.under("blocks.0"), 2, expands=False)
        y = slow.inverted(y, w.under("blocks.1"))
        return torch.cat([y, cross] if block_first else [cross, y], dim=1)

    compare(create_stage(stage, 5, None, None), reference, draw(2, 5, 6, 6))


def test_plain_stages_are_their_blocks() -> None:
    stage = StageSpec((BlockSpec("bottleneck", 4, 12, 2), BlockSpec("bottleneck", 4, 12)), block_chs=8)
    compare(
        create_stage(stage, 8, None, None),
        lambda x, w: slow.bottleneck(slow.bottleneck(x, w.under("blocks.0"), 2), w.under("blocks.1")),
        draw(2, 8, 6, 6),
    )


def test_uneven_stages_add_what_fits() -> None:
    """Stage 1 of the authors' CSPResNet-50: half the width enters the first block."""
    stage = csp(2, 1, 6, 8, 8, 4, 10, kind="bottleneck", block_in=4, block_first=True)

    def reference(x: Tensor, w: Weights) -> Tensor:
        entry = w.under("conv_exp")
        cross = slow.conv_part(x, entry, slice(None, 8), True)
        y = slow.conv_part(x, entry, slice(8, None), True)
        y = slow.bottleneck(slow.bottleneck(y, w.under("blocks.0")), w.under("blocks.1"))
        y = slow.conv(y, w.under("conv_transition_b"))
        return slow.conv(torch.cat([y, cross], dim=1), w.under("conv_transition"))

    compare(create_stage(stage, 6, None, None), reference, draw(2, 6, 6, 6))


@pytest.mark.parametrize(
    ("name", "kind", "slices", "down_stride"),
    [("cspdarknet_tiny", "dark", False, 2), ("csppeleenet", "two_way_dense", True, 0)],
)
@pytest.mark.parametrize("options", [{"fusion": "last", "gamma": 0.25}, {"fusion": "first"}, {"gamma": 0.75}], ids=str)
def test_networks_take_fusion_and_gamma(
    name: str, kind: str, slices: bool, down_stride: int, options: dict[str, Any]
) -> None:
    """Every stage of the network is the reference's, and each takes what the one before gives."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, leaky_slope=slow.SLOPE, zero_init_last=False, **options).double()
    weights = Weights({key: p.detach() for key, p in model.named_parameters()})
    with torch.no_grad():
        x = model.stem(draw(2, 3, 32, 32).double())
        for i, stage in enumerate(model.stages):
            expected = slow.cross_stage(
                x,
                weights.under(f"stages.{i}"),
                kind,
                len(stage.blocks),
                fusion=options.get("fusion", "csp"),
                gamma=options.get("gamma", 0.5),
                slices=slices,
                down_stride=down_stride,
                split_act=True,
                block_first=False,
                pool_at=stage.stage.pool,
            )
            x = stage(x)
            torch.testing.assert_close(x, expected, rtol=1e-8, atol=1e-8)
    assert {key for key in weights.values if key.startswith("stages.")} == weights.used
    assert x.shape[1] == model.num_features == model.head.fc.in_features


def test_partition_without_a_wish_changes_nothing() -> None:
    for stage in (csp(2, 2, 12, 8, 8, 8, 10), sliced_dense("dense", 12, 2, part_chs=5)):
        spec = NetworkSpec(StemSpec((ConvSpec(12, 3),)), (stage,))
        assert partition(spec) == spec
        assert partition(spec, "csp", 0.5) == spec


@pytest.mark.parametrize("name", ["csppeleenet", "cspdensenet121", "cspdensenet169", "cspdensenet201"])
@pytest.mark.parametrize("fusion", ["csp", "first", "last"])
@pytest.mark.parametrize("gamma", [0.25, 0.5, 0.75])
def test_the_dense_family_has_all_of_the_papers_ablations(name: str, fusion: str, gamma: float) -> None:
    with torch.device("meta"):
        model = create_model(name, 5, fusion=fusion, gamma=gamma).eval()
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 5)
    for stage in model.spec.stages:
        assert abs(stage.cross_chs - gamma * (stage.cross_chs + stage.block_chs)) <= 0.5


def test_partition_refuses_groups_that_do_not_divide() -> None:
    spec = NetworkSpec(StemSpec((ConvSpec(6, 3),)), (csp(1, 1, 6, 8, 8, 8, 10, kind="bottleneck", groups=8),))
    with pytest.raises(ModelError, match=r"gamma=0\.25: the widths of stage 1"):
        partition(spec, gamma=0.25)
