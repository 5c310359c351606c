"""Our own small networks, for small pictures, the demo and the tests. They carry no published figure."""

from __future__ import annotations

from cspnet.models.rows.entry import ZooEntry, csp, stem
from cspnet.models.spec import BlockSpec, ConvSpec, NetworkSpec, StageSpec

__all__ = ["ROWS"]


def _pooled(depth: int, down: int, cross: int, block: int, out: int) -> StageSpec:
    """A cross stage of basic blocks behind a convolution at the full size and a max pool."""
    return StageSpec(
        blocks=(BlockSpec("basic", block, block),) * depth,
        down=ConvSpec(down, 3),
        down_pool=True,
        split="conv",
        cross_chs=cross,
        block_chs=block,
        fusion="csp",
        transition_chs=out,
    )


# Pictures of 32 px have no pixels to give away: each size is convolved before it is halved.
_CIFAR = NetworkSpec(
    stem(32, patterns=True),
    (
        _pooled(2, 64, 32, 64, 96),
        _pooled(2, 192, 64, 160, 224),
        _pooled(2, 256, 64, 160, 256),
    ),
    activation="silu",
    zero_init_last=False,
)

_TINY = NetworkSpec(
    stem(16, stride=2),
    (
        csp(1, 2, 32, 16, 16, 16, 32),
        csp(1, 2, 64, 32, 32, 32, 64),
        csp(2, 2, 128, 64, 64, 64, 128),
    ),
)

_OURS = "ours; no published figure"

ROWS = {
    "cspresnet_cifar": ZooEntry(_CIFAR, _OURS, 3_234_632, "ours", 32),
    "cspdarknet_tiny": ZooEntry(_TINY, _OURS, 371_608, "ours", 64),
}
