"""metrics.jsonl, one JSON object a record, and summary.csv, one row an epoch in timm's columns.

When a run is resumed, what was written after the checkpoint is taken back first: no step appears twice. Lines for which
there is no room on the disk wait in memory for the next one: what stands in the files is whole lines, in their order.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any

from cspnet.runtime.files import write_atomically

__all__ = ["MetricsFile", "SummaryFile", "has_epochs"]

_EPOCH = 0.5
"""By how much an epoch's record stands behind the one of its last step."""

COLUMNS = ("epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr")


class _Lines:
    """A file that whole lines are appended to; it starts with those that are kept."""

    def __init__(self, path: Path, kept: list[bytes]) -> None:
        content = b"".join(kept)
        if not path.exists() or path.read_bytes() != content:  # a copy may find no room on the disk
            write_atomically(path, content)
        self.path = path
        self.file = path.open("a+b", buffering=0)
        self.waiting: list[bytes] = []

    def _bring_back(self) -> None:
        """The file, if somebody has removed it: as long as it is open, what it holds can still be read."""
        if os.fstat(self.file.fileno()).st_nlink:
            return
        self.file.seek(0)
        content = self.file.read()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, content or b"")
        self.file.close()
        self.file = self.path.open("a+b", buffering=0)

    def append(self, line: str) -> None:
        """Hand a line to the system at once, behind those that wait.

        Raises:
            OSError: it and they wait for the next call.
        """
        self.waiting.append(line.encode())
        self._bring_back()
        rest = memoryview(b"".join(self.waiting))
        end = self.file.seek(0, os.SEEK_END)
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError:
            self.file.truncate(end)
            raise
        self.waiting.clear()

    def close(self) -> None:
        """Try once more, and close the file.

        Raises:
            OSError: what waits is lost.
        """
        try:
            self.append("")
        finally:
            self.file.close()


class MetricsFile:
    """metrics.jsonl.

    Args:
        path: the file; created if missing.
        step: keep the records up to this step; -1 keeps none.
        is_ended: keep the record of an epoch that ends with it, too.
    """

    def __init__(self, path: Path, step: int, is_ended: bool = True) -> None:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        self.lines = _Lines(path, [line for line in lines if _step_of(line) <= step + is_ended * _EPOCH])

    def write(self, record: dict[str, Any]) -> None:
        """Append a record and hand it to the system at once.

        Raises:
            OSError: it could not be written yet; it is not lost.
        """
        # JSON has no word for what is not finite, such as the loss of a network that is broken.
        values = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        self.lines.append(json.dumps(values) + "\n")

    def close(self) -> None:
        """Close the file.

        Raises:
            OSError: there was no room for its last lines.
        """
        self.lines.close()


def _step_of(line: bytes) -> float:
    """The step of a record, and half a step more for an epoch's; infinity for a line that was cut short."""
    try:
        record = json.loads(line)
        step = float(record["step"]) + ("train/epoch_loss" in record) * _EPOCH
        return step if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")


def has_epochs(path: Path) -> bool:
    """Whether a metrics.jsonl holds the record of a finished epoch."""
    return path.is_file() and any(b'"train/epoch_loss"' in line for line in path.read_bytes().splitlines())


class SummaryFile:
    """summary.csv.

    Args:
        path: the file; created with its header if missing.
        epochs: keep the rows of epochs below this one.
    """

    def __init__(self, path: Path, epochs: int) -> None:
        rows = path.read_bytes().splitlines(keepends=True)[1:] if path.exists() else []
        kept = [row for row in rows if _epoch_of(row) < epochs]
        self.lines = _Lines(path, [",".join(COLUMNS).encode() + b"\n", *kept])

    def write(self, row: dict[str, Any]) -> None:
        """Append the row of an epoch.

        Raises:
            OSError: it could not be written yet; it is not lost.
        """
        text = io.StringIO()
        csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(row)
        self.lines.append(text.getvalue())

    def close(self) -> None:
        """Close the file.

        Raises:
            OSError: there was no room for its last lines.
        """
        self.lines.close()


def _epoch_of(row: bytes) -> float:
    """The epoch of a row; infinity for a row that was cut short."""
    epoch = row.split(b",")[0]
    return float(epoch) if row.endswith(b"\n") and epoch.isdigit() else float("inf")
