"""Randomness with an address: every draw is a function of what it is for, never of what was drawn before.

A counter-based generator (Philox) makes this cheap: the key is (seed, purpose), the counter starts at the address.
So a run can be resumed anywhere, with any number of workers, and sees the same draws.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

__all__ = ["generator_at", "integer_at"]


@functools.lru_cache(maxsize=256)
def _key(seed: int, purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest(), "little")


def generator_at(seed: int, purpose: str, *address: int) -> np.random.Generator:
    """A generator for one purpose at one address of up to three integers in [0, 2**64); trailing zeros do not count.

    Every address has 2**64 blocks of draws of its own: the address fills the upper words of Philox' 256-bit counter.
    """
    if len(address) > 3 or not all(0 <= number < 1 << 64 for number in address):
        raise ValueError(f"an address has at most 3 numbers in [0, 2**64), got {address}")
    counter = sum(number << 64 * (i + 1) for i, number in enumerate(address))
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose), counter=counter))


def integer_at(seed: int, purpose: str, *address: int) -> int:
    """One integer in [0, 2**63) at an address: a seed for a generator of another library."""
    return int(generator_at(seed, purpose, *address).integers(2**63))
