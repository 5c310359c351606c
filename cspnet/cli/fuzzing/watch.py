"""Inputs of all kinds for a parser, and what must never happen when it reads them.

An input is read in a process of its own that is watched: it must be taken, or refused by an error for people of one
line. Anything else is a finding: another exception, a traceback on stderr, the end of the process, more memory or time
than is allowed, and code that an input brings along and that runs (it would make a file called `canary`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from cspnet.cli.fuzzing.mutations import mutate
from cspnet.errors import UserError
from cspnet.runtime.random import generator_at

__all__ = [
    "CANARY",
    "Change",
    "Files",
    "Outcome",
    "Parser",
    "Tally",
    "draw_input",
    "fuzz",
    "read_input",
    "read_inputs",
    "write_input",
]

CANARY = "canary"
"""The file that hostile inputs make in the working directory, if they can."""
_MOST_TEXT = 4000
"""Characters of a line that a person can read."""
_WELL_FORMED = 0.7
"""Share of the inputs that are damaged behind a form that is right."""
_PATIENCE = 6
"""How many times as long it may take by the clock: other programs want the processor too, and what hangs takes none."""
_BEYOND_MIB = 3072
"""Memory beyond what is allowed at which the system refuses: what takes too much is seen before all is taken."""

Files = Mapping[str, bytes]
"""An input: {file name: contents}."""
Change = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Parser:
    """Something that reads files of strangers."""

    name: str
    read: Callable[[Path], object]
    """Reads the files of an input in a folder. It may raise what is in `refusals`, with a message of one line."""
    seeds: Callable[[], Sequence[Files]]
    """Valid inputs, to be damaged; the same ones each time."""
    traps: Callable[[], Sequence[Files]] = tuple
    """Inputs that are built to do harm; the same ones each time."""
    words: tuple[bytes, ...] = ()
    """Pieces of the format."""
    repair: Callable[[bytes], bytes] | None = None
    """Puts checksums right after damage, which would be refused for nothing else."""
    inside: Callable[[bytes, Change, np.random.Generator], bytes] | None = None
    """Changes something inside of a valid file, and packs it again."""
    trap_share: float = 0.15
    """How many of the inputs are built to do harm; half of these are damaged as well."""
    refusals: tuple[type[Exception], ...] = (UserError,)
    memory_mib: int = 1024
    """How much one input may take."""
    deadline_s: int = 20
    """How many seconds of a processor one input may take."""


class Outcome(NamedTuple):
    """What became of an input."""

    kind: str
    """accepted, refused or finding."""
    text: str = ""


@dataclass
class Tally:
    """What became of a parser's inputs."""

    accepted: int = 0
    refused: int = 0
    seconds: float = 0
    findings: dict[int, str] = field(default_factory=dict)
    """{number of the input: what happened}"""

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused + len(self.findings)


def draw_input(parser: Parser, seed: int, number: int) -> Files:
    """An input by its address."""
    rng = generator_at(seed, f"fuzz {parser.name}", number)
    seeds, traps = parser.seeds(), parser.traps()
    is_trap = bool(traps) and rng.random() < parser.trap_share
    start = traps if is_trap else seeds
    files = dict(start[int(rng.integers(len(start)))])
    if is_trap and rng.random() < 0.5:
        return files
    names = list(files)
    name = names[int(rng.integers(len(names))) if rng.random() < 0.5 else 0]
    others = list(seeds[int(rng.integers(len(seeds)))].values())
    other = others[int(rng.integers(len(others)))]

    def change(content: bytes) -> bytes:
        return mutate(content, other, parser.words, rng)

    is_well_formed = rng.random() < _WELL_FORMED
    if parser.inside and is_well_formed and not is_trap and name == names[0]:
        files[name] = parser.inside(files[name], change, rng)
    else:
        files[name] = change(files[name])
        files[name] = parser.repair(files[name]) if parser.repair and is_well_formed else files[name]
    return files


