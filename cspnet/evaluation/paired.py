"""Whether two networks that saw the same pictures differ by more than chance."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["PairedTest", "describe_pair", "mcnemar", "pair"]


T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class PairedTest:
    """Pictures by who is right about them, and how likely so uneven a split would be by chance."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def num_pictures(self) -> int:
        """Of all four kinds."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Acc@1 of the second less that of the first, in percent."""
        return 100 * (self.only_second - self.only_first) / self.num_pictures

    @property
    def p_value(self) -> float:
        """Of `mcnemar`."""
        return mcnemar(self.only_first, self.only_second)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value: were both as good, each picture that one alone has right would be a coin's toss.

    Source: McNemar, Psychometrika 12 (1947), 153-157; the binomial form of the test.
    """
    tosses, fewer = only_first + only_second, min(only_first, only_second)
    ways, term = 0, 1  # how many ways there are to throw at most `fewer` heads
    for heads in range(fewer + 1):
        ways += term
        term = term * (tosses - heads) // (heads + 1)
    doubled, all_ways = 2 * ways, 1 << tosses
    return 1.0 if doubled >= all_ways else doubled / all_ways


def pair(first: Mapping[T, bool], second: Mapping[T, bool]) -> PairedTest:
    """Count {picture: whether it is right} of two networks.

    Raises:
        ValueError: the pictures are not the same; the message names one.
    """
    if first.keys() != second.keys():
        raise ValueError(min(first.keys() ^ second.keys(), key=str))
    counts = {True: {True: 0, False: 0}, False: {True: 0, False: 0}}
    for picture, is_right in first.items():
        counts[is_right][second[picture]] += 1
    return PairedTest(counts[True][True], counts[True][False], counts[False][True], counts[False][False])


def describe_pair(test: PairedTest) -> str:
    """The difference, in a line."""
    verdict = "chance alone would seldom do that" if test.p_value < 0.05 else "no more than chance alone may do"
    return f"{test.difference:+.3f} points, p = {test.p_value:.3g}: {verdict}"
