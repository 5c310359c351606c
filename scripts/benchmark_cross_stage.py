#!/usr/bin/env python3
"""How a cross stage's split and concatenation are best computed: the same parameters in four ways, in turn.

    python3 scripts/benchmark_cross_stage.py cspresnet50 cspdarknet53 --size 224 --batch-size 32

One 1x1 convolution whose output is split, or two; a concatenation in front of a 1x1 convolution, or two whose outputs
are summed. A row is a network's cross stages behind their down-sampling, forward and backward, added up: seconds, and
against the way that cspnet/models/stages.py goes in the same round.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, non_empty_path, run_door
from cspnet.errors import EXIT_DONE


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="benchmark_cross_stage.py", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="NAME", help="networks, as for train.py --model")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="side of a picture [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="[%(default)s]")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds measured [%(default)s]")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:<n> [%(default)s]")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp16", "fp32"), help="[%(default)s]")
    parser.add_argument("--json", type=non_empty_path, metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", type=non_empty_path, metavar="FILE", help="write what is printed there as well")
    args = parser.parse_all(sys.argv[1:])

    from cspnet.cli.benchmark_report import check_bounds, describe_machine, ratios, spread, tell_report
    from cspnet.cli.measure_cross_stage import WAYS, find_stages, measure_stage
    from cspnet.cli.outputs import check_outputs
    from cspnet.runtime.device import choose_amp_dtype, choose_device
    from cspnet.runtime.memory import told_shortage

    check_bounds([("batch-size", args.batch_size, 1, 10**6), ("size", args.size, 32, 4096)])
    check_bounds([("repeats", args.repeats, 1, 1000)])
    check_outputs({"--json": args.json, "--markdown": args.markdown})
    device = choose_device(args.device)
    amp_dtype = choose_amp_dtype(args.precision, device)
    lines = [
        describe_machine(("torch",)),
        f"{device}, {str(amp_dtype)[6:]}, channels_last, batch {args.batch_size}, {args.size} px; median (lowest to "
        f"highest) of {args.repeats}",
        "",
        "| network | way | seconds | against ours |",
        "|---|---|---|---|",
    ]
    ours = next(iter(WAYS))
    figures: dict[str, dict[str, list[float]]] = {}
    for name in args.models:
        totals = {way: [0.0] * args.repeats for way in WAYS}
        with told_shortage(device, f"with --batch-size {args.batch_size}", "use less"):
            for stage, shape in find_stages(name, args.size, device):
                for way, taken in measure_stage(stage, shape, args.batch_size, amp_dtype, args.repeats).items():
                    totals[way] = [a + b for a, b in zip(totals[way], taken, strict=True)]
        figures[name] = totals
        for way, taken in totals.items():
            lines.append(f"| {name} | {way} | {spread(taken, 4)} | {spread(ratios(taken, totals[ours]), 3)} |")
    text = "\n".join(lines) + "\n"
    tell_report({"machine": lines[0], "seconds": figures}, text, args.json, args.markdown)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("benchmark_cross_stage.py", main))
