"""A network from its spec: stem, stages, head; as a classifier or as a backbone, with the calls timm's users know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cspnet.models.layers import ConvNormAct, TwoWayPool, set_drop_path
from cspnet.models.patterns import fix_to_patterns
from cspnet.models.spec import ConvSpec, NetworkSpec, StemSpec
from cspnet.models.stages import CrossStage

__all__ = ["CspNet", "CspNetFeatures", "FeatureInfo"]


@dataclass(frozen=True)
class FeatureInfo:
    """Where a backbone's outputs come from, in order: channels(), reduction() and module_name() as in timm."""

    names: tuple[str, ...]
    widths: tuple[int, ...]
    strides: tuple[int, ...]

    def channels(self) -> list[int]:
        """Channels of each output."""
        return list(self.widths)

    def reduction(self) -> list[int]:
        """Input pixels per output pixel, along one side, of each output."""
        return list(self.strides)

    def choose(self, indices: Sequence[int]) -> FeatureInfo:
        """The same for some of the outputs."""
        names, widths, strides = self.names, self.widths, self.strides
        return FeatureInfo(
            tuple(names[i] for i in indices), tuple(widths[i] for i in indices), tuple(strides[i] for i in indices)
        )

    def module_name(self) -> list[str]:
        """The module each output leaves."""
        return list(self.names)


def _describe_features(spec: NetworkSpec) -> FeatureInfo:
    """The outputs of the stem's last convolution and of each stage."""
    stride = math.prod(conv.stride for conv in spec.stem.convs)
    names, widths, strides = [f"stem.conv{len(spec.stem.convs)}"], [spec.stem.out_chs], [stride]
    stride *= 1 if spec.stem.pool == "none" else 2
    for i, stage in enumerate(spec.stages):
        stride *= stage.stride
        names.append(f"stages.{i}")
        widths.append(stage.out_chs)
        strides.append(stride)
    return FeatureInfo(tuple(names), tuple(widths), tuple(strides))


def _create_stem(stem: StemSpec, spec: NetworkSpec) -> nn.Sequential:
    layers = nn.Sequential()
    in_chs = spec.in_chs
    for i, conv in enumerate(stem.convs, start=1):
        layer = ConvNormAct(in_chs, conv, spec)
        if i == 1 and stem.patterns and in_chs == 3:
            fix_to_patterns(layer.conv)
        layers.add_module(f"conv{i}", layer)
        in_chs = conv.out_chs
    if stem.pool == "max3":
        layers.add_module("pool", nn.MaxPool2d(3, stride=2, padding=1))
    elif stem.pool == "max2":
        layers.add_module("pool", nn.MaxPool2d(2, stride=2, ceil_mode=True))
    elif stem.pool == "two_way":
        layers.add_module("pool", TwoWayPool(in_chs, spec))
    return layers


def _create_stages(spec: NetworkSpec) -> nn.Sequential:
    stages = nn.Sequential()
    in_chs = spec.stem.out_chs
    for stage in spec.stages:
        stages.append(CrossStage(in_chs, stage, spec))
        in_chs = stage.out_chs
    if spec.drop_path_rate:
        set_drop_path(stages, spec.drop_path_rate)
    return stages


