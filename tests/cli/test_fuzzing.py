"""The watch over parsers, with parsers that do each of the things that must not happen."""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from cspnet.cli.fuzzing import watch
from cspnet.cli.fuzzing.mutations import mutate
from cspnet.cli.fuzzing.parsers import PARSERS
from cspnet.cli.fuzzing.pictures import repair_png
from cspnet.cli.fuzzing.tars import repair_tar
from cspnet.cli.fuzzing.watch import CANARY, Files, Parser, draw_input, fuzz, read_input, read_inputs
from cspnet.cli.fuzzing.zips import zip_bomb
from cspnet.errors import DataError, UserError
from cspnet.runtime.heap import give_back_freed_memory

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="limits memory by /proc and Linux's limits"
)


def parser_of(read: Callable[[Path], object], **options: object) -> Parser:
    def seeds() -> tuple[Files, ...]:
        return ({"a.txt": b"one 1\ntwo 2\n"}, {"a.txt": b"three 3\n", "b.txt": b""})

    return Parser("planted", read, seeds, **options)  # type: ignore[arg-type]


def refuse(text: str, cause: BaseException | None = None) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        raise DataError(text) from cause

    return read


def take_memory(folder: Path) -> None:
    ctypes.memset((ctypes.c_char * (200 << 20))(), 1, 200 << 20)


def hide_an_exception(folder: Path) -> None:
    try:
        raise ValueError("deep inside")
    except ValueError:
        sys.excepthook(*sys.exc_info())


class TwoLinesError(DataError):
    def __str__(self) -> str:
        return "two\nlines"


def refuse_in_two_lines(folder: Path) -> None:
    raise TwoLinesError


PLANTED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "accepts": (lambda folder: (folder / "a.txt").read_bytes(), "accepted", ""),
    "refuses": (refuse("a.txt: no"), "refused", "a.txt: no"),
    "fails": (lambda folder: {}["x"], "finding", "KeyError: 'x' (not in ours)"),
    "refuses in two lines": (refuse_in_two_lines, "finding", "refused, but not in one line"),
    "refuses without a word": (refuse(""), "finding", "refused, but not in one line"),
    "refuses when the memory is gone": (refuse("no", MemoryError()), "finding", "only when the memory had run out"),
    "refuses when torch has none": (refuse("no", RuntimeError("can't allocate memory: x")), "finding", "run out"),
    "crashes": (lambda folder: ctypes.string_at(0), "finding", "the process died of SIGSEGV"),
    "exits": (lambda folder: os._exit(3), "finding", "the process ended with code 3"),
    "takes memory": (take_memory, "finding", "took 2"),
    "takes all memory": (lambda folder: bytearray(1 << 40), "finding", "MemoryError"),
    "runs code": (lambda folder: Path(CANARY).touch(), "finding", "ran code of the input"),
    "prints a traceback": (hide_an_exception, "finding", "a traceback on stderr: Traceback"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_what_is_seen(case: str) -> None:
    read, kind, text = PLANTED[case]
    give_back_freed_memory()  # what this process has kept would be taken first, unseen
    outcome = read_input(parser_of(read, memory_mib=100), {"a.txt": b"x"})
    assert (outcome.kind, text in outcome.text) == (kind, True), outcome


def work_for_ever(folder: Path) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("read", "patience", "said"),
    [(work_for_ever, 60, "1 s of a processor"), (lambda folder: time.sleep(60), 1, "1 s")],
)
def test_what_never_ends(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object], patience: int, said: str
) -> None:
    monkeypatch.setattr(watch, "_PATIENCE", patience)
    outcome = read_input(parser_of(read, deadline_s=1), {"a.txt": b"x"})
    assert (outcome.kind, outcome.text) == ("finding", f"took longer than {said}")


def test_all_are_read_whatever_happens_to_some() -> None:
    """The parser's own count of what it is shown, kept outside of the processes that die."""

    def read(folder: Path) -> None:
        content = (folder / "a.txt").read_bytes()
        if b"\0" in content:
            os._exit(1)
        if b"1" in content:
            raise DataError("has a 1")
        if b"3" not in content:
            raise ValueError

    parser, told = parser_of(read), []
    tally = fuzz(parser, 5, 200, lambda number, outcome: told.append((number, outcome.kind)))
    expected = []
    for number in range(200):
        content = draw_input(parser, 5, number)["a.txt"]
        kind = "finding" if b"\0" in content else "refused" if b"1" in content else "accepted"
        expected.append((number, "finding" if kind == "accepted" and b"3" not in content else kind))
    assert told == expected
    counts = [sum(kind == wanted for _, kind in expected) for wanted in ("accepted", "refused", "finding")]
    assert [tally.accepted, tally.refused, len(tally.findings)] == counts
    assert min(counts) > 5
    assert tally.inputs == 200


