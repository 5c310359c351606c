"""Our own small networks, for small pictures, the demo and the tests. They carry no published figure."""

from __future__ import annotations

from cspnet.models.rows.entry import ZooEntry, csp, stem
from cspnet.models.spec import NetworkSpec

__all__ = ["ROWS"]

# The first stage works at full size and the last at a quarter of it: pictures of 32 px have no pixels to give away.
_CIFAR = NetworkSpec(
    stem(32),
    (
        csp(1, 1, 32, 16, 32, 32, 48, kind="basic"),
        csp(2, 2, 96, 32, 64, 64, 96, kind="basic"),
        csp(2, 2, 160, 48, 112, 112, 160, kind="basic"),
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
    "cspresnet_cifar": ZooEntry(_CIFAR, _OURS, 1_053_928, "ours", 32),
    "cspdarknet_tiny": ZooEntry(_TINY, _OURS, 371_608, "ours", 64),
}
