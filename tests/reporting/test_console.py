"""Lines for people: durations, who speaks, and pictures that cannot be read."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from cspnet.reporting.console import Console, format_duration
from cspnet.reporting.run_report import BadImageLog
from tests.conftest import ROOT

RECORD = {
    "step": 30,
    "epoch": 2,
    "train/loss": 1.23456,
    "train/acc1": 45.678,
    "train/acc5": 90.0,
    "train/lr": 0.05,
    "train/images_per_s": 1234.5,
    "train/data_wait_ratio": 0.25,
    "train/mfu": 0.413,
}

DURATIONS = {
    0: "0:00",
    0.9: "0:00",
    9: "0:09",
    12.3: "0:12",
    60: "1:00",
    3599.9: "59:59",
    3600: "1:00:00",
    3723: "1:02:03",
    86399: "23:59:59",
    86400: "1d 0:00:00",
    90061: "1d 1:01:01",
}


@pytest.mark.parametrize("seconds", DURATIONS)
def test_format_duration(seconds: float) -> None:
    assert format_duration(seconds) == DURATIONS[seconds]


@pytest.mark.parametrize("seconds", range(0, 3 * 86400, 7919))
def test_format_duration_says_what_timedelta_says(seconds: int) -> None:
    days, _, clock = format_duration(seconds).rpartition("d ")
    parts = [0, 0, *map(int, clock.split(":"))][-3:]
    said = timedelta(days=int(days or 0), hours=parts[0], minutes=parts[1], seconds=parts[2])
    assert said == timedelta(seconds=seconds)


def show(console: Console) -> None:
    console.say("hello")
    console.start_epoch(3, 5, 0, 10)
    console.advance()
    console.show_record(RECORD, epochs=5, step_in_epoch=10, steps=10, eta_s=61)
    console.end_epoch()
    console.warn("careful")


def test_the_first_process_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    show(Console(0))
    output = capsys.readouterr()
    first, record = output.out.splitlines()
    assert first == "hello"
    for part in ("epoch 3/5", "[10/10]", "loss 1.2346", "acc1 45.68", "lr 0.05", "img/s", "25%", "mfu 41%", "eta 1:01"):
        assert part in record
    assert output.err.splitlines() == ["warning: careful"]


def test_a_file_gets_every_line_with_its_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console, file = Console(0), tmp_path / "train.log"
    file.write_text("from before\n")
    console.warn("early")
    console.keep_in(file)
    show(console)
    kept, *lines = file.read_text().splitlines()
    assert kept == "from before"
    texts = [line[20:] for line in lines]
    assert [texts[0], texts[1], texts[3]] == ["warning: early", "hello", "warning: careful"]
    said = capsys.readouterr().out.splitlines()[-1]
    assert texts[2] == said[20:]  # behind the date, which may be a second later
    for line in lines:
        assert abs(datetime.now() - datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S")) < timedelta(hours=1)


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    console = Console(0)
    console.keep_in(tmp_path / "missing" / "train.log")
    show(console)


IN_A_TERMINAL = """
import sys
from cspnet.reporting.console import Console
console = Console(0, plain="plain" in sys.argv)
console.start_epoch(3, 5, 0, 10)
console.advance()
record = {"epoch": 2, "train/loss": 1.23, "train/acc1": 45.6, "train/lr": 0.05, "train/images_per_s": 1234.5}
record["train/data_wait_ratio"] = 0.25
console.show_record(record, epochs=5, step_in_epoch=1, steps=10, eta_s=61)
console.end_epoch()
"""


@pytest.mark.parametrize(("size", "how"), [((40, 120), ""), ((24, 80), ""), ((0, 0), ""), ((40, 120), "plain")])
def test_on_a_terminal_there_is_one_line(size: tuple[int, int], how: str) -> None:
    """A bar with all the numbers; in a terminal without a size, where a bar would not be drawn, and under torchrun,
    dated lines."""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    done = subprocess.run(
        [sys.executable, "-c", IN_A_TERMINAL, how], stdout=theirs, stderr=theirs, cwd=ROOT, check=False
    )
    os.close(theirs)
    said = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0, said
    lines = [line for line in said.replace("\r", "\n").splitlines() if "loss" in line]
    if size[0] and not how:
        assert lines[-1].startswith("epoch 3/5 [1/10], loss 1.2300  lr 0.05  1234 img/s  data 25%  eta 1:01"), said
        assert len(lines[-1]) == size[1] - 1
        assert ("acc1 45.60" in lines[-1]) == (size[1] > 80)
    else:
        numbers = r"loss 1\.2300  acc1 45\.60  lr 0\.05  1234 img/s  data 25%  eta 1:01"
        date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        assert re.fullmatch(date + r" epoch 3/5 \[ 1/10\]  " + numbers, lines[-1].strip()), said


IN_A_PROCESS_THAT_IS_KILLED = """
import multiprocessing, os, signal
from cspnet.reporting.console import open_bar

def draw():
    open_bar(10, "measured", "turn")
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=draw)
    process.start()
    process.join()
    print(process.exitcode)
"""


def test_a_killed_process_with_a_bar_leaves_nothing_behind(tmp_path: Path) -> None:
    """Python tells of semaphores that nobody has given back, on stderr, as it ends."""
    script = tmp_path / "draw.py"
    script.write_text(IN_A_PROCESS_THAT_IS_KILLED)
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "-9\n", "")


def test_without_a_utilisation_none_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    record = {key: value for key, value in RECORD.items() if key != "train/mfu"}
    Console(0).show_record(record, epochs=5, step_in_epoch=10, steps=10, eta_s=61)
    assert "mfu" not in capsys.readouterr().out


@pytest.mark.parametrize("rank", [1, 7])
def test_other_processes_are_quiet(rank: int, capsys: pytest.CaptureFixture[str]) -> None:
    show(Console(rank))
    assert capsys.readouterr() == ("", "")


def test_another_process_says_whose_its_own_warning_is(capsys: pytest.CaptureFixture[str]) -> None:
    Console(3).warn_own("my disk")
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert "my disk" in line
    assert "rank 3" in line


def test_bad_pictures_are_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = BadImageLog(tmp_path, Console(0))
    log.add([("a.jpg", "truncated"), ("b.jpg", "empty")], "replaced")
    log.add([("a.jpg", "truncated"), ("c.jpg", "empty"), ("c.jpg", "empty")], "replaced")
    lines = capsys.readouterr().err.splitlines()
    assert [name for line in lines for name in ("a.jpg", "b.jpg", "c.jpg") if name in line] == [
        "a.jpg",
        "b.jpg",
        "c.jpg",
    ]
    assert "truncated" in lines[0]
    assert "replaced" in lines[0]
    assert log.seen == {"a.jpg", "b.jpg", "c.jpg"}
    entries = [json.loads(line) for line in (tmp_path / "bad_images.jsonl").read_text().splitlines()]
    assert [(entry["path"], entry["reason"]) for entry in entries] == [
        ("a.jpg", "truncated"),
        ("b.jpg", "empty"),
        ("c.jpg", "empty"),
    ]


@pytest.mark.parametrize("place", ["none", "missing"])
def test_bad_pictures_without_a_folder_are_named_all_the_same(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = BadImageLog(None if place == "none" else tmp_path / "missing", Console(1))
    log.add([("a.jpg", "truncated")], "replaced")
    assert "a.jpg" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_name_of_any_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    BadImageLog(tmp_path, Console(0)).add([(path, "empty")], "replaced")
    assert ".jpg" in capsys.readouterr().err
    assert json.loads((tmp_path / "bad_images.jsonl").read_text())["path"] == path
