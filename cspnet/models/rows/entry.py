"""What a row of the table holds, and the two shapes that most rows share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cspnet.models.spec import Block, BlockSpec, ConvSpec, NetworkSpec, StageSpec, StemSpec

__all__ = ["Published", "ZooEntry", "csp", "stem"]

Status = Literal["exact", "reconstruction", "ours"]


@dataclass(frozen=True)
class Published:
    """What the authors' table says of a network."""

    conv_weights_m: float | None
    """What their README calls #Parameter, in millions: weights of convolutions alone, no biases, no BatchNorm."""
    bflops: float | None
    """Darknet's count: two per multiply-add."""
    acc1: float | None
    """ImageNet Acc@1 in percent."""
    acc5: float | None
    """ImageNet Acc@5 in percent."""
    source: str


@dataclass(frozen=True)
class ZooEntry:
    """A row of the table."""

    spec: NetworkSpec
    source: str
    params: int
    """Learnable parameters with 1000 classes."""
    status: Status = "exact"
    """exact: equal to its source, and tested so. reconstruction: our reading of a text; the text's accuracy is not a
    promise. ours: from no paper."""
    input_px: int = 256
    """Side of the pictures its cost is counted for: that of the published figures, unless their source says another."""
    baseline: str | None = None
    """The network it is compared with."""
    published: Published | None = None


def csp(
    depth: int,
    stride: int,
    down: int,
    cross: int,
    block: int,
    mid: int,
    out: int,
    *,
    kind: Block = "dark",
    groups: int = 1,
    block_in: int = 0,
    **values: Any,
) -> StageSpec:
    """A cross stage. Without a stride it has no down convolution, and `down` is the width that enters it.

    Args:
        block_in: width that enters the first block, where it is not `block`.
        **values: other fields of StageSpec.
    """
    return StageSpec(
        blocks=(BlockSpec(kind, mid, block, groups=groups),) * depth,
        down=None if stride == 1 else ConvSpec(down, 3, stride, groups),
        split="conv",
        cross_chs=cross,
        block_chs=block_in or block,
        fusion="csp",
        transition_chs=out,
        **values,
    )


def stem(*widths: int, kernel_px: int = 3, stride: int = 1, **values: Any) -> StemSpec:
    """Convolutions of one kernel, the first with a stride."""
    convs = (ConvSpec(width, kernel_px, stride if i == 0 else 1) for i, width in enumerate(widths))
    return StemSpec(tuple(convs), **values)
