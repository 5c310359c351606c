"""What every door has in common."""

from __future__ import annotations

import ast
import importlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cspnet.cli.flags import FlagParser
from cspnet.errors import UserError
from cspnet.runtime.signals import heed_stop_signals, list_heeded
from tests.conftest import ROOT
from tests.processes import start_group

SLOW_TO_END = """
import atexit, sys, time
sys.path.insert(0, ".")
from cspnet.cli.flags import run_door
def work():
    raise KeyboardInterrupt
def hold():
    for _ in range(6000):
        time.sleep(0.1)  # one long sleep would not notice a signal of just before
atexit.register(hold)
sys.exit(run_door("x.py", work))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_told_again_does_not_wait_for_the_end(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "x.py").write_text(SLOW_TO_END)
    process = start_group(tmp_path / "x.py", forked=False)
    assert process.stderr is not None
    assert process.stderr.readline() == "x.py: interrupted\n"
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "")


HELD_UP = """
import sys, time
sys.path.insert(0, ".")
from cspnet.cli.flags import run_door
from cspnet.runtime import leaving
class Held:
    def __del__(self):
        time.sleep(float(sys.argv[1]))
def work():
    held = Held()
    print("so far")
    raise KeyboardInterrupt
leaving._SOON_S = 0.5
code = run_door("x.py", work)
time.sleep(1)
print("goes on after", code)
"""


@pytest.mark.parametrize(("held_s", "code", "said"), [(600, 130, "so far\n"), (0, 0, "so far\ngoes on after 130\n")])
def test_what_holds_up_the_end_after_ctrl_c_is_not_waited_for(
    tmp_path: Path, held_s: int, code: int, said: str
) -> None:
    (tmp_path / "x.py").write_text(HELD_UP)
    process = start_group(tmp_path / "x.py", held_s, forked=False)
    assert process.communicate(timeout=60) == (said, "x.py: interrupted\n")
    assert process.returncode == code


ENDS = """
import atexit, signal, sys, time
sys.path.insert(0, ".")
from cspnet.cli.flags import run_door
from cspnet.errors import UserError
from cspnet.runtime.signals import Stopped, heed_stop_signals, run_program
from tests.interrupted import act_at_line

how, number, line, held_s = sys.argv[1], *map(int, sys.argv[2:])

def work():
    atexit.register(hold)
    with heed_stop_signals("x.py") as stop, stop.noted():
        stop.speaks = False
        if line:
            act_at_line(line, lambda: print("heard", flush=True) or signal.raise_signal(number))
        if how == "stopped":
            raise Stopped("saved")
        if how == "failed":
            raise UserError("no such thing")
        stop.end()
    return 0

def hold():
    for _ in range(10 * held_s):
        time.sleep(0.1)

code = run_program("x.py", lambda: lambda: run_door("x.py", work))
print("ending", flush=True)
sys.exit(code)
"""
HOW_IT_ENDS = [("stopped", 75, "x.py: saved\n"), ("failed", 2, "x.py: error: no such thing\n"), ("done", 0, "")]


@pytest.mark.parametrize(("how", "code", "said"), HOW_IT_ENDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_wherever_a_run_ends_changes_nothing(
    tmp_path: Path, number: signal.Signals, how: str, code: int, said: str
) -> None:
    (tmp_path / "x.py").write_text(ENDS)
    heard, line = 1, 1
    while heard:
        some = [start_group(tmp_path / "x.py", how, int(number), line + 4 * i, 0) for i in range(4)]
        heard = 0
        for process in some:
            output, told = process.communicate(timeout=60)
            last_moment = number == signal.SIGINT and "ending\n" in output
            assert process.returncode == code or (last_moment and process.returncode == -signal.SIGINT), line
            assert told == said
            heard += "heard" in output
        line += 16
    assert line > 32


@pytest.mark.parametrize(("how", "code", "said"), HOW_IT_ENDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_that_is_slow_to_end_with_its_exit_code(
    tmp_path: Path, number: signal.Signals, how: str, code: int, said: str
) -> None:
    (tmp_path / "x.py").write_text(ENDS)
    process = start_group(tmp_path / "x.py", how, int(number), 0, 600, forked=False)
    assert process.stdout is not None
    assert process.stdout.readline() == "ending\n"
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (code, said)


SLOW_TO_STOP = """
import sys, time
sys.path.insert(0, ".")
from cspnet.cli.flags import run_door
from cspnet.runtime.signals import Stopped, heed_stop_signals, run_program

