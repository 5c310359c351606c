#!/usr/bin/env python3
"""Print the paper's table: what networks cost, each CSP network beside its baseline with the change in percent.

    python3 scripts/compare_models.py                          # every network of the zoo
    python3 scripts/compare_models.py 'cs*' --markdown t.md    # a shell pattern; baselines join by themselves
    python3 scripts/compare_models.py cspresnet50 timm/resnet50 --size 224 --csv t.csv
    python3 scripts/compare_models.py csdarknet53 --measure --batch-size 64

Columns: params, learnable parameters; conv weights, weights of convolutions and classifier (the authors' #Parameter);
GMACs, multiply-adds; BFLOPs, Darknet's count; activations, elements that convolutions put out; CIO, elements that
they take in and put out. All with 1000 classes, and all but the weights for one picture.
--measure adds images per second, median (lowest to highest) of the repeats, on random pictures in memory, and how
many times the baseline's that is, measured in turn with it; and the peak memory of an update (GPUs only).
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, non_empty_path, run_door
from cspnet.errors import EXIT_DONE, ModelError, UserError
from cspnet.runtime.files import write_atomically

PRECISIONS = ("auto", "bf16", "fp16", "fp32")
MEASURING: dict[str, tuple[int | str, str]] = {
    "batch-size": (32, "pictures in a batch"),
    "repeats": (10, "times that each network is measured, in turn with those it is compared with"),
    "steps": (5, "batches between two looks at the clock"),
    "device": ("auto", "auto, cpu, cuda, cuda:<n> or mps"),
    "precision": ("auto", ", ".join(PRECISIONS)),
}
"""The flags that only --measure has a use for: their defaults and helps."""


def expand_patterns(patterns: list[str]) -> list[str]:
    """The zoo's names that match shell patterns; names with a slash (timm/resnet50) as they are.

    Raises:
        ModelError: a pattern matches nothing.
    """
    from cspnet import list_models

    names: list[str] = []
    for pattern in patterns or ["*"]:
        matches = [pattern] if "/" in pattern else list_models(pattern)
        if not matches:
            near = difflib.get_close_matches(pattern, list_models(), n=1)
            advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(list_models())}"
            raise ModelError(f"{pattern!r} matches no model; {advice}")
        names += matches
    return list(dict.fromkeys(names))


def check_writable(file: Path) -> None:
    """Find out before the work whether the result can be written.

    Raises:
        UserError: it cannot.
    """
    if file.exists() and not file.is_file():
        raise UserError(f"{file}: is not a file; name one")
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}; make it first")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise UserError(f"{file}: the folder {file.parent} cannot be written; name another")


def write_table(file: Path, text: str) -> None:
    """Write a table as a whole.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        write_atomically(file, text.encode())
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from error


def parse_command_line(argv: list[str]) -> argparse.Namespace:
    """The flags, with those for measuring filled in.

    Raises:
        UserError: what was given makes no sense.
    """
    parser = FlagParser(prog="compare_models.py", description=__doc__)
    parser.add_argument(
        "patterns", nargs="*", metavar="PATTERN", help="model names or shell patterns; timm/<name> as it is [*]"
    )
    parser.add_argument("--size", type=int, metavar="PX", help="side of the picture [each network's published size]")
    parser.add_argument("--csv", type=non_empty_path, metavar="FILE", help="write the table for programs as well")
    parser.add_argument("--markdown", type=non_empty_path, metavar="FILE", help="write the table in Markdown as well")
    parser.add_argument("--measure", action="store_true", help="measure speed and memory too")
    group = parser.add_argument_group("with --measure")
    for name, (default, text) in MEASURING.items():
        group.add_argument(
            f"--{name}",
            type=type(default),
            metavar="N" if isinstance(default, int) else "NAME",
            help=f"{text} [{default}]",
        )
    args = parser.parse_all(argv)
    if args.size is not None and not 8 <= args.size <= 4096:
        raise UserError(f"--size {args.size}: use a number from 8 to 4096")
    for name, (default, _) in MEASURING.items():
        key = name.replace("-", "_")
        value = getattr(args, key)
        if value is None:
            setattr(args, key, default)
        elif not args.measure:
            raise UserError(f"--{name} is for measuring; add --measure or leave it out")
        elif isinstance(value, int) and value < 1:
            raise UserError(f"--{name} {value}: use a number from 1 on")
    if args.precision not in PRECISIONS:
        raise UserError(f"--precision {args.precision}: use {', '.join(PRECISIONS)}")
    for file in (args.csv, args.markdown):
        if file is not None:
            check_writable(file)
    if args.csv is not None and args.csv == args.markdown:
        raise UserError(f"{args.csv}: --csv and --markdown would write the same file; name two")
    return args


def main() -> int:
    """The command line."""
    args = parse_command_line(sys.argv[1:])

    from cspnet.reporting import model_table  # here, because torch takes seconds and --help does not need it

    groups = model_table.group_names(expand_patterns(args.patterns))
    rows = model_table.build_rows(groups, args.size)
    if args.measure:
        from cspnet.cli.measure_speed import Trial, measure_side_by_side
        from cspnet.runtime.device import choose_device

        trial = Trial(choose_device(args.device), args.precision, args.batch_size, args.steps, args.repeats)
        speeds: dict[str, model_table.Speed] = {}
        for group in groups:
            print(f"measuring {', '.join(group)}", file=sys.stderr)
            speeds |= measure_side_by_side({row.name: row.input_px for row in rows if row.name in group}, trial)
        rows = model_table.add_speeds(rows, speeds)
    print(model_table.format_text(rows), end="")
    if args.csv is not None:
        write_table(args.csv, model_table.format_csv(rows))
    if args.markdown is not None:
        write_table(args.markdown, model_table.format_markdown(rows))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("compare_models.py", main))
