"""The table of networks, and the calls that build one by its name."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, get_args

from torch import nn

from cspnet.errors import ModelError
from cspnet.models.darknet_cfg import CFG_PREFIX, create_cfg_model
from cspnet.models.foreign import FOREIGN_PREFIXES, create_foreign_model
from cspnet.models.network import CspNet, CspNetFeatures
from cspnet.models.rows import darknet_cfgs, reconstructions, small, timm_graphs
from cspnet.models.rows.entry import Published, ZooEntry
from cspnet.models.spec import DENSE_BLOCKS, Activation, Init, NetworkSpec, partition

__all__ = ["ZOO", "Published", "ZooEntry", "create_model", "list_models"]

ZOO: dict[str, ZooEntry] = {**timm_graphs.ROWS, **darknet_cfgs.ROWS, **reconstructions.ROWS, **small.ROWS}

_MOST = 1_000_000
"""Of classes and of colour channels."""
_STRUCTURE = ("stem", "stages", "head_chs")
_ABLATIONS = ("fusion", "gamma")
_CHOICES = {"activation": get_args(Activation), "init": get_args(Init), "fusion": ("csp", "first", "last")}


def list_models(pattern: str = "*") -> list[str]:
    """Names of our networks that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(ZOO, pattern))


def _override(name: str, spec: NetworkSpec, overrides: dict[str, Any]) -> NetworkSpec:
    defaults = {f.name: getattr(spec, f.name) for f in fields(NetworkSpec) if f.name not in _STRUCTURE}
    defaults |= {"fusion": "csp", "gamma": 0.5}
    for key, value in overrides.items():
        if key not in defaults:
            raise ModelError(
                f"model {name}: unknown option {key}{_nearest(key, list(defaults))}; it has {', '.join(defaults)}"
            )
        if key in _CHOICES and value not in _CHOICES[key]:
            raise ModelError(f"model {name}: {key}={value}: use {', '.join(_CHOICES[key])}")
        default = defaults[key]
        accepted = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, accepted) or isinstance(value, bool) is not isinstance(default, bool):
            raise ModelError(f"model {name}: option {key}={value!r}: expected {type(default).__name__}")
    changed = replace(spec, **{key: value for key, value in overrides.items() if key not in _ABLATIONS})
    for key, is_possible, expected in (
        ("drop_rate", 0 <= changed.drop_rate < 1, "a number from 0 up to, not with, 1"),
        ("drop_path_rate", 0 <= changed.drop_path_rate < 1, "a number from 0 up to, not with, 1"),
        ("bn_momentum", 0 < changed.bn_momentum <= 1, "a number above 0, up to 1"),
        ("leaky_slope", math.isfinite(changed.leaky_slope), "a finite number"),
        ("in_chs", 1 <= changed.in_chs <= _MOST, f"a number from 1 to {_MOST:,}"),
        ("gamma", 0 < overrides.get("gamma", 0.5) < 1, "a number above 0, below 1"),
    ):
        if not is_possible:
            raise ModelError(f"model {name}: {key}={overrides[key]!r}: use {expected}")
    if changed.drop_path_rate and all(block.kind in DENSE_BLOCKS for stage in spec.stages for block in stage.blocks):
        raise ModelError(f"model {name}: drop_path_rate is for residual blocks, and this network has none")
    if not overrides.keys() & set(_ABLATIONS):
        return changed
    try:
        return partition(changed, overrides.get("fusion"), overrides.get("gamma"))
    except ModelError as error:
        raise ModelError(f"model {name}: {error}") from error


def _nearest(word: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(word.lower(), known, n=1)
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
        name: a row of the zoo (`list_models`), `cfg/<path>` for a Darknet cfg file, or `timm/<name>` or
            `torchvision/<name>` for those libraries' models.
        num_classes: outputs of the classifier; 0 leaves it out, and the output is the pooled features.
        features_only: the backbone alone: returns a list with the output of the stem and of each stage;
            `model.feature_info.channels()` and `.reduction()` tell their widths and strides.
        out_indices: with features_only, which outputs to return; 0 is the stem.
        **overrides: fields of NetworkSpec (activation, leaky_slope, bn_momentum, drop_rate, drop_path_rate,
            zero_init_last, init, in_chs, also called in_chans), and the paper's ablations: fusion (csp, first, last)
            and gamma (share of the channels that cross); for foreign models, their own keyword arguments.
    Raises:
        ModelError: unknown name or option.
    """
    if not isinstance(name, str):
        raise ModelError(f"model {name!r}: expected a name")
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or not 0 <= num_classes <= _MOST:
        raise ModelError(f"model {name}: num_classes={num_classes!r}: use a whole number from 0 to {_MOST:,}")
    if out_indices is not None and not (isinstance(out_indices, Sequence) and all(type(i) is int for i in out_indices)):
        raise ModelError(f"model {name}: out_indices={out_indices!r}: use a list of whole numbers")
    if not features_only and out_indices is not None:
        raise ModelError(f"model {name}: out_indices needs features_only=True")
    if name.startswith(FOREIGN_PREFIXES):
        return create_foreign_model(name, num_classes, features_only, out_indices, overrides)
    if name.startswith(CFG_PREFIX):
        if features_only:
            raise ModelError(f"model {name}: features_only is not offered for cfg files")
        if not num_classes:
            raise ModelError(f"model {name}: num_classes=0: a cfg file ends in a classifier; use a number from 1 on")
        return create_cfg_model(name, num_classes, overrides)
    if name not in ZOO:
        prefixes = " and ".join(f"{prefix}<name>" for prefix in FOREIGN_PREFIXES)
        raise ModelError(
            f"unknown model {name}{_nearest(name, list(ZOO))} (known: {', '.join(list_models())}, "
            f"{CFG_PREFIX}<file>, {prefixes})"
        )
    if "in_chans" in overrides:  # timm's word
        if "in_chs" in overrides:
            raise ModelError(f"model {name}: in_chans and in_chs are the same option: use one")
        overrides["in_chs"] = overrides.pop("in_chans")
    spec = _override(name, ZOO[name].spec, overrides)
    if not features_only:
        return CspNet(spec, num_classes)
    try:
        return CspNetFeatures(spec, out_indices)
    except ValueError as error:
        raise ModelError(f"model {name}: {error}") from error
