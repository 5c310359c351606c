"""The curves of runs, from their metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from cspnet.errors import UserError
from cspnet.runtime.files import replacing

__all__ = ["PANELS", "Curve", "curves_of", "draw_curves", "epochs_at", "read_records"]

PANELS: dict[str, tuple[tuple[str, str], ...]] = {
    "loss": (("train/loss", ":"), ("val/loss", "-"), ("val_ema/loss", "--")),
    "Acc@1 / %": (("train/acc1", ":"), ("val/acc1", "-"), ("val_ema/acc1", "--")),
    "Acc@5 / %": (("train/acc5", ":"), ("val/acc5", "-"), ("val_ema/acc5", "--")),
    "learning rate": (("train/lr", "-"),),
    "images/s": (("train/images_per_s", "-"),),
    "waiting for data / %": (("train/data_wait_ratio", "-"),),
}
"""Title -> (key of a record, its line): dotted in training, whole in validation, dashed for the moving average."""


_UNDATED: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


@dataclass(frozen=True)
class Curve:
    """A key of a run's records: where and what."""

    steps: np.ndarray
    values: np.ndarray


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's folder; a line that is being written is left out.

    Raises:
        UserError: there are none.
    """
    file = folder / "metrics.jsonl" if folder.is_dir() else folder
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"{file}: {reason}; name the folder of a run") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            record["step"] = int(record["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(f"{file}: line {number}: not a record of a run") from error
        records.append(record)
    if not records:
        raise UserError(f"{file}: there is no record in it yet")
    return records


def curves_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """{key: curve} of all numbers in the records; what is missing or not finite is left out."""
    points: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for key, value in record.items():
            if "/" in key and isinstance(value, (int, float)):
                points.setdefault(key, []).append((record["step"], value))
    return {key: Curve(*map(np.array, zip(*found, strict=True))) for key, found in points.items()}


def epochs_at(records: Sequence[Mapping[str, Any]], steps: np.ndarray) -> np.ndarray | None:
    """Steps as epochs, by the records of finished ones; None before the first has ended."""
    ends = {record["epoch"] + 1: record["step"] for record in records if "train/epoch_loss" in record}
    if not ends:
        return None
    epochs = np.array([0, *sorted(ends)], float)
    at = np.array([0, *(ends[epoch] for epoch in sorted(ends))], float)
    rate = (epochs[-1] - epochs[-2]) / (at[-1] - at[-2])  # of the epoch that goes on
    return np.where(steps > at[-1], epochs[-1] + (steps - at[-1]) * rate, np.interp(steps, at, epochs))


def draw_curves(file: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Six panels of one or several runs, a colour each, over epochs (or over steps, if one has not finished an epoch).

    Args:
        file: .png, .svg or .pdf.
        runs: {name: records}.
    Raises:
        OSError: it cannot be written.
    """
    mpl.rcParams["svg.hashsalt"] = "cspnet"  # the same curves are the same file
    by_epoch = all(epochs_at(records, np.zeros(1)) is not None for records in runs.values())
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, 3)
    for panel, (title, keys) in zip(panels.flat, PANELS.items(), strict=True):
        for number, records in enumerate(runs.values()):
            curves = curves_of(records)
            for key, line in keys:
                if key not in curves:
                    continue
                x, y = curves[key].steps.astype(float), curves[key].values
                epochs = epochs_at(records, x)
                if by_epoch and epochs is not None:
                    x = epochs
                if key == "train/data_wait_ratio":
                    y = 100 * y
                marker = "." if len(x) < 3 else ""
                panel.plot(x, y, line, color=f"C{number % 10}", marker=marker, linewidth=1.2)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("epoch" if by_epoch else "step", fontsize=9)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=8)
    handles = [mpl.lines.Line2D([], [], color=f"C{number % 10}") for number in range(len(runs))]
    kinds = {"training": ":", "validation": "-", "moving average": "--"}
    handles += [mpl.lines.Line2D([], [], color="grey", ls=line) for line in kinds.values()]
    figure.legend(handles, [*runs, *kinds], loc="outside lower center", ncols=4, fontsize=8)
    with replacing(file) as temporary:
        form = file.suffix[1:].lower()
        figure.savefig(
            temporary, format=form, dpi=110, metadata={} if form == "png" else {"Date": None} if form == "svg" else None
        )
