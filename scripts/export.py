#!/usr/bin/env python3
"""A trained network as a file that runs elsewhere, or that can be published.

    python3 scripts/export.py --checkpoint runs/mine/checkpoints/best.pt mine.onnx
    python3 scripts/export.py --checkpoint FILE mine.onnx --input uint8 --softmax     # pixels in, probabilities out
    python3 scripts/export.py --checkpoint FILE mine.pt2
    python3 scripts/export.py --checkpoint FILE mine.safetensors                      # and mine.md, its model card

.onnx: any number of pictures at once; needs onnx, onnxruntime and onnxscript. .pt2: a program of torch.export, for
PyTorch without this package. Both carry class names and preprocessing in their metadata, and are compared with the
network before they get their names. .safetensors: the weights, to go on with. Weights of others go with --model, as in
validate.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, non_empty_path, run_door
from cspnet.cli.weight_flags import add_geometry_flags, add_weight_flags, read_asked


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="export.py", description=__doc__)
    parser.add_argument("out", type=non_empty_path, metavar="OUT", help="the file: .onnx, .pt2 or .safetensors")
    add_weight_flags(parser.add_argument_group("what"))
    add_geometry_flags(parser.add_argument_group("pictures"))
    how = parser.add_argument_group("how")
    how.add_argument("--format", choices=("onnx", "torch", "safetensors"), help="[as the file's name ends]")
    how.add_argument("--classes", type=Path, metavar="FILE", help="names of classes, one a line [the checkpoint's]")
    how.add_argument("--opset", type=int, metavar="N", help="of an ONNX file, from 18 on [18]")
    how.add_argument("--softmax", action="store_true", help="probabilities out instead of logits")
    how.add_argument(
        "--input",
        default="float32",
        choices=("float32", "uint8"),
        help="float32: normalised, N x 3 x H x W; uint8: pixels, N x H x W x 3 [%(default)s]",
    )
    how.add_argument("--no-fold-bn", action="store_true", help="leave BatchNorms as they are")
    how.add_argument("--license", default="", metavar="NAME", help="of the weights, for the model card")
    how.add_argument("--force", action="store_true", help="replace files that are there")
    args = parser.parse_all(sys.argv[1:])

    from cspnet.cli.export_job import ExportJob, find_format, run_export_job

    return run_export_job(
        ExportJob(
            out=args.out,
            format=args.format or find_format(args.out),
            weights=read_asked(args, args.checkpoint),
            class_file=args.classes,
            opset=args.opset,
            softmax=args.softmax,
            input_kind=args.input,
            fold_bn=not args.no_fold_bn,
            license=args.license,
            force=args.force,
        )
    )


if __name__ == "__main__":
    sys.exit(run_door("export.py", main))
