#!/usr/bin/env python3
"""What --deterministic costs: training steps of networks with and without it, in turn, on random pictures.

    python3 scripts/benchmark_deterministic.py cspdarknet53 cspresnet50 --size 224 --batch-size 64

Nothing is read from disk. A row: images per second without and with it, and with / without of each repeat: the median,
and from the lowest to the highest.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, run_door
from cspnet.errors import EXIT_DONE, UserError
from cspnet.reporting.console import Console


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="benchmark_deterministic.py", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="NAME", help="networks, as for train.py --model")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="side of a picture [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="[%(default)s]")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="between looks at the clock [%(default)s]")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="[%(default)s]")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:<n> [%(default)s]")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp16", "fp32"), help="[%(default)s]")
    args = parser.parse_all(sys.argv[1:])
    if min(args.batch_size, args.steps, args.repeats) < 1:
        raise UserError("--batch-size, --steps and --repeats: expected numbers from 1 on")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # it is read once, before the first step

    from cspnet.cli.measure_speed import Trial, measure_deterministic
    from cspnet.runtime.device import choose_device

    trial = Trial(choose_device(args.device), args.precision, args.batch_size, args.steps, args.repeats)
    console = Console(0)
    console.say(f"{trial}, {args.size} px")
    console.say("| network | images/s without | with | with / without |")
    console.say("|---|---|---|---|")
    for name in args.models:
        pairs = measure_deterministic(name, args.size, trial)
        columns = ([off for _, off in pairs], [on for on, _ in pairs], [on / off for on, off in pairs])
        texts = (f"{statistics.median(c):.3g} ({min(c):.3g} to {max(c):.3g})" for c in columns)
        console.say(f"| {name} | {' | '.join(texts)} |")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("benchmark_deterministic.py", main))
