#!/usr/bin/env python3
"""The curves of one run or several: loss, accuracy, learning rate, speed, waiting for data.

    python3 scripts/plot_run.py runs/mine                             # runs/mine/curves.png
    python3 scripts/plot_run.py runs/a runs/b runs/c --out abc.svg    # side by side, a colour each

Needs matplotlib (pip install matplotlib). A run that is still going on is drawn as far as it has come.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, non_empty_path, run_door
from cspnet.errors import EXIT_DONE, UserError

ENDINGS = (".png", ".svg", ".pdf")


def name_runs(folders: list[Path]) -> list[str]:
    """The shortest names that tell folders apart: the last one, or as many of their parents as that takes."""
    full = [folder.resolve() for folder in folders]
    if len(set(full)) != len(full):
        raise UserError(f"{next(f for f in folders if full.count(f.resolve()) > 1)}: is given twice")
    for depth in range(1, max(len(path.parts) for path in full) + 1):
        names = ["/".join(path.parts[-depth:]) for path in full]
        if len(set(names)) == len(names):
            break
    return names


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="plot_run.py", description=__doc__)
    parser.add_argument("folders", nargs="+", type=non_empty_path, metavar="DIR", help="folders of runs")
    parser.add_argument("--out", type=non_empty_path, metavar="FILE", help=".png, .svg or .pdf [DIR/curves.png]")
    args = parser.parse_all(sys.argv[1:])
    names = name_runs(args.folders)
    out = args.out
    if out is None:
        out = args.folders[0] / "curves.png" if len(names) == 1 and args.folders[0].is_dir() else Path("curves.png")
    if out.suffix.lower() not in ENDINGS or out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out {out}: name a file in a folder that exists, ending in {', '.join(ENDINGS)}")
    from cspnet.cli.outputs import check_outputs

    check_outputs({"--out": out}, {"--out": lambda head: b"atplotlib" in head})
    try:
        from cspnet.reporting.plots import draw_curves, read_records
    except ModuleNotFoundError as error:
        raise UserError("plot_run.py needs matplotlib: pip install matplotlib") from error
    runs = {name: read_records(folder) for name, folder in zip(names, args.folders, strict=True)}
    try:
        draw_curves(out, runs)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    print(out)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("plot_run.py", main))
