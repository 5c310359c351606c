"""What stands in a stage's block path: residual, elastic, inverted and dense blocks.

Attribute names of the dark and bottleneck blocks are timm's, because they are the keys of the state_dict.
Source: timm/models/cspnet.py (layout); WongKinYiu/CrossStagePartialNetworks cfg/ (structure).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cspnet.models.layers import ConvNormAct, Shortcut, create_activation
from cspnet.models.spec import Block, BlockSpec, ConvSpec, NetworkSpec

__all__ = [
    "BLOCKS",
    "BasicBlock",
    "BottleneckBlock",
    "DarkBlock",
    "DenseLayer",
    "ElasticBottleneckBlock",
    "ElasticDarkBlock",
    "InvertedBlock",
    "TwoWayDenseLayer",
]


class DarkBlock(nn.Module):
    """Darknet's residual block: 1x1, 3x3, add; nothing after the addition."""

    def __init__(self, in_chs: int, block: BlockSpec, spec: NetworkSpec) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_chs, ConvSpec(block.mid_chs, 1), spec)
        self.conv2 = ConvNormAct(block.mid_chs, ConvSpec(block.out_chs, 3, groups=block.groups), spec)
        self.shortcut = Shortcut()

    @property
    def last_norms(self) -> list[nn.BatchNorm2d]:
        return [self.conv2.bn]

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(self.conv2(self.conv1(x)), x)


class BottleneckBlock(nn.Module):
    """ResNet's and ResNeXt's block: 1x1, 3x3 (grouped, strided), 1x1 without activation, add, activation."""

    def __init__(self, in_chs: int, block: BlockSpec, spec: NetworkSpec) -> None:
        super().__init__()
        mid_chs = block.mid_chs
        self.conv1 = ConvNormAct(in_chs, ConvSpec(mid_chs, 1), spec)
        self.conv2 = ConvNormAct(mid_chs, ConvSpec(mid_chs, 3, block.stride, block.groups), spec)
        self.conv3 = ConvNormAct(mid_chs, ConvSpec(block.out_chs, 1, act=False), spec)
        self.shortcut = Shortcut()
        self.act3 = create_activation(spec.activation, spec.leaky_slope)

    @property
    def last_norms(self) -> list[nn.BatchNorm2d]:
        return [self.conv3.bn]

    def forward(self, x: Tensor) -> Tensor:
        return self.act3(self.shortcut(self.conv3(self.conv2(self.conv1(x))), x))


class BasicBlock(nn.Module):
    """ResNet's small block: 3x3 (strided), 3x3 without activation, add, activation."""

    def __init__(self, in_chs: int, block: BlockSpec, spec: NetworkSpec) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_chs, ConvSpec(block.mid_chs, 3, block.stride, block.groups), spec)
        self.conv2 = ConvNormAct(block.mid_chs, ConvSpec(block.out_chs, 3, groups=block.groups, act=False), spec)
        self.shortcut = Shortcut()
        self.act2 = create_activation(spec.activation, spec.leaky_slope)

    @property
    def last_norms(self) -> list[nn.BatchNorm2d]:
        return [self.conv2.bn]

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.shortcut(self.conv2(self.conv1(x)), x))


class _ElasticBranches(nn.Module):
    """The first half of the channels at full resolution, the second half at half of it; joined again.

    Source: cfg/cs*-elastic.cfg of the authors; ELASTIC, arXiv 1812.05262.
    """

    def __init__(self, chs: int, create_branch: Callable[[int], nn.Sequential]) -> None:
        super().__init__()
        self.half_chs = chs // 2
        self.high = create_branch(self.half_chs)
        self.pool = nn.MaxPool2d(2, 2)
        self.low = create_branch(self.half_chs)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")

    @property
    def last_norms(self) -> list[nn.BatchNorm2d]:
        return [last.bn for last in (self.high[-1], self.low[-1]) if isinstance(last, ConvNormAct)]

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 2 or x.shape[3] % 2:
            raise ValueError("elastic blocks halve their input: use sides that are multiples of 64 px")
        high, low = x.split(self.half_chs, dim=1)
        return torch.cat([self.high(high), self.upsample(self.low(self.pool(low)))], dim=1)


class ElasticDarkBlock(nn.Module):
    """Two dark blocks of half the width at two resolutions, and one addition around both."""

    def __init__(self, in_chs: int, block: BlockSpec, spec: NetworkSpec) -> None:
        super().__init__()

        def create_branch(chs: int) -> nn.Sequential:
            return nn.Sequential(
                ConvNormAct(chs, ConvSpec(block.mid_chs, 1), spec),
                ConvNormAct(block.mid_chs, ConvSpec(chs, 3, groups=block.groups), spec),
            )

        self.branches = _ElasticBranches(in_chs, create_branch)
        self.shortcut = Shortcut()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(self.branches(x), x)


