"""Where the processes of a run meet, also when torchrun has started them again.

torchrun's own store outlives a restart, and with it what the processes before had left there: the addresses at which
they could be reached. A new process that reads one of these before it is overwritten waits for somebody who is dead. So
each start agrees on a corner of the store that nobody has used.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

__all__ = ["meet_anew"]

_POLL_S = 0.01


def meet_anew(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.Store:
    """A corner of a store that only the processes of this start know.

    Each calls out a name of its own. The first one answers each name that it hears with that of the corner, until all
    have gone there. Nobody goes for an answer to another name, as one of an earlier start is.

    Args:
        store: which all of them reach, in whatever state it was left.
        timeout: for all to come.
    Raises:
        RuntimeError: some did not come; the message says which.
    """
    corner = uuid.uuid4().hex
    if rank:
        corner = _call(store, rank, uuid.uuid4().hex, timeout)
    else:
        _answer(store, corner, set(range(1, size)), timeout)
    return dist.PrefixStore(corner, store)


def _call(store: dist.Store, rank: int, name: str, timeout: timedelta) -> str:
    """Call until the first process answers; its answer."""
    store.set(f"cspnet/call/{rank}", name)
    for _ in _tries(timeout):
        called, _, corner = _read(store, f"cspnet/answer/{rank}").partition(" ")
        if called == name:
            store.set(f"cspnet/gone/{rank}", corner)
            return corner
    raise RuntimeError("process 0 does not answer")


def _answer(store: dist.Store, corner: str, missing: set[int], timeout: timedelta) -> None:
    """Answer whoever calls, until nobody is missing. What was called before this start gets an answer, too."""
    for _ in _tries(timeout):
        for rank in missing:
            store.set(f"cspnet/answer/{rank}", f"{_read(store, f'cspnet/call/{rank}')} {corner}")
        missing = {rank for rank in missing if _read(store, f"cspnet/gone/{rank}") != corner}
        if not missing:
            return
    raise RuntimeError(f"of the processes, {', '.join(map(str, sorted(missing)))} did not come")


def _tries(timeout: timedelta) -> Iterator[None]:
    deadline_s = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline_s:
        yield
        time.sleep(_POLL_S)


def _read(store: dist.Store, key: str) -> str:
    """What is there; empty if nothing is, for which `get` alone would wait."""
    return store.get(key).decode() if store.check([key]) else ""
