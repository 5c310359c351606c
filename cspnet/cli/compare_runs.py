"""Whether two runs are the same: state, records and rows, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cspnet.errors import RunFolderError
from cspnet.training.meter import MEASURED_KEYS
from cspnet.weights.files import read_tensors

__all__ = ["compare_runs", "find_difference", "read_records"]

_ABOUT = ("recipe", "versions", "computed_on")
"""Parts of a checkpoint that say where and how it was made: the recipe names the workers, too."""


def find_difference(a: Any, b: Any, where: str = "") -> str | None:
    """Where two checkpoints, or parts of them, differ; None if they are equal, bit for bit, all the way down."""
    if type(a) is not type(b):
        return where
    if isinstance(a, dict):
        if list(a) != list(b):
            return f"{where}: the keys"
        return next((found for key in a if (found := find_difference(a[key], b[key], f"{where}.{key}"))), None)
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return f"{where}: the length"
        pairs = enumerate(zip(a, b, strict=True))
        return next((found for i, (x, y) in pairs if (found := find_difference(x, y, f"{where}[{i}]"))), None)
    equal = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return None if equal else where


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The whole records of a run's metrics.jsonl, without what was measured of the machine.

    Raises:
        RunFolderError: one that was not cut short cannot be read.
    """
    file = folder / "metrics.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    records = [_read_record(f"{file} line {i}", line) for i, line in enumerate(lines, 1) if line.endswith(b"}")]
    return [{key: value for key, value in record.items() if key not in MEASURED_KEYS} for record in records]


def _read_record(place: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{place}: not a record: {error}") from error
    if not isinstance(record, dict):
        raise RunFolderError(f"{place}: expected a record, found a {type(record).__name__}")
    return record


def compare_runs(folder: Path, reference: Path) -> str | None:
    """What differs between the ends of two runs: a part of last.pt, metrics.jsonl, or summary.csv; None if nothing."""
    last, other = (
        {key: value for key, value in _load(path).items() if key not in _ABOUT} for path in (folder, reference)
    )
    if difference := find_difference(last, other, "last.pt"):
        return difference
    if read_records(folder) != read_records(reference):
        return "metrics.jsonl"
    return "summary.csv" if (folder / "summary.csv").read_text() != (reference / "summary.csv").read_text() else None


def _load(folder: Path) -> dict[str, Any]:
    return read_tensors(folder / "checkpoints" / "last.pt")