def work():
    with heed_stop_signals("x.py") as stop:
        stop.speaks = False
        try:
            with stop.noted():
                print("works", flush=True)
                while not stop.is_made:
                    time.sleep(0.01)
                time.sleep(1.1)
                raise Stopped("saved")
        finally:
            print("ends", flush=True)
            for _ in range(int(sys.argv[1])):
                time.sleep(0.1)

sys.exit(run_program("x.py", lambda: lambda: run_door("x.py", work)))
"""


@pytest.mark.parametrize(("tenths", "code", "said"), [(10, 75, "x.py: saved\n"), (6000, 128 + signal.SIGTERM, "")])
def test_who_insists_behind_the_end_of_the_work_does_so_anew(tmp_path: Path, tenths: int, code: int, said: str) -> None:
    """A launcher's signal is no second request, but one more is, where the end hangs."""
    (tmp_path / "x.py").write_text(SLOW_TO_STOP)
    process = start_group(tmp_path / "x.py", tenths)
    assert process.stdout is not None
    for word in ("works\n", "ends\n"):
        assert process.stdout.readline() == word
        process.send_signal(signal.SIGTERM)
    if code != 75:
        time.sleep(1.1)
        process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (code, said)


NOT_READ = """
import contextlib, os, sys
sys.path.insert(0, ".")
from cspnet.cli.flags import run_door
from cspnet.errors import UserError
from cspnet.runtime.signals import heed_stop_signals, run_program

def work():
    with heed_stop_signals("x.py"):
        os.set_blocking(2, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(2, b"x")
        os.set_blocking(2, True)
        print("fails", flush=True)
        raise UserError("no such thing")

sys.exit(run_program("x.py", lambda: lambda: run_door("x.py", work)))
"""


def test_who_insists_does_not_wait_for_somebody_to_read_the_last_line(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(NOT_READ)
    process = start_group(tmp_path / "x.py")
    assert process.stdout is not None
    assert process.stdout.readline() == "fails\n"
    for _ in range(3):  # the first one may have found it in its work
        process.send_signal(signal.SIGTERM)
        time.sleep(1.1)
    assert process.wait(60) == 128 + signal.SIGTERM
    process.communicate()


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
    process = start_group(tmp_path / "x.py", forked=False)
    assert process.communicate(timeout=60) == ("so far", "x.py: error: the disk hangs\n")
    assert process.returncode == 1


IMPORTS = """
import signal, sys, time
sys.path.insert(0, ".")
from cspnet.runtime.signals import run_program
def load():
    print("importing", flush=True)
    time.sleep(600)
run_program("x.py", load)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_while_it_still_imports(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.py").write_text(IMPORTS)
    process = start_group(tmp_path / "x.py", forked=False)
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(getattr(signal, name))
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (75, f"x.py: stopped by {name}; there was nothing to save\n")


IMPORTS_WITHIN = """
import sys
sys.path.insert(0, ".")
from cspnet.cli.flags import run_door
from cspnet.runtime.signals import heed_stop_signals

def work():
    print("so far", end="")
    import tries_something

def train():
    with heed_stop_signals("x.py"):
        work()

sys.exit(run_door("x.py", train if "train" in sys.argv else work))
"""
TRIES = """
import sys, time
try:
    print("importing", file=sys.stderr, flush=True)
    time.sleep(600)
except BaseException:  # as C++ does that asks Python for something
    pass
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("what", "name", "code", "said"),
    [
        ("script", "SIGINT", 130, "x.py: interrupted\n"),
        ("train", "SIGINT", 75, "x.py: stopped by SIGINT; there was nothing to save\n"),
        ("train", "SIGTERM", 75, "x.py: stopped by SIGTERM; there was nothing to save\n"),
    ],
)
def test_a_signal_within_an_import_is_not_swallowed_there(
    tmp_path: Path, what: str, name: str, code: int, said: str
) -> None:
    (tmp_path / "x.py").write_text(IMPORTS_WITHIN)
    (tmp_path / "tries_something.py").write_text(TRIES)
    process = start_group(tmp_path / "x.py", what, forked=False)
    assert process.stderr is not None
    assert process.stderr.readline() == "importing\n"
    process.send_signal(getattr(signal, name))
    assert process.communicate(timeout=60) == ("so far", said)
    assert process.returncode == code


