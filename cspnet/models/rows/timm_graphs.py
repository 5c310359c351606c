"""The graphs of timm: logits and gradients equal to timm's, under its key names.

A stage is written (depth, stride, down, cross, block, mid, out); see `csp`.
Source: timm/models/cspnet.py; CSPNet, arXiv 1911.11929, table 3. The authors' cfg files have another graph for
CSPResNe(X)t: see darknet_cfgs.py.
"""

from __future__ import annotations

from dataclasses import replace

from cspnet.models.rows.entry import Published, ZooEntry, csp, stem
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

_SOURCE = "timm/models/cspnet.py"
# RMSProp, RandAugment, moving average; validated at 256 px, crop ratio 0.887. Not what SGD with a poly schedule gives.
_RA = "timm results-imagenet.csv, ra_in1k weights (another training than the authors')"


def _timm(
    spec: NetworkSpec, params: int, baseline: str, acc1: float | None = None, acc5: float | None = None
) -> ZooEntry:
    published = Published(None, None, acc1, acc5, _RA) if acc1 else None
    return ZooEntry(spec, _SOURCE, params, baseline=baseline, published=published)


ROWS = {
    "cspdarknet53": _timm(_CSPDARKNET53, 27_642_184, "darknet53", 80.078, 95.060),
    "cspdarknet53_mish": ZooEntry(
        replace(_CSPDARKNET53, activation="mish"),
        "DeepSparkHub cspdarknet53 (timm's graph with Mish)",
        27_642_184,
        baseline="darknet53",
        published=Published(None, None, 76.644, None, "DeepSparkHub cspdarknet53 README, at 224 px"),
    ),
    "cspresnet50": _timm(_CSPRESNET50, 21_616_168, "resnet50_darknet", 79.578, 94.698),
    "cspresnet50d": _timm(_CSPRESNET50D, 21_635_400, "resnet50_darknet"),
    "cspresnet50w": _timm(_CSPRESNET50W, 28_118_216, "resnet50_darknet"),
    "cspresnext50": _timm(_CSPRESNEXT50, 20_569_896, "resnext50_darknet", 80.548, 95.330),
}
