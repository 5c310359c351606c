"""Who is missing, when the processes of a run wait for each other in vain.

Each process has a line (a TCP connection) to every other one, on which nothing is said until something has gone wrong.
Then each says what it waits for, or why it ends. Who says nothing is the one that the others wait for; a line that
breaks off without a word was that of a process that has died. No thread listens, and a step costs nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cspnet.errors import LostProcessError, UserError
from cspnet.runtime.signals import Stopped

__all__ = ["Peer", "RollCall", "open_lines"]

_CONNECT_S = 30.0
GRACE_S = 5.0
"""How long somebody who waits in vain listens to the others."""
_MORE_S = 0.3
"""After the first one that has died: others may be dying with it."""
_LONGEST = 1 << 16
"""Bytes that are kept of what one process says."""

_ADVICE = "the checkpoints are whole: go on with --resume auto"
_STATES = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "waiting for a disk or a device"}


@dataclass(frozen=True)
class Peer:
    """A process of the run, as the others see it."""

    rank: int
    host: str
    pid: int
    machine: str
    """The same for processes that see each other's process numbers."""

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"

    def state(self) -> str:
        """What it is doing instead, where that can be seen. Source: proc(5), /proc/[pid]/stat."""
        if self.machine != _machine():
            return ""
        with contextlib.suppress(OSError):
            return _STATES.get(Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0], "")
        return ""


def _machine() -> str:
    """A name for this machine, or this container of it."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')} {os.stat('/proc/self/ns/pid').st_dev}"
    return socket.gethostname()


class RollCall:
    """This process's lines to the others."""

    def __init__(self, rank: int, peers: Sequence[Peer], lines: Mapping[int, socket.socket], *, speaks: bool) -> None:
        """`speaks`: whether this process tells what others, on other machines, have told on theirs."""
        self.rank = rank
        self.peers = peers
        self.speaks = speaks
        self._lines = dict(lines)
        self._texts = dict.fromkeys(lines, b"")
        self._verdict: dict[str, Any] | None = None
        """The last word, if it is another process's."""
        for line in self._lines.values():
            line.setblocking(False)
        if hasattr(os, "register_at_fork"):
            # A reading process that has not ended yet would keep the lines of its dead parent open.
            itself = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _hang_up(itself()))

    def hang_up(self) -> None:
        """Close all lines, without a word."""
        for line in self._lines.values():
            line.close()
        self._lines.clear()

    def tell_end(self, error: BaseException | None) -> None:
        """Tell the others why this process ends; what it has from another one, it passes on."""
        if error is None or (isinstance(error, Stopped) and error.is_saved):
            self._tell({"kind": "done", "text": "its end"})
            return
        code = error.exit_code if isinstance(error, UserError) else 1
        reason = " ".join(str(error).split())
        word = {"kind": "failed", "by": self.rank, "code": code, "text": reason}
        if isinstance(error, Stopped):
            word["kind"] = "stopped"
        elif isinstance(error, LostProcessError):
            word["kind"] = "lost"
        elif isinstance(error, UserError):
            word["silent"] = error.shared and self.rank != 0  # it leaves telling to the first process
        else:
            word |= {"kind": "broken", "text": f"{type(error).__name__}: {reason}"}
        self._tell(self._verdict or word)

    def _tell(self, word: Mapping[str, Any]) -> None:
        said = json.dumps({**word, "text": word["text"][:4000]}).encode() + b"\n"
        for line in list(self._lines.values()):  # who leaves at once may do so in another thread
            with contextlib.suppress(OSError):  # nobody is there
                line.send(said)

    def explain(self, place: str, waited: str) -> BaseException:
        """What to raise when the others have not come.

        Args:
            place: what this process waits for them in, such as "step 13".
            waited: "within 300 s", or "" if they broke off.
        """
        self._tell({"kind": "waits", "text": place})
        deadline_s = time.monotonic() + GRACE_S
        while True:
            left_s = deadline_s - time.monotonic()
            if verdict := self.last_word():
                return verdict
            words = {rank: self._words_of(rank) for rank in self._texts}
            dead = [rank for rank in words if rank not in self._lines and not words[rank]]
            silent = [rank for rank in self._lines if not words[rank]]
            if left_s <= 0 or not silent:
                break
            if dead:
                deadline_s = min(deadline_s, time.monotonic() + _MORE_S)
            self._listen(min(left_s, _MORE_S))
        silent += [peer.rank for peer in self.peers if peer.rank not in (self.rank, *words)]
        return LostProcessError(self._describe(place, waited, dead, silent, words))

    def last_word(self) -> BaseException | None:
        """What to raise because another process has said that it ends, and why."""
        self._listen(0.0)
        for rank in self._texts:
            for word in self._words_of(rank):
                if word.get("kind") in ("failed", "broken", "lost", "stopped"):
                    self._verdict = word
                    return self._take_over(word)
        return None

    def has_lost_somebody(self) -> bool:
        """Whether a process has died, or has said that it fails."""
        self._listen(0.0)
        words = {rank: self._words_of(rank) for rank in self._texts}
        return any(rank not in self._lines and not words[rank] for rank in words) or any(
            word.get("kind") in ("failed", "broken", "lost") for said in words.values() for word in said
        )

    def _take_over(self, word: Mapping[str, Any]) -> BaseException:
        kind, text = word["kind"], str(word.get("text"))
        if kind == "stopped":
            return Stopped("stopped by a signal to another process; there was nothing to save")
        if kind == "lost":
            return LostProcessError(text)
        teller = self.peers[int(word["by"])]
        if kind == "broken":
            return LostProcessError(f"{teller} ended with an error of its own, whose traceback it has shown: {text}")
        error = UserError(f"{teller}: {text}")
        error.exit_code = int(word["code"])
        error.shared = bool(word.get("silent"))
        error.is_told = not error.shared and (teller.machine == _machine() or not self.speaks)
        return error

    def _describe(
        self,
        place: str,
        waited: str,
        dead: Sequence[int],
        silent: Sequence[int],
        words: Mapping[int, Sequence[Mapping[str, Any]]],
    ) -> str:
        if dead:
            return (
                f"{self._name(dead)} died in {place}, without a word: killed, perhaps as memory ran out, or by a fault "
                f"in a library; {_ADVICE}"
            )
        if silent:
            why = "" if waited else ", and the connection is broken"
            states = {self.peers[rank].state() for rank in silent} - {""}
            states_text = f": {', '.join(sorted(states))}" if states else ""
            return (
                f"{self._name(silent)} did not come to {place}{f' {waited}' * bool(waited)}{why}{states_text}; if that "
                f"is slow and not broken, allow more; {_ADVICE}"
            )
        places = {f"rank {rank}": said[-1].get("text") for rank, said in words.items()}
        others = ", ".join(f"{name} in {text}" for name, text in places.items())
        return (
            f"all processes wait for each other {waited or 'with broken connections'}: this one in {place}, {others}; "
            f"is the network between them broken? {_ADVICE}"
        )

    def _name(self, ranks: Iterable[int]) -> str:
        return " and ".join(str(self.peers[rank]) for rank in sorted(ranks))

    def _words_of(self, rank: int) -> list[dict[str, Any]]:
        """What a process has said, as far as it can be understood."""
        words = []
        for text in self._texts[rank].split(b"\n")[:-1]:
            with contextlib.suppress(ValueError):
                word = json.loads(text)
                if isinstance(word, dict) and word.get("by", 0) in range(len(self.peers)):
                    words.append(word)
        return words

    def _listen(self, limit_s: float) -> None:
        """Take in what the others have said, and who has hung up; wait for that if there is nothing."""
        with selectors.DefaultSelector() as selector:
            for rank, line in self._lines.items():
                selector.register(line, selectors.EVENT_READ, rank)
            ready = [int(key.data) for key, _ in selector.select(limit_s)] if self._lines else []
        for rank in ready:
            try:
                said = self._lines[rank].recv(_LONGEST)
            except BlockingIOError:
                continue
            except OSError:
                said = b""
            self._texts[rank] = (self._texts[rank] + said)[:_LONGEST]
            if not said:
                self._lines.pop(rank).close()


