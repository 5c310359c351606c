#!/usr/bin/env python3
"""Read a great many damaged and hostile files with every parser there is, and see that each is taken or refused.

    python3 scripts/fuzz.py                                    # 100,000 inputs over all parsers
    python3 scripts/fuzz.py --inputs 5000 --parser tar list    # of each of these as many
    python3 scripts/fuzz.py --only tar:1234 --keep DIR         # one input, written to DIR and read alone

Inputs are valid files with damage, and files built to do harm (code, bombs, circles, ways out of a folder). Each has an
address, (--seed, parser, number), and is made anew from it. An input is read in a process that is watched: it must be
accepted, or refused by one line. All else is a finding: another exception, a traceback, a dead process, more memory or
time than a parser may take, code that ran. Findings are written to --keep. Exit code 1: there are some.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process reads; threads would only have to be forked

from cspnet.cli.flags import FlagParser, non_empty_path, run_door
from cspnet.errors import EXIT_BUG, EXIT_DONE, UserError
from cspnet.reporting.console import Console, open_bar

if TYPE_CHECKING:
    from cspnet.cli.fuzzing.watch import Outcome, Tally

SHARES = {"tar": 30, "jpeg": 20, "list": 12, "weights": 8, "recipe": 6, "cfg": 6, "picture": 5, "command-line": 4}
"""Of 100 inputs, the most to the fast parsers; those that are not here get as many as REST."""
REST = 2.25


def read_only(text: str, seed: int, keep: Path) -> bool:
    """Write one input and read it; whether all is well."""
    from cspnet.cli.fuzzing.parsers import PARSERS
    from cspnet.cli.fuzzing.watch import draw_input, read_input, write_input

    name, _, number = text.partition(":")
    if name not in PARSERS or not number.isdecimal():
        raise UserError(f"--only {text}: expected PARSER:NUMBER, such as tar:17")
    files = draw_input(PARSERS[name], seed, int(number))
    write_input(files, keep / f"{name}-{number}")
    outcome = read_input(PARSERS[name], files)
    print(f"{keep / f'{name}-{number}'}: {outcome.kind}{': ' * bool(outcome.text)}{outcome.text}")
    return outcome.kind != "finding"


def format_table(tallies: Mapping[str, Tally]) -> str:
    """Markdown: a row a parser."""
    lines = ["| parser | inputs | accepted | refused | findings | seconds |", "|---|---|---|---|---|---|"]
    for name, tally in tallies.items():
        counts = (tally.inputs, tally.accepted, tally.refused, len(tally.findings), round(tally.seconds))
        lines.append(f"| {name} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    total = (sum(tally.inputs for tally in tallies.values()), sum(len(tally.findings) for tally in tallies.values()))
    return "\n".join([*lines, f"{total[0]:,} inputs, {total[1]:,} findings"])


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="fuzz.py", description=__doc__)
    parser.add_argument(
        "--inputs", type=int, default=100_000, metavar="N", help="of all parsers together [%(default)s]"
    )
    parser.add_argument("--parser", nargs="+", default=[], metavar="NAME", help="these only, and N inputs of each")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the inputs [%(default)s]")
    parser.add_argument("--only", metavar="PARSER:NUMBER", help="this input alone")
    parser.add_argument(
        "--keep", type=non_empty_path, default=Path("runs/fuzz"), metavar="DIR", help="for findings [%(default)s]"
    )
    args = parser.parse_all(sys.argv[1:])
    if args.inputs < 1 or args.seed < 0:
        raise UserError("expected --inputs from 1, --seed from 0")
    if not Path("/proc/self/statm").exists():
        raise UserError("this needs Linux, which can limit the memory of a process")

    from cspnet.cli.fuzzing.parsers import PARSERS  # here, because it takes seconds and --help does not need it
    from cspnet.cli.fuzzing.watch import draw_input, fuzz, write_input

    if unknown := [name for name in args.parser if name not in PARSERS]:
        raise UserError(f"--parser {unknown[0]}: use {', '.join(PARSERS)}")
    if args.only:
        return EXIT_DONE if read_only(args.only, args.seed, args.keep) else EXIT_BUG
    counts = {name: max(1, int(args.inputs * SHARES.get(name, REST) / 100)) for name in PARSERS}
    counts = dict.fromkeys(args.parser, args.inputs) or counts
    console, tallies = Console(0), {}
    for name, count in counts.items():
        with open_bar(count, name, " inputs") as bar:

            def tell(number: int, outcome: Outcome, name: str = name) -> None:
                bar.update(1)
                if outcome.kind == "finding":
                    console.warn(f"{name}:{number}: {outcome.text}")
                    write_input(draw_input(PARSERS[name], args.seed, number), args.keep / f"{name}-{number}")

            tallies[name] = fuzz(PARSERS[name], args.seed, count, tell)
        console.say(f"{name}: {tallies[name].inputs:,} inputs, {len(tallies[name].findings):,} findings")
    console.say(format_table(tallies))
    return EXIT_BUG if any(tally.findings for tally in tallies.values()) else EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("fuzz.py", main))
