"""Networks as values: every width written out, so that a row can be checked against the table it cites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Activation", "Block", "NetworkSpec", "StageSpec", "StemSpec"]

Activation = Literal["leaky_relu", "relu", "silu", "mish"]
Block = Literal["dark", "bottleneck"]


@dataclass(frozen=True)
class StemSpec:
    """One convolution, and a pool behind it or none."""

    out_chs: int
    """Width of the stem."""
    kernel_px: int
    """Side of the kernel; the padding keeps the size (kernel_px // 2)."""
    stride: int = 1
    """Stride of the convolution."""
    max_pool: bool = False
    """3x3 max pool with stride 2 and padding 1 behind the convolution (timm's graph)."""


@dataclass(frozen=True)
class StageSpec:
    """One cross stage: down conv, split conv, blocks on one part, transition, concatenation, transition."""

    depth: int
    """Number of residual blocks."""
    stride: int
    """Stride of the 3x3 down convolution; 1 means the stage has none."""
    down_chs: int
    """Width behind the down convolution; without one, the width that enters the stage."""
    cross_chs: int
    """Width of the part that goes straight to the concatenation."""
    block_chs: int
    """Width of the part that goes through the blocks."""
    mid_chs: int
    """Width inside a block."""
    out_chs: int
    """Width that leaves the stage."""


@dataclass(frozen=True)
class NetworkSpec:
    """A whole network."""

    stem: StemSpec
    stages: tuple[StageSpec, ...]
    block: Block
    """`dark`: 1x1, 3x3, add. `bottleneck`: 1x1, 3x3, 1x1 without activation, add, activation."""
    groups: int = 1
    """Groups of every 3x3 convolution, the down convolutions included."""
    split_act: bool = True
    """Whether the split convolution is activated (timm calls its absence `cross_linear`)."""
    activation: Activation = "leaky_relu"
    leaky_slope: float = 0.01
    """Negative slope of leaky_relu: 0.01 in timm's graph, 0.1 in Darknet."""
    bn_momentum: float = 0.1
    """BatchNorm momentum in PyTorch's sense."""
    drop_rate: float = 0.0
    """Dropout before the classifier, in [0, 1)."""
    zero_init_last: bool = True
    """Start the last BatchNorm scale of every residual block at zero, as timm does."""
    in_chs: int = 3
    """Colour channels of the input."""
