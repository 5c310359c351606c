"""Processes that wait for each other in vain say who is missing; one that fails tells the others why."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import pytest

from cspnet.errors import EXIT_STOPPED, DataError
from cspnet.runtime import distributed, roll_call
from cspnet.runtime.distributed import World, hurry, join_world, naming_the_missing, on_any_rank, read_world
from cspnet.runtime.leaving import leave_at_once
from cspnet.runtime.roll_call import RollCall, open_lines
from cspnet.runtime.signals import Stopped, StopRequest, heed_stop_signals
from tests.interrupted import act_at_line
from tests.processes import free_port

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the ranks")

TIMEOUT_S = 2.0
SPREAD = 11
"""Lines from one place of a signal to the next."""
Act = Callable[[World], object]
Block = Callable[[StopRequest], contextlib.AbstractContextManager[None]]


class End(NamedTuple):
    """How a rank ended: what it raised."""

    pid: int
    kind: str = ""
    text: str = ""
    code: int = 0
    is_told: bool = False


def take_part(rank: int, size: int, port: int, act: Act, block: Block, end: Connection) -> None:
    """A rank of a run: it meets the others, acts, and meets them again."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(size)}
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # behind the block it is too late, as run_program has it
    try:
        with heed_stop_signals("x.py") as stop, join_world(read_world()) as world:
            hurried = hurry(world, TIMEOUT_S)
            with block(stop), naming_the_missing(hurried, lambda: "step 7"):
                on_any_rank(hurried, False)
                act(hurried)
                on_any_rank(hurried, False)
        end.send(End(os.getpid()))
    except BaseException as error:
        code, is_told = getattr(error, "exit_code", 0), getattr(error, "is_told", False)
        end.send(End(os.getpid(), type(error).__name__, str(error), code, is_told))
    os._exit(0)


def not_noted(stop: StopRequest) -> contextlib.AbstractContextManager[None]:
    """Signals act where they come."""
    return contextlib.nullcontext()


