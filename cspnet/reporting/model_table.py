"""The paper's table: what networks cost, beside their baselines, as text, Markdown or CSV."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from cspnet.errors import ModelError
from cspnet.models import create_model
from cspnet.models.complexity import Complexity, count_complexity
from cspnet.models.darknet_cfg import DarknetCfgNet
from cspnet.models.zoo import ZOO, Published

__all__ = [
    "ModelRow",
    "Speed",
    "add_speeds",
    "build_row",
    "build_rows",
    "format_csv",
    "format_markdown",
    "format_text",
    "group_names",
]

FOREIGN_PX = 224
"""Side of the picture for timm's and torchvision's networks, unless another is asked for."""


@dataclass(frozen=True)
class Speed:
    """What was measured of a network; the n-th figures of networks measured together are neighbours in time."""

    forward: tuple[float, ...]
    """Images per second, evaluation mode, of each repeat."""
    training: tuple[float, ...]
    """Images per second, whole updates, of each repeat."""
    peak_bytes: int | None
    """Most memory in use during an update with nothing else on the device; None where it is not measured."""
    conditions: str
    """Device, precision, batch and repeats, for people."""


@dataclass(frozen=True)
class ModelRow:
    """A network of the table; ratios are against `baseline`, at the same size."""

    name: str
    status: str
    """`exact`, `reconstruction` or `ours` as in the zoo; empty for networks from elsewhere."""
    input_px: int
    complexity: Complexity
    published: Published | None
    baseline: ModelRow | None = None
    speed: Speed | None = None
    source: str = ""
    """Where its graph is from; empty for networks from elsewhere, whose names say it."""


def build_row(name: str, size_px: int | None = None, baseline: ModelRow | None = None) -> ModelRow:
    """Count a network with 1000 classes, without its weights taking any memory.

    Args:
        name: as for `create_model`.
        size_px: side of the picture; by default the one the network's published figures or its cfg file are for, and
            224 for timm's and torchvision's.
        baseline: the row to compare it with.
    Raises:
        ModelError: unknown name, or a size that the network cannot take.
    """
    entry = ZOO.get(name)
    with torch.device("meta"):
        model = create_model(name)
    default_px, in_chs = entry.input_px if entry else FOREIGN_PX, 3
    if isinstance(model, DarknetCfgNet):
        default_px, in_chs = model.input_px, model.in_chs
    input_px = default_px if size_px is None else size_px
    try:
        complexity = count_complexity(model, input_px, in_chs)
    except ModelError as error:
        raise ModelError(f"model {name}: {error}") from error
    if entry is None:
        return ModelRow(name, "", input_px, complexity, None, baseline)
    return ModelRow(name, entry.status, input_px, complexity, entry.published, baseline, source=entry.source)


def build_rows(groups: Iterable[Sequence[str]], size_px: int | None = None) -> list[ModelRow]:
    """The rows of grouped names (`group_names`), each with its baseline's; arguments and errors as for `build_row`."""
    rows: dict[str, ModelRow] = {}
    for name in itertools.chain.from_iterable(groups):
        entry = ZOO.get(name)
        rows[name] = build_row(name, size_px, rows[entry.baseline] if entry and entry.baseline else None)
    return list(rows.values())


def add_speeds(rows: Sequence[ModelRow], speeds: Mapping[str, Speed]) -> list[ModelRow]:
    """The rows with what was measured, in their baselines too; a baseline stands before what is compared with it."""
    measured: dict[str, ModelRow] = {}
    for row in rows:
        baseline = measured[row.baseline.name] if row.baseline else None
        measured[row.name] = replace(row, speed=speeds[row.name], baseline=baseline)
    return list(measured.values())


def group_names(names: Sequence[str]) -> list[list[str]]:
    """Group networks that are compared with each other; baselines that were not named join, and come first.

    ["csresnet50", "csdarknet53"] -> [["resnet50_darknet", "csresnet50"], ["darknet53", "csdarknet53"]]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        chain = _baselines(name)
        group = groups.setdefault(chain[0], [])
        group.extend(link for link in chain if link not in group)
    return list(groups.values())


def _baselines(name: str) -> list[str]:
    """A network after its baseline, that one's baseline, ...: the last of them first."""
    entry = ZOO.get(name)
    return [*(_baselines(entry.baseline) if entry and entry.baseline else []), name]


def _change(value: float, reference: float) -> str:
    return f"{round(100 * (value / reference - 1)):+d} %"


def _cost(row: ModelRow, read: Callable[[Complexity], float], digits: int) -> str:
    value = read(row.complexity)
    change = f" ({_change(value, read(row.baseline.complexity))})" if row.baseline else ""
    return f"{value:.{digits}f}{change}"


def _accuracy(row: ModelRow, sources: list[str]) -> str:
    if row.published is None or row.published.acc1 is None:
        return ""
    acc5 = "-" if row.published.acc5 is None else f"{row.published.acc5:.1f}"
    return f"{row.published.acc1:.1f} / {acc5} [{sources.index(row.published.source) + 1}]"


