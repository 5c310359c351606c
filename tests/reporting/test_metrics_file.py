"""metrics.jsonl and summary.csv: whole lines, and no step twice after a resume."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
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


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """Sets the size, in bytes, beyond which no file of this process may grow; below 0: none."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size if size >= 0 else before[0], before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_lines_without_room_wait_and_come_in_their_order(tmp_path: Path, limit_files: Callable[[int], None]) -> None:
    """The limit lies in the middle of a line: the system writes a part of it before it refuses the rest."""
    metrics, summary = MetricsFile(tmp_path / "metrics.jsonl", -1), SummaryFile(tmp_path / "summary.csv", 0)
    metrics.write({"step": 1})
    summary.write(row(0))
    before = [(tmp_path / name).read_bytes() for name in ("metrics.jsonl", "summary.csv")]
    limit_files(max(map(len, before)) + 5)
    for step in (2, 3):
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            metrics.write({"step": step, "note": "x" * 100})
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            summary.write(row(step - 1, eval_loss="x" * 100))
        assert [(tmp_path / name).read_bytes() for name in ("metrics.jsonl", "summary.csv")] == before
    limit_files(-1)
    metrics.write({"step": 4})
    summary.close()
    assert read_steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]
    assert [entry["epoch"] for entry in read_rows(tmp_path / "summary.csv")] == ["0", "1", "2"]
    metrics.close()


def test_files_that_stay_as_they_are_need_no_room(tmp_path: Path, limit_files: Callable[[int], None]) -> None:
    """A run goes on on a full disk: nothing is to be taken back, so nothing is written."""
    write_metrics(tmp_path / "metrics.jsonl", -1, [1, 2])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    limit_files(0)
    MetricsFile(tmp_path / "metrics.jsonl", 2).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        MetricsFile(tmp_path / "metrics.jsonl", 1)
    limit_files(-1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


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


@pytest.mark.parametrize("line", ["[" * 200_000, '{"step": 1' + "0" * 400 + "}", '{"step": ' + "9" * 5000 + "}"])
def test_a_line_that_no_number_is_in_is_dropped(tmp_path: Path, line: str) -> None:
    """Found by scripts/fuzz.py."""
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, -1, [1, 2])
    with path.open("a") as file:
        file.write(line + "\n")
    write_metrics(path, 1000, [3])
    assert read_steps(path) == [1, 2, 3]


def test_a_row_of_too_many_digits_is_dropped(tmp_path: Path) -> None:
    """Found by scripts/fuzz.py."""
    path = tmp_path / "summary.csv"
    SummaryFile(path, 0).write(row(0))
    with path.open("a") as raw:
        raw.write("9" * 5000 + ",1,2,3,4,5\n")
    SummaryFile(path, 5).write(row(1))
    assert [r["epoch"] for r in read_rows(path)] == ["0", "1"]


def test_a_file_that_was_removed_comes_back_whole(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    metrics = MetricsFile(tmp_path / "run" / "metrics.jsonl", -1)
    summary = SummaryFile(tmp_path / "run" / "summary.csv", 0)
    metrics.write({"step": 1})
    summary.write(row(0))
    shutil.rmtree(tmp_path / "run")
    metrics.write({"step": 2})
    summary.write(row(1))
    metrics.close()
    summary.close()
    assert read_steps(tmp_path / "run" / "metrics.jsonl") == [1, 2]
    assert [entry["epoch"] for entry in read_rows(tmp_path / "run" / "summary.csv")] == ["0", "1"]
