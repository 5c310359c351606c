"""The smallest parts: convolution + BatchNorm + activation, the shortcut, and the pools of the stems.

Attribute names are timm's, because they are the keys of the state_dict.
Source: timm/models/cspnet.py (layout); WongKinYiu/CrossStagePartialNetworks cfg/ (structure).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cspnet.models.spec import Activation, ConvSpec, NetworkSpec

__all__ = ["ConvNormAct", "Shortcut", "TwoWayPool", "create_activation", "set_drop_path"]


def create_activation(name: Activation, leaky_slope: float) -> nn.Module:
    """An activation module that works in place: its input is a BatchNorm output or a sum, which nobody else reads."""
    if name == "leaky_relu":
        return nn.LeakyReLU(leaky_slope, inplace=True)
    return {"relu": nn.ReLU, "silu": nn.SiLU, "mish": nn.Mish}[name](inplace=True)


class ConvNormAct(nn.Module):
    """Convolution without bias, BatchNorm (eps 1e-5), activation or none; padding keeps the size at stride 1."""

    def __init__(self, in_chs: int, conv: ConvSpec, spec: NetworkSpec) -> None:
        super().__init__()
        kernel_px = conv.kernel_px
        self.conv = nn.Conv2d(
            in_chs, conv.out_chs, kernel_px, conv.stride, kernel_px // 2, groups=conv.groups, bias=False
        )
        self.bn = nn.BatchNorm2d(conv.out_chs, momentum=spec.bn_momentum)
        self.act = create_activation(spec.activation, spec.leaky_slope) if conv.act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Shortcut(nn.Module):
    """Add an earlier tensor to a later one, without parameters, whatever their shapes.

    Where the earlier one has more pixels, every second (or n-th) is taken; where the widths differ, the channels that
    both have are added and the later tensor's others stay as they are.
    Source: darknet, blas.c `shortcut_cpu` (the program of 2019, which the published cfg files were trained with).
    """

    def __init__(self) -> None:
        super().__init__()
        self.drop_path: nn.Module = nn.Identity()

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:
        """(N, C, H, W) and (N, C', H', W') with H' >= H -> (N, C, H, W)."""
        x = self.drop_path(x)
        stride_y, stride_x = -(-earlier.shape[2] // x.shape[2]), -(-earlier.shape[3] // x.shape[3])
        if stride_y > 1 or stride_x > 1:
            earlier = earlier[:, :, ::stride_y, ::stride_x]
        chs, earlier_chs = x.shape[1], earlier.shape[1]
        if earlier_chs == chs:  # a slice of all channels would cost the backward pass a copy
            return x + earlier
        if earlier_chs > chs:
            return x + earlier[:, :chs]
        return torch.cat([x[:, :earlier_chs] + earlier, x[:, earlier_chs:]], dim=1)


def set_drop_path(stages: nn.Module, rate: float) -> None:
    """Stochastic depth: in training, leave out each picture's way through a residual block at random.

    The probability rises in even steps from 0 in the first block to `rate` in the last.
    Source: Deep networks with stochastic depth, arXiv 1603.09382; timm models/cspnet.py (drop_path_rate).
    """
    from torchvision.ops import StochasticDepth  # here, because torchvision takes a second to import

    shortcuts = [module for module in stages.modules() if isinstance(module, Shortcut)]
    for i, shortcut in enumerate(shortcuts):
        shortcut.drop_path = StochasticDepth(rate * i / max(1, len(shortcuts) - 1), "row")


class TwoWayPool(nn.Module):
    """PeleeNet's stem behind its first convolution: a strided convolution beside a max pool, joined, and mixed.

    Source: Pelee, arXiv 1804.06882, section 2.1 (stem block).
    """

    def __init__(self, chs: int, spec: NetworkSpec) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(chs, ConvSpec(chs // 2, 1), spec)
        self.conv2 = ConvNormAct(chs // 2, ConvSpec(chs, 3, stride=2), spec)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv3 = ConvNormAct(2 * chs, ConvSpec(chs, 1), spec)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H / 2, W / 2), rounded up."""
        return self.conv3(torch.cat([self.conv2(self.conv1(x)), self.pool(x)], dim=1))
