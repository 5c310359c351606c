"""What is forked is as what is started: the same script, both ways."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forking import Forked, list_forks

LOOKS = """
import atexit, logging, os, random, signal, subprocess, sys, threading, time, warnings
if sys.argv[1:] == ["draw"]:
    import numpy as np
    import torch
    print(random.random(), np.random.rand(), torch.rand(1).item())
    sys.exit()
atexit.register(print, "at exit")
go = threading.Event()
threading.Thread(target=lambda: (go.wait(), time.sleep(0.3), print("a thread"))).start()
print(__name__, sys.argv, sys.path[0], os.getcwd(), os.environ.get("MARK"), os.environ.get("HOME"))
print(os.getpid() == os.getsid(0), {n: signal.getsignal(n) is signal.SIG_DFL for n in signal.valid_signals()})
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), sys.stdin.read())
warnings.warn("heed this")
warnings.warn("old", DeprecationWarning)
logging.getLogger("x").warning("logged")
print(subprocess.run([sys.executable, "-u", "other.py", "a"], capture_output=True, text=True).stdout)
END = {END}
go.set()
if callable(END):
    END()
sys.exit(END)
"""
ENDS = {
    "0": 0,
    "None": 0,
    "7": 7,
    "'why'": 1,
    "lambda: 1 / 0": 1,
    "lambda: signal.raise_signal(signal.SIGINT)": -signal.SIGINT,
    "lambda: os.kill(os.getpid(), signal.SIGTERM)": -signal.SIGTERM,
}


def start(kind: type[subprocess.Popen[Any]], folder: Path, *words: str) -> Any:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MARK": "mine"}
    del environment["HOME"]
    environment.pop("PYTHONUNBUFFERED", None)
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return kind([sys.executable, *words], cwd=folder, env=environment, start_new_session=True, text=True, **streams)


@pytest.fixture(autouse=True)
def _interrupts_are_heeded() -> Iterator[None]:
    """A shell starts what goes on in the background with SIGINT ignored, and so is all that is started from there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "other.py").write_text("import sys; print(__name__, sys.argv)")
    return tmp_path / "looks.py"


@pytest.mark.parametrize("end", ENDS)
def test_it_says_and_ends_the_same(script: Path, end: str) -> None:
    script.write_text(LOOKS.replace("{END}", end))
    outcomes = []
    for kind in (Forked, subprocess.Popen):
        process = start(kind, script.parent, "looks.py", "b")
        outcomes.append((*process.communicate(timeout=60), process.returncode))
    forked, started = outcomes
    assert forked[2] == ENDS[end]
    assert ("at exit" in forked[0]) is (end != "lambda: os.kill(os.getpid(), signal.SIGTERM)")
    assert forked[0] == started[0]
    lines = [[line for line in told.splitlines() if not line.startswith(" ")] for _, told, _ in outcomes]
    assert lines[0] == lines[1], "but for the frames of a traceback, among which are our own"


def test_no_two_draw_alike(script: Path) -> None:
    script.write_text(LOOKS)
    drawn = [start(Forked, script.parent, "looks.py", "draw").communicate(timeout=60)[0].split() for _ in range(2)]
    assert all(one != other for one, other in zip(*drawn, strict=True))
    assert len(drawn[0]) == 3


def test_what_it_forks_is_found_by_its_words(tmp_path: Path) -> None:
    (tmp_path / "outer.py").write_text(
        "import os, subprocess, sys\n"
        "print(os.getpid())\n"
        "if not (child := os.fork()): os._exit(0)\n"
        "print(child)\n"
        "inner = [sys.executable, 'inner.py', os.getcwd()]\n"
        "print(subprocess.run(inner, env={**os.environ, 'RANK': '1'}, capture_output=True, text=True).stdout, end='')\n"
    )
    (tmp_path / "inner.py").write_text("import os; print(os.getpid())")
    said, told = start(Forked, tmp_path, "outer.py", str(tmp_path)).communicate(timeout=60)
    assert told == ""
    outer, child, inner = map(int, said.split())
    assert {*list_forks(tmp_path)} == {outer, child, inner}
    assert list_forks(tmp_path, "RANK=1") == [inner]
    assert list_forks(tmp_path / "other") == []
