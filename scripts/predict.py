#!/usr/bin/env python3
"""What a trained network sees in pictures: the likeliest classes of each.

    python3 scripts/predict.py --checkpoint runs/mine/checkpoints/best.pt cat.jpg holiday/
    python3 scripts/predict.py --checkpoint FILE 'photos/**/*.jpg' --top 3 --json > answers.jsonl
    python3 scripts/predict.py --model cspresnet50 --weights FILE --classes names.txt photos --sheet seen.png

Pictures are files, folders (with all below them) and patterns. A line a picture; with --json an object a line, with
--sheet a contact sheet as well. Size, crop and colours are those of the weights, as in validate.py. A picture that
cannot be read is told and passed over; the exit code is then 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, run_door
from cspnet.cli.weight_flags import add_geometry_flags, add_weight_flags, read_asked
from cspnet.errors import UserError


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="predict.py", description=__doc__)
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="files, folders, patterns")
    add_weight_flags(parser.add_argument_group("what"))
    add_geometry_flags(parser.add_argument_group("pictures"))
    how = parser.add_argument_group("how")
    how.add_argument("--top", type=int, default=5, metavar="K", help="classes of a picture [%(default)s]")
    how.add_argument("--classes", type=Path, metavar="FILE", help="their names, one a line [the checkpoint's]")
    how.add_argument("--json", action="store_true", help="an object a line instead of text")
    how.add_argument("--sheet", type=Path, metavar="FILE", help="write a contact sheet there, .png or .jpg")
    how.add_argument("-b", "--batch-size", type=int, default=32, metavar="N", help="[%(default)s]")
    how.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:<n>, mps [%(default)s]")
    how.add_argument("--precision", default="fp32", metavar="NAME", help="auto, bf16, fp16, fp32 [%(default)s]")
    args = parser.parse_all(sys.argv[1:])
    if args.top < 1 or args.batch_size < 1:
        raise UserError("--top and --batch-size: expected numbers from 1 on")

    from cspnet.cli.predict_job import PredictJob, run_predict_job

    how_to = {"train.device": args.device, "train.precision": args.precision}
    return run_predict_job(
        PredictJob(
            pictures=args.pictures,
            weights=read_asked(args, args.checkpoint, how_to),
            class_file=args.classes,
            top=args.top,
            batch_size=args.batch_size,
            writes_json=args.json,
            sheet=args.sheet,
        )
    )


if __name__ == "__main__":
    sys.exit(run_door("predict.py", main))
