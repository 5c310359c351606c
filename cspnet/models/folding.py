"""BatchNorm folded into the convolution before it: the same function in evaluation mode, with fewer passes over memory.

    scale * (conv(x) - mean) / sqrt(var + eps) + shift  =  a convolution with other weights and a bias

Which BatchNorm follows which convolution is not told by names, it is seen: the network is called once, and two are a
pair where the BatchNorm's input is the very tensor that the convolution has put out and nothing else reads it.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cspnet.models.foreign import find_activation_behind

__all__ = ["MOST_APART", "FoldedNetwork", "fold_batch_norm"]

MOST_APART = 1e-6
"""How far a folded network's logits may lie from the original's, as a share of the largest of those, in float64.

Rounding moves them by some 1e-14 (1e-9 in a network that enlarges each difference); a wrong fold makes other logits."""


@dataclass(frozen=True)
class FoldedNetwork:
    """What came of folding."""

    model: nn.Module
    """In evaluation mode: a copy with BatchNorms folded, or the network that was given."""
    num_folded: int
    """BatchNorms that are in the convolutions now."""
    num_left: int
    """BatchNorms that are still there."""
    refusal: str = ""
    """Why nothing was folded, where something went wrong."""


def fold_batch_norm(model: nn.Module, images: Tensor) -> FoldedNetwork:
    """Fold each BatchNorm2d (SyncBatchNorm, timm's BatchNormAct2d) that directly follows a Conv2d into it.

    Left alone: a BatchNorm without running statistics, one behind anything but a plain `nn.Conv2d`, and a layer that a
    pass calls more than once or whose output something else reads as well. All is done in a float64 copy, which gets
    the network's dtype at the end: if its logits lie more than `MOST_APART` from those before the fold, or if it fails,
    nothing is folded.

    Args:
        model: a classifier. It is put into evaluation mode and not changed otherwise.
        images: (N, in_chs, H, W) normalised pictures, or noise like them, of the size to be used; one is enough.
    """
    model.eval()
    num_norms = sum(_is_norm(module) for module in model.modules())
    try:
        folded, num_folded = _fold_in_float64(model, images)
    except (RuntimeError, AttributeError, TypeError, ValueError, _NotTheSameError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return FoldedNetwork(model, 0, num_norms, reason)
    if not num_folded:
        return FoldedNetwork(model, 0, num_norms)
    dtype = next(model.parameters()).dtype
    return FoldedNetwork(folded.to(images.device, dtype), num_folded, num_norms - num_folded)


class _NotTheSameError(Exception):
    """What a fold made of the network is another one."""


@torch.no_grad()
def _fold_in_float64(model: nn.Module, images: Tensor) -> tuple[nn.Module, int]:
    """A float64 copy of the network, folded and compared, and how many BatchNorms are folded in it.

    Raises:
        _NotTheSameError: folded, it is another network.
        RuntimeError, AttributeError, TypeError, ValueError: it cannot be called in float64, or not when it is folded,
            as its code looks at its own layers.
    """
    if len({tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}) > 1:
        raise ValueError("its weights are of several types")
    device = torch.device("cpu") if images.device.type == "mps" else images.device  # Apple's GPUs have no float64
    model, images = copy.deepcopy(model).to(device).double(), images.to(device).double()
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, benchmark=False):
        watch = _Watch(model)
        with watch:
            expected = model(images)
        pairs = watch.find_pairs()
        if pairs:
            _fold(model, pairs)
            _compare(model(images), expected)
    return model, len(pairs)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)


def _can_be_folded(module: nn.Module) -> bool:
    """A BatchNorm of a class whose forward is known, with running statistics."""
    known = type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm) or find_activation_behind(module) is not None
    return known and _is_norm(module) and getattr(module, "running_mean", None) is not None


class _Watch(TorchDispatchMode):
    """Watches one pass: who makes which tensor, and who reads it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.calls: Counter[nn.Module] = Counter()
        self.made: dict[int, tuple[str, Tensor]] = {}
        """{id: (name of the convolution, its output)}; the outputs are kept, so that no other tensor has their id."""
        self.readers: defaultdict[int, set[str]] = defaultdict(set)
        """{id of an output: names of the BatchNorms in which it is read; "" is anything else}."""
        self.taken: dict[str, int] = {}
        """{name of a BatchNorm: id of its input}."""
        self.inside = ""
        """The BatchNorm that is being called."""
        self.hooks: list[Any] = []

    def __enter__(self) -> _Watch:
        for module in self.names:
            if type(module) is nn.Conv2d:
                self.hooks.append(module.register_forward_hook(self._note_conv))
            elif _can_be_folded(module):
                self.hooks.append(module.register_forward_pre_hook(self._enter_norm))
                self.hooks.append(module.register_forward_hook(self._leave_norm))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self.hooks:
            hook.remove()

    def _note_conv(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.calls[module] += 1
        self.made[id(output)] = self.names[module], output

    def _enter_norm(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.calls[module] += 1
        self.inside = self.names[module]
        self.taken[self.inside] = id(inputs[0])

    def _leave_norm(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.inside = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors([*args, *(kwargs or {}).values()]):
            if id(tensor) in self.made:
                self.readers[id(tensor)].add(self.inside)
        return func(*args, **(kwargs or {}))

    def find_pairs(self) -> list[tuple[str, str]]:
        """(name of the convolution, name of the BatchNorm that alone reads its output), each called once."""
        calls = {self.names[module]: count for module, count in self.calls.items()}
        pairs = []
        for norm, made in self.taken.items():
            if made not in self.made or self.readers[made] != {norm}:
                continue
            conv, _ = self.made[made]
            if calls[conv] == calls[norm] == 1:
                pairs.append((conv, norm))
        return pairs


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _fold(model: nn.Module, pairs: list[tuple[str, str]]) -> None:
    """Fold these pairs of a network in place."""
    modules = dict(model.named_modules())
    behind: dict[nn.Module, nn.Module] = {}
    for conv_name, norm_name in pairs:
        norm = modules[norm_name]
        _fold_pair(modules[conv_name], norm)
        activation = find_activation_behind(norm)
        behind[norm] = nn.Identity() if activation is None else activation
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in behind:
            model.set_submodule(name, behind[module])
    model.eval()


def _fold_pair(conv: Any, norm: Any) -> None:
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -norm.running_mean * scale if conv.bias is None else (conv.bias - norm.running_mean) * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    # Parameters of its own: somebody else may have the old ones. The product keeps the weights' memory format.
    conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)


def _compare(logits: Any, expected: Any) -> None:
    """Raises _NotTheSameError."""
    if not isinstance(logits, Tensor) or not isinstance(expected, Tensor) or logits.shape != expected.shape:
        raise _NotTheSameError("its outputs are not logits, and cannot be compared")
    apart, allowed = (logits - expected).abs().max().item(), MOST_APART * expected.abs().max().item()
    if not apart <= allowed:  # a NaN is not
        raise _NotTheSameError(f"logits of the folded network are up to {apart:.3g} off, and {allowed:.3g} is allowed")
