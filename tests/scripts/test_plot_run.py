"""scripts/plot_run.py: what stands in the picture is what stands in the records."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cspnet.errors import UserError
from cspnet.reporting.plots import PANELS, curves_of, draw_curves, epochs_at, read_records

Run = Callable[..., subprocess.CompletedProcess[str]]


def make_records(epochs: int, steps: int, scale: float = 1.0) -> list[dict[str, Any]]:
    """Records each second step and each epoch, as a run writes them."""
    records: list[dict[str, Any]] = []
    for epoch in range(epochs):
        for step in range(epoch * steps + 2, (epoch + 1) * steps + 1, 2):
            record = {"step": step, "epoch": epoch, "train/loss": scale / step, "train/acc1": 50.0, "train/acc5": 90.0}
            records.append(record | {"train/lr": 0.1, "train/images_per_s": 100.0, "train/data_wait_ratio": 0.25})
        ended = {"step": (epoch + 1) * steps, "epoch": epoch, "train/epoch_loss": 1.0, "val/loss": 2.0}
        records.append(ended | {"val/acc1": 60.0 + epoch, "val/acc5": 95.0, "val_ema/acc1": None})
    return records


def write(folder: Path, records: list[dict[str, Any]], end: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + end)
    return folder


def test_curves(tmp_path: Path) -> None:
    records = read_records(write(tmp_path / "run", make_records(2, 4), end='{"step": 9, "trai'))
    curves = curves_of(records)
    assert curves["train/loss"].steps.tolist() == [2, 4, 6, 8]
    assert curves["val/acc1"].values.tolist() == [60.0, 61.0]
    assert "val_ema/acc1" not in curves
    assert {key for keys in PANELS.values() for key, _ in keys} >= {key for key in curves if "epoch" not in key}


def test_steps_as_epochs() -> None:
    records = make_records(2, 4)
    records += [{"step": 10, "epoch": 2, "train/loss": 1.0}]
    assert epochs_at(records, np.array([0, 2, 4, 8, 10])).tolist() == [0, 0.5, 1, 2, 2.5]
    assert epochs_at(records[:1], np.array([2])) is None


def test_the_lines_of_a_drawing(tmp_path: Path) -> None:
    """An SVG names no data, but a straight line of it is one: Acc@1 of the validation goes up, twice as far in b."""
    runs = {name: make_records(epochs, 4) for name, epochs in (("a", 2), ("b", 3))}
    for name in ("one.svg", "other.svg"):
        draw_curves(tmp_path / name, runs)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "other.svg").read_text()
    assert len(re.findall(r"<g id=\"axes_\d\">", text)) == len(PANELS)
    draw_curves(tmp_path / "third.svg", {**runs, "b": make_records(3, 4, scale=2.0)})
    assert (tmp_path / "third.svg").read_text() != text
    draw_curves(tmp_path / "p.png", runs)
    with Image.open(tmp_path / "p.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours, "a line of each run"


def test_the_command(tmp_path: Path, fork_script: Run) -> None:
    one, other = (write(tmp_path / name / "run", make_records(2, 4)) for name in ("x", "y"))
    done = fork_script("scripts/plot_run.py", one)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{one}/curves.png\n", "")
    with Image.open(one / "curves.png") as picture:
        assert picture.size == (1320, 770)
    done = fork_script("scripts/plot_run.py", one, other, "--out", tmp_path / "both.svg")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "both.svg").stat().st_size > 1000


def test_without_a_finished_epoch(tmp_path: Path) -> None:
    draw_curves(tmp_path / "a.svg", {"a": make_records(1, 4)[:1], "b": make_records(1, 4)})
    draw_curves(tmp_path / "b.svg", {"b": make_records(1, 4)})
    assert (tmp_path / "a.svg").read_text() != (tmp_path / "b.svg").read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("", "no record in it yet"),
        ('{"step": 1}\nwhat\n{"step": 2}\n', "line 2: not a record"),
        ('[1]\n{"step": 2}\n', "line 1: not a record"),
        ('{"step": 1', "no record in it yet"),
    ],
)
def test_wrong_records(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=said):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gone"], "gone: No such file or directory"),
        (["run", "run"], "is given twice"),
        (["run", "--out", "a.gif"], "ending in .png"),
        (["run", "--out", "no/a.png"], "in a folder that exists"),
        ([], "the following arguments are required"),
    ],
)
def test_wrong_words(words: list[str], said: str, tmp_path: Path, fork_script: Run) -> None:
    write(tmp_path / "run", make_records(1, 4))
    done = fork_script("scripts/plot_run.py", *(word if word[:2] == "--" else tmp_path / word for word in words))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line
