#!/usr/bin/env python3
"""Whether one network is better than another, or only luckier: both validated on the same pictures.

    python3 validate.py --checkpoint a.pt --data-path DIR --per-image a.csv
    python3 validate.py --checkpoint b.pt --data-path DIR --per-image b.csv
    python3 scripts/compare_answers.py a.csv b.csv

Of the pictures that only one of them has right, about half should be each one's if they were equally good. The
p-value (McNemar's exact test) is how often chance alone would make the split at least so uneven. It speaks of these
weights, not of the recipes behind them: another seed gives other weights.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, run_door
from cspnet.errors import EXIT_DONE, UserError


def read_answers(file: Path) -> dict[str, bool]:
    """{picture: whether its first answer is right} of a file of validate.py --per-image."""
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
        answers = {row["picture"]: {"0": False, "1": True}[row["correct1"]] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file of validate.py --per-image"
        raise UserError(f"{file}: {reason}") from error
    if not answers:
        raise UserError(f"{file}: there is no picture in it")
    if len(answers) != len(rows):
        raise UserError(f"{file}: a picture is in it twice")
    return answers


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="compare_answers.py", description=__doc__)
    parser.add_argument("first", type=Path, metavar="A.csv", help="of validate.py --per-image")
    parser.add_argument("second", type=Path, metavar="B.csv", help="the same of another network")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    args = parser.parse_all(sys.argv[1:])

    from cspnet.evaluation.paired import describe_pair, pair

    first, second = read_answers(args.first), read_answers(args.second)
    try:
        found = pair(first, second)
    except ValueError as error:
        raise UserError(
            f"{args.first}, {args.second}: not of the same pictures: {error} is in one of them only"
        ) from error
    share_a, share_b = (100 * sum(answers.values()) / len(answers) for answers in (first, second))
    if args.json:
        counts = {"both": found.both, "only_first": found.only_first, "only_second": found.only_second}
        report = {**counts, "neither": found.neither, "acc1_first": share_a, "acc1_second": share_b}
        print(json.dumps({**report, "difference": found.difference, "p_value": found.p_value}, indent=2))
        return EXIT_DONE
    print(f"A  Acc@1 {share_a:.3f}  {args.first}")
    print(f"B  Acc@1 {share_b:.3f}  {args.second}")
    print(
        f"{found.num_pictures:,} pictures: both right {found.both:,}, only A {found.only_first:,}, only B "
        f"{found.only_second:,}, neither {found.neither:,}"
    )
    print(f"B - A {describe_pair(found)}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("compare_answers.py", main))
