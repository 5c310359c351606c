"""metrics.jsonl, one JSON object a record, and summary.csv, one row an epoch in timm's columns.

When a run is resumed, what was written after the checkpoint is taken back first: no step appears twice.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from cspnet.runtime.files import write_atomically

__all__ = ["MetricsFile", "SummaryFile"]

_EPOCH = 0.5
"""By how much an epoch's record stands behind the one of its last step."""

COLUMNS = ("epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr")


def _keep_lines(path: Path, lines: list[bytes]) -> None:
    write_atomically(path, b"".join(lines))


class MetricsFile:
    """metrics.jsonl.

    Args:
        path: the file; created if missing.
        step: keep the records up to this step; -1 keeps none.
        is_ended: keep the record of an epoch that ends with it, too.
    """

    def __init__(self, path: Path, step: int, is_ended: bool = True) -> None:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        _keep_lines(path, [line for line in lines if _step_of(line) <= step + is_ended * _EPOCH])
        self.file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append a record and hand it to the system at once."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _step_of(line: bytes) -> float:
    """The step of a record, and half a step more for an epoch's; infinity for a line that was cut short."""
    try:
        record = json.loads(line)
        step = float(record["step"]) + ("train/epoch_loss" in record) * _EPOCH
        return step if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")


class SummaryFile:
    """summary.csv.

    Args:
        path: the file; created with its header if missing.
        epochs: keep the rows of epochs below this one.
    """

    def __init__(self, path: Path, epochs: int) -> None:
        rows = path.read_bytes().splitlines(keepends=True)[1:] if path.exists() else []
        kept = [row for row in rows if _epoch_of(row) < epochs]
        _keep_lines(path, [",".join(COLUMNS).encode() + b"\n", *kept])
        self.path = path

    def write(self, row: dict[str, Any]) -> None:
        """Append the row of an epoch."""
        text = io.StringIO()
        csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text.getvalue())


def _epoch_of(row: bytes) -> float:
    """The epoch of a row; infinity for a row that was cut short."""
    epoch = row.split(b",")[0]
    return int(epoch) if row.endswith(b"\n") and epoch.isdigit() else float("inf")
