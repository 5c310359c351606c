"""How long processes take to exchange their gradients."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from cspnet.runtime.device import synchronize
from cspnet.runtime.distributed import World, on_any_rank

__all__ = ["time_exchange"]

_REPEATS = 3
_LONG_S = 1.0
"""Once is enough for one that takes longer."""


def time_exchange(
    world: World, num_values: int, device: torch.device, now: Callable[[], float] = time.perf_counter
) -> float | None:
    """Seconds in which the processes sum up so many float32 values: the best of three behind a first one.

    All processes call it together, with nothing else under way. In training, the part of it that runs beside the
    backward pass costs nothing.

    Args:
        num_values: trainable parameters of the network.
        now: a clock, in seconds.
    Returns:
        This process's figure; None in a world of one process.
    """
    if world.size == 1:
        return None
    values = torch.zeros(num_values, device=device)
    times_s: list[float] = []
    # They agree on going on, and so all of them are there when the clock starts.
    while not on_any_rank(world, len(times_s) > _REPEATS or any(took_s > _LONG_S for took_s in times_s))[0]:
        synchronize(device)
        began_s = now()
        dist.all_reduce(values, group=world.group)
        synchronize(device)
        times_s.append(now() - began_s)
    return min(times_s[1:] or times_s)
