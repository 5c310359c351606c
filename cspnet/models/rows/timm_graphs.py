"""The graphs of timm: logits and gradients equal to timm's, under its key names.

A stage is written (depth, stride, down, cross, block, mid, out); see `csp`.
Source: timm/models/cspnet.py; CSPNet, arXiv 1911.11929, table 3. The authors' cfg files have another graph for
CSPResNe(X)t: see darknet_cfgs.py.
"""

from __future__ import annotations

from dataclasses import replace

from cspnet.models.rows.entry import ZooEntry, csp, stem
from cspnet.models.spec import NetworkSpec

__all__ = ["DARK53_STAGES", "ROWS"]

DARK53_STAGES = (
    (1, 2, 64, 64, 64, 32, 64),
    (2, 2, 128, 64, 64, 64, 128),
    (8, 2, 256, 128, 128, 128, 256),
    (8, 2, 512, 256, 256, 256, 512),
    (4, 2, 1024, 512, 512, 512, 1024),
)
_CSPDARKNET53 = NetworkSpec(stem(32), tuple(csp(*row) for row in DARK53_STAGES))

_CSPRESNET50 = NetworkSpec(
    stem(64, kernel_px=7, stride=2, pool="max3"),
    tuple(
        csp(*row, kind="bottleneck", split_act=False)
        for row in (
            (3, 1, 64, 128, 128, 64, 128),
            (3, 2, 128, 256, 256, 128, 256),
            (5, 2, 256, 512, 512, 256, 512),
            (2, 2, 512, 1024, 1024, 512, 1024),
        )
    ),
)
_DEEP_STEM = stem(32, 32, 64, stride=2, pool="max3")
_CSPRESNET50D = replace(_CSPRESNET50, stem=_DEEP_STEM)
_CSPRESNET50W = NetworkSpec(
    _DEEP_STEM,
    tuple(
        csp(*row, kind="bottleneck", split_act=False)
        for row in (
            (3, 1, 64, 128, 128, 32, 256),
            (3, 2, 256, 256, 256, 64, 512),
            (5, 2, 512, 512, 512, 128, 1024),
            (2, 2, 1024, 1024, 1024, 256, 2048),
        )
    ),
)
_CSPRESNEXT50 = NetworkSpec(
    stem(64, kernel_px=7, stride=2, pool="max3"),
    tuple(
        csp(*row, kind="bottleneck", groups=32, split_act=False)
        for row in (
            (3, 1, 64, 128, 128, 128, 256),
            (3, 2, 256, 256, 256, 256, 512),
            (5, 2, 512, 512, 512, 512, 1024),
            (2, 2, 1024, 1024, 1024, 1024, 2048),
        )
    ),
)

_TIMM = "timm/models/cspnet.py"

ROWS = {
    "cspdarknet53": ZooEntry(_CSPDARKNET53, _TIMM, 27_642_184, baseline="darknet53"),
    "cspdarknet53_mish": ZooEntry(
        replace(_CSPDARKNET53, activation="mish"),
        "DeepSparkHub cspdarknet53 (timm's graph with Mish)",
        27_642_184,
        baseline="darknet53",
    ),
    "cspresnet50": ZooEntry(_CSPRESNET50, _TIMM, 21_616_168, baseline="resnet50_darknet"),
    "cspresnet50d": ZooEntry(_CSPRESNET50D, _TIMM, 21_635_400, baseline="resnet50_darknet"),
    "cspresnet50w": ZooEntry(_CSPRESNET50W, _TIMM, 28_118_216, baseline="resnet50_darknet"),
    "cspresnext50": ZooEntry(_CSPRESNEXT50, _TIMM, 20_569_896, baseline="resnext50_darknet"),
}
