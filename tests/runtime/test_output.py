"""Output that cannot be written ends nothing, and changes no exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

TALKS = """
import sys
sys.path.insert(0, ".")
from tqdm import tqdm
from cspnet.cli.flags import run_door
from cspnet.errors import UserError
from cspnet.runtime.output import steady_output
from cspnet.runtime.signals import Stopped
def work():
    with steady_output():
        for i in range(3):
            print(i, flush=True)
            tqdm.write("above", file=sys.stdout)
            tqdm.write("beside", file=sys.stderr)
            print("a name: \\udcff", flush=True)
        print("waits in the stream", end="")
        open("made", "w").write("all of it")
    end = sys.argv[1]
    if end == "stopped":
        raise Stopped("stopped")
    if end == "refused":
        raise UserError("refused")
    return 0
sys.exit(run_door("x.py", work))
"""
CODES = {"done": 0, "stopped": 75, "refused": 2}


def full() -> None:
    for number in (1, 2):
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def unread() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for number in (1, 2):
        os.dup2(writing, number)


def closed() -> None:
    for number in (0, 1, 2):
        os.close(number)


def lost_terminal() -> None:
    ours, terminal = os.openpty()
    for number in (1, 2):
        os.dup2(terminal, number)
    os.close(terminal)
    os.close(ours)


@pytest.mark.parametrize("end", CODES)
@pytest.mark.parametrize("become", [full, unread, closed, lost_terminal])
def test_nobody_listens(become: Callable[[], None], end: str, tmp_path: Path) -> None:
    if become is full and not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    (tmp_path / "x.py").write_text(TALKS.replace('"."', repr(str(ROOT))))
    ended = subprocess.run([sys.executable, "x.py", end], cwd=tmp_path, preexec_fn=become, timeout=60)
    assert ended.returncode == CODES[end]
    assert (tmp_path / "made").read_text() == "all of it"


PRINTS = """
import sys
sys.path.insert(0, ROOT)
from cspnet.cli.flags import run_door
def work():
    print("a result")
    return 0
sys.exit(run_door("x.py", work))
"""


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(("become", "code"), [(full, 2), (unread, 1), (closed, 0)])
def test_a_result_that_nobody_gets_is_told(
    become: Callable[[], None], code: int, buffered: bool, tmp_path: Path
) -> None:
    """Whoever closes our pipe has what it wants, and who starts us without an output wants none."""
    if become is full and not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")

    def become_for_results() -> None:
        said = os.dup(2)
        become()
        os.dup2(said, 2)

    (tmp_path / "x.py").write_text(PRINTS.replace("ROOT", repr(str(ROOT))))
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, *([] if buffered else ["-u"]), "x.py"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=variables, preexec_fn=become_for_results, stderr=subprocess.PIPE, timeout=60
    )
    assert ended.returncode == code
    assert ended.stderr == (b"x.py: error: the output: No space left on device\n" if code == 2 else b"")


def test_what_a_stream_cannot_show_is_written_in_ascii(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(TALKS.replace('"."', repr(str(ROOT))))
    command, variables = [sys.executable, "x.py", "done"], {**os.environ, "PYTHONIOENCODING": "utf-8"}
    ended = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, timeout=60)
    assert ended.returncode == 0
    assert ended.stdout.decode().splitlines()[:3] == ["0", "above", r"a name: \udcff"]
    assert ended.stdout.endswith(b"waits in the stream")
    assert ended.stderr == b"beside\n" * 3
