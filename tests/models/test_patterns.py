"""The stem that is not learned, against the cosine transform written out and against what it promises."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from cspnet.errors import ModelError
from cspnet.models import create_model
from cspnet.models.patterns import cosine_patterns, fix_to_patterns

COLOURS = {"brightness": (1, 1, 1), "red-blue": (1, 0, -1), "green": (1, -2, 1)}


def slow_pattern(colour: str, v: int, u: int, side: int) -> list[float]:
    values = [
        weight * math.cos(math.pi * v * (2 * y + 1) / (2 * side)) * math.cos(math.pi * u * (2 * x + 1) / (2 * side))
        for weight in COLOURS[colour]
        for y in range(side)
        for x in range(side)
    ]
    length = math.sqrt(sum(value**2 for value in values))
    return [value / length for value in values]


def test_the_sixteen_of_the_small_network() -> None:
    """All of brightness, the plain colours, their slopes, and one corner of red against blue."""
    brightness = {("brightness", v, u) for v in range(3) for u in range(3)}
    colours = {(colour, v, u) for colour in ("red-blue", "green") for v, u in ((0, 0), (0, 1), (1, 0))}
    expected = [slow_pattern(*key, side=3) for key in brightness | colours | {("red-blue", 1, 1)}]
    patterns = cosine_patterns(16, 3).flatten(1)
    overlaps = patterns.double() @ torch.tensor(expected, dtype=torch.float64).T
    assert overlaps.max(dim=0).values.sub(1).abs().max() < 1e-6, "each expected pattern is there"
    assert overlaps.max(dim=1).values.sub(1).abs().max() < 1e-6, "and no other"


@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_all_patterns_are_a_basis_of_the_patches(side: int) -> None:
    patterns = cosine_patterns(3 * side**2, side).flatten(1).double()
    assert torch.allclose(patterns @ patterns.T, torch.eye(len(patterns), dtype=torch.float64), atol=1e-6)


def test_smooth_patterns_come_first() -> None:
    def roughness(pattern: torch.Tensor) -> float:
        return float(pattern.diff(dim=1).square().sum() + pattern.diff(dim=2).square().sum())

    first = [roughness(p) for p in cosine_patterns(9, 3) if (p[0] - p[1]).abs().max() < 1e-6]  # brightness alone
    assert len(first) >= 5
    assert first[0] == pytest.approx(0, abs=1e-9) and all(first[0] < other for other in first[1:])


def test_a_network_gets_them_and_their_negatives_whatever_the_seed() -> None:
    weights = []
    for seed in range(2):
        torch.manual_seed(seed)
        for options in ({}, {"features_only": True}, {"init": "darknet"}):
            weights.append(create_model("cspresnet_cifar", **options).stem.conv1.conv.weight)
    expected = cosine_patterns(16, 3)
    for weight in weights:
        assert not weight.requires_grad
        assert torch.equal(weight[:16], expected) and torch.equal(weight[16:], -expected)
    assert all(torch.equal(a, b) for a, b in combinations(weights, 2))


def test_what_cannot_be() -> None:
    with pytest.raises(ModelError, match="28 patterns: patches of 3 x 3 px have 27"):
        cosine_patterns(28, 3)
    with pytest.raises(ModelError, match="even number of channels, not 31"):
        fix_to_patterns(torch.nn.Conv2d(3, 31, 3))


def test_with_other_inputs_than_colours_the_convolution_is_learned() -> None:
    assert create_model("cspresnet_cifar", in_chs=1).stem.conv1.conv.weight.requires_grad