def _hang_up(roll: RollCall | None) -> None:
    if roll is not None:
        roll.hang_up()


def open_lines(
    rank: int, size: int, master: tuple[str, int], exchange: Callable[[Any], Sequence[Any]], *, speaks: bool
) -> RollCall:
    """A line to every other process; all of them call this at the same time.

    Args:
        master: host and port at which the processes have met.
        exchange: gives a value to all processes, and theirs to this one in the order of ranks.
        speaks: see `RollCall`.
    """
    with _listener(size) as door:
        here = {
            **{"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine()},
            **{"address": _own_address(master), "port": door.getsockname()[1], "secret": secrets.token_hex(16)},
        }
        everyone = exchange(here)
        peers = [Peer(i, str(one["host"]), int(one["pid"]), str(one["machine"])) for i, one in enumerate(everyone)]
        lines = {}
        for other in range(rank):
            with contextlib.suppress(OSError):
                lines[other] = _call(everyone[other], same_machine=peers[other].machine == here["machine"])
                lines[other].sendall(rank.to_bytes(4, "big") + bytes.fromhex(everyone[other]["secret"]))
        lines |= _answer(door, size - 1 - rank, bytes.fromhex(here["secret"]))
    missing = [str(peer) for peer in peers if peer.rank != rank and peer.rank not in lines]
    if missing:
        text = f"no connection to {', '.join(missing)}: if they hang or die, that will not be told exactly"
        print(f"[rank {rank}] warning: {text}", file=sys.stderr)
    return RollCall(rank, peers, lines, speaks=speaks)


def _listener(size: int) -> socket.socket:
    """Somewhere to be called at, on all addresses of this machine."""
    with contextlib.suppress(OSError, ValueError):
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=size, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=size)


def _own_address(master: tuple[str, int]) -> str:
    """The address of this machine that others reach it at: that which faces the one where they have met."""
    for family, _, _, _, address in socket.getaddrinfo(*master, type=socket.SOCK_DGRAM):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # nothing is sent
            own = str(probe.getsockname()[0])
            # Seen from itself, the machine where they have met has an address that is no use to others.
            return master[0] if own.startswith("127.") or own == "::1" else own
    return socket.gethostname()


def _call(other: Mapping[str, Any], *, same_machine: bool) -> socket.socket:
    address = "localhost" if same_machine else str(other["address"])
    return socket.create_connection((address, int(other["port"])), _CONNECT_S)


def _answer(door: socket.socket, count: int, secret: bytes) -> dict[int, socket.socket]:
    """The lines of those who call and know the secret."""
    lines: dict[int, socket.socket] = {}
    deadline_s = time.monotonic() + _CONNECT_S
    while len(lines) < count and (left_s := deadline_s - time.monotonic()) > 0:
        door.settimeout(left_s)
        try:
            line, _ = door.accept()
            line.settimeout(5.0)
            said = b""
            while len(said) < 20 and (more := line.recv(20 - len(said))):
                said += more
        except OSError:
            continue
        if len(said) == 20 and secrets.compare_digest(said[4:], secret):
            lines[int.from_bytes(said[:4], "big")] = line
        else:
            line.close()
    return lines
