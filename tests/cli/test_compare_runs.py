"""Runs that differ in one bit, one key or one line are not the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cspnet.cli.compare_runs import compare_runs
from cspnet.errors import RunFolderError
from cspnet.training.meter import MEASURED_KEYS


def content() -> dict[str, Any]:
    return {
        "state_dict": {"a.weight": torch.tensor([1.0, 2.0]), "a.bias": torch.tensor([float("inf")])},
        "optimizer": {"param_groups": [{"lr": 0.1}], "state": {0: {"step": torch.tensor(3)}}},
        "progress": {"step": 6, "epoch": 1},
        "recipe": {"data.workers": 2},
        "versions": {"torch": "2"},
    }


def write_run(folder: Path, checkpoint: dict[str, Any], loss: float = 1.5, row: str = "0,1.5") -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, folder / "checkpoints" / "last.pt")
    record = {"step": 6, "train/loss": loss, **dict.fromkeys(MEASURED_KEYS, hash(folder) % 1000)}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "summary.csv").write_text(f"epoch,loss\n{row}\n")
    return folder


def test_equal_runs_may_differ_in_time_and_in_how_they_were_made(tmp_path: Path) -> None:
    other = content() | {"recipe": {"data.workers": 0}, "versions": {"torch": "3"}}
    assert compare_runs(write_run(tmp_path / "a", content()), write_run(tmp_path / "b", other)) is None


def flip_lowest_bit(weights: torch.Tensor) -> None:
    weights.view(torch.int32)[1] ^= 1


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "last.pt.state_dict.a.weight": lambda c: flip_lowest_bit(c["state_dict"]["a.weight"]),
    "last.pt.optimizer.param_groups[0].lr": lambda c: c["optimizer"]["param_groups"][0].update(lr=0.2),
    "last.pt.optimizer.param_groups: the length": lambda c: c["optimizer"]["param_groups"].append({}),
    "last.pt.optimizer.state.0.step": lambda c: c["optimizer"]["state"][0].update(step=3),
    "last.pt.progress: the keys": lambda c: c["progress"].update(more=1),
}


@pytest.mark.parametrize("where", CHANGES)
def test_one_thing_in_the_checkpoint(tmp_path: Path, where: str) -> None:
    other = content()
    CHANGES[where](other)
    assert compare_runs(write_run(tmp_path / "a", content()), write_run(tmp_path / "b", other)) == where


def test_records_and_rows(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", content())
    assert compare_runs(run, write_run(tmp_path / "b", content(), loss=1.25)) == "metrics.jsonl"
    assert compare_runs(run, write_run(tmp_path / "c", content(), row="0,1.25")) == "summary.csv"


@pytest.mark.parametrize("line", [b'{"step": }', b"\xff}", b"[" * 100_000 + b"}", b'["step"}]', b"[{}"])
def test_a_record_that_is_none_is_told_in_a_line(tmp_path: Path, line: bytes) -> None:
    """Found by scripts/fuzz.py."""
    runs = [write_run(tmp_path / name, content()) for name in "ab"]
    with (runs[0] / "metrics.jsonl").open("ab") as file:
        file.write(line.removesuffix(b"}") + b"}\n")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl line 2: not a record"):
        compare_runs(*runs)
