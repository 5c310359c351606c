"""McNemar's test beside a sum of binomials in fractions, and beside tosses of a coin."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from cspnet.evaluation.paired import PairedTest, mcnemar, pair


@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 1), (1, 0), (0, 5), (3, 9), (9, 3), (10, 10), (40, 61), (700, 800)])
def test_p_value(a: int, b: int) -> None:
    """All splits that are at least as uneven, on both sides."""
    n = a + b
    expected = sum(Fraction(math.comb(n, k), 2**n) for k in range(n + 1) if abs(2 * k - n) >= abs(a - b))
    assert mcnemar(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_against_a_coin() -> None:
    heads = np.random.default_rng(0).binomial(30, 0.5, 200_000)
    assert mcnemar(9, 21) == pytest.approx(float(np.mean(np.abs(heads - 15) >= 6)), abs=0.002)


def test_many_pictures() -> None:
    assert mcnemar(20_000, 20_000) == 1.0
    assert 0 <= mcnemar(15_000, 25_000) < 1e-300


def test_pairs() -> None:
    first = {"a": True, "b": True, "c": False, "d": False, "e": False}
    second = {"e": True, "d": False, "c": True, "b": False, "a": True}
    found = pair(first, second)
    assert found == PairedTest(both=1, only_first=1, only_second=2, neither=1)
    assert found.difference == pytest.approx(20.0)
    with pytest.raises(ValueError, match=r"^x$"):
        pair(first, {**second, "x": True})
