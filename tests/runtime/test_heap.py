"""Freed memory is kept on a CPU, given back before a fork, and left alone where it is somebody else's matter."""

from __future__ import annotations

import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest
import torch

from cspnet.data.loader import start_reading
from cspnet.runtime import heap
from cspnet.runtime.heap import give_back_freed_memory, keep_freed_memory
from tests.conftest import ROOT

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


FREES = """
import os
from types import SimpleNamespace
import numpy as np
from cspnet.runtime.heap import give_back_freed_memory, keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

def free_large_blocks():
    before = resident()
    blocks = [np.full(64 * 2**20, 1, np.uint8) for _ in range(8)]
    print(resident() - before)
    del blocks
    print(resident() - before)

free_large_blocks()
assert keep_freed_memory(SimpleNamespace(type="cpu"))
free_large_blocks()
free_large_blocks()
before = resident()
give_back_freed_memory()
print(resident() - before)
"""


@needs_glibc
def test_what_is_freed_is_kept_until_it_is_given_back() -> None:
    """In a process of its own: no other test has told its heap what to do."""
    done = subprocess.run([sys.executable, "-c", FREES], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    taken, left, taken_again, kept, taken_from_it, kept_still, given_back = map(int, done.stdout.split())
    assert min(taken, taken_again) > 500
    assert left < 50
    assert kept > 500
    assert abs(taken_from_it) < 50
    assert abs(kept_still) < 50
    assert given_back < -500


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
