"""Darknet's `.weights` files: a header and float32 numbers, without names and without shapes.

    int32 major, minor, revision; seen: uint64 from version 0.2 on, uint32 before
    each convolution in the order of the cfg file:
        with BatchNorm: shift[n], scale[n], mean[n], variance[n]; without: bias[n]
        weights[n][channels / groups][k][k]

All little-endian. As nothing in a file says what it is, its size is checked to the byte, and its variances for sense.
A classifier of 1000 classes is in Darknet's order of ImageNet's classes there, and in the order of the sorted WordNet
IDs (that of class folders) here.

Source: AlexeyAB/darknet, src/parser.c, `save_weights_upto`, `load_weights_upto`; data/imagenet.labels.list.
"""

from __future__ import annotations

import functools
import importlib.resources
import math
import struct
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cspnet.errors import CheckpointError
from cspnet.models.darknet_cfg import DarknetCfgNet
from cspnet.models.layers import ConvNormAct
from cspnet.models.network import CspNet
from cspnet.models.rows import darknet_cfgs
from cspnet.weights.layouts import find_graph, reorder_parts

__all__ = ["DarknetFile", "darknet_bytes", "find_darknet_graph", "read_darknet", "state_from_darknet"]

_VERSION = (0, 2, 5)
_BN_ORDER = ("bias", "weight", "running_mean", "running_var")


@dataclass(frozen=True)
class DarknetFile:
    """What a file holds."""

    values: Tensor
    """(n,) float32: all numbers behind the header."""
    seen: int
    """Pictures the network has been trained on."""
    size: int
    """Bytes of the file."""


def read_darknet(path: Path) -> DarknetFile:
    """A `.weights` file with a header of either version.

    Raises:
        CheckpointError: missing, unreadable, without such a header, or not a whole number of float32 behind it.
    """
    try:
        with path.open("rb") as file:
            size, header = path.stat().st_size, file.read(20).ljust(20, b"\0")
        major, minor, _ = struct.unpack_from("<3i", header)
        if size < 16 or major != 0 or not 0 <= minor <= 2:
            raise CheckpointError(
                f"{path}: not a Darknet .weights file: it does not begin with a version from 0.0 to 0.2"
            )
        seen_format = "<Q" if minor == 2 else "<I"
        start = 12 + struct.calcsize(seen_format)
        if size <= start:
            raise CheckpointError(f"{path}: not a Darknet .weights file, or cut short: {size:,} bytes")
        if (size - start) % 4:
            raise CheckpointError(
                f"{path}: not a Darknet .weights file, or damaged: {size:,} bytes are no whole number of float32"
            )
        # Mapped, not read: a file of another size is refused before its numbers take any memory.
        values = torch.from_numpy(np.memmap(path, "<f4", mode="c", offset=start))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read it: {error.strerror}") from error
    return DarknetFile(values, struct.unpack_from(seen_format, header, 12)[0], size)


@dataclass(frozen=True)
class _Part:
    """A convolution of the file: rows `start` to `stop` of one of the network's."""

    conv: str
    bn: str
    """Name of its BatchNorm; empty if it has a bias instead."""
    start: int
    stop: int


def find_darknet_graph(model: nn.Module) -> str:
    """The row of the authors' cfg files that has the model's layers; "" if none has."""
    return find_graph(model, darknet_cfgs.ROWS)


def _list_parts(model: nn.Module, where: str) -> list[_Part]:
    """The convolutions in the file's order; the classifier is the last.

    Our networks register their layers in the order of the cfg files, where the two parts of a split are two
    convolutions, the crossing one first.
    """
    if isinstance(model, DarknetCfgNet):
        names = {id(module): name for name, module in model.named_modules()}
        convs = model.darknet_convs()
        return [_Part(names[id(conv)], names[id(bn)] if bn else "", 0, conv.out_channels) for conv, bn in convs]
    if not find_darknet_graph(model):
        raise CheckpointError(
            f"{where}: Darknet has no network with this model's layers; use cfg/<file> or one of "
            + ", ".join(darknet_cfgs.ROWS)
        )
    assert isinstance(model, CspNet)
    if not model.num_classes:
        raise CheckpointError(f"{where}: a .weights file ends with a classifier, and this model has none")
    parts = []
    for name, module in model.named_modules():
        if isinstance(module, ConvNormAct):
            bounds = [0, module.conv.out_channels]
            if name.endswith(".conv_exp"):
                stage = int(name.split(".")[1])
                bounds.insert(1, model.spec.stages[stage].cross_chs)
            parts += [_Part(f"{name}.conv", f"{name}.bn", start, stop) for start, stop in pairwise(bounds)]
    return [*parts, _Part("head.fc", "", 0, model.num_classes)]


