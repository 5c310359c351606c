"""Do draws have the distribution they should have? Fair draws fail one of these about once in 100,000 times."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def assert_share(hits: np.ndarray, share: float) -> None:
    """That many of the draws are hits, to five standard deviations."""
    assert abs(hits.mean() - share) < 5 * math.sqrt(share * (1 - share) / len(hits)), (hits.mean(), share, len(hits))


def assert_integers(values: np.ndarray, low: int, high: int) -> None:
    """Uniform on the integers from low to high, both of them included."""
    assert values.min() == low and values.max() == high, (values.min(), values.max(), low, high)
    for value in range(low, high + 1):
        assert_share(values == value, 1 / (high - low + 1))


def assert_follows(values: np.ndarray, below: Callable[[np.ndarray], np.ndarray]) -> None:
    """Kolmogorov and Smirnov: the draws' distribution function lies along `below`, which has no jumps."""
    ranked = np.sort(values)
    expected, n = below(ranked), len(values)
    distance = max((np.arange(1, n + 1) / n - expected).max(), (expected - np.arange(n) / n).max())
    assert distance < 2.5 / math.sqrt(n), (distance, n)


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    """Uniform on the real numbers from low to high."""
    assert values.min() >= low and values.max() <= high, (values.min(), values.max(), low, high)
    assert_follows(values, lambda x: (x - low) / (high - low))


def assert_unrelated(*columns: np.ndarray) -> None:
    """No two columns are correlated."""
    related = np.corrcoef(np.stack(columns).astype(np.float64)) - np.eye(len(columns))
    assert np.abs(related).max() < 5 / math.sqrt(len(columns[0])), related.round(3)
