"""Several seeds of several recipes, cut short and gone on with."""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = "model: {name: cspdarknet_tiny}\ndata: {train_px: 32}\ntrain: {batch_size: 8, epochs: 1, device: cpu}\n"


@pytest.fixture
def recipes(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "plain.yaml", tmp_path / "averaged.yaml"]
    files[0].write_text(SMALL)
    files[1].write_text(SMALL + "ema: {decay: 0.5}\n")
    return files


def test_runs_are_made_once_and_summed_up(
    picture_tree: Path, recipes: list[Path], tmp_path: Path, run_script: Run, fork_script: Run
) -> None:
    """The first time as a person starts it, and train.py likewise."""
    folder = tmp_path / "runs"
    words = ("scripts/repeat_runs.py", *recipes, "--data-path", picture_tree, "--output-dir", folder)
    done = fork_script(*words, "--seeds", 1, "--", "--workers", 0)
    assert done.returncode == 0, done.stderr
    first = {file: file.stat().st_mtime_ns for file in folder.glob("*/checkpoints/last.pt")}
    assert len(first) == 2
    done = fork_script(*words, "--seeds", 2, "--", "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert all(file.stat().st_mtime_ns == time for file, time in first.items()), "a finished run was run again"
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["recipe"], row["seed"]) for row in rows] == [
        ("plain", "1"), ("plain", "2"), ("averaged", "1"), ("averaged", "2"),
    ]  # fmt: skip
    table = (folder / "results.md").read_text()
    assert done.stdout.endswith(table)
    for row in rows:
        records = (folder / f"{row['recipe']}-seed{row['seed']}" / "metrics.jsonl").read_text().splitlines()
        (last,) = [json.loads(line) for line in records if "val/acc1" in line]
        assert float(row["acc1"]) == last["val/acc1"]
        assert (row["ema_acc1"] != "") is (row["recipe"] == "averaged")
    accs = [float(row["acc1"]) for row in rows if row["recipe"] == "plain"]
    assert f"| plain | 2 | {statistics.mean(accs):.2f} ± {statistics.stdev(accs):.2f} |" in table


def test_through_timms_parts_as_well(picture_tree: Path, tmp_path: Path, fork_script: Run) -> None:
    recipe, folder = tmp_path / "mixed.yaml", tmp_path / "runs"
    recipe.write_text(SMALL + "mix: {cutmix_alpha: 1.0, prob: 0.5}\nloss: {smoothing: 0.1}\nschedule: {name: cosine}\n")
    words = ("scripts/repeat_runs.py", recipe, "--with-timm", recipe, "--data-path", picture_tree)
    words = (*words, "--output-dir", folder, "--seeds", 1, "--", "--workers", 0)
    done = fork_script(*words)
    assert done.returncode == 0, done.stderr
    records = folder / "mixed-timm-seed1" / "metrics.jsonl"
    acc1, written = json.loads(records.read_text())["val/acc1"], records.stat().st_mtime_ns
    assert 0 <= acc1 <= 100
    assert f"| mixed-timm | 1 | {acc1:.2f} ± ? |" in (folder / "results.md").read_text()
    assert fork_script(*words).returncode == 0
    assert records.stat().st_mtime_ns == written, "a finished run was run again"


def test_bad_input_is_one_line(
    picture_tree: Path, recipes: list[Path], tmp_path: Path, run_script: Run, fork_script: Run
) -> None:
    """The first time as a person starts it, and train.py likewise."""
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "plain.yaml"
    twin.write_text(SMALL)
    words = ("--data-path", picture_tree, "--output-dir", tmp_path / "runs")
    done = run_script("scripts/repeat_runs.py", recipes[0], *words, "--", "--dry-run", "--workers", 0)
    assert done.returncode == 2
    assert "has not validated" in done.stderr.splitlines()[-1]
    (tmp_path / "runs").rmdir()
    for case, said in (
        ((recipes[0], twin, *words), "has the same name"),
        ((tmp_path / "gone.yaml", *words), "no such recipe"),
        ((recipes[0], *words, "--seeds", 0), "--seeds 0"),
        ((recipes[0], *words, "--", "--seed", 3), "--seed: is set for every run"),
    ):
        done = fork_script("scripts/repeat_runs.py", *case)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert said in line
    assert not (tmp_path / "runs").exists()
