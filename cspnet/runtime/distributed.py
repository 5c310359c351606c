"""The processes of a run. torchrun's variables are read here, once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from threading import Timer
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from cspnet.errors import EXIT_DONE, EXIT_STOPPED, DeviceError, LostProcessError, UserError
from cspnet.runtime.flat import group_by_kind, join, part
from cspnet.runtime.leaving import farewell, leave, leave_by_force
from cspnet.runtime.meeting import meet_anew
from cspnet.runtime.roll_call import RollCall, open_lines
from cspnet.runtime.signals import Stopped

__all__ = [
    "World",
    "broadcast_buffers",
    "gather_objects",
    "hurry",
    "join_world",
    "naming_the_missing",
    "on_any_rank",
    "on_main",
    "read_world",
    "sum_over_ranks",
]

T = TypeVar("T")

START_UP_S = 1800.0
"""How long processes wait for each other before the loop: one of them alone may be looking up a million pictures."""
_LATE = re.compile(r"Timed out waiting|Application timeout")
_BROKEN_OFF = re.compile(rf"gloo/|pair closure|(closed|reset) by peer|{_LATE.pattern}")
"""What gloo says, which has no exception of its own. Source: gloo/transport/tcp/pair.cc and unbound_buffer.cc."""
_MARGIN_S = 60.0
"""On GPUs, nccl waits longer than gloo by this: it would end the process without a word."""
_FAREWELL_S = 60.0
"""How long leaving may take when all is done."""


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launched: bool = False
    """Whether torchrun, or something that sets its variables, started this process."""
    roll: RollCall | None = field(default=None, compare=False, repr=False)
    """Who is there; None before they have met, and in a world of one process."""
    group: dist.ProcessGroup | None = field(default=None, compare=False, repr=False)
    """What the processes exchange goes through this; None is the group that they start with."""
    host_group: dist.ProcessGroup | None = field(default=None, compare=False, repr=False)
    """The same, for what never lies on a GPU."""
    timeout_s: float = START_UP_S
    """How long one waits for the others."""

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
def join_world(world: World) -> Iterator[World]:
    """Join the other processes, and leave them at the end: nccl for what lies on GPUs, gloo for the rest.

    The others are told when an error ends this process, and an error in theirs ends this one.

    Raises:
        DeviceError: the processes cannot meet.
        LostProcessError: another one has died, or does not come.
    """
    if not world.launched:
        yield world
        return
    timeout = timedelta(seconds=START_UP_S)
    try:
        store = _open_store(world, timeout)
        dist.init_process_group(_backend(), store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    except (dist.DistError, RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = "the port is in use" if "EADDRINUSE" in str(error) else str(error).splitlines()[0]
        raise DeviceError(
            f"the processes cannot meet at {address}: {reason}; choose a free port with torchrun --master-port, "
            "or let torchrun find one with --standalone"
        ) from error
    if world.size == 1:
        try:
            yield world
        finally:
            dist.destroy_process_group()
        return
    master = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        roll = open_lines(
            world.rank, world.size, master, lambda mine: gather_objects(world, mine), speaks=world.local_rank == 0
        )
    except RuntimeError as error:
        if not _is_broken_off(error):
            raise
        raise LostProcessError("another process has ended while the processes met; what it said tells why") from error
    try:
        with (
            naming_the_missing(replace(world, roll=roll), lambda: "the start"),
            farewell(lambda: roll.tell_end(Stopped("on the spot"))),
        ):
            try:
                yield replace(world, roll=roll)
            except Exception:
                leave_by_force()  # from here on, no signal changes what is told
                raise
    except Stopped as stopped:
        roll.tell_end(stopped)
        _say_goodbye(EXIT_STOPPED)
        raise
    except BaseException as error:
        leave_by_force()  # there may be exchanges that never end
        roll.tell_end(error)
        raise
    roll.tell_end(None)
    _say_goodbye(EXIT_DONE)


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _say_goodbye(code: int) -> None:
    """Leave the groups, or end the process with this code if that takes too long: nothing is lost any more."""

    def end() -> None:
        leave_by_force()
        leave(code)

    timer = Timer(_FAREWELL_S, end)
    timer.daemon = True
    timer.start()
    dist.destroy_process_group()
    timer.cancel()


def hurry(world: World, timeout_s: float) -> World:
    """The same world, in which nobody waits for others for longer than this. All processes call it together."""
    if world.size == 1:
        return world

    def create_group(backend: str, timeout_s: float) -> dist.ProcessGroup:
        return cast(dist.ProcessGroup, dist.new_group(backend=backend, timeout=timedelta(seconds=timeout_s)))

    host_group = create_group("gloo", timeout_s)
    group = create_group(_backend(), timeout_s + _MARGIN_S) if torch.cuda.is_available() else host_group
    return replace(world, group=group, host_group=host_group, timeout_s=timeout_s)


@contextmanager
def naming_the_missing(world: World, place: Callable[[], str]) -> Iterator[None]:
    """In this block, an exchange that fails because of another process is an error that names it, and so is being
    stopped behind that: launchers stop those that are left when one has failed.

    Args:
        place: what this process is in, such as "step 13".
    Raises:
        LostProcessError: another process has died, has failed, or has not come in time.
        UserError: another one has ended with it.
    """
    try:
        try:
            yield
        except RuntimeError as error:
            if world.roll is None or not _is_broken_off(error):
                raise
            leave_by_force()
            waited = ""
            if _LATE.search(str(error)):
                waited = "in time" if world.group is None else f"within {world.timeout_s:g} s (train.timeout_s)"
            raise world.roll.explain(place(), waited) from error
    except Stopped as stopped:
        if world.roll is None or stopped.is_saved or not world.roll.has_lost_somebody():
            raise
        leave_by_force()
        raise world.roll.explain(place(), "") from None


def _is_broken_off(error: RuntimeError) -> bool:
    """Whether an exchange has failed by what another process did, or did not."""
    return isinstance(error, dist.DistError) or bool(_BROKEN_OFF.search(str(error)))


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
    dist.broadcast_object_list(outcome, src=0, group=world.host_group)
    if outcome[1] is not None:
        outcome[1].shared = True
        raise outcome[1]
    return outcome[0]


def gather_objects(world: World, value: T) -> list[T]:
    """Every process's value, in order of rank, on every process."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value, group=world.host_group)
    return values


def sum_over_ranks(world: World, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, summed in place over all processes."""
    if world.size > 1:
        if tensor.is_cuda:
            on_any_rank(world, False)  # who asks for the sum waits for the GPU, where nobody tells who is missing
        dist.all_reduce(tensor, group=world.group)
    return tensor


def on_any_rank(world: World, *flags: bool) -> list[bool]:
    """Whether each flag is set on any process; all of them ask at the same time. Nothing waits for a GPU."""
    if world.size == 1:
        return list(flags)
    values = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(values, dist.ReduceOp.MAX, group=world.host_group)
    return [bool(value) for value in values.tolist()]


@torch.no_grad()
def broadcast_buffers(world: World, module: torch.nn.Module) -> None:
    """Give all processes the first one's buffers (BatchNorm's running statistics), which is what gets saved."""
    if world.size > 1:
        for group in group_by_kind(module.buffers()):
            flat = join(group)
            dist.broadcast(flat, src=0, group=world.group)
            part(flat, group)
