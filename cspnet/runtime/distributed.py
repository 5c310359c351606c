"""The processes of a run. torchrun's variables are read here, once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cspnet.errors import DeviceError, UserError
from cspnet.runtime.meeting import meet_anew

__all__ = [
    "World",
    "broadcast_buffers",
    "gather_objects",
    "join_world",
    "on_any_rank",
    "on_main",
    "read_world",
    "sum_over_ranks",
]

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launched: bool = False
    """Whether torchrun, or something that sets its variables, started this process."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def read_world(environment: Mapping[str, str] = os.environ) -> World:
    """The world as torchrun describes it, or a world of one process.

    Raises:
        DeviceError: some of torchrun's variables are missing or make no sense.
    """
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return World()
    try:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", rank))
        local_size = int(environment.get("LOCAL_WORLD_SIZE", size))
    except (KeyError, ValueError) as error:
        raise DeviceError(f"RANK and WORLD_SIZE must both be set, to whole numbers ({error}); use torchrun") from error
    if not 0 <= rank < size:
        raise DeviceError(f"RANK={rank} is not below WORLD_SIZE={size}; use torchrun")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise DeviceError(f"RANK is set but {' and '.join(missing)} is not; use torchrun, or unset RANK and WORLD_SIZE")
    return World(rank, size, local_rank, local_size, launched=True)


@contextmanager
def join_world(world: World) -> Iterator[None]:
    """Join the other processes, and leave them at the end: nccl for what lies on GPUs, gloo for the rest.

    Raises:
        DeviceError: the processes cannot meet.
    """
    if not world.launched:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    timeout = timedelta(minutes=30)
    try:
        store = _open_store(world, timeout)
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    except (dist.DistError, RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = "the port is in use" if "EADDRINUSE" in str(error) else str(error).splitlines()[0]
        raise DeviceError(
            f"the processes cannot meet at {address}: {reason}; choose a free port with torchrun --master-port, "
            "or let torchrun find one with --standalone"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def _open_store(world: World, timeout: timedelta) -> dist.Store | None:
    """Where the processes meet: a new corner of torchrun's store. None leaves it to torch, where torchrun has none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, timeout=timeout, wait_for_workers=False)
    return meet_anew(store, world.rank, world.size, timeout)


def on_main(world: World, work: Callable[[], T]) -> T:
    """Do something on the first process alone and give its result to all; a UserError is raised on all alike."""
    if world.size == 1:
        return work()
    outcome: list[Any] = [None, None]
    if world.is_main:
        try:
            outcome[0] = work()
        except UserError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        outcome[1].shared = True
        raise outcome[1]
    return outcome[0]


def gather_objects(world: World, value: T) -> list[T]:
    """Every process's value, in order of rank, on every process."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def sum_over_ranks(world: World, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, summed in place over all processes."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def on_any_rank(world: World, *flags: bool) -> list[bool]:
    """Whether each flag is set on any process; all of them ask at the same time. Nothing waits for a GPU."""
    if world.size == 1:
        return list(flags)
    values = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return [bool(value) for value in values.tolist()]


def broadcast_buffers(world: World, module: torch.nn.Module) -> None:
    """Give all processes the first one's buffers (BatchNorm's running statistics), which is what gets saved."""
    if world.size > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
