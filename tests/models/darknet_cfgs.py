"""The authors' Darknet cfg files, written anew from their tables; nothing here knows the project's own networks.

Source: WongKinYiu/CrossStagePartialNetworks, cfg/ (layers, widths, strides, activations); CSPNet, arXiv 1911.11929.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

__all__ = ["CFGS", "CfgWriter"]


class CfgWriter:
    """Collects sections. Layers are named by their number; the text refers to them as the authors do, by distance."""

    def __init__(self, input_px: int, act: str) -> None:
        self.text = f"[net]\n# Training\nbatch=128\nsubdivisions=4\n\nheight={input_px}\nwidth={input_px}\nchannels=3\n"
        self.text += "learning_rate=0.1\npolicy=poly\npower=4\nmax_batches=800000\nangle=7\nhue=.1\n"
        self.act = act
        self.last = -1

    def add(self, name: str, **options: object) -> int:
        """One section; returns its number."""
        self.text += f"\n[{name}]\n" + "".join(f"{key}={value}\n" for key, value in options.items())
        self.last += 1
        return self.last

    def conv(
        self, filters: int, size: int = 1, stride: int = 1, groups: int = 1, act: str = "", bn: bool = True
    ) -> int:
        options: dict[str, object] = {"batch_normalize": 1} if bn else {}
        options |= {"filters": filters, "size": size, "stride": stride, "pad": 1}
        return self.add(
            "convolutional", **options, **({"groups": groups} if groups > 1 else {}), activation=act or self.act
        )

    def route(self, *layers: int, **options: int) -> int:
        distances = ", ".join(str(layer - self.last - 1) for layer in layers)
        return self.add("route", layers=distances, **options)

    def shortcut(self, layer: int, act: str = "linear") -> int:
        return self.add("shortcut", **{"from": layer - self.last - 1, "activation": act})

    def head(self, pool_first: bool = True) -> str:
        """Pool, classifier, softmax; returns the whole text."""
        if pool_first:
            self.add("avgpool")
        self.conv(1000, act="linear", bn=False)
        if not pool_first:
            self.add("avgpool")
        self.add("softmax", groups=1)
        return self.text


def dark_block(cfg: CfgWriter, mid: int, out: int) -> None:
    start = cfg.last
    cfg.conv(mid)
    cfg.conv(out, 3)
    cfg.shortcut(start)


def bottleneck(cfg: CfgWriter, mid: int, out: int, groups: int = 1, stride: int = 1) -> None:
    start = cfg.last
    cfg.conv(mid)
    cfg.conv(mid, 3, stride, groups)
    cfg.conv(out, act="linear")
    cfg.shortcut(start, cfg.act)


def elastic(cfg: CfgWriter, branch: Callable[[], int], act: str) -> None:
    """The first half of the channels as it is, the second at half the size; `branch` is written twice."""
    start = cfg.last
    cfg.route(start, group_id=0, groups=2)
    high = branch()
    cfg.route(start, group_id=1, groups=2)
    cfg.add("maxpool", size=2, stride=2)
    branch()
    low = cfg.add("upsample", stride=2)
    cfg.route(high, low)
    cfg.shortcut(start, act)


def elastic_dark_block(cfg: CfgWriter, mid: int, out: int) -> None:
    def branch() -> int:
        cfg.conv(out // 2)
        return cfg.conv(out // 2, 3)

    elastic(cfg, branch, "linear")


def elastic_bottleneck(cfg: CfgWriter, mid: int, out: int, groups: int = 1) -> None:
    def branch() -> int:
        cfg.conv(out // 2)
        cfg.conv(out // 2, 3, groups=groups // 2 or 1)
        return cfg.conv(out // 2, act="linear")

    elastic(cfg, branch, cfg.act)


def cross_stage(
    cfg: CfgWriter, depth: int, part: int, block_in: int, out: int, split_act: str, block: Callable[[], None]
) -> None:
    """Both parts are `part` wide where they meet; the blocks may start narrower (`block_in`)."""
    entry = cfg.last
    crossing = cfg.conv(part, act=split_act)
    cfg.route(entry)
    cfg.conv(block_in, act=split_act)
    for _ in range(depth):
        block()
    cfg.route(cfg.conv(part), crossing)
    cfg.conv(out)


def csdarknet53(act: str = "leaky", block: Callable[[CfgWriter, int, int], None] = dark_block) -> str:
    cfg = CfgWriter(256, act)
    cfg.conv(32, 3)
    for depth, out, part, mid in (
        (1, 64, 64, 32),
        (2, 128, 64, 64),
        (8, 256, 128, 128),
        (8, 512, 256, 256),
        (4, 1024, 512, 512),
    ):
        cfg.conv(out, 3, 2)
        cross_stage(cfg, depth, part, part, out, act, partial(block, cfg, mid, part))
    return cfg.head()


def _csres(
    out_ratio: int, bottle_ratio: int, groups: int, act: str, block: Callable[..., None], first_block: int
) -> str:
    """CSPResNet, whose width doubles in the split, and CSPResNeXt, whose width doubles in the transition."""
    cfg = CfgWriter(256, act)
    cfg.conv(64, 7, 2)
    cfg.add("maxpool", size=2, stride=2)
    for number, depth in enumerate((3, 3, 5, 2)):
        part = 128 * 2**number
        if number:
            cfg.conv(part * out_ratio // 2, 3, 2, groups)
        block_in = part if number else first_block
        split_act = "linear" if number in (1, 2) else act
        write_block = partial(block, cfg, part // bottle_ratio, part, groups)
        cross_stage(cfg, depth, part, block_in, part * out_ratio, split_act, write_block)
    return cfg.head()


def csresnet50(act: str = "leaky", block: Callable[..., None] = bottleneck, first_block: int = 64) -> str:
    return _csres(1, 2, 1, act, block, first_block)


def csresnext50(act: str = "leaky", block: Callable[..., None] = bottleneck, first_block: int = 64) -> str:
    return _csres(2, 1, 32, act, block, first_block)


def csmobilenet_v2() -> str:
    cfg = CfgWriter(224, "relu")
    cfg.conv(32, 3, 2)
    crossing = cfg.conv(16, 3, groups=16)
    cfg.route(0)
    cfg.conv(32)
    cfg.conv(32, 3, groups=32)
    cfg.route(cfg.conv(16, act="linear"), crossing)
    for entry, widths in ((48, [24] * 2), (72, [32] * 3 + [64] * 4), (192, [96] * 3), (288, [160] * 3 + [320])):
        split = cfg.conv(entry)
        crossing = cfg.conv(entry, 3, 2, entry)
        cfg.route(split)
        cfg.conv(2 * entry, 3, 2, entry)
        block = cfg.conv(widths[0], act="linear")
        for in_chs, out_chs in itertools.pairwise(widths):
            cfg.conv(3 * in_chs)
            cfg.conv(6 * in_chs, 3, groups=3 * in_chs)
            start, block = block, cfg.conv(out_chs, act="linear")
            if in_chs == out_chs:
                block = cfg.shortcut(start)
        cfg.route(block, crossing)
    cfg.conv(640)
    return cfg.head()


def mobilenet_v2() -> str:
    cfg = CfgWriter(224, "relu")
    cfg.conv(32, 3, 2)
    in_chs, expansion = 32, 1
    for out_chs, depth, stride in (
        (16, 1, 1),
        (24, 2, 2),
        (32, 3, 2),
        (64, 4, 1),
        (96, 3, 2),
        (160, 3, 2),
        (320, 1, 1),
    ):
        for number in range(depth):
            start = cfg.last
            cfg.conv(expansion * in_chs)
            cfg.conv(expansion * in_chs, 3, stride if number == 0 else 1, groups=expansion * in_chs)
            cfg.conv(out_chs, act="linear")
            if number:
                cfg.shortcut(start)
            in_chs, expansion = out_chs, 6
    cfg.conv(1280)
    return cfg.head()


def enetb0() -> str:
    """EfficientNet-B0 of the authors: squeeze and excitation, dropout in front of the shortcuts."""
    cfg = CfgWriter(224, "swish")
    cfg.conv(32, 3, 2)
    in_chs = 32
    for wide, size, stride, squeeze, out_chs in (
        (32, 3, 1, 8, 16),
        *((96, 3, 2, 16, 24), (144, 3, 1, 8, 24)),
        *((144, 5, 2, 8, 40), (192, 5, 1, 16, 40)),
        *((192, 3, 1, 16, 80), (384, 3, 1, 24, 80), (384, 3, 1, 24, 80)),
        *((384, 5, 2, 24, 112), (576, 5, 1, 32, 112), (576, 5, 1, 32, 112)),
        *((576, 5, 2, 32, 192), (960, 5, 1, 64, 192), (960, 5, 1, 64, 192), (960, 5, 1, 64, 192)),
        (960, 3, 1, 64, 320),
    ):
        start = cfg.last
        cfg.conv(wide)
        depthwise = cfg.conv(wide, size, stride, wide)
        cfg.add("avgpool")
        cfg.conv(squeeze, bn=False)
        cfg.conv(wide, act="logistic", bn=False)
        cfg.add("scale_channels", **{"from": depthwise - cfg.last - 1})
        cfg.conv(out_chs, act="linear")
        if in_chs == out_chs:
            cfg.add("dropout", probability=".2")
            cfg.shortcut(start)
        in_chs = out_chs
    cfg.conv(1280)
    cfg.add("avgpool")
    cfg.add("dropout", probability=".2")
    cfg.conv(1000, act="linear", bn=False)
    cfg.add("softmax", groups=1)
    return cfg.text


def resnet10() -> str:
    cfg = CfgWriter(256, "leaky")
    cfg.conv(64, 7, 2)
    cfg.add("maxpool", size=2, stride=2)
    for chs in (64, 128, 256, 512):
        start = cfg.last
        cfg.conv(chs, 3, 1 if chs == 64 else 2)
        cfg.conv(chs, 3, act="linear")
        cfg.shortcut(start, "leaky")
    return cfg.head()


def resnet50(width: int = 64, groups: int = 1, pool_first: bool = True) -> str:
    """ResNet-50 without convolutions in its shortcuts; with width=128 and groups=32 ResNeXt-50."""
    cfg = CfgWriter(256, "leaky")
    cfg.conv(64, 7, 2)
    cfg.add("maxpool", size=2, stride=2)
    for stage, depth in enumerate((3, 4, 6, 3)):
        for number in range(depth):
            bottleneck(cfg, width * 2**stage, 256 * 2**stage, groups, 2 if stage and not number else 1)
    return cfg.head(pool_first)


def darknet53() -> str:
    cfg = CfgWriter(256, "leaky")
    cfg.conv(32, 3)
    for stage, depth in enumerate((1, 2, 8, 8, 4)):
        cfg.conv(64 * 2**stage, 3, 2)
        for _ in range(depth):
            dark_block(cfg, 32 * 2**stage, 64 * 2**stage)
    return cfg.head()


def darknet() -> str:
    """The Darknet reference network."""
    cfg = CfgWriter(256, "leaky")
    for chs in (16, 32, 64, 128, 256, 512):
        cfg.conv(chs, 3)
        cfg.add("maxpool", size=2, stride=2)
    cfg.conv(1024, 3)
    return cfg.head()


CFGS: dict[str, Callable[[], str]] = {
    "csdarknet53": csdarknet53,
    "csdarknet53_omega": partial(csdarknet53, "mish"),
    "csdarknet53_elastic": partial(csdarknet53, block=elastic_dark_block),
    "csresnet50": csresnet50,
    "csresnet50_omega": partial(csresnet50, "mish"),
    "csresnet50_elastic": partial(csresnet50, block=elastic_bottleneck, first_block=128),
    "csresnext50": csresnext50,
    "csresnext50_omega": partial(csresnext50, "mish"),
    "csresnext50_elastic": partial(csresnext50, block=elastic_bottleneck, first_block=128),
    "csmobilenet_v2": csmobilenet_v2,
    "mobilenet_v2_darknet": mobilenet_v2,
    "enetb0": enetb0,
    "resnet10": resnet10,
    "resnet50_darknet": resnet50,
    "resnext50_darknet": partial(resnet50, 128, 32),
    "darknet": darknet,
    "darknet53": darknet53,
}
