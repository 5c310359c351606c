#!/usr/bin/env python3
"""Look at every picture of a data set before a training does: what is broken, what is odd, and what becomes of it.

    python3 scripts/check_dataset.py DIR                       # folders, lists or shards, as in train.py
    python3 scripts/check_dataset.py DIR --train-list a.txt --val-list b.txt --json report.json
    python3 scripts/check_dataset.py DIR/val                   # one folder, list file or pattern of shards

Splits are named as for train.py. Every picture is decoded as a whole. Exit code: 0 if nothing is broken, 1 if something
is, 2 for a command line or a data set that cannot be used at all.

--json writes one object: `root`; `broken`, `odd`, `note` (how many findings of each severity); `splits`, each with
`name`, `source`, `fingerprint`, `pictures`, `readable`, `bytes`, `shorter_side_px` and `longer_side_px` (min, median,
max), `formats`, `modes` and `class_counts`; `kinds`, every kind with `severity`, `count`, `meaning` and `in_training`;
`findings`, all of them, each with `kind`, `split`, `place` (a path or a line of a list), `text`, `more` (other paths).
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.runtime.signals import leaving_at_signals

with leaving_at_signals({signal.SIGINT: 130}, "check_dataset.py"):  # these take seconds
    from cspnet.cli.flags import FlagParser, non_empty_path, run_door
    from cspnet.cli.outputs import check_outputs
    from cspnet.data.findings import KINDS, Finding, Problem
    from cspnet.data.index import find_left_out, find_split, open_index
    from cspnet.data.shards import holds_shards, list_shards
    from cspnet.data.survey import SplitSurvey, find_copies, find_small_classes, find_unseen_classes, inspect_all
    from cspnet.errors import EXIT_DONE, DataError, UserError
    from cspnet.recipe.load import field_table
    from cspnet.reporting.console import format_duration, open_bar
    from cspnet.reporting.dataset_report import dataset_lines
    from cspnet.runtime.files import write_output
    from cspnet.runtime.processes import count_cores

EXIT_BROKEN = 1
FORMATS: tuple[str, ...] = get_args(field_table()["data.format"].annotation)


def find_splits(data: Path, names: dict[str, str], data_format: str) -> tuple[Path, dict[str, Path]]:
    """The data set's folder, and the folder, list file or shards of each split that is to be checked, by name.

    Args:
        data: the data set's folder, or a single folder of class folders, list file, shard or pattern of shards.
        names: what to take for train and val: auto is what is there, null or none is none, others must exist.
        data_format: decides what auto means.
    Raises:
        UserError: there is no such thing.
    """
    if not data.is_dir():
        if not data.exists() and not (holds_shards(data) and list_shards(data)):
            raise UserError(f"{data}: no such file or folder; name a data set, or a folder, list or pattern of shards")
        return data.parent, {data.name: data}
    found: dict[str, Path] = {}
    missing = []
    for split, name in names.items():
        if name in ("null", "none"):
            continue
        try:
            found[split] = find_split(str(data), split, name, data_format)
        except DataError as error:
            if name != "auto":
                raise
            missing.append(error)
    if not found and data_format != "auto" and missing:
        raise missing[0]
    return data, found or {data.resolve().name: find_split(str(data), "", ".", "auto")}


def open_splits(root: Path, paths: dict[str, Path], outside_root: bool) -> tuple[list[SplitSurvey], int]:
    """The splits, with what their indexes complain of; and the number of classes that training takes.

    Args:
        outside_root: whether a list's entries may lie outside of the data set.
    Raises:
        DataError: there is nothing to look at.
    """
    surveys: list[SplitSurvey] = []
    classes: tuple[str, ...] = ()
    num_classes = 0
    for name, path in paths.items():
        problems: list[Problem] = []
        stale: list[str] = []
        index = open_index(
            path,
            root=str(root),
            cache_dir=None,
            classes=classes,
            num_classes=num_classes or None,
            outside_root=outside_root,
            complain=problems.append,
            warn=stale.append,
        )
        if path.is_dir():
            problems += find_left_out(path)
        else:
            problems += [Problem("stale_index", str(path), text) for text in stale]
        if not surveys:
            classes, num_classes = index.classes, len(index.classes) or int(index.labels.max(initial=-1)) + 1
        elif index.classes and not classes and len(index.classes) != num_classes:
            text = f"{len(index.classes)} class folders, but the training list has {num_classes} classes"
            problems.append(Problem("class_count", str(path), text))
        surveys.append(SplitSurvey(name, index))
        for problem in problems:
            surveys[-1].complain(problem)
    return surveys, num_classes


def look_at(survey: SplitSurvey, workers: int) -> None:
    """Every picture of a split."""
    bar = open_bar(len(survey.index), survey.name, " pictures")
    with bar, contextlib.closing(inspect_all(survey.index, workers)) as chunks:
        for chunk in chunks:
            survey.add(chunk)
            bar.update(len(chunk))


def build_report(root: Path, surveys: Sequence[SplitSurvey], num_classes: int) -> dict[str, Any]:
    """All that was seen, in built-in types: the JSON of this script, findings by kind."""
    findings: list[Finding] = []
    for survey in surveys:
        findings += [*survey.findings, *find_unseen_classes(survey, num_classes)]
    findings += [*find_small_classes(surveys[0]), *find_copies(surveys)]
    order = {kind: number for number, kind in enumerate(KINDS)}
    findings.sort(key=lambda finding: order[finding.kind])
    counts = Counter(finding.kind for finding in findings)
    severities = Counter(KINDS[finding.kind].severity for finding in findings)
    return {
        "root": str(root.resolve()),
        **{severity: severities[severity] for severity in ("broken", "odd", "note")},
        "splits": [survey.summary() for survey in surveys],
        "kinds": {name: {**kind._asdict(), "count": counts[name]} for name, kind in KINDS.items()},
        "findings": [finding._asdict() for finding in findings],
    }


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="check_dataset.py", description=__doc__)
    parser.add_argument(
        "data", type=non_empty_path, metavar="DIR", help="data set, or one folder, list or pattern of shards"
    )
    for split in ("train", "val"):
        parser.add_argument(
            *(f"--{split}-split", f"--{split}-list"),
            default="auto",
            metavar="NAME",
            help="its folder, list or shards, relative to DIR; null for none [what is there]",
        )
    parser.add_argument("--data-format", choices=FORMATS, default="auto", help="what to look for [%(default)s]")
    parser.add_argument("--outside-root", action="store_true", help="a list's entries may lie outside of the data set")
    parser.add_argument("--json", type=non_empty_path, metavar="FILE", help="write the report there, with all findings")
    parser.add_argument(
        "--workers",
        type=int,
        default=count_cores(),
        metavar="N",
        help="processes, 0 for none but its own [%(default)s]",
    )
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="findings of a kind to print [%(default)s]")
    args = parser.parse_all(sys.argv[1:])
    for flag, value in (("--workers", args.workers), ("--limit", args.limit)):
        if value < 0:
            raise UserError(f"{flag} {value}: use a number from 0 on")
    check_outputs({"--json": args.json})
    data = args.data.expanduser()
    root, paths = find_splits(data, {"train": args.train_split, "val": args.val_split}, args.data_format)
    surveys, num_classes = open_splits(root, paths, args.outside_root)
    began = time.perf_counter()
    for survey in surveys:
        look_at(survey, args.workers)
    seconds, pictures = time.perf_counter() - began, sum(len(survey.index) for survey in surveys)
    report = build_report(root, surveys, num_classes)
    if args.json:
        try:
            write_output(args.json, (json.dumps(report, indent=1) + "\n").encode())
        except OSError as error:
            raise UserError(f"--json {args.json}: cannot be written: {error.strerror or error}") from error
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for line in dataset_lines(report, args.limit):
        print(line)
    rate = f"{pictures / max(seconds, 1e-9):,.0f} pictures/s"
    print(f"read {pictures:,} pictures in {format_duration(seconds)}, {rate} (--workers {args.workers})")
    return EXIT_BROKEN if report["broken"] else EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("check_dataset.py", main))
