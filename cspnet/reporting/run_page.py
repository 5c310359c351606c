"""The report of a run as one page: what came out, how, of what, and what the network takes for what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cspnet.reporting.page import Html, bar, details, document, escape, figure, join, picture, section, table, tag
from cspnet.reporting.plots import COLOURS, draw_panels

__all__ = ["GENERATOR", "ClassRow", "Mixup", "RunFacts", "Seen", "ShownPicture", "number", "render_run"]

GENERATOR = "cspnet scripts/report.py"
"""By this, in its first lines, a report is known for one."""

_FEW_CLASSES = 40
_MOST_ENDS = 20
"""Of many classes, so many of the worst and of the best are shown at once."""
_MOST_ROWS = 2000
"""Of a table: a page has to be opened by a phone, too."""
_KINDS = {
    "train": ("training", "2 3"),
    "val": ("validation", "none"),
    "val_ema": ("validation of the moving average", "7 4"),
}
"""What a key begins with -> (what it is of, its dashes)."""


@dataclass(frozen=True)
class ClassRow:
    """A class, and what its validation pictures were taken for."""

    name: str
    pictures: int
    right1: int
    right5: int
    mostly: str
    """What wrong ones are taken for most; empty if there are none."""
    times: int

    @property
    def acc1(self) -> float:
        """In percent."""
        return 100 * self.right1 / self.pictures


@dataclass(frozen=True)
class Mixup:
    """Pictures of a class that are taken for another one."""

    name: str
    answer: str
    count: int
    pictures: int
    """Of the class."""


@dataclass(frozen=True)
class ShownPicture:
    """A picture of the validation, and how sure the network was."""

    jpeg: bytes | None
    """None where it cannot be read any more."""
    side_px: int
    path: str
    name: str
    answer: str
    probability: float


@dataclass(frozen=True)
class Seen:
    """What a pass over the validation pictures has shown."""

    outcome: str
    """In one line: of what, how, and the counts."""
    classes: Sequence[ClassRow]
    mixups: Sequence[Mixup]
    """The most frequent ones, the most frequent first."""
    num_mixups: int
    """Of all pictures that are taken for another class."""
    worst: Sequence[ShownPicture]
    """Wrong, and sure of it; the surest first."""
    best: Sequence[ShownPicture]
    """Right, and sure of it."""


@dataclass(frozen=True)
class RunFacts:
    """All that a page says."""

    name: str
    folder: str
    best: Mapping[str, Any] | None
    """The record of the best validation; None before the first."""
    best_kind: str
    """val or val_ema."""
    facts: Sequence[tuple[str, object]]
    command: Sequence[str]
    """To validate it, line by line; none where there is nothing to validate."""
    records: Sequence[Mapping[str, Any]]
    seen: Seen | None
    unseen: str
    """Why there are no pictures in it."""
    verdict: str
    speed: Sequence[tuple[str, object]]
    environment: Sequence[tuple[str, object]]
    bad_images: Sequence[Mapping[str, Any]]
    events: Sequence[str]
    recipe: Sequence[tuple[str, str, str]]
    """(key, value, where it came from) of every setting."""
    changed: frozenset[str] = field(default_factory=frozenset)
    """Keys that are not at their defaults, or were set to them."""


def number(value: object, digits: int = 3, unit: str = "") -> str:
    """A number of a record as text; what is missing or not finite is a dash."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    return f"{value:,}{unit}" if isinstance(value, int) else f"{value:,.{digits}f}{unit}"


def render_run(facts: RunFacts) -> str:
    """The page."""
    body = join(
        [
            _heading(facts),
            _curves(facts.records),
            *_pictures(facts),
            section(
                "Speed",
                tag("p", facts.verdict, _class="verdict"),
                _pairs("What was measured", facts.speed),
            ),
            section("Environment", _pairs("As the run has recorded it", facts.environment)),
            _events(facts),
            _recipe(facts),
            tag("footer", f"Made by scripts/report.py from {facts.folder}"),
        ]
    )
    return document(f"{facts.name}: report of a run", body, kind=GENERATOR, about=facts.folder)


