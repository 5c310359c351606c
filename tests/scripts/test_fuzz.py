"""The short form of the fuzzing, which has to find nothing; and that it would say so if it did."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cspnet.cli.fuzzing.parsers import PARSERS
from cspnet.cli.fuzzing.watch import draw_input

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's limits")

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_a_few_inputs_of_every_parser(tmp_path: Path, fork_script: Run) -> None:
    done = fork_script(
        "scripts/fuzz.py", "--inputs", 20, "--seed", 7, "--parser", *PARSERS, "--keep", tmp_path / "kept"
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = re.findall(r"^\| (\S+) \| 20 \| (\d+) \| (\d+) \| 0 \| \d+ \|$", done.stdout, re.M)
    assert [name for name, _, _ in rows] == list(PARSERS)
    assert all(int(accepted) + int(refused) == 20 for _, accepted, refused in rows)
    assert f"{20 * len(PARSERS)} inputs, 0 findings" in done.stdout
    assert not (tmp_path / "kept").exists()


def test_one_input_alone(tmp_path: Path, fork_script: Run) -> None:
    done = fork_script("scripts/fuzz.py", "--only", "list:17", "--seed", 3, "--keep", tmp_path)
    assert done.returncode == 0
    assert re.fullmatch(rf"{tmp_path}/list-17: (accepted|refused: .*)\n", done.stdout)
    for name, content in draw_input(PARSERS["list"], 3, 17).items():
        assert (tmp_path / "list-17" / name).read_bytes() == content


@pytest.mark.parametrize("flags", [("--inputs", "0"), ("--seed", "-1"), ("--parser", "xml"), ("--keep", "")])
def test_wrong_things_end_in_one_line(tmp_path: Path, fork_script: Run, flags: tuple[str, str]) -> None:
    done = fork_script("scripts/fuzz.py", "--keep", tmp_path / "kept", *flags)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert not list(tmp_path.iterdir())


def test_findings_are_told_kept_and_give_exit_code_1(tmp_path: Path) -> None:
    """With a parser planted that dies of every second input."""
    program = """
import os, sys
sys.argv = ["fuzz.py", "--inputs", "30", "--parser", "list", "--keep", sys.argv[1]]
sys.path[:0] = ["scripts", "."]
import dataclasses, fuzz
from cspnet.cli.fuzzing import parsers
def read(folder):
    if len((folder / "lists/list.txt").read_bytes()) % 2:
        os.abort()
parsers.PARSERS["list"] = dataclasses.replace(parsers.PARSERS["list"], read=read)
sys.exit(fuzz.main())
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=root, capture_output=True, text=True, timeout=300
    )
    inputs = {number: draw_input(PARSERS["list"], 0, number) for number in range(30)}
    bad = {number for number, files in inputs.items() if len(files["lists/list.txt"]) % 2}
    assert done.returncode == 1
    assert 3 < len(bad) < 27
    told = re.findall(r"^warning: list:(\d+): the process died of SIGABRT$", done.stderr, re.M)
    assert {*map(int, told)} == bad
    assert f"30 inputs, {len(bad)} findings" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {f"list-{number}" for number in bad}
    for number in bad:
        assert (tmp_path / f"list-{number}" / "lists/list.txt").read_bytes() == inputs[number]["lists/list.txt"]
