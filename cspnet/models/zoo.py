"""The table of networks, and the calls that build one by its name."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from cspnet.errors import ModelError
from cspnet.models.foreign import FOREIGN_PREFIXES, create_foreign_model
from cspnet.models.network import CspNet, CspNetFeatures
from cspnet.models.spec import NetworkSpec, StageSpec, StemSpec

__all__ = ["ZOO", "ZooEntry", "create_model", "list_models"]


@dataclass(frozen=True)
class ZooEntry:
    """A row of the table."""

    spec: NetworkSpec
    source: str
    params: int
    """Learnable parameters with 1000 classes."""


# A stage is written (depth, stride, down, cross, block, mid, out); see StageSpec.
_CSPDARKNET53 = NetworkSpec(
    stem=StemSpec(out_chs=32, kernel_px=3),
    stages=(
        StageSpec(1, 2, 64, 64, 64, 32, 64),
        StageSpec(2, 2, 128, 64, 64, 64, 128),
        StageSpec(8, 2, 256, 128, 128, 128, 256),
        StageSpec(8, 2, 512, 256, 256, 256, 512),
        StageSpec(4, 2, 1024, 512, 512, 512, 1024),
    ),
    block="dark",
)

_CSPRESNET50 = NetworkSpec(
    stem=StemSpec(out_chs=64, kernel_px=7, stride=2, max_pool=True),
    stages=(
        StageSpec(3, 1, 64, 128, 128, 64, 128),
        StageSpec(3, 2, 128, 256, 256, 128, 256),
        StageSpec(5, 2, 256, 512, 512, 256, 512),
        StageSpec(2, 2, 512, 1024, 1024, 512, 1024),
    ),
    block="bottleneck",
    split_act=False,
)

_CSPRESNEXT50 = NetworkSpec(
    stem=StemSpec(out_chs=64, kernel_px=7, stride=2, max_pool=True),
    stages=(
        StageSpec(3, 1, 64, 128, 128, 128, 256),
        StageSpec(3, 2, 256, 256, 256, 256, 512),
        StageSpec(5, 2, 512, 512, 512, 512, 1024),
        StageSpec(2, 2, 1024, 1024, 1024, 1024, 2048),
    ),
    block="bottleneck",
    groups=32,
    split_act=False,
)

# Ours, for small pictures, the demo and the tests: they carry no published figure.
_CSPDARKNET_CIFAR = NetworkSpec(
    stem=StemSpec(out_chs=64, kernel_px=3, max_pool=True),
    stages=(
        StageSpec(2, 1, 64, 32, 96, 96, 160),
        StageSpec(2, 2, 256, 64, 192, 192, 256),
        StageSpec(1, 2, 256, 64, 192, 192, 256),
    ),
    block="dark",
    activation="silu",
    zero_init_last=False,
)

_CSPDARKNET_TINY = NetworkSpec(
    stem=StemSpec(out_chs=16, kernel_px=3, stride=2),
    stages=(
        StageSpec(1, 2, 32, 16, 16, 16, 32),
        StageSpec(1, 2, 64, 32, 32, 32, 64),
        StageSpec(2, 2, 128, 64, 64, 64, 128),
    ),
    block="dark",
)

_OURS = "ours; no published figure"
_TIMM = "timm/models/cspnet.py; CSPNet, arXiv 1911.11929, table 3 (other graph: the authors' cfg differs)"

ZOO: dict[str, ZooEntry] = {
    "cspdarknet53": ZooEntry(_CSPDARKNET53, _TIMM, 27_642_184),
    "cspresnet50": ZooEntry(_CSPRESNET50, _TIMM, 21_616_168),
    "cspresnext50": ZooEntry(_CSPRESNEXT50, _TIMM, 20_569_896),
    "cspdarknet_cifar": ZooEntry(_CSPDARKNET_CIFAR, _OURS, 2_889_000),
    "cspdarknet_tiny": ZooEntry(_CSPDARKNET_TINY, _OURS, 371_608),
}


def list_models(pattern: str = "*") -> list[str]:
    """Names of our networks that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(ZOO, pattern))


def _override(name: str, spec: NetworkSpec, overrides: dict[str, Any]) -> NetworkSpec:
    known = [f.name for f in fields(NetworkSpec) if f.name not in ("stem", "stages", "block")]
    for key in overrides:
        if key not in known:
            raise ModelError(f"model {name}: unknown option {key}{_nearest(key, known)}; it has {', '.join(known)}")
    if overrides.get("activation", spec.activation) not in ("leaky_relu", "relu", "silu", "mish"):
        raise ModelError(f"model {name}: activation={overrides['activation']}: use leaky_relu, relu, silu or mish")
    for key, value in overrides.items():
        default = getattr(spec, key)
        accepted = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, accepted) or isinstance(value, bool) is not isinstance(default, bool):
            raise ModelError(f"model {name}: option {key}={value!r}: expected {type(default).__name__}")
    changed = replace(spec, **overrides)
    widths = [width for stage in spec.stages for width in (stage.down_chs, stage.mid_chs)]
    for key, is_possible, expected in (
        ("drop_rate", 0 <= changed.drop_rate < 1, "a number from 0 up to, not with, 1"),
        ("bn_momentum", 0 < changed.bn_momentum <= 1, "a number above 0, up to 1"),
        ("leaky_slope", math.isfinite(changed.leaky_slope), "a finite number"),
        ("in_chs", changed.in_chs >= 1, "a number from 1 on"),
        ("groups", changed.groups >= 1 and not any(w % changed.groups for w in widths), "a divisor of all widths"),
    ):
        if not is_possible:
            raise ModelError(f"model {name}: {key}={overrides[key]!r}: use {expected}")
    return changed


def _nearest(word: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {match[0]}?" if match else ""


def create_model(
    name: str,
    num_classes: int = 1000,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **overrides: Any,
) -> nn.Module:
    """A network by its name, freshly initialised.

    Args:
        name: a row of the zoo (`list_models`), or `timm/<name>` or `torchvision/<name>` for those libraries' models.
        num_classes: outputs of the classifier.
        features_only: the backbone alone: returns a list with the output of the stem and of each stage;
            `model.feature_info.channels()` and `.reduction()` tell their widths and strides.
        out_indices: with features_only, which outputs to return; 0 is the stem.
        **overrides: fields of NetworkSpec (activation, leaky_slope, bn_momentum, drop_rate, zero_init_last, in_chs);
            for foreign models, their own keyword arguments.
    Raises:
        ModelError: unknown name or option.
    """
    if not features_only and out_indices is not None:
        raise ModelError(f"model {name}: out_indices needs features_only=True")
    if num_classes < 1:
        raise ModelError(f"model {name}: num_classes={num_classes}: use a number from 1 on")
    if name.startswith(FOREIGN_PREFIXES):
        return create_foreign_model(name, num_classes, features_only, out_indices, overrides)
    if name not in ZOO:
        prefixes = " and ".join(f"{prefix}<name>" for prefix in FOREIGN_PREFIXES)
        raise ModelError(
            f"unknown model {name}{_nearest(name, list(ZOO))} (known: {', '.join(list_models())}, {prefixes})"
        )
    spec = _override(name, ZOO[name].spec, overrides)
    if not features_only:
        return CspNet(spec, num_classes)
    try:
        return CspNetFeatures(spec, out_indices)
    except ValueError as error:
        raise ModelError(f"model {name}: {error}") from error
