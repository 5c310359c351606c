#!/usr/bin/env python3
"""How training speed grows with processes: measured on this machine, or estimated for others.

    python3 scripts/benchmark_scaling.py cspresnet50 --processes 8 --batch-size 64
    python3 scripts/benchmark_scaling.py cspresnet50 --estimate --images-per-s 1000 --bandwidth-gbs 200 --network-gbs 50

Measured: 1, 2, 4, ... processes, each with a GPU of its own (nccl) or, without any, with a core and one thread (gloo);
the batch of each stays the same. Efficiency is the speed against as many times that of one process in the same round.
The share of communication is what a step takes longer than one that exchanges no gradients, of the former. The counts
take turns, and the first round warms up. Nothing is read from disk.

Estimated, with --estimate: what many GPUs should give, from the speed that one was measured at and what is assumed of
the links between them: docs/SCALING.md has the formulas. None of it is measured.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, non_empty_path, run_door
from cspnet.errors import EXIT_DONE, UserError

ASSUMED: dict[str, tuple[type, str, Any, str]] = {
    "images-per-s": (float, "V", None, "of one GPU, measured [none: it has to be given]"),
    "bandwidth-gbs": (float, "GB/S", None, "a GPU sends to another of its machine, one way [none]"),
    "network-gbs": (float, "GB/S", None, "a machine sends to another, one way [as --bandwidth-gbs]"),
    "per-machine": (int, "N", 8, "GPUs of a machine"),
    "latency-us": (float, "US", 0.0, "of each of the 2 (n - 1) rounds of an exchange"),
    "picture-kb": (float, "KB", 110.0, "a picture takes on the disk"),
    "reading-images-per-s": (float, "V", None, "the cores of a machine decode [not looked at]"),
    "largest-batch": (int, "N", 8192, "up to which lr grows in proportion"),
}
"""Flag of --estimate -> (type, metavar, default, help)."""


def measure(args: Namespace) -> tuple[dict[str, Any], list[str]]:
    """The figures in built-in types, and the table.

    Raises:
        UserError: more processes than the machine has room for.
    """
    import torch

    from cspnet.cli.benchmark_report import ratios, spread
    from cspnet.cli.build import build_model
    from cspnet.cli.measure_scaling import Scaling, counts_up_to, measure_scaling
    from cspnet.runtime.device import choose_amp_dtype, choose_device
    from cspnet.runtime.processes import count_cores

    kind = choose_device(args.device).type
    if kind not in ("cpu", "cuda"):
        raise UserError(f"--device {args.device}: processes are measured on a CPU or on GPUs")
    room = torch.cuda.device_count() if kind == "cuda" else count_cores()
    processes = args.processes or room
    if processes > room:
        what = "GPUs" if kind == "cuda" else "cores"
        raise UserError(f"--processes {processes}: this machine has {room} {what}, and each process takes one")
    scaling = Scaling(args.model, args.size, args.batch_size, args.steps, args.repeats, kind, args.precision)
    dtype = choose_amp_dtype(args.precision, torch.device(kind))
    build_model(scaling.recipe, 10, torch.device("cpu"))  # what is wrong with it is told here, in one line
    rates = measure_scaling(scaling, counts_up_to(processes))
    place = "each a GPU, nccl" if kind == "cuda" else "each a core and one thread, gloo"
    lines = [
        f"{args.model}, {args.size} px, batch {args.batch_size} a process, {place}, {str(dtype)[6:]}, "
        f"{args.repeats} repeats of {args.steps} batches; median (lowest to highest)",
        "",
        "| processes | images/s | efficiency | communication, % of a step |",
        "|---|---|---|---|",
    ]
    figures: dict[str, Any] = {}
    for count, found in rates.items():
        together = found["exchanging"]
        efficiency = [value / count for value in ratios(together, rates[1]["exchanging"])]
        share = [100 * (1 - value) for value in ratios(together, found["quiet"])] if count > 1 else None
        figures[str(count)] = {"images_per_s": found, "efficiency": efficiency, "communication_percent": share}
        told = spread(share, 1) + " (lost in the spread)" * (min(share) < 0) if share else ""
        lines.append(f"| {count} | {spread(together, 2)} | {spread(efficiency, 3)} | {told} |")
    return {"model": args.model, "batch_size": args.batch_size, "size_px": args.size, "processes": figures}, lines


def estimate(args: Namespace) -> tuple[dict[str, Any], list[str]]:
    """The same from what is assumed."""
    from dataclasses import asdict

    from cspnet.cli.estimate_scaling import Assumptions
    from cspnet.cli.estimate_scaling import estimate as estimate_for
    from cspnet.models import create_model

    network_gbs = args.bandwidth_gbs if args.network_gbs is None else args.network_gbs
    num_params = sum(param.numel() for param in create_model(args.model).parameters())
    assumed = Assumptions(
        images_per_s=args.images_per_s,
        batch_size=args.batch_size,
        gradient_bytes=4 * num_params,
        link_bytes_per_s=1e9 * args.bandwidth_gbs,
        network_bytes_per_s=1e9 * network_gbs,
        devices_per_machine=args.per_machine,
        latency_s=1e-6 * args.latency_us,
        picture_bytes=1e3 * args.picture_kb,
        reading_images_per_s=args.reading_images_per_s,
        largest_batch=args.largest_batch,
    )
    lines = [
        f"An estimate, nothing measured: {args.model}, {4 * num_params / 1e6:.1f} MB of gradients, "
        f"{args.images_per_s:g} images/s of one GPU, batch {args.batch_size} each, "
        f"{args.bandwidth_gbs:g} GB/s in a machine of {args.per_machine}, "
        f"{network_gbs:g} GB/s between machines, {args.picture_kb:g} kB a picture",
        "",
        "| GPUs | images/s | efficiency | step, ms | exchange, ms | of it not hidden, ms | global batch "
        "| data a machine, MB/s | limits |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    found = [estimate_for(assumed, count) for count in args.gpus]
    for each in found:
        lines.append(
            f"| {each.devices} | {each.images_per_s:,.0f} | {each.efficiency:.3f} | {1e3 * each.step_s:.1f} | "
            f"{1e3 * each.exchange_s:.2f} | {1e3 * each.exposed_s:.2f} | {each.global_batch:,} | "
            f"{each.data_bytes_per_s / 1e6:,.0f} | {', '.join(each.limits) or 'compute'} |"
        )
    estimates = {str(each.devices): {**asdict(each), "efficiency": each.efficiency} for each in found}
    return {"model": args.model, "assumed": asdict(assumed), "estimates": estimates}, lines


def parse_command_line(argv: list[str]) -> Namespace:
    """The flags.

    Raises:
        UserError: what was given makes no sense.
    """
    parser = FlagParser(prog="benchmark_scaling.py", description=__doc__)
    parser.add_argument("model", nargs="?", default="cspresnet50", metavar="NAME", help="the network [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="of each process [%(default)s]")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="side of a picture [%(default)s]")
    parser.add_argument("--processes", type=int, metavar="N", help="measured up to so many [one a GPU, or a core]")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="between looks at the clock [%(default)s]")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds measured [%(default)s]")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda [%(default)s]")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp16", "fp32"), help="[%(default)s]")
    parser.add_argument("--estimate", action="store_true", help="compute instead of measuring")
    group = parser.add_argument_group("with --estimate")
    group.add_argument("--gpus", type=int, nargs="+", metavar="N", help="how many [1 8 64 512]")
    for name, (kind, metavar, default, text) in ASSUMED.items():
        told = text if default is None else f"{text} [{default:g}]"
        group.add_argument(f"--{name}", type=kind, metavar=metavar, help=told)
    parser.add_argument("--json", type=non_empty_path, metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", type=non_empty_path, metavar="FILE", help="write what is printed there as well")
    args = parser.parse_all(argv)
    for name, (_, _, default, _) in {**ASSUMED, "gpus": (int, "", (1, 8, 64, 512), "")}.items():
        key = name.replace("-", "_")
        if getattr(args, key) is None:
            setattr(args, key, default)
        elif not args.estimate:
            raise UserError(f"--{name}: goes with --estimate")
    if args.estimate and args.processes is not None:
        raise UserError("--processes: are measured; --gpus are estimated")
    for name in ("size", "steps", "repeats", "device", "precision"):
        if args.estimate and getattr(args, name) != parser.get_default(name):
            raise UserError(f"--{name}: goes with measuring, and --estimate measures nothing")
    for name in ("images_per_s", "bandwidth_gbs"):
        if args.estimate and getattr(args, name) is None:
            raise UserError(f"--estimate: needs --{name.replace('_', '-')} as well")

    from cspnet.cli.benchmark_report import check_bounds
    from cspnet.cli.outputs import check_outputs

    limits = [("batch-size", args.batch_size, 1, 10**6), ("size", args.size, 8, 4096)]
    limits += [("steps", args.steps, 1, 10**6), ("repeats", args.repeats, 1, 1000)]
    limits += [("processes", args.processes, 1, 10**4)] if args.processes is not None else []
    check_bounds(limits + [("gpus", count, 1, 10**6) for count in args.gpus])
    check_outputs({"--json": args.json, "--markdown": args.markdown})
    return args


def main() -> int:
    """The command line."""
    args = parse_command_line(sys.argv[1:])

    from cspnet.cli.benchmark_report import describe_machine, tell_report

    figures, lines = estimate(args) if args.estimate else measure(args)
    report: dict[str, Any] = figures
    if not args.estimate:
        report = {"machine": describe_machine(("torch",)), **figures}
        lines = [report["machine"], *lines]
    text = "\n".join(lines) + "\n"
    tell_report(report, text, args.json, args.markdown)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("benchmark_scaling.py", main))
