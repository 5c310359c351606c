"""Darknet's classification cfg files: a parser, and a network that does what one says.

    [net] -> width, height, channels                 every other key there is about training and left alone
    each other section -> one layer, numbered from 0; it reads the layer before it, or those it names

What a file asks for and this reader cannot do is an error that names the file, the line and the section, never a guess.
Where a key is absent its value is Darknet's default. Where it is repeated the first one counts, as in Darknet, whose
`option_find` stops at the first. What differs between Darknet's versions (dropout's default) has to be written.

Source: AlexeyAB/darknet, src/parser.c (keys and defaults), src/*_layer.c (meaning);
WongKinYiu/CrossStagePartialNetworks, cfg/ (the files this is for).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cspnet.errors import ModelError
from cspnet.models.layers import Shortcut

__all__ = ["CFG_PREFIX", "DarknetCfgNet", "Section", "create_cfg_model", "parse_cfg", "read_cfg_text"]

CFG_PREFIX = "cfg/"

# Beyond any network: a slip of the pen, or bad will, is an error with its line instead of terabytes.
_MOST_CHS = 65_536
_MOST_PX = 256
_MOST_SIDE_PX = 4096
_MOST_LAYERS = 4096
_MOST_WEIGHTS = 2**29
"""Of all layers: 2 GiB."""
_MOST_OUTPUTS = 2**28
"""Of one layer, for one picture: 1 GiB."""
_MOST_BYTES = 1 << 20
"""Of a file, which has some ten thousand."""

# In place where it can be: the input is a convolution's, a BatchNorm's, a sum's or a product's, and nobody else's.
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "leaky": partial(nn.LeakyReLU, 0.1, inplace=True),
    "relu": partial(nn.ReLU, inplace=True),
    "relu6": partial(nn.ReLU6, inplace=True),
    "mish": partial(nn.Mish, inplace=True),
    "swish": partial(nn.SiLU, inplace=True),
    "logistic": nn.Sigmoid,
}

# Keys that change the result in a way not built here: accepted only at the value that changes nothing.
_NEUTRAL = {
    "antialiasing": "0",
    "binary": "0",
    "dilation": "1",
    "maxpool_depth": "0",
    "scale_wh": "0",
    "temperature": "1",
    "weights_type": "none",
    "xnor": "0",
}


@dataclass(frozen=True)
class Section:
    """One `[name]` of a cfg file with its `key=value` lines."""

    name: str
    options: Mapping[str, str]
    line: int
    """Number of the line with the name, from 1."""
    where: str = "cfg"
    """The file, for messages."""
    option_lines: Mapping[str, int] = field(default_factory=dict)
    """Number of each option's line."""

    def error(self, problem: str, key: str | None = None) -> ModelError:
        """One line: file, line, section, the option if the problem is with one, the problem."""
        option, line = "", self.line
        if key is not None and key in self.option_lines:
            option, line = f"{key}={self.options[key]}: ", self.option_lines[key]
        return ModelError(f"{self.where}:{line}: [{self.name}]: {option}{problem}")

    def whole(self, key: str, default: int | None = None, at_least: int = 0, at_most: int | None = None) -> int:
        """A whole number; without a default it has to be there. Raises ModelError."""
        value = self._get(key, default)
        if not re.fullmatch(r"[+-]?[0-9]{1,99}", value):
            raise self.error("expected a whole number", key)
        most = 999_999_999 if at_most is None else at_most
        if not at_least <= int(value) <= most:
            is_open = at_most is None and int(value) < at_least
            raise self.error(f"expected a number from {at_least} {'on' if is_open else f'to {most}'}", key)
        return int(value)

    def share(self, key: str) -> float:
        """A number from 0 up to, not with, 1. Raises ModelError."""
        try:
            value = float(self._get(key, None))
        except ValueError:
            value = math.nan
        if not 0 <= value < 1:
            raise self.error("expected a number from 0 up to, not with, 1", key)
        return value

    def activation(self, default: str) -> nn.Module:
        """A new module for the activation. Raises ModelError."""
        name = self._get("activation", default)
        if name not in _ACTIVATIONS:
            raise self.error(f"not supported (supported: {', '.join(_ACTIVATIONS)})", "activation")
        return _ACTIVATIONS[name]()

    def references(self, key: str, index: int) -> tuple[int, ...]:
        """Numbers of layers before this one, the `index`-th; negative ones in the file count back from it.

        Raises ModelError.
        """
        numbers = [number.strip() for number in self._get(key, None).split(",")]
        if not all(re.fullmatch(r"[+-]?[0-9]{1,9}", number) for number in numbers):
            raise self.error("expected the whole numbers of layers", key)
        layers = tuple(int(number) if int(number) >= 0 else index + int(number) for number in numbers)
        for layer in layers:
            if not 0 <= layer < index:
                raise self.error(f"there is no layer {layer} before this one, which is layer {index}", key)
        return layers

    def _get(self, key: str, default: object) -> str:
        if key not in self.options and default is None:
            raise self.error(f"{key} is missing")
        return self.options.get(key, str(default))


