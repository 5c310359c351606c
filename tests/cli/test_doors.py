"""What every door has in common."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.processes import start_group

SLOW_TO_END = """
import atexit, sys, time
sys.path.insert(0, ".")
from cspnet.cli.flags import run_door
def work():
    raise KeyboardInterrupt
atexit.register(time.sleep, 600)
sys.exit(run_door("x.py", work))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_told_again_does_not_wait_for_the_end(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "x.py").write_text(SLOW_TO_END)
    process = start_group(tmp_path / "x.py")
    assert process.stderr is not None
    assert process.stderr.readline() == "x.py: interrupted\n"
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "")


STUCK = """
import atexit, sys, time
sys.path.insert(0, ".")
from cspnet.cli.flags import run_door
from cspnet.errors import StalledError
def work():
    print("so far", end="")
    raise StalledError("the disk hangs")
atexit.register(time.sleep, 600)
sys.exit(run_door("x.py", work))
"""


def test_what_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(STUCK)
    process = start_group(tmp_path / "x.py")
    assert process.communicate(timeout=60) == ("so far", "x.py: error: the disk hangs\n")
    assert process.returncode == 1