def _paired_ratio(row: ModelRow, read: Callable[[Speed], Sequence[float]]) -> float | None:
    """How many times the baseline's speed: the median over repeats, each against its neighbour in time."""
    if row.speed is None or row.baseline is None or row.baseline.speed is None:
        return None
    return median(a / b for a, b in zip(read(row.speed), read(row.baseline.speed), strict=True))


def _throughput(row: ModelRow, read: Callable[[Speed], Sequence[float]]) -> str:
    if row.speed is None:
        return ""
    values = read(row.speed)
    ratio = _paired_ratio(row, read)
    return f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g})" + (f" x{ratio:.2f}" if ratio else "")


def _memory(row: ModelRow) -> str:
    if row.speed is None or row.speed.peak_bytes is None:
        return "not measured"
    ratio = _peak_ratio(row)
    return f"{row.speed.peak_bytes / 2**30:.2f}" + (f" x{ratio:.2f}" if ratio else "")


def _peak_ratio(row: ModelRow) -> float | None:
    """How many times the baseline's memory."""
    base = row.baseline.speed if row.baseline else None
    if row.speed is None or base is None or row.speed.peak_bytes is None or base.peak_bytes is None:
        return None
    return row.speed.peak_bytes / base.peak_bytes


def _table(rows: Sequence[ModelRow]) -> tuple[list[list[str]], list[str]]:
    """Headings and cells, and the notes below them."""
    sources = list(dict.fromkeys(row.published.source for row in rows if row.published and row.published.acc1))
    columns: dict[str, Callable[[ModelRow], str]] = {
        "model": lambda row: row.name,
        "baseline": lambda row: row.baseline.name if row.baseline else "",
        "status": lambda row: row.status,
        "px": lambda row: str(row.input_px),
        "params M": lambda row: _cost(row, lambda cost: cost.params / 1e6, 2),
        "conv weights M": lambda row: _cost(row, lambda cost: cost.conv_weights / 1e6, 2),
        "GMACs": lambda row: _cost(row, lambda cost: cost.macs / 1e9, 3),
        "BFLOPs": lambda row: _cost(row, lambda cost: cost.bflops, 3),
        "activations M": lambda row: _cost(row, lambda cost: cost.activations / 1e6, 2),
        "CIO M": lambda row: _cost(row, lambda cost: cost.cio / 1e6, 2),
        "published Acc@1 / 5": lambda row: _accuracy(row, sources),
        "graph from": lambda row: row.source,
    }
    if any(row.speed for row in rows):
        columns["forward images/s"] = lambda row: _throughput(row, lambda speed: speed.forward)
        columns["training images/s"] = lambda row: _throughput(row, lambda speed: speed.training)
        columns["peak GiB"] = _memory
    notes = [f"[{number}] {source}" for number, source in enumerate(sources, start=1)]
    conditions = dict.fromkeys(row.speed.conditions for row in rows if row.speed)
    notes += [f"images/s: median (lowest to highest) x times the baseline's; {line}" for line in conditions]
    return [list(columns), *([cell(row) for cell in columns.values()] for row in rows)], notes


def format_text(rows: Sequence[ModelRow]) -> str:
    """The table in columns, for a terminal."""
    cells, notes = _table(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([*lines, *notes]) + "\n"


def format_markdown(rows: Sequence[ModelRow]) -> str:
    """The table in Markdown."""
    cells, notes = _table(rows)
    cells.insert(1, ["---"] * len(cells[0]))
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join([*lines, *(f"\n{note}" for note in notes)]) + "\n"


def format_csv(rows: Sequence[ModelRow]) -> str:
    """The table for programs: whole numbers where they are counts, ratios as fractions, empty where there is none."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=_csv_fields(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_csv_fields(row) for row in rows)
    return out.getvalue()


def _csv_fields(row: ModelRow) -> dict[str, object]:
    cost, base, paper, speed = row.complexity, row.baseline, row.published, row.speed
    fields: dict[str, object] = {
        "model": row.name,
        "baseline": base and base.name,
        "status": row.status,
        "source": row.source,
        "input_px": row.input_px,
    }
    for name in ("params", "conv_weights", "macs", "bflops", "activations", "cio"):
        fields[name] = getattr(cost, name)
        fields[f"{name}_ratio"] = base and getattr(cost, name) / getattr(base.complexity, name)
    fields |= {
        "published_conv_weights_m": paper and paper.conv_weights_m,
        "published_bflops": paper and paper.bflops,
        "published_acc1": paper and paper.acc1,
        "published_acc5": paper and paper.acc5,
        "published_source": paper and paper.source,
    }
    for name, read in {"forward": lambda s: s.forward, "training": lambda s: s.training}.items():
        values = read(speed) if speed else ()
        fields[f"{name}_images_per_s"] = median(values) if values else None
        fields[f"{name}_images_per_s_min"] = min(values, default=None)
        fields[f"{name}_images_per_s_max"] = max(values, default=None)
        fields[f"{name}_ratio"] = _paired_ratio(row, read)
    fields["repeats"] = len(speed.forward) if speed else None
    fields["conditions"] = speed and speed.conditions
    fields["peak_memory_bytes"] = speed and speed.peak_bytes
    fields["peak_memory_ratio"] = _peak_ratio(row)
    return fields
