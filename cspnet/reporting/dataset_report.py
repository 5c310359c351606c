"""What was found in a data set, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["dataset_lines"]

_TITLES = {"broken": "BROKEN", "odd": "ODD", "note": "TO KNOW"}
_MAX_TEXT = 160
_MAX_MORE = 3


def dataset_lines(report: Mapping[str, Any], limit: int) -> Iterator[str]:
    """The report of scripts/check_dataset.py as text: each split, then the findings by kind.

    Args:
        report: what the script writes as JSON.
        limit: findings of each kind to print.
    """
    for split in report["splits"]:
        yield from _split_lines(split)
        yield ""
    for severity, title in _TITLES.items():
        for kind, about in report["kinds"].items():
            if about["severity"] != severity or not about["count"]:
                continue
            yield f"{title}  {kind}: {about['count']:,}  ({about['meaning']})"
            yield f"    in training: {about['in_training']}"
            found = [finding for finding in report["findings"] if finding["kind"] == kind][:limit]
            yield from (_finding_line(finding, report["root"]) for finding in found)
            if about["count"] > len(found):
                yield f"    … {about['count'] - len(found):,} more"
            yield ""
    yield ", ".join(
        f"{report[key]:,} {word}" for key, word in (("broken", "broken"), ("odd", "odd"), ("note", "to know"))
    )


def _split_lines(split: Mapping[str, Any]) -> Iterator[str]:
    yield f"{split['name']}: {_printable(split['source'])}"
    unreadable = split["pictures"] - split["readable"]
    broken = f", {unreadable:,} of them broken" * bool(unreadable)
    yield f"    pictures      {split['pictures']:,}{broken}, {_format_bytes(split['bytes'])}"
    yield f"    classes       {_class_line(split['class_counts'])}"
    for key, name in (("shorter_side_px", "shorter side"), ("longer_side_px", "longer side")):
        if sides := split[key]:
            yield f"    {name:<13} {sides['min']:,} to {sides['max']:,} px, median {sides['median']:,g}"
    for key in ("formats", "modes"):
        by_count = sorted(split[key].items(), key=lambda item: (-item[1], item[0]))
        yield f"    {key:<13} {', '.join(f'{name} {count:,}' for name, count in by_count) or 'none'}"


def _class_line(counts: Mapping[str, int]) -> str:
    """How many classes, and how many pictures the smallest, the middle and the largest have."""
    if not counts:
        return "0"
    ranked = sorted(counts.items(), key=lambda item: item[1])
    (least, fewest), (most, largest) = ranked[0], ranked[-1]
    middle = (ranked[(len(ranked) - 1) // 2][1] + ranked[len(ranked) // 2][1]) / 2
    if fewest == largest:
        return f"{len(counts):,}, each with {largest:,}"
    return (
        f"{len(counts):,}, with {fewest:,} ({_printable(least)}) to {largest:,} ({_printable(most)}), "
        f"median {middle:,g}"
    )


def _finding_line(finding: Mapping[str, Any], root: str) -> str:
    place, *more = (
        _printable(path.removeprefix(root.rstrip("/") + "/")) for path in (finding["place"], *finding["more"])
    )
    text = f"    {place}: {_printable(finding['text'])}"
    if len(text) - len(place) > _MAX_TEXT:
        text = text[: len(place) + _MAX_TEXT] + " …"
    return text + "".join(f"\n        {path}" for path in more[:_MAX_MORE]) + "\n        …" * (len(more) > _MAX_MORE)


def _printable(text: str) -> str:
    """Names may hold line breaks, and bytes that are no text."""
    return text if text.isprintable() else ascii(text)


def _format_bytes(count: int) -> str:
    """512 -> 512 B, 1500 -> 1.5 kB, 137_000_000_000 -> 137.0 GB."""
    size, units = float(count), iter(("B", "kB", "MB", "GB", "TB", "PB"))
    unit = next(units)
    while size >= 1000 and unit != "PB":
        size, unit = size / 1000, next(units)
    return f"{size:.1f} {unit}" if unit != "B" else f"{count} B"
