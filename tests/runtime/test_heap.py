"""Freed memory is kept on a CPU, given back before a fork, and left alone where it is somebody else's matter."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from cspnet.runtime import heap
from cspnet.runtime.heap import give_back_freed_memory, keep_freed_memory
from tests.conftest import ROOT

CPU = torch.device("cpu")

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")


@pytest.fixture(autouse=True)
def _untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in heap._TUNED_BY_HAND:
        monkeypatch.delenv(name, raising=False)


START = """
import os
from types import SimpleNamespace
import numpy as np
from cspnet.runtime.heap import give_back_freed_memory, keep_freed_memory

cpu = SimpleNamespace(type="cpu")

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

def free_large_blocks():
    before = resident()
    blocks = [np.full(40 * 2**20, 1, np.uint8) for _ in range(13)]
    print(resident() - before)
    del blocks
    print(resident() - before)
"""

FREES = """
free_large_blocks()
assert keep_freed_memory(cpu)
free_large_blocks()
free_large_blocks()
before = resident()
give_back_freed_memory()
print(resident() - before)
"""

STARTS_READING = """
from cspnet.data.loader import start_reading

keep_freed_memory(cpu)
free_large_blocks()
before = resident()
assert list(start_reading([1, 2, 3], lambda: iter(range(3)), 1, 2, cpu)) == [1, 2, 3]
print(resident() - before)
"""


def mebibytes(code: str) -> list[int]:
    """What `code` prints behind START, in a process of its own: no other test has told its heap what to do."""
    command = [sys.executable, "-c", START + code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return list(map(int, done.stdout.split()))


@needs_glibc
def test_what_is_freed_is_kept_until_it_is_given_back() -> None:
    """Of 520 MiB, in blocks so small that one which does not fit into what others have left is within the bounds."""
    taken, left, taken_at_first, kept, taken_again, kept_still, given_back = mebibytes(FREES)
    assert min(taken, taken_at_first) > 500
    assert left < 50
    assert kept > 500
    assert abs(taken_again) < 50
    assert abs(kept_still) < 50
    assert given_back < -500


@needs_glibc
def test_reading_processes_do_not_hold_on_to_it() -> None:
    """They are forked later too, for each validation, and would keep as much as their parent has at that time."""
    _, kept, change = mebibytes(STARTS_READING)
    assert kept > 500
    assert change < -450


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