def _pairs(caption: str, pairs: Sequence[tuple[str, object]]) -> Html:
    return tag("div", table(caption, ["what", "value"], pairs), _class="pairs")


def _heading(facts: RunFacts) -> Html:
    parts: list[object] = [tag("h1", facts.name)]
    if facts.best is None:
        parts.append(tag("p", "Not validated yet", _class="best"))
    else:
        kind = facts.best_kind
        small = f"Acc@1 in epoch {facts.best['epoch'] + 1}, Acc@5 {number(facts.best.get(f'{kind}/acc5'))} %"
        shown = join([f"{number(facts.best[f'{kind}/acc1'])} %", tag("small", small)], " ")
        parts.append(tag("p", shown, _class="best"))
    parts.append(_pairs("The run", facts.facts))
    if facts.command:
        parts += [tag("p", "To validate it:"), tag("pre", tag("code", join(facts.command)))]
    return tag("header", join(parts))


def _curves(records: Sequence[Mapping[str, Any]]) -> Html:
    panels = (figure(Html(svg), title) for title, svg in draw_panels(records).items())
    there = [kind for kind in _KINDS if any(f"{kind}/loss" in record for record in records)]
    key = tag("ul", join(map(_key, there)), _class="key")
    return section("Curves", key, tag("div", join(panels), _class="curves"), _epochs(records))


def _key(kind: str) -> Html:
    """What a line of the losses and accuracies looks like."""
    text, dashes = _KINDS[kind]
    stroke = {"stroke": COLOURS[kind], "stroke-width": "2.5", "stroke-dasharray": dashes}
    line = tag("path", d="M0 5H32", fill="none", **stroke)
    return tag("li", join([tag("svg", line, viewBox="0 0 32 10", aria_hidden="true"), text], ""))


def _epochs(records: Sequence[Mapping[str, Any]]) -> Html:
    """The epochs' records as a table, folded away."""
    columns = {
        "train loss": ("train/epoch_loss", 4),
        "train Acc@1": ("train/epoch_acc1", 2),
        "val loss": ("val/loss", 4),
        "val Acc@1": ("val/acc1", 3),
        "val Acc@5": ("val/acc5", 3),
        "average's loss": ("val_ema/loss", 4),
        "average's Acc@1": ("val_ema/acc1", 3),
        "average's Acc@5": ("val_ema/acc5", 3),
    }
    ends = [record for record in records if "train/epoch_loss" in record]
    shown = {title: how for title, how in columns.items() if any(how[0] in record for record in ends)}
    if not ends:
        return escape("")
    rows = (
        [record["epoch"] + 1, number(record["step"]), *(number(record.get(key), d) for key, d in shown.values())]
        for record in ends[-_MOST_ROWS:]
    )
    header = ["epoch", "step", *shown]
    content = table("The end of each epoch; accuracies in %", header, rows, numbers=range(len(header)))
    return details(f"All {len(ends):,} epochs as numbers", content)


def _pictures(facts: RunFacts) -> list[Html]:
    seen = facts.seen
    if seen is None:
        return [section("Classes and pictures", tag("p", facts.unseen, _class="warning"))]
    parts = [section("Classes", tag("p", seen.outcome), *_classes(seen.classes))]
    if seen.mixups:
        rows = ((m.name, m.answer, number(m.count), number(100 * m.count / m.pictures, 1, " %")) for m in seen.mixups)
        text = f"The {len(seen.mixups)} most frequent of all pairs, and their share of the class; "
        text += f"{seen.num_mixups:,} pictures are wrong."
        header = ["class", "taken for", "pictures", "share"]
        confused = section(
            "Confusions", tag("p", text), table("Which classes are mixed up", header, rows, numbers=(2, 3))
        )
        parts.append(confused)
    if seen.worst:
        parts.append(_gallery("Worst pictures", "Wrong, and sure of it: the surest first.", seen.worst, "wrong"))
    if seen.best:
        parts.append(_gallery("Best pictures", "Right, and sure of it: the surest first.", seen.best, "right"))
    return parts


