"""The graphs of the authors' cfg files, CSP networks and the baselines they are compared with.

They differ from timm's: leaky slope 0.1, a 2x2 pool, (block, cross) in the concatenation, and in CSPResNe(X)t an uneven
first stage and a split that is activated in the first and the last stage.
Source: WongKinYiu/CrossStagePartialNetworks cfg/*.cfg; published figures: its README and imagenet/results.md.
"""

from __future__ import annotations

from dataclasses import replace

from cspnet.models.rows.entry import Published, ZooEntry, csp, stem
from cspnet.models.rows.timm_graphs import DARK53_STAGES
from cspnet.models.spec import Activation, BlockSpec, ConvSpec, NetworkSpec, StageSpec, StemSpec

__all__ = ["ROWS", "darknet_network"]


def darknet_network(
    stem: StemSpec, *stages: StageSpec, activation: Activation = "leaky_relu", head_chs: int = 0
) -> NetworkSpec:
    """A network with Darknet's leaky slope and initialisation."""
    return NetworkSpec(stem, stages, head_chs, activation, leaky_slope=0.1, zero_init_last=False, init="darknet")


_DARK_STEM = stem(32)
_RES_STEM = stem(64, kernel_px=7, stride=2, pool="max2")

_CSDARKNET53 = darknet_network(_DARK_STEM, *(csp(*row, block_first=True) for row in DARK53_STAGES))
_CSDARKNET53_ELASTIC = darknet_network(
    _DARK_STEM,
    csp(1, 2, 64, 64, 64, 32, 64, kind="elastic_dark", block_first=True),
    csp(2, 2, 128, 64, 64, 32, 128, kind="elastic_dark", block_first=True),
    csp(8, 2, 256, 128, 128, 64, 256, kind="elastic_dark", block_first=True),
    csp(8, 2, 512, 256, 256, 128, 512, kind="elastic_dark", block_first=True),
    csp(4, 2, 1024, 512, 512, 256, 1024, kind="elastic_dark", block_first=True),
)


def _cs_bottleneck(groups: int, *rows: tuple[int, int, int, int, int, int, int]) -> NetworkSpec:
    """The first stage is uneven: its blocks start from half the width, and the first shortcut adds what fits."""
    ends = (0, len(rows) - 1)
    return darknet_network(
        _RES_STEM,
        *(
            csp(
                *row,
                kind="bottleneck",
                groups=groups,
                split_act=i in ends,
                block_in=row[4] // 2 if i == 0 else 0,
                block_first=True,
            )
            for i, row in enumerate(rows)
        ),
    )


