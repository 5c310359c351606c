"""The host's memory: what the system says of it is read as it is meant."""

from __future__ import annotations

import math
import mmap
import os
import sys
from pathlib import Path

import pytest

from cspnet.runtime.memory import free_host_bytes, resident_bytes

MEMINFO = (
    "MemTotal:       24684084 kB\nMemFree:         1000000 kB\nMemAvailable:    2000000 kB\nHugePages_Total:       0\n"
)
FREE = 1024 * 2_000_000
STAT = "anon 100\nfile 300\ninactive_file 200\n"
STAT_1 = "cache 300\ninactive_file 1\ntotal_inactive_file 200\n"


V1 = {"memory/memory.usage_in_bytes": "500", "memory/memory.stat": STAT_1}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, FREE),
        ({"memory.max": "max\n", "memory.current": "500\n", "memory.stat": STAT}, FREE),
        ({"memory.max": "1000\n", "memory.current": "500\n", "memory.stat": STAT}, 700),
        ({"memory.max": "1000\n", "memory.current": "500\n"}, FREE),
        ({"memory.max": "1000\n", "memory.current": "1300\n", "memory.stat": STAT}, 0),
        ({"memory.max": f"{FREE + 10**6}\n", "memory.current": "500\n", "memory.stat": STAT}, FREE),
        ({"memory/memory.limit_in_bytes": "1000", **V1}, 700),
        ({"memory/memory.limit_in_bytes": "9223372036854771712", **V1}, FREE),
    ],
)
def test_what_is_free_is_the_least_of_host_and_container(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_host_bytes(tmp_path, tmp_path) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("0::/jobs/mine\n", 100),
        ("0::/jobs\n", 300),
        ("0::/jobs/gone\n", 300),
        ("0::/\n", FREE),
        ("0::/../jobs/mine\n", FREE),
        ("7:cpu,memory:/jobs/mine\n0::/\n", 200),
        ("7:cpu:/jobs/mine\n", FREE),
        ("nonsense", FREE),
    ],
)
def test_a_process_is_bound_by_its_group_and_those_around_it(tmp_path: Path, lines: str, expected: int) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(lines)
    for folder, limit in (("jobs", 600), ("jobs/mine", 400), ("memory/jobs/mine", 500)):
        place = tmp_path / folder
        place.mkdir(parents=True)
        names = ("limit_in_bytes", "usage_in_bytes") if folder.startswith("memory") else ("max", "current")
        for name, value in zip(names, (limit, 500), strict=True):
            (place / f"memory.{name}").write_text(f"{value}\n")
        (place / "memory.stat").write_text(STAT_1 if folder.startswith("memory") else STAT)
    assert free_host_bytes(tmp_path, tmp_path) == expected


def test_where_nobody_tells_there_is_no_bound(tmp_path: Path) -> None:
    assert free_host_bytes(tmp_path, tmp_path) == math.inf
    assert resident_bytes(tmp_path) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc elsewhere")
def test_this_machine_tells() -> None:
    assert 0 < free_host_bytes() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    before = resident_bytes()
    with mmap.mmap(-1, 64 << 20) as held:  # malloc might give what was freed before
        held.write(b"x" * len(held))
        assert 60 << 20 < resident_bytes() - before < 200 << 20