def run_ranks(size: int, act: Act, without: Sequence[int] = (), block: Block = not_noted) -> list[End]:
    """The ends of all ranks, which act in a block; nobody waits for those `without` one, of which there is the process
    number only."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    pipes = [fork.Pipe(duplex=False) for _ in range(size)]
    ranks = [
        fork.Process(target=take_part, args=(rank, size, port, act, block, pipes[rank][1]), daemon=True)
        for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    for _, end in pipes:
        end.close()
    found = []
    for number, rank in enumerate(ranks):
        if number in without:
            found.append(End(rank.pid or 0))
        else:
            assert pipes[number][0].poll(60)
            found.append(pipes[number][0].recv())
    for rank in ranks:
        rank.kill()
        rank.join()
    return found


def send_myself(number: signal.Signals, *which: int) -> Act:
    return lambda world: world.rank in which and os.kill(os.getpid(), number)


def name(rank: int, end: End) -> str:
    return f"rank {rank} ({socket.gethostname()}, pid {end.pid})"


@pytest.mark.parametrize("killed", [(0,), (1,), (1, 2)])
def test_those_that_die_are_named(killed: Sequence[int]) -> None:
    """Also the first one, at which they have met."""
    ends = run_ranks(4, send_myself(signal.SIGKILL, *killed), without=killed)
    dead = " and ".join(name(rank, ends[rank]) for rank in killed)
    for rank in {0, 1, 2, 3} - set(killed):
        assert (ends[rank].kind, ends[rank].code) == ("LostProcessError", 1)
        assert ends[rank].text.startswith(f"{dead} died in step 7, without a word: ")


def busy(world: World) -> None:
    if world.rank == 2:
        time.sleep(600)


@pytest.mark.parametrize(
    ("lost", "act", "why"),
    [(0, send_myself(signal.SIGSTOP, 0), ": stopped by a signal"), (2, busy, "")],
    ids=["stopped", "busy"],
)
def test_one_that_stalls_is_named(monkeypatch: pytest.MonkeyPatch, lost: int, act: Act, why: str) -> None:
    # Longer than the ranks' clocks can be apart on a busy machine: who leaves first breaks the others' connections.
    monkeypatch.setattr(roll_call, "GRACE_S", 4.0)
    ends = run_ranks(3, act, without=[lost])
    text = f"{name(lost, ends[lost])} did not come to step 7 within {TIMEOUT_S:g} s (train.timeout_s){why}; "
    for rank in {0, 1, 2} - {lost}:
        assert (ends[rank].kind, ends[rank].code) == ("LostProcessError", 1)
        assert ends[rank].text.startswith(text)


def test_one_that_is_slow_is_waited_for() -> None:
    ends = run_ranks(3, lambda world: time.sleep(0.6 * world.rank))
    assert [end.kind for end in ends] == ["", "", ""]


def fail(error: Exception) -> Act:
    def act(world: World) -> None:
        if world.rank == 1:
            raise error

    return act


def test_an_error_for_the_user_is_everyones_and_told_once() -> None:
    ends = run_ranks(3, fail(DataError("x.jpg: cannot be read")))
    assert (ends[1].kind, ends[1].code, ends[1].is_told) == ("DataError", 2, False)
    for end in (ends[0], ends[2]):
        assert (end.kind, end.code, end.is_told) == ("UserError", 2, True)


def test_one_that_leaves_the_telling_to_the_first_process_is_told_by_it() -> None:
    """It thinks that all raise the same, and here it alone does."""
    error = DataError("GPU 2 was asked for, but there are 2")
    error.shared = True
    ends = run_ranks(3, fail(error))
    for end in (ends[0], ends[2]):
        assert (end.kind, end.code, end.is_told) == ("UserError", 2, False)
        assert end.text == f"{name(1, ends[1])}: {error}"


def test_a_bug_is_told_with_the_rank_that_has_its_traceback() -> None:
    ends = run_ranks(3, fail(ValueError("of ours")))
    assert ends[1].kind == "ValueError"
    for end in (ends[0], ends[2]):
        assert (end.kind, end.code) == ("LostProcessError", 1)
        assert end.text.startswith(f"{name(1, ends[1])} ended with an error of its own, ")
        assert end.text.endswith("ValueError: of ours")


def test_a_launcher_that_stops_the_others_does_not_make_it_a_stop() -> None:
    """As torchrun does when one has failed: those that are left have not saved anything."""

    def act(world: World) -> None:
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        assert world.roll is not None
        while not world.roll.has_lost_somebody():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    ends = run_ranks(2, act, without=[1])
    assert (ends[0].kind, ends[0].code) == ("LostProcessError", 1)
    assert ends[0].text.startswith(f"{name(1, ends[1])} died in step 7")


def fail_first(world: World) -> None:
    if world.rank == 0:
        raise DataError("x")


def stop_saved(world: World) -> None:
    stopped = Stopped("x")
    stopped.is_saved = True
    raise stopped


@pytest.mark.parametrize(
    ("act", "kind", "code", "text"),
    [(fail_first, "UserError", 2, "{first}: x"), (stop_saved, "Stopped", 0, "x")],
    ids=["failed", "saved"],
)
def test_what_is_told_stays_wherever_a_launcher_stops_those_that_are_left(
    act: Act, kind: str, code: int, text: str
) -> None:
    """All but the first get the signal while it has failed, or while all end: each some lines further on its way."""
    heard = multiprocessing.get_context("fork").Value("i", 0)

    def hear() -> None:
        with heard.get_lock():
            heard.value += 1
        signal.raise_signal(signal.SIGTERM)

    def act_and_hear(world: World) -> None:
        if world.rank:
            act_at_line(line + SPREAD * world.rank, hear)
        act(world)

    size, line = 5, 0
    while True:
        heard.value = 0
        ends = run_ranks(size, act_and_hear, block=StopRequest.noted)
        first = name(0, ends[0])
        assert {end[1:4] for end in ends[1:]} == {(kind, text.format(first=first), code)}, line
        if not heard.value:
            break
        line += SPREAD * (size - 1)
    assert line > 100


def test_what_is_saved_stays_a_stop() -> None:
    """Though another process has died behind it."""

    def act(world: World) -> None:
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        assert world.roll is not None
        while not world.roll.has_lost_somebody():
            time.sleep(0.01)
        stopped = Stopped("saved")
        stopped.is_saved = True
        raise stopped

    assert run_ranks(2, act, without=[1])[0][1:3] == ("Stopped", "saved")


def test_one_that_ends_while_they_meet_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_lines_unless_second(rank: int, *others: Any, **more: Any) -> RollCall:
        if rank == 1:
            os._exit(EXIT_STOPPED)
        return open_lines(rank, *others, **more)

    monkeypatch.setattr(distributed, "open_lines", open_lines_unless_second)
    ends = run_ranks(2, lambda world: None, without=[1])
    assert ends[0][1:4] == (
        "LostProcessError",
        "another process has ended while the processes met; what it said tells why",
        1,
    )


def test_one_that_leaves_at_once_is_not_taken_for_dead() -> None:
    """As one does that is stopped in an import, or while it waits in a library, before anything is done."""

    def act(world: World) -> None:
        if world.rank == 1:
            leave_at_once(EXIT_STOPPED)

    for end in run_ranks(3, act, without=[1])[::2]:
        assert end[1:3] == ("Stopped", "stopped by a signal to another process; there was nothing to save")


def test_a_signal_to_one_stops_all() -> None:
    ends = run_ranks(2, send_myself(signal.SIGTERM, 1))
    assert ends[1][1:3] == ("Stopped", "stopped by SIGTERM; there was nothing to save")
    assert ends[0][1:3] == ("Stopped", "stopped by a signal to another process; there was nothing to save")
