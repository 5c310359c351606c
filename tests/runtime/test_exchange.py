"""The exchange of gradients is timed by all processes together."""

from __future__ import annotations

import multiprocessing
import os
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cspnet.runtime.distributed import World
from cspnet.runtime.exchange import time_exchange

CPU = torch.device("cpu")


def test_one_process_exchanges_nothing() -> None:
    assert time_exchange(World(), 100, CPU) is None


class Ticking:
    """A clock on which every exchange takes the next of some times, and the last one from then on."""

    def __init__(self, *took_s: float) -> None:
        self.took_s, self.looks, self.time_s = took_s, 0, 0.0

    def __call__(self) -> float:
        if self.looks % 2:
            self.time_s += self.took_s[min(self.looks // 2, len(self.took_s) - 1)]
        self.looks += 1
        return self.time_s


def take_part(rank: int, folder: Path, clocks: list[Ticking], end: Connection) -> None:
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found = time_exchange(World(rank, 2), 1000, CPU, clocks[rank])
    end.send((found, clocks[rank].looks // 2))
    end.recv()
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the ranks")
@pytest.mark.parametrize(
    ("clocks", "found"),
    [
        # The first one, which connects, does not count.
        ([Ticking(0.1, 0.3, 0.25, 0.5), Ticking(0.1, 0.2, 0.3, 0.4)], [(0.25, 4), (0.2, 4)]),
        # One that takes long is not repeated, by none of them.
        ([Ticking(0.5), Ticking(5.0)], [(0.5, 1), (5.0, 1)]),
    ],
)
def test_two_processes_agree_how_often(tmp_path: Path, clocks: list[Ticking], found: list[tuple[float, int]]) -> None:
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe() for _ in range(2)]
    ranks = [fork.Process(target=take_part, args=(i, tmp_path, clocks, pipes[i][1]), daemon=True) for i in range(2)]
    for rank in ranks:
        rank.start()
    try:
        for (pipe, _), (seconds, times) in zip(pipes, found, strict=True):
            assert pipe.poll(60)
            answer = pipe.recv()
            assert answer == (pytest.approx(seconds), times)
        for pipe, _ in pipes:
            pipe.send(None)
    finally:
        for rank in ranks:
            rank.join(10)
            rank.kill()
