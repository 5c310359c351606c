"""The small parts: convolution + BatchNorm + activation, and the two residual blocks.

Attribute names are timm's, because they are the keys of the state_dict.
Source: timm/models/cspnet.py (layout); WongKinYiu/CrossStagePartialNetworks cfg/ (structure).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from cspnet.models.spec import Activation, Block, NetworkSpec

__all__ = ["BLOCKS", "BottleneckBlock", "ConvNormAct", "DarkBlock", "create_activation"]


def create_activation(name: Activation, leaky_slope: float) -> nn.Module:
    """An activation module that works in place: its input is a BatchNorm output or a sum, which nobody else reads."""
    if name == "leaky_relu":
        return nn.LeakyReLU(leaky_slope, inplace=True)
    return {"relu": nn.ReLU, "silu": nn.SiLU, "mish": nn.Mish}[name](inplace=True)


class ConvNormAct(nn.Module):
    """Convolution without bias, BatchNorm (eps 1e-5), activation or none; padding keeps the size at stride 1."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel_px: int,
        spec: NetworkSpec,
        *,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, kernel_px, stride, kernel_px // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_chs, momentum=spec.bn_momentum)
        self.act = create_activation(spec.activation, spec.leaky_slope) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class DarkBlock(nn.Module):
    """Darknet's residual block: 1x1, 3x3, add; nothing after the addition."""

    def __init__(self, chs: int, mid_chs: int, spec: NetworkSpec) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(chs, mid_chs, 1, spec)
        self.conv2 = ConvNormAct(mid_chs, chs, 3, spec, groups=spec.groups)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.conv2.bn

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x)) + x


class BottleneckBlock(nn.Module):
    """ResNet's and ResNeXt's block: 1x1, 3x3 (grouped), 1x1 without activation, add, activation."""

    def __init__(self, chs: int, mid_chs: int, spec: NetworkSpec) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(chs, mid_chs, 1, spec)
        self.conv2 = ConvNormAct(mid_chs, mid_chs, 3, spec, groups=spec.groups)
        self.conv3 = ConvNormAct(mid_chs, chs, 1, spec, act=False)
        self.act3 = create_activation(spec.activation, spec.leaky_slope)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.conv3.bn

    def forward(self, x: Tensor) -> Tensor:
        return self.act3(self.conv3(self.conv2(self.conv1(x))) + x)


BLOCKS: dict[Block, Callable[[int, int, NetworkSpec], nn.Module]] = {"dark": DarkBlock, "bottleneck": BottleneckBlock}
