#!/usr/bin/env python3
"""A run as one HTML page: result, curves, classes, confusions, pictures, speed, environment, recipe.

    python3 scripts/report.py runs/mine                         # runs/mine/report.html
    python3 scripts/report.py runs/mine --data-path /new/place  # the pictures lie elsewhere now
    python3 scripts/report.py runs/mine --without-pictures      # at once, from the run's records alone

The page is a single file, without scripts, that needs no network. Classes and pictures come from a validation of the
run's best checkpoint, as validate.py does it; where the pictures are gone, the page says so and is made without them.
Needs matplotlib (pip install matplotlib).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, non_empty_path, run_door
from cspnet.errors import UserError


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="report.py", description=__doc__)
    parser.add_argument("folder", type=non_empty_path, metavar="DIR", help="a run's folder")
    parser.add_argument("--out", type=non_empty_path, metavar="FILE", help="the page [DIR/report.html]")
    parser.add_argument("--force", action="store_true", help="overwrite FILE even if it is something else")
    look = parser.add_argument_group("classes and pictures")
    look.add_argument("--data-path", type=non_empty_path, metavar="DIR", help="the data set's folder [the run's]")
    look.add_argument("--checkpoint", type=non_empty_path, metavar="FILE", help="[checkpoints/best.pt of the run]")
    look.add_argument("--without-pictures", action="store_true", help="no validation: leave this part out")
    look.add_argument("-b", "--batch-size", type=int, metavar="N", help="pictures at once [as in training]")
    look.add_argument("-j", "--workers", type=int, metavar="N", help="reading processes [from the cores]")
    look.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:<n>, mps [%(default)s]")
    args = parser.parse_all(sys.argv[1:])
    try:
        from cspnet.cli.report_job import ReportJob, run_report_job
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        raise UserError("report.py needs matplotlib: pip install matplotlib") from error
    overrides = {
        "eval.batch_size": args.batch_size,
        "data.workers": args.workers,
        "train.device": args.device,
    }
    return run_report_job(
        ReportJob(
            folder=args.folder,
            out=args.out,
            data_root=args.data_path,
            checkpoint=args.checkpoint,
            with_pictures=not args.without_pictures,
            force=args.force,
            overrides={key: value for key, value in overrides.items() if value is not None},
        )
    )


if __name__ == "__main__":
    sys.exit(run_door("report.py", main))