def _cs_elastic(groups: int, *rows: tuple[int, int, int, int, int, int, int]) -> NetworkSpec:
    """Even stages; the branches have half the groups, the down convolutions all of them."""
    ends = (0, len(rows) - 1)
    stages = (
        csp(*row, kind="elastic_bottleneck", groups=groups, split_act=i in ends, block_first=True)
        for i, row in enumerate(rows)
    )
    half_groups = max(1, groups // 2)
    return darknet_network(
        _RES_STEM,
        *(replace(s, blocks=tuple(replace(block, groups=half_groups) for block in s.blocks)) for s in stages),
    )


_CSRESNET50 = _cs_bottleneck(
    1,
    (3, 1, 64, 128, 128, 64, 128),
    (3, 2, 128, 256, 256, 128, 256),
    (5, 2, 256, 512, 512, 256, 512),
    (2, 2, 512, 1024, 1024, 512, 1024),
)
_CSRESNET50_ELASTIC = _cs_elastic(
    1,
    (3, 1, 64, 128, 128, 64, 128),
    (3, 2, 128, 256, 256, 128, 256),
    (5, 2, 256, 512, 512, 256, 512),
    (2, 2, 512, 1024, 1024, 512, 1024),
)
_CSRESNEXT50 = _cs_bottleneck(
    32,
    (3, 1, 64, 128, 128, 128, 256),
    (3, 2, 256, 256, 256, 256, 512),
    (5, 2, 512, 512, 512, 512, 1024),
    (2, 2, 1024, 1024, 1024, 1024, 2048),
)
_CSRESNEXT50_ELASTIC = _cs_elastic(
    32,
    (3, 1, 64, 128, 128, 64, 256),
    (3, 2, 256, 256, 256, 128, 512),
    (5, 2, 512, 512, 512, 256, 1024),
    (2, 2, 1024, 1024, 1024, 512, 2048),
)

_DARKNET53 = darknet_network(
    _DARK_STEM,
    *(
        StageSpec((BlockSpec("dark", out // 2, out),) * depth, ConvSpec(out, 3, 2), block_chs=out)
        for depth, out in ((1, 64), (2, 128), (8, 256), (8, 512), (4, 1024))
    ),
)


def _plain_bottleneck(groups: int, *rows: tuple[int, int, int, int, int]) -> NetworkSpec:
    """Rows (depth, stride, in, mid, out): no projection, the shortcut adds what fits."""
    return darknet_network(
        _RES_STEM,
        *(
            StageSpec(
                (
                    BlockSpec("bottleneck", mid, out, stride, groups),
                    *(BlockSpec("bottleneck", mid, out, groups=groups),) * (depth - 1),
                ),
                block_chs=in_chs,
            )
            for depth, stride, in_chs, mid, out in rows
        ),
    )


_RESNET50 = _plain_bottleneck(
    1, (3, 1, 64, 64, 256), (4, 2, 256, 128, 512), (6, 2, 512, 256, 1024), (3, 2, 1024, 512, 2048)
)
_RESNEXT50 = _plain_bottleneck(
    32, (3, 1, 64, 128, 256), (4, 2, 256, 256, 512), (6, 2, 512, 512, 1024), (3, 2, 1024, 1024, 2048)
)
_RESNET10 = darknet_network(
    _RES_STEM,
    *(
        StageSpec((BlockSpec("basic", out, out, stride),), block_chs=in_chs)
        for stride, in_chs, out in ((1, 64, 64), (2, 64, 128), (2, 128, 256), (2, 256, 512))
    ),
)


def _inverted(expand: int, mid: int, out: int, stride: int = 1) -> BlockSpec:
    return BlockSpec("inverted", mid, out, stride, expand_chs=expand)


_MOBILENET_V2 = darknet_network(
    stem(32, stride=2),
    StageSpec((_inverted(32, 32, 16),), block_chs=32),
    StageSpec((_inverted(96, 96, 24, 2), _inverted(144, 144, 24)), block_chs=16),
    StageSpec(
        (
            _inverted(144, 144, 32, 2),
            *(_inverted(192, 192, 32),) * 2,
            _inverted(192, 192, 64),
            *(_inverted(384, 384, 64),) * 3,
        ),
        block_chs=24,
    ),
    StageSpec((_inverted(384, 384, 96, 2), *(_inverted(576, 576, 96),) * 2), block_chs=64),
    StageSpec((_inverted(576, 576, 160, 2), *(_inverted(960, 960, 160),) * 2, _inverted(960, 960, 320)), block_chs=96),
    head_chs=1280,
    activation="relu",
)


def _cs_mobile(entry: int, stride: int, *blocks: BlockSpec) -> StageSpec:
    """A cross stage with depthwise convolutions on both ways, from one 1x1 entry."""
    return StageSpec(
        blocks,
        down=ConvSpec(entry, 1),
        split="share",
        cross=ConvSpec(entry, 3, stride, groups=entry),
        cross_chs=entry,
        block_chs=entry,
        block_first=True,
    )


_CSMOBILENET_V2 = darknet_network(
    stem(32, stride=2),
    StageSpec(
        (_inverted(32, 32, 16),),
        split="share",
        cross=ConvSpec(16, 3, groups=16),
        cross_chs=16,
        block_chs=32,
        block_first=True,
    ),
    _cs_mobile(48, 2, _inverted(0, 96, 24, 2), _inverted(72, 144, 24)),
    _cs_mobile(
        72,
        2,
        _inverted(0, 144, 32, 2),
        *(_inverted(96, 192, 32),) * 2,
        _inverted(96, 192, 64),
        *(_inverted(192, 384, 64),) * 3,
    ),
    _cs_mobile(192, 2, _inverted(0, 384, 96, 2), *(_inverted(288, 576, 96),) * 2),
    _cs_mobile(288, 2, _inverted(0, 576, 160, 2), *(_inverted(480, 960, 160),) * 2, _inverted(480, 960, 320)),
    head_chs=640,
    activation="relu",
)


def _row(
    spec: NetworkSpec,
    cfg: str,
    params: int,
    published: tuple[float | None, float | None, float, float],
    *,
    baseline: str | None = None,
    input_px: int = 256,
    table: str = "README",
) -> ZooEntry:
    source = f"WongKinYiu/CrossStagePartialNetworks {table}"
    return ZooEntry(
        spec, f"cfg/{cfg}.cfg of the authors", params, "exact", input_px, baseline, Published(*published, source)
    )


def _mish(spec: NetworkSpec) -> NetworkSpec:
    return replace(spec, activation="mish")


_RESULTS = "imagenet/results.md"

ROWS = {
    "darknet53": _row(_DARKNET53, "darknet53", 41_609_928, (41.57, 18.57, 77.2, 93.8)),
    "csdarknet53": _row(_CSDARKNET53, "csdarknet53", 27_642_184, (27.61, 13.07, 77.2, 93.6), baseline="darknet53"),
    "csdarknet53_omega": _row(
        _mish(_CSDARKNET53),
        "csdarknet53-omega",
        27_642_184,
        (27.61, 13.07, 78.7, 94.8),
        baseline="darknet53",
        table=_RESULTS,
    ),
    "csdarknet53_elastic": _row(
        _CSDARKNET53_ELASTIC, "csdarknet53-elastic", 19_081_608, (None, 7.74, 76.1, 93.3), baseline="darknet53"
    ),
    # cfg/resnet50.cfg classifies before it pools, 10.007 BFLOPs; the README's figure is that of the unfinished file.
    "resnet50_darknet": replace(
        _row(_RESNET50, "resnet50", 22_780_456, (22.73, 9.74, 75.8, 92.9)),
        source="resnet50-leaky.cfg of the authors, in progress",
    ),
    "csresnet50": _row(_CSRESNET50, "csresnet50", 21_607_848, (21.57, 8.97, 76.6, 93.3), baseline="resnet50_darknet"),
    "csresnet50_omega": _row(
        _mish(_CSRESNET50),
        "csresnet50-omega",
        21_607_848,
        (21.57, 8.97, 78.1, 94.2),
        baseline="resnet50_darknet",
        table=_RESULTS,
    ),
    "csresnet50_elastic": _row(
        _CSRESNET50_ELASTIC, "csresnet50-elastic", 29_848_360, (None, 9.36, 76.8, 93.5), baseline="resnet50_darknet"
    ),
    "resnext50_darknet": _row(_RESNEXT50, "resnext50", 22_252_328, (22.19, 10.11, 77.8, 94.2)),
    "csresnext50": _row(
        _CSRESNEXT50, "csresnext50", 20_557_480, (20.50, 7.93, 77.9, 94.0), baseline="resnext50_darknet"
    ),
    "csresnext50_omega": _row(
        _mish(_CSRESNEXT50),
        "csresnext50-omega",
        20_557_480,
        (20.50, 7.93, 79.8, 95.2),
        baseline="resnext50_darknet",
        table=_RESULTS,
    ),
    "csresnext50_elastic": _row(
        _CSRESNEXT50_ELASTIC, "csresnext50-elastic", 16_916_264, (None, 5.45, 77.2, 93.8), baseline="resnext50_darknet"
    ),
    "mobilenet_v2_darknet": _row(_MOBILENET_V2, "mobilenet-v2", 3_505_960, (3.47, 0.858, 67.0, 87.7), input_px=224),
    "csmobilenet_v2": _row(
        _CSMOBILENET_V2,
        "csmobilenet-v2",
        2_541_424,
        (2.51, 0.764, 67.7, 88.3),
        baseline="mobilenet_v2_darknet",
        input_px=224,
    ),
    "resnet10": _row(_RESNET10, "resnet10", 5_244_968, (5.24, 2.273, 63.5, 85.0)),
}
