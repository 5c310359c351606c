"""Randomness with an address: every draw is a function of what it is for, never of what was drawn before.

A counter-based generator (Philox) makes this cheap: the key is (seed, purpose), the counter starts at the address.
So a run can be resumed anywhere, with any number of workers, and sees the same draws.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["generator_at", "integer_at", "seeded_globally"]


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


@contextlib.contextmanager
def seeded_globally(rng: np.random.Generator, device: torch.device | None = None) -> Iterator[None]:
    """Python's, numpy's and torch's global generators, seeded by the draws of `rng`, and afterwards as they were.

    For the parts of other libraries, which draw from those.

    Args:
        device: a GPU whose generator is meant too.
    """
    seeds = [int(seed) for seed in rng.integers(2**32, size=4)]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        random.seed(seeds[0])
        np.random.seed(seeds[1])
        torch.default_generator.manual_seed(seeds[2])
        for _ in devices:
            torch.cuda.manual_seed(seeds[3])
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
