"""Processes that meet in a store, whatever those before them have left there. A process is a thread here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from cspnet.runtime.distributed import World, join_world
from cspnet.runtime.meeting import meet_anew

SOON, IN_TIME = timedelta(seconds=1), timedelta(seconds=60)


def meet(store: dist.Store, ranks: Sequence[int], size: int, pause_s: float = 0.0) -> list[dist.Store]:
    """Start processes one after the other; where each of them ends up, in the order of their numbers."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        waiting: dict[int, Future[dist.Store]] = {}
        for rank in ranks:
            waiting[rank] = pool.submit(meet_anew, store, rank, size, IN_TIME)
            time.sleep(pause_s)
        return [waiting[rank].result() for rank in sorted(waiting)]


def assert_together(stores: list[dist.Store]) -> None:
    """What one of them leaves, all find, and nothing else is there."""
    assert not any(store.check(["mine"]) for store in stores)
    stores[-1].set("mine", "1")
    assert all(store.check(["mine"]) for store in stores)


@pytest.mark.parametrize("ranks", [(0,), (0, 1, 2), (2, 1, 0), (1, 0, 2)], ids=str)
def test_all_end_up_in_the_same_new_corner_time_and_again(ranks: tuple[int, ...]) -> None:
    store = dist.HashStore()
    for order in (ranks, ranks[::-1], ranks):
        assert_together(meet(store, order, len(ranks), pause_s=0.03))


def test_other_numbers_of_processes_meet_in_the_same_store() -> None:
    store = dist.HashStore()
    for size in (4, 2, 1, 3, 4):
        assert_together(meet(store, range(size), size))


def test_nobody_goes_for_an_answer_to_those_before() -> None:
    store = dist.HashStore()
    meet(store, (0, 1), 2)
    with pytest.raises(RuntimeError, match="process 0 does not answer"):
        meet_anew(store, 1, 2, SOON)


def test_nobody_of_those_before_counts_as_having_come() -> None:
    store = dist.HashStore()
    meet(store, (0, 1, 2, 3), 4)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(meet_anew, store, 2, 4, IN_TIME)
        with pytest.raises(RuntimeError, match="1, 3 did not come"):
            meet_anew(store, 0, 4, SOON)
        other.result()


def test_what_torchrun_starts_meets_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No start writes over what another has left: the keys become more."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    counts = []
    for _ in range(3):
        with join_world(World(launched=True)):
            counts.append(server.num_keys())
    assert 0 < counts[0] < counts[1] < counts[2]
