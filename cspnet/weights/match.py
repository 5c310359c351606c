"""Whose weights a file holds, and its tensors under the names of one of our networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from cspnet.errors import CheckpointError, ModelError
from cspnet.models.darknet_cfg import DarknetCfgNet
from cspnet.models.network import CspNet, CspNetFeatures
from cspnet.models.rows import darknet_cfgs
from cspnet.models.spec import Activation, NetworkSpec
from cspnet.models.zoo import ZOO, create_model
from cspnet.weights.darknet import DarknetFile, find_darknet_graph, read_darknet, state_from_darknet
from cspnet.weights.files import is_plain, read_tensors
from cspnet.weights.layouts import LAYOUTS, detect_layout, find_graph, import_state, reorder_parts, same_layers
from cspnet.weights.preprocessing import (
    Preprocessing,
    darknet_preprocessing,
    published_preprocessing,
    saved_preprocessing,
    timm_preprocessing,
)

__all__ = [
    "SOURCES",
    "WHICH",
    "Weights",
    "describes_itself",
    "doubt_export",
    "extract_state_dict",
    "match_weights",
    "read_weight_file",
]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_EMA_WRAPPERS = ("state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")
SOURCES = ("auto", "cspnet", *LAYOUTS, "darknet")
WHICH = ("auto", "raw", "ema")


@dataclass(frozen=True)
class Weights:
    """A file's weights, under the names of one network."""

    layout: str
    """cspnet, timm, mmpretrain, deepspark or darknet."""
    state: Mapping[str, Tensor]
    is_average: bool
    """Whether they are a moving average."""
    preprocessing: Preprocessing | None
    """What its pictures have to look like; None if neither the file nor its publisher says."""
    warnings: tuple[str, ...] = ()
    """Why the network's outputs may not be those of the file's author."""
    behind: tuple[str, ...] = ()
    """What the file holds besides, of layers behind the outputs of a backbone or of a network without a classifier."""
    seen: int = 0
    """Pictures it has been trained on, as Darknet's header or our checkpoint says; 0 where nothing does."""


def read_weight_file(path: Path, source: str = "auto") -> Mapping[str, Any] | DarknetFile:
    """What a weight file holds: Darknet's numbers, or a dictionary of tensors.

    Args:
        source: its layout; auto takes a file for Darknet's by its ending, `.weights`.
    Raises:
        CheckpointError: missing, damaged, or holding what is not loaded.
    """
    if source == "darknet" or (source == "auto" and path.suffix == ".weights"):
        return read_darknet(path)
    return read_tensors(path)


def describes_itself(content: Mapping[str, Any] | DarknetFile) -> TypeGuard[Mapping[str, Any]]:
    """Whether a file names its model, options and classes, as our checkpoints do."""
    return (
        isinstance(content, Mapping)
        and {"num_classes", "classes"} <= set(content)
        and isinstance(content.get("arch"), str)
        and isinstance(content["num_classes"], int)
        and isinstance(content["classes"], list | tuple)
        and all(isinstance(name, str) for name in content["classes"])
        and isinstance(content.get("recipe"), dict)
        and isinstance(content["recipe"].get("model.options", {}), dict)
        and is_plain(content["recipe"])
    )