def _list_tensors(part: _Part, own: dict[str, Tensor]) -> list[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of what the file stores of a part, in order."""
    rows = part.stop - part.start
    vectors = [f"{part.bn}.{name}" for name in _BN_ORDER] if part.bn else [f"{part.conv}.bias"]
    weight = f"{part.conv}.weight"
    return [*((key, (rows,)) for key in vectors), (weight, (rows, *own[weight].shape[1:]))]


@functools.cache
def _class_order() -> Tensor:
    """(1000,) Darknet's index of each class, in the order of the sorted WordNet IDs."""
    text = importlib.resources.files(__package__).joinpath("darknet_imagenet_wnids.txt").read_text()
    wnids = text.split()
    return torch.tensor(sorted(range(len(wnids)), key=wnids.__getitem__))


def state_from_darknet(
    file: DarknetFile, model: nn.Module, where: str, num_classes: int | None = None
) -> dict[str, Tensor]:
    """The numbers of a file as the model's tensors; `num_batches_tracked` is not among them.

    Args:
        num_classes: classes of the file's classifier; None takes a file with the model's number, or with ImageNet's
            1000. A size alone cannot tell another number from a file that is cut, or that has something behind it.
    Raises:
        CheckpointError: the size is not that of this network, or the variances are impossible.
    """
    own = model.state_dict()
    *body, head = _list_parts(model, where)
    body_values = sum(math.prod(shape) for part in body for _, shape in _list_tensors(part, own))
    per_class = own[f"{head.conv}.weight"][0].numel() + 1
    expected = dict.fromkeys((head.stop, 1000) if num_classes is None else (num_classes,))
    num_classes = next((n for n in expected if body_values + n * per_class == len(file.values)), None)
    if num_classes is None:
        raise CheckpointError(f"{where}: {_describe_size(file, body_values, per_class, list(expected))}")
    tensors = [tensor for part in (*body, replace(head, stop=num_classes)) for tensor in _list_tensors(part, own)]
    chunks = file.values.split([math.prod(shape) for _, shape in tensors])
    pieces: dict[str, list[Tensor]] = defaultdict(list)
    for (key, shape), chunk in zip(tensors, chunks, strict=True):
        if key.endswith("running_var") and not bool((chunk >= 0).all()):
            raise CheckpointError(f"{where}: weights of another model, or damaged: {key} holds numbers below 0 or NaN")
        pieces[key].append(chunk.view(shape))
    state = {key: torch.cat(rows) for key, rows in pieces.items()}
    if num_classes == 1000:
        for key in (f"{head.conv}.weight", f"{head.conv}.bias"):
            state[key] = state[key][_class_order()]
    if isinstance(model, CspNet):
        state = reorder_parts(state, model.spec, file_block_first=True, reading=True)
    return state


def _describe_size(file: DarknetFile, body_values: int, per_class: int, expected: list[int]) -> str:
    """How far a file's size is from that of the network with each number of classes, and what to do about it."""
    differences = {n: 4 * (len(file.values) - body_values - per_class * n) for n in expected}
    text = f"{file.size:,} bytes, " + " or ".join(
        f"{abs(difference):,} too {'many' if difference > 0 else 'few'} for this network with {n} classes"
        for n, difference in differences.items()
    )
    others, odd = divmod(len(file.values) - body_values, per_class)
    if odd or others < 1:
        return text
    return (
        f"{text}; that is the size with {others}: if the file is not damaged, give this number as num_classes "
        "(--num-classes; train.py: --model.pretrained_classes)"
    )


def darknet_bytes(model: nn.Module, where: str, seen: int = 0) -> bytes:
    """A model as a `.weights` file of version 0.2.5.

    Args:
        seen: pictures it has been trained on, for the header.
    Raises:
        CheckpointError: Darknet has no such network.
    """
    parts = _list_parts(model, where)
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    if isinstance(model, CspNet):
        state = reorder_parts(state, model.spec, file_block_first=True, reading=False)
    head = parts[-1]
    if head.stop == 1000:
        for key in (f"{head.conv}.weight", f"{head.conv}.bias"):
            state[key] = state[key][_class_order().argsort()]
    rows = [state[key][part.start : part.stop] for part in parts for key, _ in _list_tensors(part, state)]
    numbers = [np.ascontiguousarray(row.float().numpy(), "<f4").data for row in rows]
    return b"".join([struct.pack("<3iQ", *_VERSION, seen), *numbers])
