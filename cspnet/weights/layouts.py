"""Other projects' names for the tensors of our networks, both ways.

    timm        its graphs have our names
    mmpretrain  other names, one for one (cspdarknet50 there is CSPDarkNet-53)
    DeepSpark   CSPDarkNet-53; the 1x1 convolution in front of the split is two, one for each part

All three concatenate (cross, block). A network of the authors' order, (block, cross), has the same tensors but for the
columns of its transitions, which are moved.

Source: timm/models/cspnet.py; mmpretrain/models/backbones/cspnet.py; DeepSparkHub cv/classification/cspdarknet53.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cspnet.errors import CheckpointError
from cspnet.models.network import CspNet
from cspnet.models.spec import Activation, NetworkSpec
from cspnet.models.zoo import ZOO

__all__ = [
    "LAYOUTS",
    "Layout",
    "check_names",
    "detect_layout",
    "export_state",
    "find_graph",
    "import_state",
    "reorder_parts",
    "same_layers",
]


@dataclass(frozen=True)
class Layout:
    """How a project stores networks."""

    title: str
    graphs: tuple[str, ...]
    """The rows of the zoo it has, up to activation and order of concatenation."""
    rename: Callable[[str, str], tuple[str, ...]]
    """(our key, graph) -> its keys; the tensors of several are joined along dimension 0."""
    activation: Activation
    """What its published weights were trained with."""
    leaky_slope: float


def _keep(key: str, graph: str) -> tuple[str, ...]:
    return (key,)


_MMPRETRAIN = {
    "conv_down": "downsample_conv",
    "conv_exp": "expand_conv",
    "conv_transition_b": "atfer_blocks_conv",  # sic
    "conv_transition": "final_conv",
}


def _rename_mmpretrain(key: str, graph: str) -> tuple[str, ...]:
    if key.startswith("head."):
        return (key,)
    is_dark = graph == "cspdarknet53"
    key = key.replace("stem.conv1", "stem" if is_dark else "stem.0")
    for own, theirs in _MMPRETRAIN.items():
        key = key.replace(f".{own}.", f".{theirs}.")
    if not is_dark:  # its ResNet blocks: conv1, bn1 instead of conv1.conv, conv1.bn
        key = re.sub(r"(blocks\.\d+)\.conv(\d)\.(conv|bn)", r"\1.\3\2", key)
    return (f"backbone.{key}",)


_DEEPSPARK = re.compile(r"stages\.(?P<stage>\d)\.(?P<conv>conv_\w+|blocks\.(?P<block>\d)\.conv(?P<number>[12]))\.(.+)")


def _rename_deepspark(key: str, graph: str) -> tuple[str, ...]:
    """Stages are numbered from 2, and each begins with the transition of the one before."""
    leaf = key.replace(".conv.weight", ".layers.0.weight").replace(".bn.", ".layers.1.")
    match = _DEEPSPARK.fullmatch(leaf)
    if match is None:
        return (leaf.replace("stem.conv1", "stage1").replace("head.fc", "fc"),)
    stage, rest = int(match["stage"]), match[5]
    names: dict[str, tuple[str, ...]] = {
        "conv_down": ("conv1" if stage == 0 else "conv2",),
        "conv_exp": ("split0", "split1"),
        "conv_transition_b": ("conv3" if stage == 1 else "conv4",),
    }
    if match["conv"] == "conv_transition":
        return (f"conv.{rest}" if stage == 4 else f"stage{stage + 3}.conv1.{rest}",)
    if match["block"] is not None:
        block, number = int(match["block"]), int(match["number"])
        blocks = {0: f"conv{number + 1}", 1: f"block{block + 1}.features.{number - 1}"}
        theirs: tuple[str, ...] = (blocks.get(stage, f"blocks.{block}.features.{number - 1}"),)
    else:
        theirs = names[match["conv"]]
    return tuple(f"stage{stage + 2}.{name}.{rest}" for name in theirs)


LAYOUTS = {
    "timm": Layout(
        "timm",
        ("cspdarknet53", "cspresnet50", "cspresnet50d", "cspresnet50w", "cspresnext50", "darknet53"),
        _keep,
        "leaky_relu",
        0.01,
    ),
    "mmpretrain": Layout(
        "mmpretrain", ("cspdarknet53", "cspresnet50", "cspresnext50"), _rename_mmpretrain, "leaky_relu", 0.01
    ),
    "deepspark": Layout("DeepSpark", ("cspdarknet53",), _rename_deepspark, "mish", 0.0),
}


def find_graph(model: nn.Module, names: Iterable[str]) -> str:
    """The first of these rows of the zoo that has the model's layers, in either order of concatenation; "" if none."""
    if not isinstance(model, CspNet):
        return ""
    return next((name for name in names if same_layers(ZOO[name].spec, model.spec)), "")


def same_layers(spec: NetworkSpec, other: NetworkSpec) -> bool:
    """Whether two networks have the same layers, in either order of concatenation."""
    return _layers(spec) == _layers(other)