def extract_state_dict(
    content: Mapping[str, Any], *, which: str = "auto", where: str = "the file"
) -> dict[str, Tensor]:
    """The model's tensors in a checkpoint, without wrappers (state_dict, model …) and prefixes (module., _orig_mod.).

    Args:
        which: raw weights, ema weights, or auto: the moving average where the file has one.
    Raises:
        CheckpointError: there are none, or no moving average where one was asked for.
    """
    ema = _find_average(content)
    raw = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    if which == "ema" and ema is None:
        raise CheckpointError(f"{where}: holds no moving average of the weights")
    state = ema if ema is not None and which != "raw" else raw if raw is not None else content
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors or not all(isinstance(key, str) for key in tensors):
        raise CheckpointError(f"{where}: holds no weights under names")
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _find_average(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((content[key] for key in _EMA_WRAPPERS if isinstance(content.get(key), Mapping)), None)


def match_weights(
    content: Mapping[str, Any] | DarknetFile,
    model: nn.Module,
    *,
    source: str = "auto",
    which: str = "auto",
    num_classes: int | None = None,
    where: str,
) -> Weights:
    """A file's tensors under the names of a network, which is not changed and may be on the meta device.

    Args:
        content: what `read_weight_file` gave for the same source.
        model: the network, with any number of classes.
        source: the file's layout, or auto.
        which: raw, ema, or auto: the moving average where the file has one.
        num_classes: classes of a Darknet file, which does not say it; None: the model's, or 1000.
        where: the file's name, for messages.
    Raises:
        CheckpointError: weights of another model, or with another number of classes than num_classes.
    """
    whole, own = _complete(model), model.state_dict()
    weights = _match(content, whole, frozenset(own), source, which, num_classes, where)
    behind = [key for key in whole.state_dict() if key in weights.state and key not in own]
    state = {key: value for key, value in weights.state.items() if key not in behind}
    return replace(weights, state=state, behind=tuple(behind))


def _complete(model: nn.Module) -> nn.Module:
    """The network with all of its stages and a classifier, on the meta device: what a file usually holds."""
    if isinstance(model, CspNetFeatures) or (isinstance(model, CspNet) and not model.num_classes):
        with torch.device("meta"):
            return CspNet(model.spec, 1000)
    return model


def _match(
    content: Mapping[str, Any] | DarknetFile,
    model: nn.Module,
    needed: frozenset[str],
    source: str,
    which: str,
    num_classes: int | None,
    where: str,
) -> Weights:
    """As `match_weights`, of a whole network; of its tensors a file may lack those that are not needed."""
    if isinstance(content, DarknetFile):
        if which == "ema":
            raise CheckpointError(f"{where}: holds no moving average of the weights")
        return _match_darknet(content, model, where, num_classes)
    if num_classes is not None:
        raise CheckpointError(
            f"{where}: says its number of classes itself; num_classes is for Darknet's .weights files"
        )
    state = extract_state_dict(content, which=which, where=where)
    is_average = which != "raw" and _find_average(content) is not None
    if source == "cspnet" or (source == "auto" and describes_itself(content)):
        return _match_own(content, state, model, is_average, where)
    layout = source if source != "auto" else detect_layout(state, model)
    if layout == "cspnet":
        own = timm_preprocessing(getattr(model, "pretrained_cfg", None))
        return Weights("timm" if own else "cspnet", state, is_average, own, _doubt_names(model))
    theirs = LAYOUTS[layout]
    preprocessing = published_preprocessing(layout, find_graph(model, theirs.graphs))
    return Weights(
        layout,
        import_state(state, model, theirs, where, needed),
        is_average,
        preprocessing,
        _compare_activations(model, theirs.activation, theirs.leaky_slope, theirs.title),
    )


def _doubt_names(model: nn.Module) -> tuple[str, ...]:
    """Nothing in a bare dictionary tells the weights of an authors' network from those of timm's with its layers."""
    if not (isinstance(model, CspNet) and find_graph(model, LAYOUTS["timm"].graphs)):
        return ()
    return ("taken for this network's own weights; if they are timm's, read them with the source timm",)


def _match_own(
    content: Mapping[str, Any], state: dict[str, Tensor], model: nn.Module, is_average: bool, where: str
) -> Weights:
    """Our own names. A file that says its model may have another order of concatenation than this one."""
    warnings: tuple[str, ...] = ()
    if isinstance(model, CspNet) and describes_itself(content) and content["arch"] in ZOO:
        saved = _create_saved(content["arch"], content["recipe"].get("model.options", {}), where)
        block_first = any(stage.block_first for stage in saved.spec.stages)
        if same_layers(saved.spec, model.spec):
            state = reorder_parts(state, model.spec, file_block_first=block_first, reading=True)
        warnings = _compare_activations(model, saved.spec.activation, saved.spec.leaky_slope, "the saved network")
    try:
        preprocessing = saved_preprocessing(content.get("eval_cfg"))
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:  # tensors in it raise more
        raise CheckpointError(f"{where}: damaged: eval_cfg is not the geometry of a validation") from error
    return Weights("cspnet", state, is_average, preprocessing, warnings, seen=_count_seen(content))


def _create_saved(arch: str, options: Any, where: str) -> CspNet:
    """The network that a file says it holds, without memory.

    Raises:
        CheckpointError: with these options there is no such network.
    """
    try:
        with torch.device("meta"):
            saved = create_model(arch, **options)
    except (ModelError, TypeError) as error:
        raise CheckpointError(f"{where}: damaged: its model.options are not those of {arch}: {error}") from error
    if not isinstance(saved, CspNet):
        raise CheckpointError(f"{where}: damaged: its model.options make another kind of network of {arch}")
    return saved


def _count_seen(content: Mapping[str, Any]) -> int:
    """Pictures a checkpoint has been trained on."""
    progress, batch_size, seen = (content.get(key) for key in ("progress", "global_batch_size", "seen"))
    if isinstance(progress, Mapping) and isinstance(batch_size, int) and isinstance(progress.get("step"), int):
        return int(progress["step"]) * batch_size
    return seen if isinstance(seen, int) else 0


def _match_darknet(file: DarknetFile, model: nn.Module, where: str, num_classes: int | None) -> Weights:
    state = state_from_darknet(file, model, where, num_classes)
    warnings: tuple[str, ...] = ()
    if isinstance(model, DarknetCfgNet):
        size_px = model.input_px
    else:
        assert isinstance(model, CspNet)
        size_px = ZOO[find_darknet_graph(model)].input_px
        specs = [row.spec for row in darknet_cfgs.ROWS.values() if same_layers(row.spec, model.spec)]
        if not any(_activation(spec) == _activation(model.spec) for spec in specs):  # leaky or Mish: the file hides it
            warnings += _compare_activations(model, *_activation(specs[0]), "Darknet")
    return Weights("darknet", state, False, darknet_preprocessing(size_px), warnings, seen=file.seen)


def doubt_export(model: nn.Module, layout: str, name: str) -> tuple[str, ...]:
    """Why a file in a layout may give other outputs where it is read: no file says its activation.

    Args:
        layout: timm, mmpretrain, deepspark or darknet, one that has the model.
        name: the model's.
    """
    if not isinstance(model, CspNet):
        return ()
    own = _activation(model.spec)
    if layout == "darknet":
        rows = {name: row.spec for name, row in darknet_cfgs.ROWS.items() if same_layers(row.spec, model.spec)}
        if fitting := [row for row, spec in rows.items() if _activation(spec) == own]:
            told = f"with this activation Darknet's network is {fitting[0]}: read it as that"
            return () if name in fitting else (told,)
        return _compare_activations(model, *_activation(next(iter(rows.values()))), "Darknet")
    theirs = LAYOUTS[layout]
    if own == (theirs.activation, theirs.leaky_slope):
        return ()
    return (
        f"{theirs.title}'s network has {_describe(theirs.activation, theirs.leaky_slope)}, this one {_describe(*own)}; "
        "its outputs there will be others, unless it is built with this one's",
    )


def _activation(spec: NetworkSpec) -> tuple[Activation, float]:
    """Name and slope; the slope is 0 where the activation has none."""
    return spec.activation, spec.leaky_slope if spec.activation == "leaky_relu" else 0.0


def _compare_activations(model: nn.Module, activation: str, leaky_slope: float, owner: str) -> tuple[str, ...]:
    assert isinstance(model, CspNet)
    theirs = _describe(activation, leaky_slope)
    own = _describe(model.spec.activation, model.spec.leaky_slope)
    if own == theirs:
        return ()
    options = f"activation={activation}" + (f", leaky_slope={leaky_slope:g}" if activation == "leaky_relu" else "")
    return (f"{owner} has {theirs}, this model {own}; for the same outputs build it with {options}",)


def _describe(activation: str, leaky_slope: float) -> str:
    return f"{activation} with slope {leaky_slope:g}" if activation == "leaky_relu" else activation