class ElasticBottleneckBlock(nn.Module):
    """Two bottleneck blocks of half the width at two resolutions, one addition around both, activation."""

    def __init__(self, in_chs: int, block: BlockSpec, spec: NetworkSpec) -> None:
        super().__init__()

        def create_branch(chs: int) -> nn.Sequential:
            return nn.Sequential(
                ConvNormAct(chs, ConvSpec(block.mid_chs, 1), spec),
                ConvNormAct(block.mid_chs, ConvSpec(block.mid_chs, 3, groups=block.groups), spec),
                ConvNormAct(block.mid_chs, ConvSpec(chs, 1, act=False), spec),
            )

        self.branches = _ElasticBranches(in_chs, create_branch)
        self.shortcut = Shortcut()
        self.act = create_activation(spec.activation, spec.leaky_slope)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shortcut(self.branches(x), x))


class InvertedBlock(nn.Module):
    """MobileNetV2's block: 1x1 to more channels or none, 3x3 depthwise, 1x1 without activation; added where it fits.

    The depthwise convolution may give several channels for each of its input's (cfg/csmobilenet-v2.cfg: two).
    """

    def __init__(self, in_chs: int, block: BlockSpec, spec: NetworkSpec) -> None:
        super().__init__()
        wide_chs = block.expand_chs or in_chs
        self.conv1: nn.Module = nn.Identity()
        if block.expand_chs:
            self.conv1 = ConvNormAct(in_chs, ConvSpec(wide_chs, 1), spec)
        self.conv2 = ConvNormAct(wide_chs, ConvSpec(block.mid_chs, 3, block.stride, groups=wide_chs), spec)
        self.conv3 = ConvNormAct(block.mid_chs, ConvSpec(block.out_chs, 1, act=False), spec)
        is_residual = in_chs == block.out_chs and block.stride == 1
        self.shortcut = Shortcut() if is_residual else None

    @property
    def last_norms(self) -> list[nn.BatchNorm2d]:
        return [] if self.shortcut is None else [self.conv3.bn]

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.conv2(self.conv1(x)))
        return y if self.shortcut is None else self.shortcut(y, x)


class DenseLayer(nn.Module):
    """DenseNet's layer: 1x1, 3x3, and the result behind the input's channels. Activation last, as in Darknet.

    Source: DenseNet, arXiv 1608.06993, section 3 (DenseNet-B).
    """

    def __init__(self, in_chs: int, block: BlockSpec, spec: NetworkSpec) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_chs, ConvSpec(block.mid_chs, 1), spec)
        self.conv2 = ConvNormAct(block.mid_chs, ConvSpec(block.out_chs - in_chs, 3), spec)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv2(self.conv1(x))], dim=1)


class TwoWayDenseLayer(nn.Module):
    """PeleeNet's layer: 1x1, 3x3 beside 1x1, 3x3, 3x3, each half of the growth, behind the input's channels.

    Source: Pelee, arXiv 1804.06882, section 2.1.
    """

    def __init__(self, in_chs: int, block: BlockSpec, spec: NetworkSpec) -> None:
        super().__init__()
        half_chs = (block.out_chs - in_chs) // 2
        self.branch1 = nn.Sequential(
            ConvNormAct(in_chs, ConvSpec(block.mid_chs, 1), spec),
            ConvNormAct(block.mid_chs, ConvSpec(half_chs, 3), spec),
        )
        self.branch2 = nn.Sequential(
            ConvNormAct(in_chs, ConvSpec(block.mid_chs, 1), spec),
            ConvNormAct(block.mid_chs, ConvSpec(half_chs, 3), spec),
            ConvNormAct(half_chs, ConvSpec(half_chs, 3), spec),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.branch1(x), self.branch2(x)], dim=1)


BLOCKS: dict[Block, Callable[[int, BlockSpec, NetworkSpec], nn.Module]] = {
    "dark": DarkBlock,
    "bottleneck": BottleneckBlock,
    "basic": BasicBlock,
    "elastic_dark": ElasticDarkBlock,
    "elastic_bottleneck": ElasticBottleneckBlock,
    "inverted": InvertedBlock,
    "dense": DenseLayer,
    "two_way_dense": TwoWayDenseLayer,
}
