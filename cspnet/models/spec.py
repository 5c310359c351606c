"""Networks as values: every width written out, so that a row can be checked against the table it cites."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from cspnet.errors import ModelError

__all__ = [
    "Activation",
    "Block",
    "BlockSpec",
    "ConvSpec",
    "Fusion",
    "Init",
    "NetworkSpec",
    "StagePool",
    "StageSpec",
    "StemPool",
    "StemSpec",
    "partition",
]

Activation = Literal["leaky_relu", "relu", "silu", "mish"]
Block = Literal[
    "dark", "bottleneck", "basic", "elastic_dark", "elastic_bottleneck", "inverted", "dense", "two_way_dense"
]
Split = Literal["conv", "slice", "share", "none"]
Fusion = Literal["csp", "first", "last", "none"]
StemPool = Literal["none", "max3", "max2", "two_way"]
StagePool = Literal["none", "before", "behind"]
Init = Literal["timm", "darknet"]
DENSE_BLOCKS = ("dense", "two_way_dense")


@dataclass(frozen=True)
class ConvSpec:
    """A convolution with BatchNorm, and an activation or none."""

    out_chs: int
    kernel_px: int
    """Side of the kernel; the padding keeps the size (kernel_px // 2)."""
    stride: int = 1
    groups: int = 1
    act: bool = True


@dataclass(frozen=True)
class StemSpec:
    """The convolutions in front of the stages, and a pool behind them or none."""

    convs: tuple[ConvSpec, ...]
    pool: StemPool = "none"
    """`max3`: 3x3, stride 2, padding 1 (timm). `max2`: 2x2, stride 2 (Darknet). `two_way`: PeleeNet's."""
    patterns: bool = False
    """Whether the first convolution of an RGB network is not learned: see `cspnet.models.patterns`."""

    @property
    def out_chs(self) -> int:
        """Width that leaves the stem; all pools keep it."""
        return self.convs[-1].out_chs


@dataclass(frozen=True)
class BlockSpec:
    """One block of a stage; `cspnet.models.blocks` says what each kind is."""

    kind: Block
    mid_chs: int
    """Width inside: of the 3x3 convolution's input (of its output in an inverted block)."""
    out_chs: int
    stride: int = 1
    groups: int = 1
    """Groups of the 3x3 convolutions."""
    expand_chs: int = 0
    """Inverted blocks: width behind the 1x1 convolution in front; 0 where there is none."""


@dataclass(frozen=True)
class StageSpec:
    """One stage, cross stage partial or plain.

    x = down(x); cross, block = split(x); block = blocks(block); then, by `fusion`:

        csp    transition(concatenate(cross, transition_b(block)))     the paper's choice
        first  transition(concatenate(cross, block))                   fusion first
        last   concatenate(cross, transition_b(block))                 fusion last
        none   concatenate(cross, block)

    Source: CSPNet, arXiv 1911.11929, figure 3.
    """

    blocks: tuple[BlockSpec, ...]
    down: ConvSpec | None = None
    """The convolution in front of the split."""
    down_pool: bool = False
    """Whether a 2x2 max pool with stride 2 stands behind that convolution."""
    split: Split = "none"
    """`conv`: a 1x1 convolution makes both parts. `slice`: the input's channels are divided. `share`: both parts are
    the whole input, and the crossing one goes through a convolution. `none`: no crossing part, a plain stage."""
    cross_chs: int = 0
    """Width of the part that goes straight to the concatenation."""
    block_chs: int = 0
    """Width of the part that enters the blocks; for `none` and `share` it is the width in front of them."""
    split_act: bool = True
    """Whether the convolution of `conv` is activated (timm calls its absence `cross_linear`)."""
    cross: ConvSpec | None = None
    """The convolution of `share`."""
    fusion: Fusion = "none"
    transition_chs: int = 0
    """Width behind the transition, where there is one."""
    part_chs: int = 0
    """Width behind transition_b, where there is one; 0: that of the blocks."""
    block_first: bool = False
    """Concatenate (block, cross), as the authors' cfg files do, instead of timm's (cross, block)."""
    pool: StagePool = "none"
    """2x2 average pool with stride 2 right before or behind the transition."""

    @property
    def joined_chs(self) -> int:
        """Width of the concatenation."""
        has_transition = self.fusion in ("csp", "last")
        return self.cross_chs + ((self.part_chs if has_transition else 0) or self.blocks[-1].out_chs)

    @property
    def out_chs(self) -> int:
        """Width that leaves the stage."""
        return self.transition_chs if self.fusion in ("csp", "first") else self.joined_chs

    @property
    def stride(self) -> int:
        """Input pixels per output pixel, along one side."""
        stride = (self.down.stride if self.down else 1) * (2 if self.down_pool else 1)
        stride *= 1 if self.pool == "none" else 2
        for block in self.blocks:
            stride *= block.stride
        return stride


@dataclass(frozen=True)
class NetworkSpec:
    """A whole network."""

    stem: StemSpec
    stages: tuple[StageSpec, ...]
    head_chs: int = 0
    """Width of a 1x1 convolution behind the last stage; 0: none."""
    activation: Activation = "leaky_relu"
    leaky_slope: float = 0.01
    """Negative slope of leaky_relu: 0.01 in timm's graphs, 0.1 in Darknet's."""
    bn_momentum: float = 0.1
    """BatchNorm momentum in PyTorch's sense."""
    drop_rate: float = 0.0
    """Dropout before the classifier, in [0, 1)."""
    drop_path_rate: float = 0.0
    """Stochastic depth: probability, in [0, 1), that the last residual block is left out of a picture's way."""
    zero_init_last: bool = True
    """Start the last BatchNorm scale of every residual block at zero, as timm does."""
    init: Init = "timm"
    """How weights start: `timm` or `darknet`; see `cspnet.models.network`."""
    in_chs: int = 3
    """Colour channels of the input."""

    @property
    def num_features(self) -> int:
        """Width in front of the classifier."""
        return self.head_chs or self.stages[-1].out_chs


def partition(spec: NetworkSpec, fusion: Fusion | None = None, gamma: float | None = None) -> NetworkSpec:
    """The same network with another fusion or another share of the crossing part: the paper's ablations.

    Residual blocks keep their shape: their widths grow or shrink with the part they work on. Dense blocks keep their
    growth. `last` has no transition to set the width that leaves a stage, so the next stage may start wider.

    Args:
        fusion: csp, first or last; None keeps each stage's own.
        gamma: share of the channels that cross, above 0 and below 1; None keeps each stage's own.
    Raises:
        ModelError: a stage has no such split (plain, mobile, or for gamma uneven), or the widths do not come out whole.
    Source: CSPNet, arXiv 1911.11929, section 3, figures 3 and 4, table 1.
    """
    stages = []
    in_chs = spec.stem.out_chs
    for number, stage in enumerate(spec.stages, start=1):
        stage = _partition_stage(stage, in_chs, fusion, gamma, f"stage {number}")
        stages.append(stage)
        in_chs = stage.out_chs
    return replace(spec, stages=tuple(stages))


def _partition_stage(
    stage: StageSpec, in_chs: int, fusion: Fusion | None, gamma: float | None, where: str
) -> StageSpec:
    if stage.split not in ("conv", "slice") or stage.fusion == "none":
        raise ModelError(f"fusion and gamma are for cross stages that divide their input; {where} does not")
    if gamma is None and stage.split == "conv":
        return replace(stage, fusion=fusion or stage.fusion)
    total_chs = in_chs if stage.split == "slice" else stage.cross_chs + stage.block_chs
    share = gamma if gamma is not None else stage.cross_chs / (stage.cross_chs + stage.block_chs)
    cross_chs = round(total_chs * share)
    # Without transitions a stage may leave an odd width: then the next slice is half a channel off.
    tolerance = 0.5 if stage.split == "slice" and fusion == "last" else 1e-6
    if not 0 < cross_chs < total_chs or abs(cross_chs - total_chs * share) > tolerance:
        raise ModelError(f"gamma={share:g}: the widths of {where} do not come out whole")
    block_chs = total_chs - cross_chs
    blocks = []
    old_chs, chs = stage.block_chs, block_chs
    for block in stage.blocks:
        if block.kind in DENSE_BLOCKS:
            new = replace(block, out_chs=chs + block.out_chs - old_chs)
        elif block.out_chs != stage.block_chs:
            raise ModelError(f"gamma is for even stages; the blocks of {where} change the width")
        else:
            new = replace(block, mid_chs=block.mid_chs * block_chs // stage.block_chs, out_chs=block_chs)
            if new.mid_chs * stage.block_chs != block.mid_chs * block_chs or new.mid_chs % block.groups:
                raise ModelError(f"gamma={share:g}: the widths of {where} do not come out whole")
        old_chs, chs = block.out_chs, new.out_chs
        blocks.append(new)
    return replace(
        stage,
        cross_chs=cross_chs,
        block_chs=block_chs,
        blocks=tuple(blocks),
        part_chs=round(stage.part_chs * chs / old_chs),
        fusion=fusion or stage.fusion,
    )
