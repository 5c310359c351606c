"""mmpretrain's and DeepSpark's networks, written anew from their attribute names and graphs; nothing here knows ours.

Source: mmpretrain/models/backbones/cspnet.py; DeepSparkHub cv/classification/cspdarknet53/pytorch/model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# mmpretrain


class ConvModule(nn.Module):
    def __init__(
        self, in_chs: int, out_chs: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_chs)
        self.activate = nn.LeakyReLU(0.01) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.bn(self.conv(x)))


class DarknetBottleneck(nn.Module):
    def __init__(self, chs: int, mid: int, groups: int) -> None:
        super().__init__()
        self.conv1 = ConvModule(chs, mid, 1)
        self.conv2 = ConvModule(mid, chs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x)) + x


class ResNetBottleneck(nn.Module):
    def __init__(self, chs: int, mid: int, groups: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(chs, mid, 1, bias=False), nn.BatchNorm2d(mid)
        self.conv2, self.bn2 = nn.Conv2d(mid, mid, 3, 1, 1, groups=groups, bias=False), nn.BatchNorm2d(mid)
        self.conv3, self.bn3 = nn.Conv2d(mid, chs, 1, bias=False), nn.BatchNorm2d(chs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.bn1(self.conv1(x)), 0.01)
        y = F.leaky_relu(self.bn2(self.conv2(y)), 0.01)
        return F.leaky_relu(self.bn3(self.conv3(y)) + x, 0.01)


class CspStage(nn.Module):
    def __init__(
        self, kind: str, in_chs: int, down: int, exp: int, mid: int, out: int, depth: int, has_down: bool
    ) -> None:
        super().__init__()
        groups = 32 if kind == "resnext" else 1
        block = DarknetBottleneck if kind == "dark" else ResNetBottleneck
        self.downsample_conv: nn.Module = nn.Identity()
        if has_down:
            self.downsample_conv = ConvModule(in_chs, down, 3, 2, groups)
        self.expand_conv = ConvModule(down, exp, 1, act=kind == "dark")
        self.blocks = nn.Sequential(*(block(exp // 2, mid, groups) for _ in range(depth)))
        self.atfer_blocks_conv = ConvModule(exp // 2, exp // 2, 1)
        self.final_conv = ConvModule(exp, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand_conv(self.downsample_conv(x))
        first, second = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        return self.final_conv(torch.cat((first, self.atfer_blocks_conv(self.blocks(second))), dim=1))


class Backbone(nn.Module):
    def __init__(self, kind: str, stem_chs: int, rows: Sequence[tuple[Any, ...]]) -> None:
        super().__init__()
        if kind == "dark":
            self.stem: nn.Module = ConvModule(3, stem_chs, 3)
        else:
            self.stem = nn.Sequential(ConvModule(3, stem_chs, 7, 2), nn.MaxPool2d(3, 2, 1))
        stages = []
        for depth, down, exp, mid, out, has_down in rows:
            stages.append(CspStage(kind, stem_chs, down, exp, mid, out, depth, has_down))
            stem_chs = out
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))


class LinearClsHead(nn.Module):
    def __init__(self, in_chs: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(in_chs, num_classes)


class ImageClassifier(nn.Module):
    def __init__(self, backbone: Backbone, in_chs: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = LinearClsHead(in_chs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head.fc(self.backbone(x).mean((2, 3)))


# (depth, down, expanded, inside the blocks, out, has a down convolution)
MMPRETRAIN = {
    "cspdarknet53": (
        *("dark", 32),
        (
            (1, 64, 128, 32, 64, True),
            (2, 128, 128, 64, 128, True),
            (8, 256, 256, 128, 256, True),
            (8, 512, 512, 256, 512, True),
            (4, 1024, 1024, 512, 1024, True),
        ),
    ),
    "cspresnet50": (
        *("resnet", 64),
        (
            (3, 64, 256, 64, 128, False),
            (3, 128, 512, 128, 256, True),
            (5, 256, 1024, 256, 512, True),
            (2, 512, 2048, 512, 1024, True),
        ),
    ),
    "cspresnext50": (
        *("resnext", 64),
        (
            (3, 64, 256, 128, 256, False),
            (3, 256, 512, 256, 512, True),
            (5, 512, 1024, 512, 1024, True),
            (2, 1024, 2048, 1024, 2048, True),
        ),
    ),
}


def create_mmpretrain(name: str, num_classes: int) -> nn.Module:
    kind, stem_chs, rows = MMPRETRAIN[name]
    return ImageClassifier(Backbone(kind, stem_chs, rows), rows[-1][4], num_classes)


# DeepSpark


class Conv2dBatchLeaky(nn.Module):
    """Its default is leaky; the network asks for Mish everywhere."""

    def __init__(self, in_chs: int, out_chs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        conv = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, bias=False)
        self.layers = nn.Sequential(conv, nn.BatchNorm2d(out_chs), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class SmallBlock(nn.Module):
    def __init__(self, chs: int) -> None:
        super().__init__()
        self.features = nn.Sequential(Conv2dBatchLeaky(chs, chs, 1), Conv2dBatchLeaky(chs, chs, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.features(x)


class Stage2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Conv2dBatchLeaky(32, 64, 3, 2)
        self.split0 = Conv2dBatchLeaky(64, 64, 1)
        self.split1 = Conv2dBatchLeaky(64, 64, 1)
        self.conv2 = Conv2dBatchLeaky(64, 32, 1)
        self.conv3 = Conv2dBatchLeaky(32, 64, 3)
        self.conv4 = Conv2dBatchLeaky(64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        y = self.split1(x)
        return torch.cat([self.split0(x), self.conv4(y + self.conv3(self.conv2(y)))], dim=1)


class Stage3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Conv2dBatchLeaky(128, 64, 1)
        self.conv2 = Conv2dBatchLeaky(64, 128, 3, 2)
        self.split0 = Conv2dBatchLeaky(128, 64, 1)
        self.split1 = Conv2dBatchLeaky(128, 64, 1)
        self.block1 = SmallBlock(64)
        self.block2 = SmallBlock(64)
        self.conv3 = Conv2dBatchLeaky(64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))
        return torch.cat([self.split0(x), self.conv3(self.block2(self.block1(self.split1(x))))], dim=1)


class Stage(nn.Module):
    def __init__(self, chs: int, depth: int) -> None:
        super().__init__()
        self.conv1 = Conv2dBatchLeaky(chs, chs, 1)
        self.conv2 = Conv2dBatchLeaky(chs, 2 * chs, 3, 2)
        self.split0 = Conv2dBatchLeaky(2 * chs, chs, 1)
        self.split1 = Conv2dBatchLeaky(2 * chs, chs, 1)
        self.blocks = nn.Sequential(*(SmallBlock(chs) for _ in range(depth)))
        self.conv4 = Conv2dBatchLeaky(chs, chs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))
        return torch.cat([self.split0(x), self.conv4(self.blocks(self.split1(x)))], dim=1)


class CsDarkNet53(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stage1 = Conv2dBatchLeaky(3, 32, 3)
        self.stage2 = Stage2()
        self.stage3 = Stage3()
        self.stage4 = Stage(128, 8)
        self.stage5 = Stage(256, 8)
        self.stage6 = Stage(512, 4)
        self.conv = Conv2dBatchLeaky(1024, 1024, 1)
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage6(self.stage5(self.stage4(self.stage3(self.stage2(self.stage1(x))))))
        return self.fc(self.conv(x).mean((2, 3)))
