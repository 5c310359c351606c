"""scripts/compare_answers.py on files written by hand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def write(file: Path, right: str) -> Path:
    """A file of validate.py --per-image; a character 0 or 1 a picture."""
    rows = (f"{i}.jpg,cat,{is_right},1,cat,dog\n" for i, is_right in enumerate(right))
    file.write_text("picture,class,correct1,correct5,top1,top2\n" + "".join(rows))
    return file


def test_what_it_says(tmp_path: Path, fork_script: Run) -> None:
    a, b = write(tmp_path / "a.csv", "1111100000"), write(tmp_path / "b.csv", "1000111111")
    done = fork_script("scripts/compare_answers.py", a, b)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"A  Acc@1 50.000  {a}",
        f"B  Acc@1 70.000  {b}",
        "10 pictures: both right 2, only A 3, only B 5, neither 0",
        "B - A +20.000 points, p = 0.727: no more than chance alone may do",
    ]
    found = json.loads(fork_script("scripts/compare_answers.py", b, a, "--json").stdout)
    assert (found["only_first"], found["only_second"], found["difference"]) == (5, 3, pytest.approx(-20.0))
    write(a, "0" * 10)
    assert "p = 0.0156: chance alone would seldom" in fork_script("scripts/compare_answers.py", a, b).stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("picture,correct1\n", "no picture in it"),
        ("a,b\n1,2\n", "not a file of validate.py"),
        ("picture,correct1\nx.jpg,yes\n", "not a file of validate.py"),
        ("picture,correct1\nx.jpg,1\nx.jpg,1\n", "a picture is in it twice"),
        ("picture,correct1\nx.jpg,1\n", "not of the same pictures"),
    ],
)
def test_wrong_files(text: str | None, said: str, tmp_path: Path, fork_script: Run) -> None:
    good = write(tmp_path / "a.csv", "10")
    if text is not None:
        (tmp_path / "b.csv").write_text(text)
    done = fork_script("scripts/compare_answers.py", good, tmp_path / "b.csv")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line