def parse_cfg(text: str, where: str) -> list[Section]:
    """The sections of a cfg file, in order. Text behind # or ; is a comment; spaces do not count.

    Args:
        text: what the file holds.
        where: its name, for messages.
    Raises:
        ModelError: a line that is neither `[name]` nor `key=value`, or no section at all.
    """
    sections: list[tuple[str, int, dict[str, str], dict[str, int]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = "".join(re.split("[#;]", line)[0].split())
        if not line:
            continue
        if match := re.fullmatch(r"\[([^][]+)\]", line):
            sections.append((match[1], number, {}, {}))
            continue
        key, equals, value = line.partition("=")
        if not key or not equals or not sections or key.startswith("["):
            expected = "key=value or [section]" if sections else "a [section] first"
            raise ModelError(f"{where}:{number}: {line[:40]!r}: expected {expected}")
        _, _, options, option_lines = sections[-1]
        options.setdefault(key, value)
        option_lines.setdefault(key, number)
    if not sections:
        raise ModelError(f"{where}: no [section] in it; expected a Darknet cfg file")
    return [Section(name, options, line, where, lines) for name, line, options, lines in sections]


class Shape(NamedTuple):
    """Size of a layer's output: channels, and the side in pixels at the file's own input size."""

    chs: int
    side_px: int


class _Conv(nn.Module):
    """Convolution, BatchNorm or a bias, activation."""

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d | None, act: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.bn = bn
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.act(x if self.bn is None else self.bn(x))


class _MaxPool(nn.Module):
    """Darknet's max pool: `padding` pixels in all, padding // 2 of them in front, the rest behind.

    The output has (side + padding - size) // stride + 1 pixels a side. Padding never wins: it is below every number.
    As padding < size, no window lies in padding alone. Even padding is PyTorch's own. Of odd padding one pixel is
    behind only: at stride 2 that is `ceil_mode`, as ceil(n / 2) = (n + 1) // 2; at any other stride it is put there.

    Source: AlexeyAB/darknet, maxpool_layer.c.
    """

    def __init__(self, size: int, stride: int, padding: int) -> None:
        super().__init__()
        is_odd = padding % 2 == 1
        self.extra_px = int(is_odd and stride != 2)
        self.pool = nn.MaxPool2d(size, stride, padding // 2, ceil_mode=is_odd and stride == 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.extra_px:
            x = F.pad(x, (0, self.extra_px, 0, self.extra_px), value=-math.inf)
        return self.pool(x)


class _Route(nn.Module):
    """One of `groups` equal parts of each input's channels, concatenated."""

    def __init__(self, groups: int, group_id: int) -> None:
        super().__init__()
        self.groups = groups
        self.group_id = group_id

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = [x.chunk(self.groups, dim=1)[self.group_id] for x in inputs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class _ActivatedShortcut(nn.Module):
    """The earlier layer added to this one, activation; see `Shortcut` for other widths and sizes."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.shortcut = Shortcut()
        self.act = act

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:
        return self.act(self.shortcut(x, earlier))


class _ScaleChannels(nn.Module):
    """The earlier layer (N, C, H, W) times this one (N, C, 1, 1), activation: the end of squeeze and excitation."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, scale: Tensor, earlier: Tensor) -> Tensor:
        return self.act(earlier * scale)


def _window_px(section: Section, side_px: int, size: int, stride: int, padding: int) -> int:
    """Side of what a sliding window leaves; `padding` on both sides together."""
    if side_px + padding < size:
        raise section.error(f"a window of {size} px does not fit the {side_px} x {side_px} px that reach it")
    return (side_px + padding - size) // stride + 1


def _read_kernel(section: Section) -> tuple[int, int, int]:
    """Filters, size in pixels and groups of a convolution."""
    filters = section.whole("filters", at_least=1, at_most=_MOST_CHS)
    return filters, section.whole("size", 1, at_least=1, at_most=_MOST_PX), section.whole("groups", 1, at_least=1)


def _count_weights(section: Section, x: Shape) -> int:
    filters, size, groups = _read_kernel(section)
    return x.chs * filters * size**2 // groups


def _build_convolutional(section: Section, x: Shape) -> tuple[nn.Module, Shape]:
    filters, size, groups = _read_kernel(section)
    stride = section.whole("stride", 1, at_least=1, at_most=_MOST_PX)
    padding = size // 2 if section.whole("pad", 0) else section.whole("padding", 0, at_most=_MOST_PX)
    if x.chs % groups or filters % groups:
        raise section.error(f"does not divide the {x.chs} channels before and the {filters} behind", "groups")
    has_bn = section.whole("batch_normalize", 0, at_most=1) == 1  # 2 is statistics over several mini-batches
    side_px = _window_px(section, x.side_px, size, stride, 2 * padding)
    conv = nn.Conv2d(x.chs, filters, size, stride, padding, groups=groups, bias=not has_bn)
    bn = nn.BatchNorm2d(filters, eps=1e-5) if has_bn else None
    return _Conv(conv, bn, section.activation("logistic")), Shape(filters, side_px)


def _build_maxpool(section: Section, x: Shape) -> tuple[nn.Module, Shape]:
    stride = section.whole("stride", 1, at_least=1, at_most=_MOST_PX)
    size = section.whole("size", stride, at_least=1, at_most=_MOST_PX)
    padding = section.whole("padding", size - 1, at_most=size - 1)
    return _MaxPool(size, stride, padding), Shape(x.chs, _window_px(section, x.side_px, size, stride, padding))


def _build_avgpool(section: Section, x: Shape) -> tuple[nn.Module, Shape]:
    return nn.AdaptiveAvgPool2d(1), Shape(x.chs, 1)


def _build_route(section: Section, *inputs: Shape) -> tuple[nn.Module, Shape]:
    groups = section.whole("groups", 1, at_least=1)
    group_id = section.whole("group_id", 0, at_most=groups - 1)
    sides = {x.side_px for x in inputs}
    if len(sides) > 1:
        sizes = ", ".join(f"{px} x {px}" for px in sorted(sides))
        raise section.error(f"layers of different sizes ({sizes} px) cannot be joined", "layers")
    if any(x.chs % groups for x in inputs):
        raise section.error(f"does not divide the {', '.join(str(x.chs) for x in inputs)} channels", "groups")
    return _Route(groups, group_id), Shape(sum(x.chs for x in inputs) // groups, sides.pop())


def _build_shortcut(section: Section, x: Shape, earlier: Shape) -> tuple[nn.Module, Shape]:
    if earlier.side_px % x.side_px:
        sides = f"{earlier.side_px} x {earlier.side_px} px to {x.side_px} x {x.side_px} px"
        raise section.error(f"cannot add {sides}: expected the same size or a multiple", "from")
    return _ActivatedShortcut(section.activation("linear")), x


def _build_scale_channels(section: Section, x: Shape, earlier: Shape) -> tuple[nn.Module, Shape]:
    if x != Shape(earlier.chs, 1):
        raise section.error(
            f"expected {earlier.chs} x 1 x 1 in front, as that layer has {earlier.chs} channels, "
            f"not {x.chs} x {x.side_px} x {x.side_px}",
            "from",
        )
    return _ScaleChannels(section.activation("linear")), earlier


def _build_upsample(section: Section, x: Shape) -> tuple[nn.Module, Shape]:
    stride = section.whole("stride", 2, at_least=1, at_most=max(1, _MOST_SIDE_PX // x.side_px))
    return nn.Upsample(scale_factor=stride, mode="nearest"), Shape(x.chs, x.side_px * stride)


def _build_dropout(section: Section, x: Shape) -> tuple[nn.Module, Shape]:
    return nn.Dropout(section.share("probability")), x


def _build_softmax(section: Section, x: Shape) -> tuple[nn.Module, Shape]:
    section.whole("groups", 1, at_least=1, at_most=1)
    return nn.Identity(), x


def _build_cost(section: Section, x: Shape) -> tuple[nn.Module, Shape]:
    return nn.Identity(), x


@dataclass(frozen=True)
class _Kind:
    """A kind of section: what builds it, the keys it may have, and the one that names further layers to read."""

    build: Callable[..., tuple[nn.Module, Shape]]
    keys: tuple[str, ...] = ()
    reference: str = ""


_KINDS = {
    "convolutional": _Kind(
        _build_convolutional,
        ("filters", "size", "stride", "pad", "padding", "groups", "batch_normalize", "activation"),
    ),
    "maxpool": _Kind(_build_maxpool, ("size", "stride", "padding")),
    "avgpool": _Kind(_build_avgpool),
    "route": _Kind(_build_route, ("layers", "groups", "group_id"), reference="layers"),
    "shortcut": _Kind(_build_shortcut, ("from", "activation"), reference="from"),
    "scale_channels": _Kind(_build_scale_channels, ("from", "activation"), reference="from"),
    "upsample": _Kind(_build_upsample, ("stride",)),
    "dropout": _Kind(_build_dropout, ("probability",)),
    "softmax": _Kind(_build_softmax, ("groups",)),
    "cost": _Kind(_build_cost, ("type",)),
}
_BEHIND_CLASSIFIER = ("avgpool", "dropout", "softmax", "cost")
_LOSSES = ("softmax", "cost")


def _check(section: Section) -> _Kind:
    """The kind of a section, all of whose keys are known."""
    if section.name not in _KINDS:
        raise section.error(f"sections of this kind are not supported (supported: {', '.join(_KINDS)})")
    kind = _KINDS[section.name]
    for key, value in section.options.items():
        if key not in kind.keys and _NEUTRAL.get(key) != value:
            raise section.error(f"not supported (supported: {', '.join(kind.keys) or 'no options'})", key)
    return kind


def _find_sources(section: Section, index: int) -> tuple[int, ...]:
    """Numbers of the layers that the `index`-th reads; -1 is the network's input."""
    reference = _KINDS[section.name].reference
    layers = section.references(reference, index) if reference else ()
    if section.name == "route":
        return layers
    if len(layers) > 1:
        raise section.error("expected one layer", reference)
    return (index - 1, *layers)


def _find_unread(sources: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """For each layer, the outputs that nobody reads after it; the last output is the result and not among them."""
    last_reader = {layer: layer for layer in range(len(sources))}
    last_reader |= {layer: reader for reader, layers in enumerate(sources) for layer in layers}
    del last_reader[len(sources) - 1]
    unread: list[list[int]] = [[] for _ in sources]
    for layer, reader in last_reader.items():
        if reader >= 0:
            unread[reader].append(layer)
    return [tuple(layers) for layers in unread]


def _find_classifier(sections: Sequence[Section]) -> int:
    """Number of the last convolution, behind which nothing but pooling, dropout and the loss may stand."""
    index = max((i for i, section in enumerate(sections) if section.name == "convolutional"), default=-1)
    if index < 0:
        raise sections[-1].error("the file ends without a [convolutional] section, which would be the classifier")
    if sections[index].options.get("batch_normalize", "0") != "0":
        raise sections[index].error("the last convolution is the classifier: expected none", "batch_normalize")
    for section in sections[index + 1 :]:
        if section.name not in _BEHIND_CLASSIFIER:
            raise section.error(f"expected only {', '.join(_BEHIND_CLASSIFIER)} behind the last convolution")
    return index


class DarknetCfgNet(nn.Module):
    """The network of a Darknet classification cfg file, up to the logits: softmax and cost are left out.

    `layers` holds one module a section in the file's order, so that keys are `layers.<number>.conv.weight`,
    `layers.<number>.bn.weight` with Darknet's own layer numbers. Outputs are freed when nobody reads them any more.
    Initial weights: kaiming normal (fan out, gain of ReLU); N(0, 0.01) for the classifier; biases zero.

    Args:
        sections: `parse_cfg` of the file.
        num_classes: outputs of the last convolution, whatever number of filters the file gives it.
        bn_momentum: of every BatchNorm, in PyTorch's sense (Darknet trains with 0.01 on a GPU, 0.1 on a CPU).
    Raises:
        ModelError: something the file asks for is not supported or does not fit together.
    """

    def __init__(self, sections: Sequence[Section], num_classes: int, bn_momentum: float = 0.1) -> None:
        super().__init__()
        net, sections = sections[0], list(sections[1:])
        if net.name not in ("net", "network"):
            raise net.error("expected [net] as the first section")
        self.input_px = net.whole("height", at_least=1, at_most=_MOST_SIDE_PX)
        """Side of the square input the file is for, in pixels."""
        if net.whole("width") != self.input_px:
            raise net.error(f"expected a square input, height={self.input_px}", "width")
        self.in_chs = net.whole("channels", at_least=1, at_most=_MOST_CHS)
        if not sections:
            raise net.error("the file has no layers")
        if len(sections) > _MOST_LAYERS:
            raise sections[_MOST_LAYERS].error(f"the file has more than {_MOST_LAYERS:,} layers")
        kinds = [_check(section) for section in sections]
        index = _find_classifier(sections)
        sections[index].whole("filters", at_least=1)
        sections[index] = replace(sections[index], options={**sections[index].options, "filters": str(num_classes)})
        self.num_classes = num_classes
        self.classifier_name = f"layers.{index}.conv"
        """The classifier's convolution among `named_modules`."""
        self.layers = nn.ModuleList()
        self.sources: list[tuple[int, ...]] = []
        """Numbers of the layers that each layer reads; -1 is the input."""
        shapes = {-1: Shape(self.in_chs, self.input_px)}
        num_weights = 0
        for i, (section, kind) in enumerate(zip(sections, kinds, strict=True)):
            if i and sections[i - 1].name in _LOSSES and section.name not in _LOSSES:
                raise section.error(f"expected nothing behind {' and '.join(_LOSSES)}")
            self.sources.append(_find_sources(section, i))
            inputs = [shapes[source] for source in self.sources[i]]
            num_weights += _count_weights(section, *inputs) if section.name == "convolutional" else 0
            if num_weights > _MOST_WEIGHTS:
                raise section.error(f"with this layer the network has more than {_MOST_WEIGHTS:,} weights")
            layer, shapes[i] = kind.build(section, *inputs)
            if shapes[i].chs > _MOST_CHS or shapes[i].chs * shapes[i].side_px ** 2 > _MOST_OUTPUTS:
                chs, side_px = shapes[i]
                raise section.error(f"{chs:,} channels of {side_px} x {side_px} px are more than fit into memory")
            self.layers.append(layer)
        if (side_px := shapes[len(sections) - 1].side_px) != 1:
            raise sections[-1].error(f"{side_px} x {side_px} px are left at the end: expected an [avgpool] before it")
        self._unread = _find_unread(self.sources)
        self.num_features = shapes[index - 1].chs
        """Channels in front of the classifier."""
        self._initialize(bn_momentum)

    def _initialize(self, bn_momentum: float) -> None:
        for conv, bn in self.darknet_convs():
            bound = math.sqrt(2 / conv.weight[0].numel())  # Darknet's, as in `cspnet.models.network`
            nn.init.uniform_(conv.weight, -bound, bound)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            if bn is not None:
                bn.momentum = bn_momentum

    def darknet_convs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
        """All convolutions in the file's order, each with its BatchNorm or None; the last is the classifier."""
        return [(layer.conv, layer.bn) for layer in self.layers if isinstance(layer, _Conv)]

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chs, H, W) float images -> (N, num_classes) logits.

        H and W need not be the file's, as long as its layers still fit each other: an upsampled layer, say, has to come
        back to the size that was pooled.
        """
        outputs = {-1: x}
        for i, layer in enumerate(self.layers):
            outputs[i] = layer(*(outputs[source] for source in self.sources[i]))
            for unread in self._unread[i]:
                del outputs[unread]
        return outputs[len(self.layers) - 1].flatten(1)


def read_cfg_text(name: str) -> str:
    """What the file of a model `cfg/<path>` holds: its `text` option.

    Raises:
        ModelError: the file is missing, unreadable or not text.
    """
    path = Path(name.removeprefix(CFG_PREFIX))
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(f"model {name}: cannot read {path}: {reason}") from error
    if len(data) > _MOST_BYTES:
        raise ModelError(f"model {name}: {path} has more than {_MOST_BYTES:,} bytes; expected a Darknet cfg file")
    if b"\0" in data:
        raise ModelError(f"model {name}: {path} is not a text file; expected a Darknet cfg file")
    return data.decode("utf-8-sig", errors="replace")  # comments may be in any alphabet of their time


def create_cfg_model(name: str, num_classes: int, options: Mapping[str, Any]) -> DarknetCfgNet:
    """The network of a Darknet cfg file, freshly initialised.

    Args:
        name: `cfg/<path>`; the path is relative to the working directory, or absolute (`cfg//data/x.cfg`).
        num_classes: outputs of the classifier, at least 1.
        options: `bn_momentum`, above 0 and up to 1 (0.1 by default), and `text`: what the file holds, used instead of
            reading it, so that a checkpoint is complete without the file.
    Raises:
        ModelError: an unreadable file, an unknown option, or anything in the file that is not supported.
    """
    for key in options:
        if key not in ("bn_momentum", "text"):
            raise ModelError(f"model {name}: unknown option {key}; it has bn_momentum, the rest is in the file")
    bn_momentum, text = options.get("bn_momentum", 0.1), options.get("text")
    if isinstance(bn_momentum, bool) or not isinstance(bn_momentum, int | float) or not 0 < bn_momentum <= 1:
        raise ModelError(f"model {name}: bn_momentum={bn_momentum!r}: use a number above 0, up to 1")
    if not isinstance(text, str | None):
        raise ModelError(f"model {name}: option text: expected the text of a cfg file, not {type(text).__name__}")
    if text is None:
        text = read_cfg_text(name)
    return DarknetCfgNet(parse_cfg(text, name.removeprefix(CFG_PREFIX)), num_classes, float(bn_momentum))
