"""Weights from a file into a model. Ours and timm's share their key names; wrappers and prefixes are taken off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cspnet.errors import CheckpointError
from cspnet.weights.files import read_tensors

__all__ = ["LoadReport", "count_classes", "extract_state_dict", "load_state_dict", "load_weights"]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_EMA_WRAPPERS = ("state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")
SOURCES = ("auto", "raw", "ema")


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did."""

    path: str
    num_loaded: int
    """Tensors taken over."""
    new_head: tuple[str, ...]
    """Keys of the classifier that kept their fresh values because the file has another number of classes."""

    def __str__(self) -> str:
        text = f"{self.num_loaded} tensors loaded from {self.path}"
        return text + (f"; new classifier ({', '.join(self.new_head)})" if self.new_head else "")


def extract_state_dict(
    content: Mapping[str, Any], *, source: str = "auto", where: str = "the file"
) -> dict[str, Tensor]:
    """The model's tensors in a checkpoint, without wrappers (state_dict, model …) and prefixes (module., _orig_mod.).

    Args:
        source: raw weights, ema weights, or auto: the moving average where the file has one.
    Raises:
        CheckpointError: there are none, or no moving average where one was asked for.
    """
    ema = next((content[key] for key in _EMA_WRAPPERS if isinstance(content.get(key), Mapping)), None)
    raw = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    if source == "ema" and ema is None:
        raise CheckpointError(f"{where}: holds no moving average of the weights")
    state = ema if ema is not None and source != "raw" else raw if raw is not None else content
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{where}: holds no weights")
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


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
    return next(reversed([name for name, module in model.named_modules() if isinstance(module, nn.Linear)]), "")


def load_state_dict(
    model: nn.Module, state: Mapping[str, Tensor], *, where: str, replace_head: bool = False
) -> tuple[str, ...]:
    """Load tensors into a model, all or nothing.

    Args:
        replace_head: leave the classifier as it is when its shapes differ, instead of refusing.
    Returns:
        The keys of the classifier that were left as they are.
    Raises:
        CheckpointError: missing, left over or differently shaped tensors; the model is untouched.
    """
    own = model.state_dict()
    optional = [key for key in own if key.endswith("num_batches_tracked")]  # old files lack these counters
    missing = [key for key in own if key not in state and key not in optional]
    leftover = [key for key in state if key not in own]
    differing = [key for key in own if key in state and state[key].shape != own[key].shape]
    head = tuple(key for key in differing if replace_head and key.rpartition(".")[0] == _classifier(model))
    differing = [key for key in differing if key not in head]
    for keys, problem in ((missing, "lacks"), (leftover, "has, and the model does not,")):
        if keys:
            raise CheckpointError(
                f"{where}: weights of another model: it {problem} {keys[0]}"
                + (f" and {len(keys) - 1} more" * (len(keys) > 1))
            )
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"{where}: weights of another model: {key} is {list(state[key].shape)}, the model's {list(own[key].shape)}"
        )
    model.load_state_dict({**own, **{key: value for key, value in state.items() if key not in head}})
    return head


def load_weights(model: nn.Module, path: str | Path, source: str = "auto") -> LoadReport:
    """Load a weight file into a model: our checkpoints, and timm's .pth, .pth.tar and .safetensors.

    A classifier with another number of classes keeps its fresh values, and the report says so.

    Args:
        model: the model to fill.
        path: the file.
        source: raw, ema, or auto: the moving average where the file has one.
    Raises:
        CheckpointError: missing, damaged, or weights of another model; the model is untouched.
    """
    if source not in SOURCES:
        raise ValueError(f"source={source!r}: use one of {', '.join(SOURCES)}")
    state = extract_state_dict(read_tensors(Path(path)), source=source, where=str(path))
    head = load_state_dict(model, state, where=str(path), replace_head=True)
    return LoadReport(str(path), len(state) - len(head), head)
