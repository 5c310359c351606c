"""metrics.jsonl and summary.csv: whole lines, and no step twice after a resume."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from cspnet.reporting.metrics_file import MetricsFile, SummaryFile

TIMM_COLUMNS = ["epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr"]


def write_metrics(path: Path, step: int, new: list[int]) -> None:
    """What a run started from `step` writes: records at the steps `new`."""
    file = MetricsFile(path, step)
    for number in new:
        file.write({"step": number, "train/loss": 1 / number})
    file.close()


def read_steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def row(epoch: int, **values: Any) -> dict[str, Any]:
    return {"epoch": epoch, "train_loss": 1.5, "eval_loss": 2.5, "eval_top1": 10, "eval_top5": 50, "lr": 0.1, **values}


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_record_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", -1)
    record = {"step": 1, "epoch": 0, "train/loss": 0.1 + 0.2, "note": "é"}
    file.write(record)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == record
    file.close()


RESUMED = {-1: [], 0: [], 2: [2], 3: [2], 4: [2, 4], 6: [2, 4, 6], 100: [2, 4, 6]}


@pytest.mark.parametrize("step", RESUMED)
def test_records_after_the_checkpoint_are_taken_back(tmp_path: Path, step: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, -1, [2, 4, 6])
    write_metrics(path, step, [101])
    assert read_steps(path) == [*RESUMED[step], 101]


def test_kept_records_are_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, -1, [1, 2, 3])
    lines = path.read_bytes().splitlines(keepends=True)
    write_metrics(path, 2, [])
    assert path.read_bytes() == b"".join(lines[:2])


@pytest.mark.parametrize(
    "tail",
    ['{"step": 3, "train/lo', '{"step": 3}', '{"step": 3', "{", "\0\0\0\0", "[3]\n", "3\n", '{"epoch": 1}\n', "\n"],
)
def test_a_line_that_is_no_whole_record_is_dropped(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, -1, [1, 2])
    with path.open("a") as file:
        file.write(tail)
    write_metrics(path, 1000, [3])
    assert read_steps(path) == [1, 2, 3]


def test_a_line_with_bytes_that_are_no_text_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, -1, [1, 2])
    with path.open("ab") as file:
        file.write(b'{"step": 3, "\xff\xfe')
    write_metrics(path, 1000, [3])
    assert read_steps(path) == [1, 2, 3]


def test_a_new_run_starts_empty_files(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.jsonl", -1).close()
    SummaryFile(tmp_path / "summary.csv", 0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert (tmp_path / "summary.csv").read_text().splitlines() == [",".join(TIMM_COLUMNS)]


def test_summary_columns_and_values(tmp_path: Path) -> None:
    path = tmp_path / "summary.csv"
    file = SummaryFile(path, 0)
    file.write(row(0, lr=0.1 + 0.2))
    file.write(row(1, eval_loss="", eval_top1="", eval_top5=""))
    rows = read_rows(path)
    assert list(rows[0]) == TIMM_COLUMNS
    assert [r["epoch"] for r in rows] == ["0", "1"]
    assert float(rows[0]["lr"]) == 0.1 + 0.2
    assert float(rows[0]["eval_top5"]) == 50
    assert rows[1]["eval_top1"] == ""


@pytest.mark.parametrize("epochs", [0, 1, 2, 3, 9])
def test_rows_of_epochs_to_come_are_taken_back(tmp_path: Path, epochs: int) -> None:
    path = tmp_path / "summary.csv"
    file = SummaryFile(path, 0)
    for epoch in range(3):
        file.write(row(epoch))
    file = SummaryFile(path, epochs)
    file.write(row(77))
    assert [int(r["epoch"]) for r in read_rows(path)] == [*range(min(epochs, 3)), 77]


@pytest.mark.parametrize("tail", ["2,1.5", "2,1.5,2.5,10,50,0.1", "2", "x,1,2,3,4,5\n", "\n"])
def test_a_row_that_is_not_whole_is_dropped(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "summary.csv"
    file = SummaryFile(path, 0)
    for epoch in range(2):
        file.write(row(epoch))
    with path.open("a") as raw:
        raw.write(tail)
    SummaryFile(path, 5).write(row(2))
    assert [r["epoch"] for r in read_rows(path)] == ["0", "1", "2"]
    assert len(path.read_text().splitlines()) == 4
