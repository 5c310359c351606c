"""Memory of the device: how much there is, how much some work takes, and whether an error means that it is full."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

import torch

from cspnet.errors import DeviceError

__all__ = [
    "MARGIN",
    "can_be_measured",
    "describe_memory",
    "find_largest",
    "free_host_bytes",
    "free_memory",
    "is_out_of_memory",
    "peak_bytes",
    "peak_host_bytes",
    "resident_bytes",
    "room_bytes",
    "told_shortage",
]

MARGIN = 0.1
"""Share of the memory a process could have that a trial must leave: that of a long run is in more pieces than that of a
few steps, and its libraries want some of it."""

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_LIMITS = {
    "": (".", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""{controller in /proc/self/cgroup, none in version 2: its folder, the files of limit and usage, and the line of
memory.stat that says how much of the usage are files}"""

_SIGNS = ("out of memory", "can't allocate memory", "ALLOC_FAILED")  # MPS and the driver; the CPU; cuBLAS and cuDNN


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is full: of the device, or of the host where the device is a CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


def can_be_measured(device: torch.device) -> bool:
    """Whether the device says what is used and fails by an error when it is full; a host slows down, and is killed."""
    return device.type == "cuda"


def free_memory(device: torch.device) -> None:
    """Give back what nobody uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def room_bytes(device: torch.device) -> int:
    """What this process could have of a GPU: what it has and what is free, up to its share; elsewhere 0."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    return min(free + torch.cuda.memory_reserved(device), int(share * total))


def peak_bytes(device: torch.device) -> int:
    """The most that was in use at one time since it was last measured anew; elsewhere than on a GPU 0."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def peak_host_bytes() -> int:
    """The most of the host's memory that this process has had in use (its peak resident set); 0 where nobody tells."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # getrusage(2): kilobytes, on macOS bytes


def resident_bytes(proc: Path = _PROC) -> int:
    """What this process has of the host's memory; 0 where nobody tells, which is elsewhere than on Linux."""
    with contextlib.suppress(OSError, ValueError):
        return int((proc / "self" / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def free_host_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> float:
    """What of the host's memory could still be had within the bounds of this process's group (that of a container, a
    job or a service) and of those around it; infinity where nobody tells.

    Source: Linux, Documentation/filesystems/proc.rst (MemAvailable), admin-guide/cgroup-v2.rst and
    admin-guide/cgroup-v1/memory.rst: a group's usage counts files that were read, which make room when it is wanted.
    """
    free = math.inf
    with contextlib.suppress(OSError, KeyError, ValueError):
        free = 1024 * _read_table(proc / "meminfo")["MemAvailable:"]
    for folder, most, used, files in _list_groups(proc, cgroups):
        with contextlib.suppress(OSError, KeyError, ValueError):  # memory.max without a limit is no number
            limit, usage = (int((folder / name).read_text()) for name in (most, used))
            free = min(free, max(0, limit - usage + _read_table(folder / "memory.stat")[files]))
    return free


def _list_groups(proc: Path, cgroups: Path) -> Iterator[tuple[Path, str, str, str]]:
    """The folders of the groups that bound this process, inmost first, and what `_LIMITS` names in each."""
    own = dict.fromkeys(_LIMITS, PurePosixPath("/"))
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if ".." not in path.split("/"):  # outside of what this process sees
                own.update({name: PurePosixPath(path) for name in controllers.split(",") if name in own})
    for controller, (folder, *names) in _LIMITS.items():
        for group in (own[controller], *own[controller].parents):
            yield cgroups / folder / group.relative_to("/"), names[0], names[1], names[2]


def _read_table(file: Path) -> dict[str, int]:
    """The first two words of each line."""
    return {key: int(value) for key, value, *_ in map(str.split, file.read_text().splitlines())}


def describe_memory(device: torch.device) -> str:
    """`cuda:0 (NVIDIA H100, 79.2 GiB, of which 78.4 for this process)`."""
    if device.type != "cuda":
        return str(device)
    total = torch.cuda.mem_get_info(device)[1]
    name = torch.cuda.get_device_name(device)
    return f"{device} ({name}, {total / 2**30:.1f} GiB, of which {room_bytes(device) / 2**30:.1f} for this process)"


@contextlib.contextmanager
def told_shortage(device: torch.device, moment: str, advice: str) -> Iterator[None]:
    """Full memory in a block is one line.

    Raises:
        DeviceError: it is full.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(f"out of memory {moment}, on {describe_memory(device)}: {advice}") from error


def find_largest(sizes: Iterable[int], attempt: Callable[[int], None], device: torch.device) -> int | None:
    """The first of the sizes, largest first, with which an attempt goes through and leaves MARGIN; None: none does."""
    free_memory(device)
    most = (1 - MARGIN) * room_bytes(device)
    for size in sizes:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            attempt(size)
            fits = peak_bytes(device) <= most
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        free_memory(device)  # behind the handler: the error keeps what the failed attempt made
        if fits:
            return size
    return None