@pytest.mark.parametrize("name", PARSERS)
def test_an_address_is_an_input(name: str) -> None:
    parser = PARSERS[name]
    drawn = [draw_input(parser, 3, number) for number in range(30)]
    assert drawn == [draw_input(parser, 3, number) for number in range(30)]
    assert len({str(files) for files in drawn}) > 20
    assert drawn != [draw_input(parser, 4, number) for number in range(30)]


@pytest.mark.parametrize("name", PARSERS)
def test_what_the_damage_starts_from_is_taken(name: str) -> None:
    for files in PARSERS[name].seeds():
        outcome = read_input(PARSERS[name], files)
        assert outcome.kind == "accepted" or "does not say which model it holds" in outcome.text, outcome


def test_damage_is_of_every_kind() -> None:
    data, other = bytes(range(256)) * 4, b"other " * 100
    results = [mutate(data, other, (b"<word>",), np.random.default_rng(i)) for i in range(500)]
    assert all(
        any(test(result) for result in results)
        for test in (
            lambda r: len(r) < len(data),
            lambda r: len(r) > len(data),
            lambda r: b"<word>" in r,
            lambda r: b"other" in r,
            lambda r: len(r) == len(data) and sum(a != b for a, b in zip(r, data, strict=True)) == 1,
            lambda r: b"[[[[[[[[" in r,
            lambda r: r.count(bytes(range(64))) > 6,
            lambda r: b"9" * 5000 in r or b"2147483648" in r,
        )
    )
    assert max(map(len, results)) <= 1 << 20


@pytest.mark.parametrize("name", ["tar", "picture"])
def test_damage_reaches_behind_checksums(name: str) -> None:
    repair, at = (repair_tar, 100) if name == "tar" else (repair_png, 18)
    (file,) = PARSERS[name].seeds()[0].values()
    changed = file[:at] + bytes([file[at] ^ 1]) + file[at + 1 :]
    refused = read_input(PARSERS[name], dict.fromkeys(PARSERS[name].seeds()[0], changed))
    assert refused.kind == "refused"
    repaired = read_input(PARSERS[name], dict.fromkeys(PARSERS[name].seeds()[0], repair(changed)))
    assert repaired != refused
    assert repair(file) == file


def test_refusals_of_one_parser_are_findings_of_another() -> None:
    assert read_input(parser_of(refuse("no"), refusals=(OSError,)), {"a.txt": b"x"}).kind == "finding"
    assert issubclass(DataError, UserError)


def test_a_bomb_is_one() -> None:
    """What is refused for its size has to have it."""
    bomb = zip_bomb("a", b"head", 300, [("b", b"other")])
    with zipfile.ZipFile(io.BytesIO(bomb)) as archive, archive.open("a") as member:
        assert archive.read("b") == b"other"
        member._expected_crc = None
        assert member.read(4) == b"head"
        assert sum(len(piece) for piece in iter(lambda: member.read(1 << 20), b"")) == 300 << 20
    assert len(bomb) < 500_000


@pytest.mark.parametrize("name", ["list", "cfg", "weights", "tar", "shard-index", "kept-index", "records"])
def test_what_is_built_to_do_harm_does_none(name: str) -> None:
    """Every one of the quick ones; the others are among the inputs that scripts/fuzz.py draws."""
    outcomes = read_inputs(PARSERS[name], PARSERS[name].traps())
    assert [outcome for outcome in outcomes if outcome.kind == "finding"] == []
    assert len(outcomes) > 10


def load_pickle(folder: Path) -> None:
    (path,) = (path for path in folder.iterdir() if path.suffix != ".sha256")
    with zipfile.ZipFile(path) as archive:
        pickle.loads(archive.read("archive/data.pkl"))


def load_yaml(folder: Path) -> None:
    yaml.unsafe_load((folder / "recipe.yaml").read_text())


def load_arrays(folder: Path) -> None:
    with np.load(folder / "index.npz", allow_pickle=True) as archive:
        dict(archive)


@pytest.mark.parametrize(
    ("name", "read"), [("checkpoint", load_pickle), ("recipe", load_yaml), ("kept-index", load_arrays)]
)
def test_they_would_do_harm_to_others(name: str, read: Callable[[Path], object]) -> None:
    """Read as nobody should, they run their code, and that is seen."""
    careless = parser_of(read, refusals=(Exception,))
    harmful = [files for files in PARSERS[name].traps() if any(CANARY.encode() in file for file in files.values())]
    outcomes = read_inputs(careless, harmful[:20])
    assert "ran code of the input" in [outcome.text for outcome in outcomes]
