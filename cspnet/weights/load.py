"""Weights from a file into a model: all of them or none.

file ─ read_weight_file ─▶ what it holds ─ match_weights ─▶ tensors under the model's names ─ load_state_dict ─▶ model
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cspnet.errors import CheckpointError
from cspnet.models.darknet_cfg import DarknetCfgNet
from cspnet.weights.layouts import check_names
from cspnet.weights.match import SOURCES, WHICH, match_weights, read_weight_file
from cspnet.weights.preprocessing import Preprocessing

__all__ = ["LoadReport", "count_classes", "load_state_dict", "load_weights"]


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did."""

    path: str
    layout: str
    """cspnet, timm, mmpretrain, deepspark or darknet."""
    is_average: bool
    """Whether they are the moving average that the file holds."""
    matched: tuple[str, ...]
    """Tensors of the model taken over."""
    new_head: tuple[str, ...]
    """Keys of the classifier that kept their fresh values because the file has another number of classes."""
    leftover: Mapping[str, str]
    """What the file holds and the model did not take, and why."""
    preprocessing: Preprocessing | None
    """What the pictures have to look like; None if neither the file nor its publisher says."""
    warnings: tuple[str, ...]
    """Why the model's outputs may not be those of the file's author."""

    @property
    def num_loaded(self) -> int:
        """Tensors taken over."""
        return len(self.matched)

    def __str__(self) -> str:
        kind = "tensors of the moving average" if self.is_average else "tensors"
        text = f"{self.num_loaded} {kind} loaded from {self.path} ({self.layout} layout)"
        if self.new_head:
            text += f"; new classifier ({', '.join(self.new_head)})"
        for why in dict.fromkeys(self.leftover.values()):
            keys = [key for key, reason in self.leftover.items() if reason == why]
            text += f"; left out: {', '.join(keys) if len(keys) <= 2 else f'{len(keys)} tensors'}: {why}"
        if self.preprocessing is not None:
            text += f"; made for {self.preprocessing}"
        return text + "".join(f"; warning: {warning}" for warning in self.warnings)


def count_classes(model: nn.Module, state: Mapping[str, Tensor], *, where: str) -> int:
    """How many classes the classifier in a file has; `model` is the same network with any number of them.

    Raises:
        CheckpointError: the file has no such classifier.
    """
    name = _classifier(model) + ".weight"
    if name not in state:
        raise CheckpointError(f"{where}: weights of another model, or without a classifier: it lacks {name}")
    return len(state[name])


def _classifier(model: nn.Module) -> str:
    """The name of the last linear layer; empty if there is none (SqueezeNet classifies by a convolution)."""
    if isinstance(model, DarknetCfgNet):
        return model.classifier_name
    return next(reversed([name for name, module in model.named_modules() if isinstance(module, nn.Linear)]), "")


def _find_new_head(model: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Keys of the classifier, if the file's is whole and has another number of classes than the model's."""
    name = _classifier(model)
    head = tuple(key for key in own if key.rpartition(".")[0] == name)
    if not head or not all(key in state and state[key].ndim == own[key].ndim for key in head):
        return ()
    fits = all(state[key].shape[1:] == own[key].shape[1:] for key in head)
    counts = {len(state[key]) for key in head}
    return head if fits and len(counts) == 1 and counts != {len(own[head[0]])} else ()


def _check_values(own: Mapping[str, Tensor], state: Mapping[str, object], where: str) -> None:
    """Refuse what no weight can be: values that are absent, sparse, of another kind, or not finite.

    Raises:
        CheckpointError: the first such tensor.
    """
    for key, value in state.items():
        problem = None
        if not isinstance(value, Tensor):
            problem = "no tensor"
        elif value.layout is not torch.strided or value.is_meta or value.is_quantized:
            problem = "no dense values"
        elif key in own and value.is_floating_point() is not own[key].is_floating_point():
            problem = f"{str(value.dtype).removeprefix('torch.')} values"
        elif value.is_floating_point() and not bool(value.isfinite().all()):
            problem = "values that are not finite"
        elif key.endswith("running_var") and bool((value < 0).any()):
            problem = "variances below 0"
        if problem:
            raise CheckpointError(f"{where}: damaged, or not a weight file: {key} has {problem}")


def load_state_dict(
    model: nn.Module, state: Mapping[str, Tensor], *, where: str, replace_head: bool = False
) -> tuple[str, ...]:
    """Load tensors into a model, all or nothing.

    Args:
        replace_head: leave the classifier as it is when its number of classes differs, instead of refusing.
    Returns:
        The keys of the classifier that were left as they are.
    Raises:
        CheckpointError: missing, left over, differently shaped or impossible tensors; the model is untouched.
    """
    own = model.state_dict()
    _check_values(own, state, where)
    optional = [key for key in own if key.endswith("num_batches_tracked")]  # old files lack these counters
    missing = [key for key in own if key not in state and key not in optional]
    check_names(where, missing, [key for key in state if key not in own])
    head = _find_new_head(model, own, state) if replace_head else ()
    differing = [key for key in own if key in state and key not in head and state[key].shape != own[key].shape]
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"{where}: weights of another model: {key} is {list(state[key].shape)}, the model's {list(own[key].shape)}"
        )
    model.load_state_dict({**own, **{key: value for key, value in state.items() if key not in head}})
    return head


def load_weights(
    model: nn.Module,
    path: str | Path,
    source: str = "auto",
    *,
    which: str = "auto",
    num_classes: int | None = None,
) -> LoadReport:
    """Load a weight file into a model: our checkpoints, and files of timm, mmpretrain, DeepSpark and Darknet.

    A classifier with another number of classes keeps its fresh values, what stands behind a backbone's outputs is left
    out, and the report says so. Nothing else may be missing or left over, but for BatchNorm's batch counters, which old
    files and Darknet's do not have.

    Args:
        model: the model to fill.
        path: the file: .pt, .pth, .pth.tar, .safetensors or .weights.
        source: its layout, cspnet, timm, mmpretrain, deepspark or darknet; auto finds out.
        which: raw, ema, or auto: the moving average where the file has one.
        num_classes: classes of a Darknet file, which does not say it; None: the model's, or 1000.
    Raises:
        CheckpointError: missing, damaged, or weights of another model; the model is untouched.
    """
    for name, value, known in (("source", source, SOURCES), ("which", which, WHICH)):
        if value not in known:
            raise ValueError(f"{name}={value!r}: use one of {', '.join(known)}")
    where = str(path)
    content = read_weight_file(Path(path), source)
    weights = match_weights(content, model, source=source, which=which, num_classes=num_classes, where=where)
    leftover = dict.fromkeys(weights.behind, "behind the model's outputs")
    state = weights.state
    head = load_state_dict(model, state, where=where, replace_head=True)
    own = model.state_dict()
    leftover |= {key: f"{len(state[key])} classes, the model has {len(own[key])}" for key in head}
    return LoadReport(
        path=where,
        layout=weights.layout,
        is_average=weights.is_average,
        matched=tuple(key for key in state if key not in head),
        new_head=head,
        leftover=leftover,
        preprocessing=weights.preprocessing,
        warnings=weights.warnings,
    )
