"""Networks of the papers that have no public definition, as we read them; their counts are stated, not promised.

DenseNet and PeleeNet are built as their papers say, with Darknet's order (convolution, BatchNorm, activation). Their
CSP counterparts divide each stage's input, send one part through the dense layers, and mix twice.
Source: CSPNet, arXiv 1911.11929, section 3 and figure 3; DenseNet, arXiv 1608.06993, table 1; Pelee, arXiv 1804.06882,
table 1; published figures: the README of WongKinYiu/CrossStagePartialNetworks.
"""

from __future__ import annotations

from cspnet.models.rows.darknet_cfgs import darknet_network
from cspnet.models.rows.entry import Published, ZooEntry, csp, stem
from cspnet.models.spec import Block, BlockSpec, NetworkSpec, StagePool, StageSpec

__all__ = ["ROWS"]


def _dense_stage(
    in_chs: int, depth: int, mid_chs: int, out_chs: int, pools: bool, kind: Block, gamma: float, part: float = 1.0
) -> StageSpec:
    """Layers that each add 32 channels, a 1x1 transition to `out_chs`, and a 2x2 average pool or none.

    A plain stage pools behind its transition, a partial one in front of it: that is where the README's operations
    come out. `part` is the share of the blocks' width behind the first transition.
    """
    cross_chs = round(in_chs * gamma)
    block_chs = in_chs - cross_chs
    pool: StagePool = ("before" if gamma else "behind") if pools else "none"
    return StageSpec(
        blocks=tuple(BlockSpec(kind, mid_chs, block_chs + 32 * (i + 1)) for i in range(depth)),
        split="slice" if gamma else "none",
        cross_chs=cross_chs,
        block_chs=block_chs,
        fusion="csp" if gamma else "first",
        transition_chs=out_chs,
        part_chs=round((block_chs + 32 * depth) * part) if gamma and part < 1 else 0,
        pool=pool,
    )


def _densenet(*depths: int, gamma: float = 0.0) -> NetworkSpec:
    """Transitions halve the width; the last stage keeps its own, and has a transition only if it is partial.

    The first transition of a partial stage halves its part too: DenseNet's compression of 0.5.
    """
    stages = []
    in_chs = 64
    for i, depth in enumerate(depths):
        is_last = i == len(depths) - 1
        wide_chs = in_chs + 32 * depth
        stage = _dense_stage(in_chs, depth, 128, wide_chs // (1 if is_last else 2), not is_last, "dense", gamma, 0.5)
        if is_last and not gamma:
            stage = StageSpec(stage.blocks, block_chs=in_chs)
        stages.append(stage)
        in_chs = stage.out_chs
    return darknet_network(stem(64, kernel_px=7, stride=2, pool="max3"), *stages)


def _peleenet(gamma: float = 0.0) -> NetworkSpec:
    """Transitions keep the width; the bottlenecks are 1, 2, 4 and 4 times half the growth."""
    stages: list[StageSpec] = []
    in_chs = 32
    for depth, mid_chs in ((3, 16), (4, 32), (8, 64), (6, 64)):
        out_chs = in_chs + 32 * depth
        stages.append(_dense_stage(in_chs, depth, mid_chs, out_chs, len(stages) < 3, "two_way_dense", gamma))
        in_chs = out_chs
    return darknet_network(stem(32, stride=2, pool="two_way"), *stages)


_CSPRESNET10 = darknet_network(
    stem(64, kernel_px=7, stride=2, pool="max2"),
    csp(1, 1, 64, 32, 32, 16, 64, kind="basic", block_first=True),
    csp(1, 2, 64, 64, 64, 32, 128, kind="basic", block_first=True),
    csp(1, 2, 128, 128, 128, 64, 256, kind="basic", block_first=True),
    csp(1, 2, 256, 256, 256, 128, 512, kind="basic", block_first=True),
)

_DENSENET = "DenseNet, arXiv 1608.06993, activation last as in Darknet"
_README = "WongKinYiu/CrossStagePartialNetworks README (another definition: not a claim for this one)"


def _reading(
    spec: NetworkSpec,
    params: int,
    *,
    baseline: str | None = None,
    input_px: int = 224,
    published: Published | None = None,
    source: str = "our reading of CSPNet, arXiv 1911.11929",
) -> ZooEntry:
    return ZooEntry(spec, source, params, "reconstruction", input_px, baseline, published)


ROWS = {
    "densenet121": _reading(_densenet(6, 12, 24, 16), 7_915_688, source=_DENSENET),
    "densenet169": _reading(_densenet(6, 12, 32, 32), 14_019_496, source=_DENSENET),
    "densenet201": _reading(_densenet(6, 12, 48, 32), 19_818_920, source=_DENSENET),
    "cspdensenet121": _reading(_densenet(6, 12, 24, 16, gamma=0.5), 8_055_752, baseline="densenet121"),
    "cspdensenet169": _reading(_densenet(6, 12, 32, 32, gamma=0.5), 14_970_632, baseline="densenet169"),
    "cspdensenet201": _reading(_densenet(6, 12, 48, 32, gamma=0.5), 21_131_656, baseline="densenet201"),
    "peleenet": _reading(
        _peleenet(),
        2_802_248,
        published=Published(2.79, 1.017, 70.7, 90.0, _README),
        source="PeleeNet, arXiv 1804.06882; weights and operations of the authors' README",
    ),
    "csppeleenet": _reading(
        _peleenet(gamma=0.5), 2_856_488, baseline="peleenet", published=Published(2.83, 0.888, 70.9, 90.2, _README)
    ),
    "cspresnet10": _reading(
        _CSPRESNET10,
        2_698_504,
        baseline="resnet10",
        input_px=256,
        published=Published(2.73, 1.905, 65.3, 86.5, _README),
    ),
}