def _classes(rows: Sequence[ClassRow]) -> list[Html]:
    """The worst classes first; of many, the middle is folded away."""
    ordered = sorted(rows, key=lambda row: row.acc1)
    if len(ordered) <= _FEW_CLASSES:
        return [_class_table("All classes, the worst first", ordered)]
    middle = ordered[_MOST_ENDS:-_MOST_ENDS]
    shown = _class_table("The other classes, the worst first", middle[:_MOST_ROWS])
    left = len(middle) - _MOST_ROWS
    more = tag("p", f"{left:,} more are left out; validate.py --per-class FILE has them all.") if left > 0 else ""
    return [
        _class_table(f"The {_MOST_ENDS} worst of {len(ordered):,} classes", ordered[:_MOST_ENDS]),
        details(f"The {len(middle):,} classes between", shown, more),
        _class_table(f"The {_MOST_ENDS} best of {len(ordered):,} classes", ordered[-_MOST_ENDS:]),
    ]


def _class_table(caption: str, rows: Sequence[ClassRow]) -> Html:
    header = ["class", "Acc@1", "", "mostly taken for", "right", "pictures", "in the first five"]
    cells = (
        [
            row.name,
            number(row.acc1, 1, " %"),
            bar(row.acc1 / 100),
            f"{row.mostly} ({row.times:,})" if row.mostly else "–",
            *(f"{count:,}" for count in (row.right1, row.pictures, row.right5)),
        ]
        for row in rows
    )
    return table(caption, header, cells, numbers=(1, 4, 5, 6))


def _gallery(title: str, text: str, pictures: Sequence[ShownPicture], kind: str) -> Html:
    shown = []
    for one in pictures:
        sure = f"{100 * one.probability:.1f} %"
        alt = f"{one.path}: {one.name}, taken for {one.answer}"
        said = tag("span", join([one.answer, tag("span", sure, _class="sure")], " "), _class=kind)
        lines = [tag("strong", one.name), said]
        lines = lines[1:] if kind == "right" else [lines[0], Html("<br>→ "), lines[1]]
        shown.append(tag("div", figure(picture(one.jpeg, alt, one.side_px), *lines), title=one.path))
    return section(title, tag("p", text), tag("div", join(shown), _class="pictures"))


def _events(facts: RunFacts) -> Html:
    parts = [tag("ul", join(tag("li", event) for event in facts.events))] if facts.events else []
    if facts.bad_images:
        rows = ([entry.get("path", ""), entry.get("reason", "")] for entry in facts.bad_images[:200])
        shown = table(
            f"{min(200, len(facts.bad_images))} of {len(facts.bad_images):,} pictures that could not be read",
            ["picture", "why"],
            rows,
        )
        parts.append(shown if len(facts.bad_images) <= 10 else details("Pictures that could not be read", shown))
    return section("What happened on the way", *(parts or [tag("p", "Nothing out of the ordinary is recorded.")]))


def _recipe(facts: RunFacts) -> Html:
    header = ["setting", "value", "where it came from"]
    changed = [row for row in facts.recipe if row[0] in facts.changed]
    rest = [row for row in facts.recipe if row[0] not in facts.changed]
    return section(
        "Recipe",
        table("Settings that were made", header, map(_setting, changed)),
        details(f"The other {len(rest)} settings, at their defaults", table("Defaults", header, map(_setting, rest))),
    )


def _setting(row: tuple[str, str, str]) -> list[object]:
    return [tag("code", row[0]), tag("code", row[1]), row[2]]
