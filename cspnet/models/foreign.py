"""Models of timm and torchvision behind our names: baselines for free. The one door to both libraries' models."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from cspnet.errors import ModelError

__all__ = ["FOREIGN_PREFIXES", "create_foreign_model", "find_activation_behind"]

FOREIGN_PREFIXES = ("timm/", "torchvision/")
_ELSEWHERE = ("cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "weights")
"""Options that read other files, or download them: a recipe or a checkpoint must not make a network do that."""


def create_foreign_model(
    name: str, num_classes: int, features_only: bool, out_indices: Sequence[int] | None, options: dict[str, Any]
) -> nn.Module:
    """`timm/<name>` or `torchvision/<name>`, freshly initialised; the rest as for `create_model`.

    Raises:
        ModelError: the library does not know the name or an option, or the weights would come from elsewhere.
    """
    library, bare_name = name.split("/", 1)
    if ":" in bare_name:  # timm's hf-hub: and local-dir:
        raise ModelError(f"model {name}: networks of a hub or a folder are not built; use a name that {library} has")
    if taken := [key for key in options if key in _ELSEWHERE or key.startswith("weights_")]:
        raise ModelError(f"model {name}: {taken[0]} is not an option here; load weights with --pretrained FILE")
    try:
        if library == "timm":
            return _create_timm(bare_name, num_classes, features_only, out_indices, options)
        return _create_torchvision(bare_name, num_classes, features_only, options)
    except (TypeError, ValueError, RuntimeError, LookupError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"model {name}: {library} cannot build it: {reason}") from error


def _create_timm(
    name: str, num_classes: int, features_only: bool, out_indices: Sequence[int] | None, options: dict[str, Any]
) -> nn.Module:
    import timm

    if features_only:
        if out_indices is not None:
            options = {**options, "out_indices": tuple(out_indices)}
        return timm.create_model(name, features_only=True, **options)
    return timm.create_model(name, num_classes=num_classes, **options)


def _create_torchvision(name: str, num_classes: int, features_only: bool, options: dict[str, Any]) -> nn.Module:
    import torchvision

    if features_only:
        raise ModelError(f"model torchvision/{name}: features_only is not offered for torchvision; use timm/<name>")
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ModelError(f"model torchvision/{name}: torchvision has no such classifier")
    return torchvision.models.get_model(name, num_classes=num_classes, **options)


def find_activation_behind(norm: nn.Module) -> nn.Module | None:
    """What timm's BatchNormAct2d does behind the normalisation (dropout, activation); None for other modules."""
    if "timm.layers" not in sys.modules:  # then nobody has made one
        return None
    from timm.layers import BatchNormAct2d

    return nn.Sequential(norm.drop, norm.act) if type(norm) is BatchNormAct2d else None
