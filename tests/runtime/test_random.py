"""Draws depend on their address and on nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cspnet.runtime.random import generator_at, integer_at

ADDRESSES = [
    (seed, purpose, *address)
    for seed in (0, 1, 2, 11, 12)
    for purpose in ("order", "augment", "mix")
    for address in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2**32, 0), (0, 2**32), (2**63, 7))
]


def test_the_same_address_gives_the_same_draws() -> None:
    for address in ADDRESSES:
        first, again = generator_at(*address), generator_at(*address)
        assert np.array_equal(first.random(10), again.random(10))
        assert np.array_equal(first.permutation(50), again.permutation(50))
        assert integer_at(*address) == integer_at(*address)


def test_different_addresses_give_different_draws() -> None:
    draws = {address: tuple(generator_at(*address).integers(2**63, size=2)) for address in ADDRESSES}
    assert len(set(draws.values())) == len(ADDRESSES)
    integers = {integer_at(*address) for address in ADDRESSES}
    assert len(integers) == len(ADDRESSES)


def test_seed_and_purpose_are_not_run_together() -> None:
    pairs = [(1, "1/x"), (11, "/x"), (1, "1x"), (11, "x"), (1, "x"), (111, "x"), (1, "11x")]
    assert len({integer_at(seed, purpose, 0) for seed, purpose in pairs}) == len(pairs)


def test_streams_of_neighbours_do_not_overlap() -> None:
    """64-bit words of streams that share any stretch would be equal; two random ones practically never are."""
    length = 4096
    center = (5, 9, 3)
    neighbours = [
        tuple(c + d for c, d in zip(center, delta, strict=True)) for delta in itertools.product((-1, 0, 1), repeat=3)
    ]
    seen: set[int] = set()
    for address in neighbours:
        seen.update(generator_at(7, "augment", *address).bit_generator.random_raw(length).tolist())
    assert len(seen) == length * len(neighbours)


def test_draws_do_not_depend_on_other_draws() -> None:
    addresses = [(0, "augment", 3, i) for i in range(20)]
    forwards = {address: generator_at(*address).random(5) for address in addresses}
    np.random.seed(1)
    interleaved = {address: generator_at(*address) for address in reversed(addresses)}
    drawn: dict[tuple[int, str, int, int], list[float]] = {address: [] for address in addresses}
    for _ in range(5):
        for address, generator in interleaved.items():
            drawn[address].append(generator.random())
    assert all(np.array_equal(drawn[address], forwards[address]) for address in addresses)


@pytest.mark.parametrize("axis", ["seed", "epoch", "position"])
def test_first_draws_along_an_axis_are_uniform_and_independent(axis: str) -> None:
    n = 8000
    make = {
        "seed": lambda i: generator_at(i, "augment", 0, 0),
        "epoch": lambda i: generator_at(0, "augment", i, 0),
        "position": lambda i: generator_at(0, "augment", 0, i),
    }[axis]
    pairs = np.array([make(i).random(2) for i in range(n)])
    for values in pairs.T:
        counts = np.histogram(values, bins=20, range=(0, 1))[0]
        chi_square = ((counts - n / 20) ** 2 / (n / 20)).sum()
        assert chi_square < 60  # 19 degrees of freedom: above 60 once in 300 000 times
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(pairs[:, 0], pairs[:, 1])[0, 1]) < 5 / np.sqrt(n)


def test_integer_at_covers_its_range() -> None:
    values = [integer_at(0, "seed", i) for i in range(4000)]
    assert all(type(value) is int and 0 <= value < 2**63 for value in values)
    for bit in range(63):
        share = sum(value >> bit & 1 for value in values)
        assert abs(share - 2000) < 5 * np.sqrt(1000), bit


def test_an_address_has_at_most_three_numbers() -> None:
    generator_at(0, "x", 2**64 - 1, 2**64 - 1, 2**64 - 1)
    with pytest.raises(ValueError, match="at most 3"):
        generator_at(0, "x", 1, 2, 3, 4)