def _initialize(model: nn.Module, spec: NetworkSpec) -> None:
    """Fresh weights.

    timm: kaiming normal (fan out, gain of ReLU) for convolutions, N(0, 0.01) for the classifier.
    darknet: uniform in ±sqrt(2 / fan in) for both, no scale at zero. Source: convolutional_layer.c.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.requires_grad:
            continue  # a stem of patterns
        if spec.init == "darknet":
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                bound = math.sqrt(2 / module.weight[0].numel())
                nn.init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        elif spec.zero_init_last:
            for norm in getattr(module, "last_norms", ()):
                nn.init.zeros_(norm.weight)


class _Head(nn.Module):
    """Global average pool, dropout, linear classifier (`fc`); without classes, the pooled features."""

    def __init__(self, in_chs: int, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(in_chs, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(x.mean((2, 3)))
        return x if pre_logits else self.fc(x)


class CspNet(nn.Module):
    """A cross stage partial network, or its plain baseline, with a classifier.

    Args:
        spec: the network.
        num_classes: outputs of the classifier; 0 leaves it out, and the output is (N, num_features).
    Source: CSPNet, arXiv 1911.11929.
    """

    def __init__(self, spec: NetworkSpec, num_classes: int) -> None:
        super().__init__()
        self.spec = spec
        self.num_classes = num_classes
        self.num_features = spec.num_features
        self.feature_info = _describe_features(spec)
        self.stem = _create_stem(spec.stem, spec)
        self.stages = _create_stages(spec)
        self.conv_head: nn.Module = nn.Identity()
        if spec.head_chs:
            self.conv_head = ConvNormAct(spec.stages[-1].out_chs, ConvSpec(spec.head_chs, 1), spec)
        self.head = _Head(self.num_features, num_classes, spec.drop_rate)
        _initialize(self, spec)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chs, H, W) float images -> (N, num_features, H / stride, W / stride) features of the last stage."""
        return self.conv_head(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, num_features, H, W) -> (N, num_classes) logits, or with pre_logits (N, num_features)."""
        return self.head(x, pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chs, H, W) float images -> (N, num_classes) logits."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier, on the device and in the dtype of the network; 0 leaves it out.

        Args:
            global_pool: timm's argument; avg is what there is.
        Raises:
            ValueError: a number below 0, or another pool.
        """
        is_count = isinstance(num_classes, int) and not isinstance(num_classes, bool) and num_classes >= 0
        if not is_count or global_pool not in (None, "avg"):
            raise ValueError(
                f"reset_classifier({num_classes!r}, {global_pool!r}): use a whole number from 0 on, and avg"
            )
        like = next(self.parameters())
        self.num_classes = num_classes
        self.head.fc = nn.Identity()
        if num_classes:
            self.head.fc = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            _initialize(self.head, self.spec)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: in training, keep each block's input only and compute the rest again."""
        _set_grad_checkpointing(self.stages, enable)


def _set_grad_checkpointing(stages: nn.Sequential, enable: bool) -> None:
    for stage in stages:
        assert isinstance(stage, CrossStage)
        stage.grad_checkpointing = enable


class CspNetFeatures(nn.Module):
    """A network as a backbone: one output for the stem's last convolution and one for each stage.

    Keys are those of `CspNet` without the head, so a classifier's state_dict loads with strict=False.

    Args:
        spec: the network.
        out_indices: which of the outputs to return, 0 being the stem; negative ones count from the end; all of them
            by default. Stages behind the last one asked for are not built.
    Raises:
        ValueError: out_indices names no output, or one that is not there.
    """

    def __init__(self, spec: NetworkSpec, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        info = _describe_features(spec)
        count = len(info.names)
        asked = tuple(range(count) if out_indices is None else out_indices)
        if not asked or not all(-count <= i < count for i in asked):
            raise ValueError(f"out_indices={list(asked)}: use numbers from {-count} to {count - 1}")
        self.out_indices = tuple(i % count for i in asked)
        self.spec = spec
        self.feature_info = info.choose(self.out_indices)
        self.stem = _create_stem(spec.stem, spec)
        self.stages = _create_stages(spec)[: max(self.out_indices)]
        _initialize(self, spec)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: in training, keep each block's input only and compute the rest again."""
        _set_grad_checkpointing(self.stages, enable)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_chs, H, W) float images -> the chosen features, each (N, channels, H / reduction, W / reduction)."""
        outputs = []
        for name, layer in self.stem.named_children():
            if name == "pool":
                outputs.append(x)
            x = layer(x)
        if self.spec.stem.pool == "none":
            outputs.append(x)
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return [outputs[i] for i in self.out_indices]
