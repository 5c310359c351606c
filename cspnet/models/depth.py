"""A network as parts, from the picture to the classifier: to keep the first as they are, or train them slower."""

from __future__ import annotations

from typing import Literal

from torch import nn

from cspnet.errors import ModelError

__all__ = ["find_depths", "freeze", "list_parts"]


_SEQUENCES = ("stages", "layers", "blocks", "features")
"""What our networks, timm's and torchvision's call the sequence that is most of them."""


def list_parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The parts that hold parameters, each with its name, the classifier last.

    Of our networks: the stem, each stage, the head. Of any other: its children, and in place of a sequence called
    stages, layers, blocks or features its members.
    """
    parts: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        if name in _SEQUENCES and isinstance(child, (nn.Sequential, nn.ModuleList)):
            parts += [(f"{name}.{i}", part) for i, part in child.named_children()]
        else:
            parts.append((name, child))
    return [(name, part) for name, part in parts if any(True for _ in part.parameters())]


def find_depths(model: nn.Module) -> dict[nn.Parameter, int]:
    """The part each parameter is in, counted from 0 on; what lies in none, as position embeddings, is in the first."""
    depths = dict.fromkeys(model.parameters(), 0)
    for depth, (_, part) in enumerate(list_parts(model)):
        depths.update(dict.fromkeys(part.parameters(), depth))
    return depths


def freeze(model: nn.Module, count: int | Literal["backbone"]) -> list[nn.Module]:
    """Take the first parts out of the training; they are returned, and have to be kept in evaluation mode.

    Args:
        count: how many; backbone: all but the last.
    Raises:
        ModelError: as many as there are, or more.
    """
    parts = list_parts(model)
    count = len(parts) - 1 if count == "backbone" else count
    if count >= len(parts):
        names = ", ".join(name for name, _ in parts[:-1])
        raise ModelError(f"model.freeze: {count}: the parts before the classifier are {len(parts) - 1}: {names}")
    for parameter, depth in find_depths(model).items():
        if depth < count:
            parameter.requires_grad_(False)
    return [part for _, part in parts[:count]]