def write_input(files: Files, folder: Path) -> None:
    """The files of an input, in a folder that is made for them."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read_input(parser: Parser, files: Files) -> Outcome:
    """Read one input in a watched process."""
    return read_inputs(parser, [files])[0]


def read_inputs(parser: Parser, inputs: Sequence[Files]) -> list[Outcome]:
    """Read inputs that are there already."""
    return [outcome for _, outcome in _watch(parser, lambda number: inputs[number], range(len(inputs)))]


def fuzz(
    parser: Parser, seed: int, inputs: int, tell: Callable[[int, Outcome], None] = lambda number, outcome: None
) -> Tally:
    """Read inputs 0 to `inputs` - 1 of a parser.

    Args:
        tell: told of each input and what became of it.
    """
    tally, started = Tally(), time.monotonic()
    parser.seeds(), parser.traps()  # drawn here, if they are kept, all processes have them
    for number, outcome in _watch(parser, lambda number: draw_input(parser, seed, number), range(inputs)):
        if outcome.kind == "finding":
            tally.findings[number] = outcome.text
        else:
            tally.accepted += outcome.kind == "accepted"
            tally.refused += outcome.kind == "refused"
        tell(number, outcome)
    tally.seconds = time.monotonic() - started
    return tally


def _watch(parser: Parser, draw: Callable[[int], Files], numbers: range) -> Iterator[tuple[int, Outcome]]:
    """What becomes of the inputs, one after the other, in a process that is begun anew where it ends."""
    with tempfile.TemporaryDirectory(prefix="cspnet-fuzz-") as folder:
        next_number = numbers.start
        while next_number < numbers.stop:
            for outcome in _watch_process(parser, draw, range(next_number, numbers.stop), Path(folder)):
                yield next_number, outcome
                next_number += 1


def _watch_process(parser: Parser, draw: Callable[[int], Files], numbers: range, folder: Path) -> Iterator[Outcome]:
    """The outcomes of one process, until it has read all inputs or ends at one of them."""
    receiving, sending = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forking with threads: none is waited for
        child = os.fork()
    if child == 0:
        _work(parser, draw, numbers, folder, sending)
    os.close(sending)
    try:
        with os.fdopen(receiving, "rb", buffering=0) as pipe:
            for _ in numbers:
                outcome = _receive(pipe.fileno(), parser.deadline_s * _PATIENCE)
                if outcome is None:
                    os.kill(child, signal.SIGKILL)
                    yield Outcome("finding", f"took longer than {parser.deadline_s * _PATIENCE} s")
                    return
                if not outcome.kind:  # the end of the pipe: it has died
                    yield Outcome("finding", _describe_end(os.waitpid(child, 0)[1], parser.deadline_s))
                    child = 0
                    return
                yield outcome
                if outcome.kind == "finding":
                    return
    finally:
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _receive(pipe: int, deadline_s: float) -> Outcome | None:
    """The next outcome; an empty one at the end of the pipe, None if none comes in time."""
    line = b""
    deadline = time.monotonic() + deadline_s
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            return None
        piece = os.read(pipe, 1)
        if not piece:
            return Outcome("")
        line += piece
    kind, _, text = line.decode("utf-8", "replace").rstrip("\n").partition(" ")
    return Outcome(kind, text)


def _describe_end(status: int, deadline_s: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        return f"took longer than {deadline_s} s of a processor"
    return f"the process died of {signal.Signals(-code).name}" if code < 0 else f"the process ended with code {code}"


def _work(parser: Parser, draw: Callable[[int], Files], numbers: range, folder: Path, pipe: int) -> NoReturn:
    """The watched process: reads inputs, writes an outcome a line. Never returns."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that watches
        faulthandler.disable()  # a crash is told by its signal
        os.chdir(folder)
        errors = os.open(folder / "stderr", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(errors, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", errors="backslashreplace")
        _limit_memory(parser.memory_mib + _BEYOND_MIB)
        before_mib = _peak_mib()
        for number in numbers:
            files = draw(number)
            _limit_time(parser.deadline_s)
            outcome = _read_here(parser, files, folder / "input")
            sys.stderr.flush()
            if outcome.kind != "finding":
                outcome = _look_around(folder, errors) or outcome
            taken_mib = _peak_mib() - before_mib
            if outcome.kind != "finding" and taken_mib > parser.memory_mib:
                outcome = Outcome("finding", f"took {taken_mib:,} MiB of memory")
            text = " ".join(outcome.text.split())[:_MOST_TEXT]
            os.write(pipe, f"{outcome.kind} {text}\n".encode("utf-8", "backslashreplace"))
            if outcome.kind == "finding":
                os._exit(0)  # who knows what it has left behind
    except BaseException:
        text = " ".join(traceback.format_exc().split())[-_MOST_TEXT:]
        os.write(pipe, f"finding the fuzzer itself failed: {text}\n".encode("utf-8", "backslashreplace"))
    finally:
        os._exit(0)


def _read_here(parser: Parser, files: Files, folder: Path) -> Outcome:
    """Read an input in this process."""
    write_input(files, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parser.read(folder)
        return Outcome("accepted")
    except SystemExit:  # --help
        return Outcome("accepted")
    except parser.refusals as error:
        return _judge_refusal(error)
    except BaseException as error:
        return Outcome("finding", f"{type(error).__name__}: {error} ({_find_place(error)})")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _judge_refusal(error: BaseException) -> Outcome:
    """Whether a refusal is one: in a line, and not because the memory had run out already."""
    text = str(error)
    if not text.strip() or "\n" in text or "\r" in text:
        return Outcome("finding", f"refused, but not in one line: {text!r}")
    if len(text) > _MOST_TEXT:
        return Outcome("finding", f"refused in a line of {len(text):,} characters: {text[:200]}")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "allocate memory" in str(cause) or "bad_alloc" in str(cause):
            return Outcome("finding", f"refused only when the memory had run out: {text}")
        cause = cause.__cause__ or cause.__context__
    return Outcome("refused", text)


def _find_place(error: BaseException) -> str:
    """The innermost line of ours that an exception went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "cspnet" in frame.filename]
    frames = [frame for frame in frames if Path(frame.filename).name != Path(__file__).name]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "not in ours"


def _look_around(folder: Path, errors: int) -> Outcome | None:
    """What an input has done beside being read."""
    if (folder / CANARY).exists():
        (folder / CANARY).unlink()
        return Outcome("finding", "ran code of the input")
    if os.fstat(errors).st_size:
        said = os.pread(errors, 1 << 16, 0).decode("utf-8", "replace")
        os.ftruncate(errors, 0)
        if "Traceback" in said:
            return Outcome("finding", f"a traceback on stderr: {said[-300:]}")
    return None


def _limit_memory(mib: int) -> None:
    """Address space from here on, in MiB."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + mib * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: int) -> None:
    """Of a processor, from here on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _peak_mib() -> int:
    """The most memory this process has held at any time, in MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
