"""The command line of train.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import cspnet
from cspnet.cli.completion import add_completion_flag
from cspnet.cli.flags import FlagParser, add_recipe_flags, non_empty_path, read_overrides, run_door
from cspnet.errors import EXIT_DONE, UserError, shared_errors
from cspnet.recipe.aliases import ELSEWHERE
from cspnet.recipe.load import field_table, format_recipe, load_recipe
from cspnet.runtime.output import steady_output
from cspnet.runtime.signals import StopRequest, heed_stop_signals

__all__ = ["create_parser", "main"]

MOST_PROFILED = 1000
"""Steps of a trace: no browser opens a longer one."""

_DESCRIPTION = """Train a Cross Stage Partial Network, or another one, on folders of pictures.

  python3 train.py --batch-size 64 --epochs 120 --data-path DIR
  python3 train.py --recipe recipes/darknet/csresnet50.yaml --data-path DIR --output-dir runs/mine
  python3 train.py --recipe recipes/darknet/csresnet50.yaml --data-path DIR --output-dir runs/mine --resume auto
  torchrun --nproc_per_node=8 train.py --recipe recipes/darknet/csresnet50.yaml --batch-size 16 --accumulate 1 \\
      --data-path DIR

DIR holds train/<class>/<picture> and val/<class>/<picture>. Every setting of a recipe is a flag, by its dotted name
(--optim.lr 0.1) and by the names that timm's and torchvision's scripts use (--lr 0.1). Those that a first run may want
to set are below; --help-all has all of them. What is said in brackets is the default."""


def create_parser(*, shows_all: bool = False) -> FlagParser:
    """The flags of train.py; its help is of the usual ones, or of all."""
    parser = FlagParser(
        prog="train.py",
        description=_DESCRIPTION,
        usage="train.py [--recipe FILE] --data-path DIR [FLAG VALUE ...]",
        elsewhere=ELSEWHERE,
    )
    parser.add_argument("data", nargs="?", help="the data set's folder, as --data-path")
    door = parser.add_argument_group("run")
    door.add_argument("--recipe", "--config", "-c", type=Path, metavar="FILE", help="recipe to train by [the defaults]")
    door.add_argument(
        "--output-dir", "--output", type=non_empty_path, metavar="DIR", help="the run's folder [runs/<recipe>-<time>]"
    )
    door.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="auto|FILE",
        help="go on from the newest good checkpoint of --output-dir (auto), or from a checkpoint file",
    )
    door.add_argument(
        "--dry-run", action="store_true", help="build everything, take one step of each kind, write nothing"
    )
    door.add_argument("--print-config", action="store_true", help="print every value and where it came from, and exit")
    door.add_argument(
        "--test-only", "--eval-only", "-e", "--evaluate", action="store_true", help="validate only, and exit"
    )
    door.add_argument(
        "--profile",
        type=_read_profile,
        default=0,
        metavar="STEPS",
        help="record so many steps behind the first three: a trace for the browser and a table, in <run>/profile",
    )
    about = parser.add_argument_group("help")
    about.add_argument("--help-all", action=_HelpAll, nargs=0, help="every setting, its default and what it does")
    add_completion_flag(about, lambda: create_parser(shows_all=True))
    about.add_argument("--version", action="version", version=f"cspnet {cspnet.__version__}")
    if shows_all:
        add_recipe_flags(parser, help_keys=field_table())
    else:
        add_recipe_flags(parser)
    return parser


class _HelpAll(argparse.Action):
    """Prints the help of every setting, and exits."""

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        create_parser(shows_all=True).print_help()
        raise SystemExit(EXIT_DONE)


def _read_profile(text: str) -> int:
    """The value of --profile."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_PROFILED:
        raise UserError(f"--profile: {text!r}: expected a number of steps, from 1 to {MOST_PROFILED}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run train.py; the exit code."""

    def work() -> int:
        with heed_stop_signals("train.py") as stop:
            return _train(sys.argv[1:] if argv is None else argv, stop)

    return run_door("train.py", work)


def _train(argv: Sequence[str], stop: StopRequest) -> int:
    with shared_errors():
        args = create_parser().parse_all(argv)
        overrides = read_overrides(args)
        if args.data is not None and (other := overrides.setdefault("data.root", args.data)) != args.data:
            raise UserError(f"{args.data!r} and --data-path {other}: both name the data set; give one of them")
        resolved = load_recipe(args.recipe, overrides)  # a typo is told before PyTorch is loaded
        for other in ("dry_run", "test_only"):
            if args.profile and getattr(args, other):
                raise UserError(f"--profile: writes into a run's folder, and --{other.replace('_', '-')} has none")
    if args.print_config:
        print(format_recipe(resolved))
        return EXIT_DONE
    from cspnet.cli.train_job import TrainJob, run_train_job

    job = TrainJob(
        recipe_file=args.recipe,
        overrides=overrides,
        output_dir=args.output_dir,
        resume=args.resume,
        dry_run=args.dry_run,
        test_only=args.test_only,
        profile_steps=args.profile,
    )
    with steady_output():
        return run_train_job(job, stop)