def _layers(spec: NetworkSpec) -> tuple[Any, ...]:
    return spec.stem, tuple(replace(stage, block_first=False) for stage in spec.stages), spec.head_chs


def _require_graph(model: nn.Module, layout: Layout, where: str) -> str:
    graph = find_graph(model, layout.graphs)
    if not graph:
        raise CheckpointError(
            f"{where}: {layout.title} has {', '.join(layout.graphs)}, and no network with this model's layers"
        )
    return graph


def detect_layout(state: Mapping[str, Tensor], model: nn.Module) -> str:
    """Whose names the tensors of a file have: mmpretrain, deepspark, timm, or cspnet for the model's own.

    timm's networks have our names: a file is timm's if the model is timm's in every respect.
    """
    if not isinstance(model, CspNet):
        return "cspnet"
    if any(key.startswith("backbone.") for key in state):
        return "mmpretrain"
    if "stage1.layers.0.weight" in state:
        return "deepspark"
    layout, spec = LAYOUTS["timm"], model.spec
    has_timms_activation = (spec.activation, spec.leaky_slope) == (layout.activation, layout.leaky_slope)
    has_timms_order = not any(stage.block_first for stage in spec.stages)
    return "timm" if has_timms_activation and has_timms_order and find_graph(model, layout.graphs) else "cspnet"


def reorder_parts(
    state: Mapping[str, Tensor], spec: NetworkSpec, *, file_block_first: bool, reading: bool
) -> dict[str, Tensor]:
    """The tensors of a network with the columns of its transitions moved where the file concatenates in another order.

    Args:
        state: tensors under our names.
        file_block_first: the file's order is (block, cross), as in Darknet.
        reading: from the file's order into the network's; otherwise from the network's into the file's.
    """
    state = dict(state)
    for i, stage in enumerate(spec.stages):
        key = f"stages.{i}.conv_transition.conv.weight"
        # A tensor that is no such weight stays as it is: its shape will be refused.
        is_weight = key in state and state[key].ndim == 4
        if is_weight and stage.split != "none" and stage.block_first != file_block_first:
            # (block, cross) -> (cross, block) moves each column `cross_chs` to the right, round the end.
            is_to_cross_first = file_block_first == reading
            state[key] = state[key].roll(stage.cross_chs if is_to_cross_first else -stage.cross_chs, dims=1)
    return state


def check_names(where: str, missing: Sequence[str], leftover: Sequence[str]) -> None:
    """Refuse tensors that are missing or left over.

    Raises:
        CheckpointError: the first of them and how many more there are.
    """
    for keys, problem in ((missing, "lacks"), (leftover, "has, and the model does not,")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise CheckpointError(f"{where}: weights of another model: it {problem} {keys[0]}{more}")


def import_state(
    state: Mapping[str, Tensor], model: nn.Module, layout: Layout, where: str, needed: Collection[str]
) -> dict[str, Tensor]:
    """Tensors under another project's names -> under ours, in the model's order of concatenation.

    Args:
        needed: our keys that have to be there; the model's others may be absent.
    Raises:
        CheckpointError: the project has no such network; names are missing or left over; parts that do not fit.
    """
    graph = _require_graph(model, layout, where)
    assert isinstance(model, CspNet)
    state = {key.replace("downsamper_conv", "downsample_conv"): value for key, value in state.items()}  # mmcls 0.23
    own = model.state_dict()
    names = {key: layout.rename(key, graph) for key in own}
    missing = [name for key in own if key in needed for name in names[key] if name not in state]
    leftover = state.keys() - {name for key in own for name in names[key]}
    check_names(where, [name for name in missing if not name.endswith("num_batches_tracked")], sorted(leftover))
    result = {}
    for key, theirs in names.items():
        parts = [state[name] for name in theirs if name in state]
        if len(parts) == len(theirs):
            is_joined = len(theirs) > 1 and own[key].ndim > 0
            result[key] = _join(parts, own[key], theirs, where) if is_joined else parts[0]
    return reorder_parts(result, model.spec, file_block_first=False, reading=True)


def _join(parts: list[Tensor], own: Tensor, names: tuple[str, ...], where: str) -> Tensor:
    expected = [len(own) // len(parts), *own.shape[1:]]
    for name, part in zip(names, parts, strict=True):
        if list(part.shape) != expected:
            raise CheckpointError(
                f"{where}: weights of another model: {name} is {list(part.shape)}, expected {expected}"
            )
    return torch.cat(parts)


def export_state(model: nn.Module, layout: Layout, where: str) -> dict[str, Tensor]:
    """A model's tensors under another project's names, in its order of concatenation; they share no memory.

    Raises:
        CheckpointError: the project has no such network.
    """
    graph = _require_graph(model, layout, where)
    assert isinstance(model, CspNet)
    result = {}
    for key, value in reorder_parts(model.state_dict(), model.spec, file_block_first=False, reading=False).items():
        names = layout.rename(key, graph)
        parts = value.chunk(len(names)) if value.ndim else [value] * len(names)
        result.update({name: part.detach().clone() for name, part in zip(names, parts, strict=True)})
    return result
