"""A network from its spec: stem, cross stages, head; as a classifier or as a backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cspnet.models.blocks import ConvNormAct
from cspnet.models.spec import NetworkSpec, StemSpec
from cspnet.models.stages import CrossStage

__all__ = ["CspNet", "CspNetFeatures", "FeatureInfo"]


@dataclass(frozen=True)
class FeatureInfo:
    """Where a backbone's outputs come from, in order; the calls are those of timm's FeatureInfo."""

    names: tuple[str, ...]
    widths: tuple[int, ...]
    strides: tuple[int, ...]

    def channels(self) -> list[int]:
        """Channels of each output."""
        return list(self.widths)

    def reduction(self) -> list[int]:
        """Input pixels per output pixel, along one side, of each output."""
        return list(self.strides)

    def module_name(self) -> list[str]:
        """The module each output leaves."""
        return list(self.names)


def _create_stem(stem: StemSpec, spec: NetworkSpec) -> nn.Sequential:
    layers = nn.Sequential()
    layers.add_module("conv1", ConvNormAct(spec.in_chs, stem.out_chs, stem.kernel_px, spec, stride=stem.stride))
    if stem.max_pool:
        layers.add_module("pool", nn.MaxPool2d(3, stride=2, padding=1))
    return layers


def _create_stages(spec: NetworkSpec) -> nn.Sequential:
    stages = nn.Sequential()
    in_chs = spec.stem.out_chs
    for stage in spec.stages:
        stages.append(CrossStage(in_chs, stage, spec))
        in_chs = stage.out_chs
    return stages


def _initialize(model: nn.Module, zero_init_last: bool) -> None:
    """Timm's initialisation: kaiming normal (fan out, gain of ReLU) for convolutions, N(0, 0.01) for the classifier."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
        elif zero_init_last and isinstance(last_bn := getattr(module, "last_bn", None), nn.BatchNorm2d):
            nn.init.zeros_(last_bn.weight)


class _Head(nn.Module):
    """Global average pool, dropout, linear classifier (`fc`)."""

    def __init__(self, in_chs: int, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(in_chs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(x.mean((2, 3))))


class CspNet(nn.Module):
    """A cross stage partial network with a classifier.

    Args:
        spec: the network.
        num_classes: outputs of the classifier, at least 1.
    Source: CSPNet, arXiv 1911.11929.
    """

    def __init__(self, spec: NetworkSpec, num_classes: int) -> None:
        super().__init__()
        self.spec = spec
        self.num_classes = num_classes
        self.num_features = spec.stages[-1].out_chs
        self.stem = _create_stem(spec.stem, spec)
        self.stages = _create_stages(spec)
        self.head = _Head(self.num_features, num_classes, spec.drop_rate)
        _initialize(self, spec.zero_init_last)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chs, H, W) float images -> (N, num_features, H / stride, W / stride) features of the last stage."""
        return self.stages(self.stem(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chs, H, W) float images -> (N, num_classes) logits."""
        return self.head(self.forward_features(x))


class CspNetFeatures(nn.Module):
    """A cross stage partial network as a backbone: one output for the stem's convolution and one for each stage.

    Keys are those of `CspNet` without the head, so a classifier's state_dict loads with strict=False.

    Args:
        spec: the network.
        out_indices: which of the outputs to return, 0 being the stem; all of them by default.
    """

    def __init__(self, spec: NetworkSpec, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        names = ("stem.conv1", *(f"stages.{i}" for i in range(len(spec.stages))))
        widths = (spec.stem.out_chs, *(stage.out_chs for stage in spec.stages))
        strides = [spec.stem.stride]
        entry_stride = spec.stem.stride * (2 if spec.stem.max_pool else 1)
        strides += [entry_stride * math.prod(s.stride for s in spec.stages[: i + 1]) for i in range(len(spec.stages))]
        self.out_indices = tuple(range(len(names)) if out_indices is None else out_indices)
        if not self.out_indices or not all(0 <= i < len(names) for i in self.out_indices):
            raise ValueError(f"out_indices={list(self.out_indices)}: use numbers from 0 to {len(names) - 1}")
        self.spec = spec
        self.feature_info = FeatureInfo(
            tuple(names[i] for i in self.out_indices),
            tuple(widths[i] for i in self.out_indices),
            tuple(strides[i] for i in self.out_indices),
        )
        self.stem = _create_stem(spec.stem, spec)
        self.stages = _create_stages(spec)
        _initialize(self, spec.zero_init_last)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_chs, H, W) float images -> the chosen features, each (N, channels, H / reduction, W / reduction)."""
        outputs = []
        for name, layer in self.stem.named_children():
            x = layer(x)
            if name == "conv1":
                outputs.append(x)
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return [outputs[i] for i in self.out_indices]
