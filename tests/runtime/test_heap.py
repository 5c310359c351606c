"""Freed memory is kept on a CPU, given back before a fork, and left alone where it is somebody else's matter."""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest
import torch

from cspnet.data.loader import start_reading
from cspnet.runtime import heap
from cspnet.runtime.heap import give_back_freed_memory, keep_freed_memory

CPU = torch.device("cpu")
MIB = 2**20

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")


@pytest.fixture(autouse=True)
def _untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in heap._TUNED_BY_HAND:
        monkeypatch.delenv(name, raising=False)


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free_large_blocks() -> int:
    """Bytes that the system has not got back of 8 blocks of 64 MiB, which were written to and freed."""
    before = resident_bytes()
    blocks = [torch.ones(64 * MIB, dtype=torch.uint8) for _ in range(8)]
    assert all(block[-1] == 1 for block in blocks)
    del blocks
    return resident_bytes() - before


def in_another_process(work: Callable[[], list[int]]) -> list[int]:
    """What it returns in a fork of this process, whose heap is not touched."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def answer(pipe: Connection) -> None:
        pipe.send(work())

    process = context.Process(target=answer, args=(there,))
    process.start()
    there.close()
    found: list[int] = here.recv()
    process.join()
    return found


@needs_glibc
def test_what_is_freed_is_kept_until_it_is_given_back() -> None:
    def work() -> list[int]:
        given_back = free_large_blocks()
        assert keep_freed_memory(CPU)
        kept = free_large_blocks()
        again = free_large_blocks()  # in the same memory
        before = resident_bytes()
        give_back_freed_memory()
        return [given_back, kept, kept + again, before - resident_bytes()]

    given_back, kept, twice, returned = in_another_process(work)
    assert given_back < 50 * MIB
    assert 500 * MIB < kept < 600 * MIB
    assert 500 * MIB < twice < 600 * MIB
    assert returned > 500 * MIB


@needs_glibc
def test_reading_processes_do_not_hold_on_to_it() -> None:
    """They are forked later too, for each validation, and would keep as much as their parent has at that time."""

    def work() -> list[int]:
        keep_freed_memory(CPU)
        kept = free_large_blocks()
        items = [1, 2, 3]
        before = resident_bytes()
        assert list(start_reading(items, lambda: iter(range(3)), 1, 2, CPU)) == items  # type: ignore[arg-type]
        return [kept, before - resident_bytes()]

    kept, returned = in_another_process(work)
    assert kept > 500 * MIB
    assert returned > 450 * MIB


@pytest.mark.parametrize("name", heap._TUNED_BY_HAND)
def test_whoever_tunes_it_is_not_talked_over(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert not keep_freed_memory(CPU)


def test_it_is_left_alone_for_other_devices_and_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_keeps", False)
    assert not keep_freed_memory(torch.device("cuda"))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory(CPU)
    give_back_freed_memory()


def test_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory(CPU)
