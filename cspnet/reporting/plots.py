"""The curves of runs, from their metrics.jsonl."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cspnet.errors import UserError
from cspnet.runtime.files import replacing

__all__ = ["PANELS", "Curve", "curves_of", "draw_curves", "draw_panels", "epochs_at", "read_records"]

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


COLOURS = {"train": "#2f7ed8", "val": "#d9730d", "val_ema": "#0f9d77"}
"""Of a single run's lines, by what their keys begin with: at least 3:1 against white and against black."""
_PEN = "#010203"
"""Stands for the colour of the text around a picture, until there is one."""
_MOST_POINTS = 500
"""Of a line in a page: more are averaged, a few records a point."""


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
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
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


def _lines_of(
    records: Sequence[Mapping[str, Any]], keys: Sequence[tuple[str, str]], *, by_epoch: bool
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """(key, its line, x, y) of a panel's curves that a run has."""
    curves = curves_of(records)
    for key, line in keys:
        if key not in curves:
            continue
        x, y = curves[key].steps.astype(float), curves[key].values
        epochs = epochs_at(records, x)
        if by_epoch and epochs is not None:
            x = epochs
        yield key, line, x, 100 * y if key == "train/data_wait_ratio" else y


def draw_panels(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """{title: an <svg> element to stand in a page} of one run; without those that it has no records for.

    The lines are COLOURS, all else is of the colour of the text around it, and nothing outside of the page is named.
    """
    by_epoch = epochs_at(records, np.zeros(1)) is not None
    drawn = {}
    for number, (title, keys) in enumerate(PANELS.items()):
        lines = list(_lines_of(records, keys, by_epoch=by_epoch))
        if not lines:
            continue
        figure = Figure(figsize=(4.2, 2.7), layout="constrained")
        panel = figure.subplots()
        for key, line, x, y in lines:
            x, y = _thin_out(x), _thin_out(y)
            colour, marker = COLOURS[key.split("/")[0]], "o" if len(x) < 3 else ""
            panel.plot(x, y, line, color=colour, marker=marker, markersize=5, linewidth=1.6)
        panel.set_xlabel("epoch" if by_epoch else "step", fontsize=10, color=_PEN)
        _colour_frame(panel)
        drawn[title] = _to_element(figure, f"curve{number}-", title)
    return drawn


def _thin_out(values: np.ndarray) -> np.ndarray:
    """At most `_MOST_POINTS` values: each the mean of its neighbours, if there are more."""
    if len(values) <= _MOST_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, _MOST_POINTS)])


def _colour_frame(panel: Axes) -> None:
    """Everything but the lines takes the pen's colour."""
    panel.grid(color=_PEN, alpha=0.18)
    panel.tick_params(labelsize=10, color=_PEN, labelcolor=_PEN)
    panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    panel.yaxis.get_offset_text().set_color(_PEN)
    for side in panel.spines.values():
        side.set_color(_PEN)
        side.set_alpha(0.5)


def _to_element(figure: Figure, prefix: str, title: str) -> str:
    """A figure as an element of a page, whose other names do not meet those in it."""
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cspnet"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    size = re.search(r'viewBox="[^"]*"', head)
    svg = f'<svg role="img" aria-label="{title}" {size[0] if size else ""}>{body}'
    svg = re.sub(r'(\sid="|href="#|url\(#)', rf"\1{prefix}", svg)
    return re.sub(r"font-family: [^;\"]*;?", "", svg).replace(_PEN, "currentColor")


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
            for _, line, x, y in _lines_of(records, keys, by_epoch=by_epoch):
                marker = "." if len(x) < 3 else ""
                panel.plot(x, y, line, color=f"C{number % 10}", marker=marker, linewidth=1.2)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("epoch" if by_epoch else "step", fontsize=9)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=8)
        panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    handles = [mpl.lines.Line2D([], [], color=f"C{number % 10}") for number in range(len(runs))]
    kinds = {"training": ":", "validation": "-", "moving average": "--"}
    handles += [mpl.lines.Line2D([], [], color="grey", ls=line) for line in kinds.values()]
    figure.legend(handles, [*runs, *kinds], loc="outside lower center", ncols=4, fontsize=8)
    with replacing(file) as temporary:
        form = file.suffix[1:].lower()
        figure.savefig(
            temporary, format=form, dpi=110, metadata={} if form == "png" else {"Date": None} if form == "svg" else None
        )
