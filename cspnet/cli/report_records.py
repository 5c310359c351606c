"""What a run's folder says of the run: its records, its log, its speed, what it could not read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cspnet.cli.metering import SPEED_FILE
from cspnet.errors import UserError
from cspnet.reporting.plots import read_records
from cspnet.reporting.run_page import number
from cspnet.reporting.verdict import find_bound

__all__ = ["NOT_RECORDED", "Records", "Window", "find_best", "judge_records", "list_events", "list_log_events"]
__all__ += ["list_windows", "read_bad_images", "read_run", "read_speed"]

NOT_RECORDED = "not recorded"
_MOST = 1e100
_MOST_STEPS = 2**53
"""That a float can count."""

_TOLD = ("warning: ", "error: ", "stopped ", "resumed ")
"""How a line of a log begins that a reader of the report may want to know of."""
_MOST_TOLD = 30

Records = Sequence[Mapping[str, Any]]


def read_run(folder: Path) -> list[dict[str, Any]]:
    """The records, in their order; values that are no numbers are None.

    Raises:
        UserError: there are none, or they are damaged.
    """
    file = folder / "metrics.jsonl"
    if not file.exists():
        raise UserError(f"{folder}: there is nothing to report yet: no metrics.jsonl in it")
    records, before = [], (0, False)
    for record in read_records(folder):
        step, epoch = record["step"], record.get("epoch")
        if type(epoch) is not int or not 0 <= epoch <= _MOST_STEPS:
            raise UserError(f"{file}: the record of step {step} does not say its epoch")
        place = (step, "train/epoch_loss" in record)  # an epoch's record stands behind that of its last step
        if not before < place <= (_MOST_STEPS, True):
            raise UserError(f"{file}: damaged: the record of step {step} does not follow the one before")
        records.append({**{key: _number(value) for key, value in record.items()}, "step": step, "epoch": epoch})
        before = place
    return records


def _number(value: object) -> int | float | None:
    """A number within reason, or None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and -_MOST < value < _MOST
    return value if is_number else None  # type: ignore[return-value]


def find_best(records: Records) -> tuple[Mapping[str, Any] | None, str]:
    """The record of the best validation, the first of equals, and what was validated: val or, if there is a moving
    average, val_ema, as a run itself decides."""
    best, best_kind, most = None, "val", -math.inf
    for record in records:
        kind = "val_ema" if "val_ema/acc1" in record else "val"
        acc1 = record.get(f"{kind}/acc1")
        if acc1 is not None and acc1 > most:
            best, best_kind, most = record, kind, acc1
    return best, best_kind


@dataclass(frozen=True)
class Window:
    """The steps of a record."""

    steps: int
    images_per_s: float
    data_wait_ratio: float | None

    @property
    def time(self) -> float:
        """Theirs, in seconds for each picture of a step."""
        return self.steps / self.images_per_s


def list_windows(records: Records) -> list[Window]:
    """The records of steps, in their order; none if one of them does not say how fast it was."""
    found, done = [], 0
    for record in records:
        if "train/loss" in record:
            rate = record.get("train/images_per_s")
            if not rate or rate < 0:
                return []
            found.append(Window(record["step"] - done, rate, record.get("train/data_wait_ratio")))
            done = record["step"]
    return found


def read_speed(folder: Path) -> dict[str, Any]:
    """What the run has said at its end; empty if it has not come to that, or cannot be read."""
    try:
        kept = json.loads((folder / SPEED_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) and isinstance(kept.get("verdict"), str) else {}


def judge_records(kept: Mapping[str, Any], records: Records, processes: int) -> tuple[str, list[tuple[str, object]]]:
    """The verdict that the run ended with, or else what its records say; and what was measured.

    Args:
        kept: see `read_speed`.
    """
    windows = list_windows(records)
    waits = [(window.time, window.data_wait_ratio) for window in windows if window.data_wait_ratio is not None]
    rows: list[tuple[str, object]] = []
    if kept:
        verdict = kept["verdict"]
        about = f"{number(kept.get('steps'))} steps, without the first ones of a start, up to step"
        rows.append(("measured over", f"{about} {number(kept.get('step'))}"))
        rows.append(("images/s", number(_number(kept.get("train/images_per_s")), 0)))
        for name, key in (("waiting for data", "train/data_wait_ratio"), ("model FLOPs utilisation", "train/mfu")):
            if (share := _number(kept.get(key))) is not None:
                rows.append((name, f"{share:.1%}"))
    elif windows and len(waits) == len(windows):
        total = sum(time for time, _ in waits)
        share = sum(time * wait for time, wait in waits) / total
        bound = find_bound(share, 0.0)
        if bound == "compute-bound" and processes > 1:
            bound = "not input-bound"
        verdict = f"{bound}: {share:.1%} of a step is waiting for data, by the records"
        rows.append(("measured over", f"{len(windows):,} records; the run has left no verdict of its own"))
        rows.append(("images/s", number(sum(window.steps for window in windows) / total, 0)))
    else:
        verdict = NOT_RECORDED
    peaks = [peak for record in records if (peak := record.get("train/peak_memory_bytes"))]
    rows.append(("peak memory", f"{max(peaks) / 2**30:.2f} GiB" if peaks else NOT_RECORDED))
    return verdict, rows


def read_bad_images(folder: Path) -> list[Mapping[str, Any]]:
    """The entries of bad_images.jsonl, each picture once; a line that was cut short is passed over."""
    try:
        lines = (folder / "bad_images.jsonl").read_bytes().splitlines()
    except OSError:
        return []
    found: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            found.setdefault(str(entry["path"]), entry)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return list(found.values())


def list_log_events(folder: Path) -> list[str]:
    """What the run's log has of warnings and ways to end, the end first."""
    try:
        lines = (folder / "train.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    texts = [line[len("2026-01-01 00:00:00 ") :] for line in lines]
    events = []
    if texts and texts[-1].startswith("error: "):
        events.append(f"The run ended with an error: {texts[-1].removeprefix('error: ')}.")
    elif texts and texts[-1].startswith("stopped "):
        events.append(f"The run was {texts[-1]}; it has not gone on since.")
    told = [(line, text) for line, text in zip(lines, texts, strict=True) if text.startswith(_TOLD)]
    events += [f"{line[:19]}: {text}" for line, text in told[-_MOST_TOLD:]]
    return events


def list_events(folder: Path, records: Records, num_bad: int) -> list[str]:
    """What a run should not meet, where it did."""
    events = []
    skipped = next((r["train/skipped"] for r in reversed(records) if "train/skipped" in r), None)
    if skipped:  # as the last epoch's end has it
        kept = len(list((folder / "skipped").glob("*.pt")))
        text = f"; the pictures of {kept} of them are kept in skipped/" if kept else ""
        events.append(f"{number(skipped)} steps were skipped, as their loss or gradient was not finite{text}.")
    if num_bad:
        events.append(f"{num_bad:,} pictures could not be read.")
    broken = max((record.get("val/unreadable") or 0 for record in records), default=0)
    if broken:
        events.append(f"{broken:,.0f} validation pictures could not be read, and counted as wrong.")
    if aside := sorted(path.name for path in folder.glob("metrics.jsonl.*")):
        events.append(f"Records without a checkpoint were set aside, and the run began anew: {', '.join(aside)}.")
    return events
