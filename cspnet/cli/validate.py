"""The command line of validate.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cspnet
from cspnet.cli.completion import add_completion_flag
from cspnet.cli.flags import FlagParser, run_door
from cspnet.cli.weight_flags import add_geometry_flags, add_weight_flags, read_asked
from cspnet.errors import UserError, shared_errors
from cspnet.runtime.output import steady_output

__all__ = ["create_parser", "main"]

_DESCRIPTION = """Validate a checkpoint: every picture of the split exactly once, on any number of processes.

  python3 validate.py --checkpoint runs/mine/checkpoints/best.pt --data-path DIR
  torchrun --nproc_per_node=8 validate.py --checkpoint FILE --data-path DIR
  python3 validate.py --model cspresnet50 --weights FILE --data-path DIR
  python3 validate.py --checkpoint A.pt B.pt --compare --data-path DIR

A checkpoint of train.py says by itself which model it is. Files of timm, mmpretrain, DeepSpark and Darknet (.weights)
need --model. Size, crop and colours are those the weights were published or trained with, unless given here.

It computes in float32 unless told otherwise, so that the counts are those of the weights, not of the machine;
--precision auto takes what training would. What that changes is told by --against-fp32, picture by picture."""


def create_parser() -> FlagParser:
    """The flags of validate.py."""
    parser = FlagParser(prog="validate.py", description=_DESCRIPTION)
    parser.add_argument("data", nargs="?", help="the data set's folder, as --data-path")
    what = parser.add_argument_group("what")
    add_weight_flags(what, several=True)
    data = parser.add_argument_group("data")
    data.add_argument("--data-path", "--data-dir", "--data", dest="data_path", metavar="DIR", help="holds val/")
    data.add_argument("--data-format", choices=("auto", "folder", "list", "shards"), help="[as in training]")
    data.add_argument(
        "--val-split", "--val-list", metavar="NAME", help="folder or list file of the split [as in training]"
    )
    data.add_argument(
        "--outside-root",
        action="store_const",
        const=True,
        help="a list's entries may lie outside of its folder and DIR",
    )
    add_geometry_flags(data)
    data.add_argument("-j", "--workers", type=int, metavar="N", help="reading processes per process [from the cores]")
    data.add_argument(
        "--data-timeout", type=float, metavar="S", help="seconds without a sign of life of what reads [180]"
    )
    how = parser.add_argument_group("how")
    how.add_argument("-b", "--batch-size", type=int, metavar="N", help="pictures per process [as in training]")
    how.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:<n>, mps [%(default)s]")
    how.add_argument("--precision", default="fp32", metavar="NAME", help="auto, bf16, fp16, fp32 [%(default)s]")
    how.add_argument(
        "--fold-bn",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute each BatchNorm within the convolution before it [yes]",
    )
    how.add_argument(
        "--against-fp32",
        action="store_true",
        help="validate once more in float32 with nothing folded, and tell the difference",
    )
    how.add_argument(
        "--flip-test",
        action="store_true",
        help="validate once more, with the mean of the probabilities for each picture and its mirror image",
    )
    how.add_argument(
        "--crops",
        type=int,
        choices=(1, 5),
        default=1,
        help="5: the same over the corners and the centre of each picture, with --flip-test of ten views [%(default)s]",
    )
    how.add_argument(
        "--restrict-classes",
        action="store_true",
        help="only classes that the split has count as answers (ImageNet-A, -R)",
    )
    how.add_argument(
        "--real-labels",
        type=Path,
        metavar="FILE",
        help="ImageNet-ReaL's real.json: accuracy by the classes that are to be seen in a picture, too",
    )
    how.add_argument(
        "--compare",
        action="store_true",
        help="of several checkpoints, whether the others differ from the first by more than chance (McNemar's test)",
    )
    how.add_argument(
        "--timeout", type=float, metavar="S", help="seconds that processes wait for one that does not come [300]"
    )
    out = parser.add_argument_group("files")
    out.add_argument("--json", type=Path, metavar="FILE", help="the result as JSON")
    out.add_argument(
        "--results-file", type=Path, metavar="FILE", help="a row in timm's columns, added to this CSV file"
    )
    out.add_argument("--per-image", type=Path, metavar="FILE", help="what each picture was taken for, as CSV")
    out.add_argument("--per-class", type=Path, metavar="FILE", help="how many of each class are right, as CSV")
    out.add_argument("--confusion", type=Path, metavar="FILE", help="class (row) against answer (column), as CSV")
    about = parser.add_argument_group("help")
    add_completion_flag(about)
    about.add_argument("--version", action="version", version=f"cspnet {cspnet.__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run validate.py; the exit code."""
    return run_door("validate.py", lambda: _validate(sys.argv[1:] if argv is None else argv))


def _validate(argv: Sequence[str]) -> int:
    with shared_errors():
        args = create_parser().parse_all(argv)
        root = args.data_path or args.data
        if root is None and len(args.checkpoint) > 1 and args.checkpoint[-1].is_dir():
            root = str(args.checkpoint.pop())  # --checkpoint FILE DIR
        if root is None:
            raise UserError("no data set given; name the folder that holds val/ with --data-path DIR")
        several = len(args.checkpoint) > 1
        for flag in ("per_image", "per_class", "confusion"):
            if several and getattr(args, flag):
                raise UserError(f"--{flag.replace('_', '-')}: is of one checkpoint; give one at a time")
        if args.compare and not several:
            raise UserError("--compare: needs two checkpoints or more: --checkpoint A B")
        if args.real_labels and args.restrict_classes:
            raise UserError("--real-labels: go by all classes; leave --restrict-classes out")
    from cspnet.cli.result_files import ResultFiles
    from cspnet.cli.validate_job import ValidateJob, run_validate_job

    overrides = {
        "data.root": root,
        "data.format": args.data_format,
        "data.val": args.val_split,
        "data.outside_root": args.outside_root,
        "data.workers": args.workers,
        "data.timeout_s": args.data_timeout,
        "train.timeout_s": args.timeout,
        "eval.batch_size": args.batch_size,
        "train.device": args.device,
        "train.precision": args.precision,
    }
    with shared_errors():
        files = ResultFiles(
            as_json=args.json,
            timm_csv=args.results_file,
            per_image=args.per_image,
            per_class=args.per_class,
            confusion=args.confusion,
        )
    job = ValidateJob(
        tuple(read_asked(args, file, overrides) for file in args.checkpoint),
        files,
        fold_bn=args.fold_bn,
        against_fp32=args.against_fp32,
        flips=args.flip_test,
        crops=args.crops,
        restrict=args.restrict_classes,
        real_labels=args.real_labels,
        compare=args.compare,
    )
    with steady_output():
        return run_validate_job(job)