@pytest.mark.parametrize(
    "name",
    ["benchmark_loader", "benchmark_validate", "check_dataset", "make_lists", "pack_dataset", "train_with_timm"],
)
def test_ctrl_c_while_a_script_imports_pytorch_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")
    variables = {"PYTHONPATH": str(tmp_path)}
    process = start_group(f"scripts/{name}.py", "--help", variables=variables, forked=False)
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    told = f"{name}.py: stopped by SIGINT; there was nothing to save\n"
    assert process.communicate(timeout=60) == ("", told)
    assert process.returncode == 130


IN_A_LIBRARY = """
import ctypes, sys
sys.path.insert(0, ".")
from cspnet.cli.flags import run_door
from cspnet.runtime.signals import heed_stop_signals

def work():
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    with heed_stop_signals("x.py"):
        library.pthread_mutex_init(mutex, None)
        library.pthread_mutex_lock(mutex)
        print("so far", flush=True)
        library.pthread_mutex_lock(mutex)  # no signal ends this

sys.exit(run_door("x.py", work))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_a_library_does_not_come_back(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.py").write_text(IN_A_LIBRARY)
    process = start_group(tmp_path / "x.py", forked=False)
    assert process.stdout is not None
    assert process.stdout.readline() == "so far\n"
    process.send_signal(getattr(signal, name))
    told = process.communicate(timeout=60)[1].lstrip("\n")  # who answers for a stuck main thread begins a new line
    assert (process.returncode, told) == (75, f"x.py: stopped by {name}; there was nothing to save\n")


def test_what_nohup_has_ignored_is_not_heeded() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert signal.SIGHUP in list_heeded()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with heed_stop_signals("x.py"):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_are_heeded_before_anything_is_imported_that_takes_time() -> None:
    """What a door imports ahead of that is small: the standard library, and modules of its own that import no more."""
    asked = "import sys, cspnet.cli.start; print([n for n in sys.modules if n[:6] in ('cspnet', 'torch', 'yaml')])"
    told = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert sorted(ast.literal_eval(told.stdout)) == [
        "cspnet",
        "cspnet.cli",
        "cspnet.cli.start",
        "cspnet.errors",
        "cspnet.runtime",
        "cspnet.runtime.leaving",
        "cspnet.runtime.signals",
    ]


@pytest.mark.parametrize(("command", "door"), [("cspnet-train", "train.py"), ("cspnet-validate", "validate.py")])
def test_an_installed_command_is_its_door(command: str, door: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As the script that pip makes for it calls it."""
    entry = re.search(rf'^{command} = "(.+):(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert entry
    start = getattr(importlib.import_module(entry[1]), entry[2])
    assert f"import {entry[2]}\n" in (ROOT / door).read_text()
    handlers = {number: signal.getsignal(number) for number in list_heeded()}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [command, "--no-such-flag"])
            assert start() == 2
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err.startswith(f"{door}: error: ")


def test_a_run_that_nobody_listens_to(picture_tree: Path, tmp_path: Path) -> None:
    small = ["--model", "cspdarknet_tiny", "--img-size", 32, "--workers", 1, "--batch-size", 8, "--epochs", 1]
    small += ["--device", "cpu", "--data-path", picture_tree, "--output-dir", tmp_path / "run", "--log.every_steps", 1]
    process = start_group("train.py", *small, forked=False)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # as head does, once it has seen enough
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device="], "--device: an empty value was given"),
        (["--device", ""], "--device: an empty value was given"),
        (["a", ""], "the command line: an empty value was given"),
        (["--device=x=", "a=", "--", "--x="], None),
    ],
)
def test_an_empty_value_is_refused(words: list[str], said: str | None) -> None:
    """As an unset variable gives it. What only ends in = is none, nor is what stands behind --."""
    parser = FlagParser(prog="x.py")
    parser.add_argument("--device")
    parser.add_argument("files", nargs="*")
    if said is None:
        assert vars(parser.parse_all(words)) == {"device": "x=", "files": ["a=", "--x="]}
        return
    with pytest.raises(UserError, match=said):
        parser.parse_all(words)
