#!/usr/bin/env python3
"""How fast we train, beside timm's network in the loop of timm's train script: same weights and batch, in turn.

    python3 scripts/benchmark_train.py cspresnet50 cspdarknet53 --batch-size 32 --size 224 --repeats 5
    python3 scripts/benchmark_train.py cspresnet50 --loop-overhead --batch-size 64
    python3 scripts/benchmark_train.py cspresnet50 --data DIR --epoch-pictures 640 --workers 2

timm's rows: its script's defaults (float32, contiguous), channels_last, that with --amp in bf16 or with --torchcompile,
and all of them together, with its own optimizer (sgd, momentum 0.9, weight decay 2e-5) and label smoothing 0.1; a step
is zero_grad, forward, loss, backward, optimizer.step, and nothing else. Ours: what train.py does by default here, and
the other precisions, with the same loss and optimizer; a step is all that the loop does, but for the record every 50
steps. All begin with the same weights, and in float32 they have to begin with the same loss.

The rows take turns, and ratios are taken within a round; the first round warms up. On a CPU each row has a process of
its own, as train.py keeps freed memory in its heap, and timm's script does not; it begins and ends in every round, so
that no row has the memory of another's beside it, and its first steps warm up. The memory of a row is measured with
nothing else there: on a GPU what is allocated, on a CPU the resident memory of a process of its own, in both cases less
what was there before the network was made.

With --loop-overhead or --data, that is measured instead of the rows. --loop-overhead: which share of our step is not
forward, loss, backward and optimizer. --data: from JPEGs to weights, an epoch (or --epoch-pictures) of train.py's loop
beside an equivalent loop over timm's loader, on a CPU each in a process of its own; processes that read are started
within the clock.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, non_empty_path, run_door
from cspnet.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from cspnet.cli.measure_speed import Contender, Trial

DEFAULTS = "timm, its defaults"
OURS = "ours, train.py's defaults"
_ALIKE = 1e-3
"""Relative difference of first losses in float32, beyond which two rows do not train the same network."""


def plan_rows(
    name: str, size_px: int, trial: Trial, *, with_compile: bool, weights: dict[str, Tensor] | None
) -> dict[str, Callable[[], Contender]]:
    """Name -> how it is made, in the order of the table; timm's networks with these weights, or with its own."""
    from timm_loop import TimmSettings, TimmUpdates

    from cspnet.cli.measure_training import OurUpdates, recipe_of

    recipe = recipe_of(name, size_px, trial.batch_size)
    bf16 = replace(trial, precision="bf16")
    settings = {
        DEFAULTS: TimmSettings(),
        "timm, channels_last": TimmSettings(channels_last=True),
        "timm, channels_last, amp bf16": TimmSettings(channels_last=True, amp=True),
    }
    if with_compile:
        settings["timm, channels_last, compile"] = TimmSettings(channels_last=True, compile=True)
        settings["timm, channels_last, amp bf16, compile"] = TimmSettings(channels_last=True, amp=True, compile=True)
    rows: dict[str, Callable[[], Contender]] = {
        row: functools.partial(TimmUpdates, name, size_px, bf16, flags, weights) for row, flags in settings.items()
    }
    rows[OURS] = functools.partial(OurUpdates, recipe, trial)
    for precision in ("fp32", "bf16"):
        as_asked = replace(trial, precision=precision)
        if as_asked.amp_dtype is not trial.amp_dtype:  # else it is the row above
            rows[f"ours, {precision}"] = functools.partial(OurUpdates, recipe, as_asked)
    if with_compile:
        modes = ["default", "max-autotune"] if trial.device.type == "cuda" else ["default"]  # CUDA graphs are in it
        for mode in modes:
            flags = {"train.compile": True, "train.compile_mode": mode}
            compiled = recipe_of(name, size_px, trial.batch_size, flags)
            row = "ours, compile" + f" {mode}" * (mode != "default")
            rows[row] = functools.partial(OurUpdates, compiled, trial)
    return rows


def measure_rows(name: str, size_px: int, trial: Trial, *, with_compile: bool, with_memory: bool) -> dict[str, Any]:
    """Speed and memory of all rows of a network, in built-in types.

    Raises:
        UserError: they do not train the same network.
    """
    import torch

    from cspnet.cli.build import build_model
    from cspnet.cli.measure_speed import NUM_CLASSES, take_turns
    from cspnet.cli.measure_training import Apart, ApartError, measure_peak, recipe_of, time_apart

    recipe = recipe_of(name, size_px, trial.batch_size)
    weights = build_model(recipe, NUM_CLASSES, torch.device("cpu")).state_dict()
    rows = plan_rows(name, size_px, trial, with_compile=with_compile, weights=weights)
    work: dict[str, Callable[[], float]] = {}
    losses: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    for row, make in rows.items():
        print(f"{name}: {row}: its first steps", file=sys.stderr)  # compiling takes minutes
        try:
            if trial.device.type == "cpu":
                with contextlib.closing(Apart(make)) as apart:
                    losses[row] = apart.first_losses
                work[row] = functools.partial(time_apart, make)  # what is compiled lies in the compiler's cache by now
                continue
            contender = make()
            losses[row] = contender.first_steps()
            work[row] = contender.time_training
            del contender  # only its row holds it
        except UserError:
            raise
        except Exception as error:
            if "compile" not in row:
                raise
            kind = "" if isinstance(error, ApartError) else f"{type(error).__name__}: "
            missing[row] = f"does not compile here: {kind}{str(error).splitlines()[0]}"[:120]
    ours_in_float32 = OURS if trial.amp_dtype is torch.float32 else "ours, fp32"
    check_losses(name, {row: losses[row][0] for row in (DEFAULTS, "timm, channels_last", ours_in_float32)})
    rates = take_turns(work, trial.repeats, warm_up=trial.device.type != "cpu")
    work.clear()
    peaks: dict[str, int | None] = dict.fromkeys(rates)
    if with_memory:
        # Without those weights, which would lie in the memory of the process as well.
        rows = plan_rows(name, size_px, trial, with_compile=with_compile, weights=None)
        peaks = {row: measure_peak(rows[row], trial.device) for row in rates}
    best = max((row for row in rates if row.startswith("timm")), key=lambda row: statistics.median(rates[row]))
    return {
        "images_per_s": rates,
        "best_of_timm": best,
        "peak_bytes": peaks,
        "first_losses": losses,
        "missing": missing,
        "ours_by_default": f"channels_last, {str(trial.amp_dtype).removeprefix('torch.')}",
    }


def check_losses(name: str, losses: dict[str, float]) -> None:
    """Raises UserError unless all rows have the same first loss."""
    first = next(iter(losses.values()))
    if not all(abs(loss - first) <= _ALIKE * first for loss in losses.values()):  # nor is nan
        told = ", ".join(f"{row}: {loss:.5g}" for row, loss in losses.items())
        raise UserError(f"{name}: the rows do not begin with the same loss, so they are not comparable ({told})")


def measure_overhead(name: str, size_px: int, trial: Trial) -> dict[str, Any]:
    """Images per second of bare updates, of ours, and of the whole loop, with one network and optimizer."""
    from cspnet.cli.measure_speed import take_turns
    from cspnet.cli.measure_training import LoopOfOneBatch, OurUpdates, recipe_of

    ours = OurUpdates(recipe_of(name, size_px, trial.batch_size), trial)
    loop = LoopOfOneBatch(ours)
    work: dict[str, Callable[[], float]] = {
        "bare": lambda: ours.time_training(ours.bare_update),
        "step": ours.time_training,
        "loop": loop.time_training,
    }
    rates = take_turns(work, trial.repeats)
    share = {
        key: [100 * (1 - whole / bare) for whole, bare in zip(rates[key], rates["bare"], strict=True)]
        for key in ("step", "loop")
    }
    return {"images_per_s": rates, "percent_of_step": share}


def measure_epochs(name: str, args: Namespace, trial: Trial) -> dict[str, Any]:
    """Images per second from JPEGs to weights."""
    import torch
    from timm_loop import TimmSettings, open_epochs

    from cspnet.cli.measure_speed import take_turns
    from cspnet.cli.measure_training import Apart, Timed, open_run, recipe_of
    from cspnet.data.index import find_split

    data = {"data.root": str(args.data), "data.val": None, "data.workers": args.workers}
    recipe = recipe_of(name, args.size, trial.batch_size, data)
    if not find_split(str(args.data), "train", "auto", "auto").is_dir():
        raise UserError(f"--data {args.data}: timm's loader needs a folder of class folders, train/<class>/<picture>")
    open_ours = functools.partial(open_run, recipe, trial, args.epoch_pictures)
    images = open_ours().images
    steps = images // trial.batch_size
    has_amp = trial.amp_dtype is not torch.float32
    best = f"timm, channels_last{', amp' * has_amp}, our views"
    rows: dict[str, Callable[[], Timed]] = {
        row: functools.partial(
            open_epochs, name, args.data, args.size, trial, args.workers, settings, row == best, steps
        )
        for row, settings in ((DEFAULTS, TimmSettings()), (best, TimmSettings(channels_last=True, amp=has_amp)))
    }
    rows[OURS] = open_ours
    with contextlib.ExitStack() as processes:
        work: dict[str, Callable[[], float]] = {}
        for row, make in rows.items():
            if trial.device.type == "cpu":
                work[row] = processes.enter_context(contextlib.closing(Apart(make))).time_training
            else:
                work[row] = make().time_training
        rates = take_turns(work, trial.repeats)
    return {"images_per_s": rates, "pictures": images, "workers": args.workers}


def row_lines(name: str, found: dict[str, Any]) -> list[str]:
    """A table of speed and memory."""
    from cspnet.cli.benchmark_report import ratios, spread

    rates, best = found["images_per_s"], found["best_of_timm"]
    lines = [
        f"| {name} | images/s | times {DEFAULTS} | times timm's best | peak memory, MiB | of timm's at its defaults |",
        "|---|---|---|---|---|---|",
    ]
    base_peak = found["peak_bytes"][DEFAULTS]
    for row, values in rates.items():
        label = f"{row} ({found['ours_by_default']})" if row == OURS else row
        cells = [spread(values, 2), spread(ratios(values, rates[DEFAULTS]), 2), spread(ratios(values, rates[best]), 2)]
        peak = found["peak_bytes"][row]
        cells += ["", ""] if not peak or not base_peak else [f"{peak / 2**20:,.0f}", f"{peak / base_peak:.2f}"]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += [f"| {row} | {why} | | | | |" for row, why in found["missing"].items()]
    first = [values[0] for values in found["first_losses"].values()]
    return [*lines, "", f"timm's best: {best}; first losses from {min(first):.4f} to {max(first):.4f}"]


def overhead_lines(name: str, found: dict[str, Any]) -> list[str]:
    """What the loop costs."""
    from cspnet.cli.benchmark_report import spread

    rates, share = found["images_per_s"], found["percent_of_step"]
    return [
        f"| {name} | images/s | % of it that is not forward, loss, backward, optimizer |",
        "|---|---|---|",
        f"| forward, loss, backward, optimizer, and no more | {spread(rates['bare'], 2)} | |",
        f"| soft targets, train_step, sums, looking back | {spread(rates['step'], 2)} | {spread(share['step'], 2)} |",
        "| the whole loop, with flipping, normalising, a record and the end of an epoch | "
        f"{spread(rates['loop'], 2)} | {spread(share['loop'], 2)} |",
    ]


def epoch_lines(name: str, found: dict[str, Any]) -> list[str]:
    """From JPEGs to weights."""
    from cspnet.cli.benchmark_report import ratios, spread

    rates = found["images_per_s"]
    lines = [
        f"| {name}, {found['pictures']} JPEGs, {found['workers']} reading processes | images/s | times {DEFAULTS} |",
        "|---|---|---|",
    ]
    return lines + [
        f"| {row} | {spread(values, 2)} | {spread(ratios(values, rates[DEFAULTS]), 2)} |"
        for row, values in rates.items()
    ]


def parse_command_line(argv: list[str]) -> Namespace:
    """The flags.

    Raises:
        UserError: what was given makes no sense.
    """
    parser = FlagParser(prog="benchmark_train.py", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="NAME", help="networks that both have, or timm/<name>")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="side of a picture [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="pictures of a step [%(default)s]")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="between looks at the clock [%(default)s]")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds measured [%(default)s]")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:<n> [%(default)s]")
    parser.add_argument("--without-compile", action="store_true", help="no rows that are compiled, which takes minutes")
    parser.add_argument("--without-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--loop-overhead", action="store_true", help="what our loop adds to a step, instead")
    parser.add_argument("--data", type=non_empty_path, metavar="DIR", help="train on these pictures, instead")
    parser.add_argument("--epoch-pictures", type=int, metavar="N", help="with --data: so many of them [all]")
    parser.add_argument("--workers", type=int, metavar="N", help="with --data: reading processes [one a core, up to 8]")
    parser.add_argument("--json", type=non_empty_path, metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", type=non_empty_path, metavar="FILE", help="write what is printed there as well")
    args = parser.parse_all(argv)

    from cspnet.cli.benchmark_report import check_bounds
    from cspnet.cli.outputs import check_outputs

    limits = [("size", args.size, 8, 4096), ("batch-size", args.batch_size, 1, 10**6)]
    limits += [("steps", args.steps, 1, 10**6), ("repeats", args.repeats, 1, 1000)]
    for name in ("epoch-pictures", "workers"):
        value = getattr(args, name.replace("-", "_"))
        if value is not None and args.data is None:
            raise UserError(f"--{name}: goes with --data DIR")
        if value is not None:
            limits.append((name, value, 1, 10**9 if name == "epoch-pictures" else 1024))
    check_bounds(limits)
    if args.data is not None and args.loop_overhead:
        raise UserError("--loop-overhead and --data: one at a time")
    check_outputs({"--json": args.json, "--markdown": args.markdown})
    return args


def main() -> int:
    """The command line."""
    args = parse_command_line(sys.argv[1:])

    from timm_loop import check_name

    from cspnet.cli.benchmark_report import describe_machine, tell_report
    from cspnet.cli.measure_speed import Trial
    from cspnet.data.loader import default_workers
    from cspnet.runtime.device import choose_device
    from cspnet.runtime.memory import told_shortage

    if not args.loop_overhead:
        for name in args.models:
            check_name(name)
    args.workers = args.workers or default_workers(1)
    trial = Trial(choose_device(args.device), "auto", args.batch_size, args.steps, args.repeats)
    report: dict[str, Any] = {"machine": describe_machine(), "trial": trial.size, "size_px": args.size}
    kind, tables = "rows", [f"{report['machine']}\n{trial.size}, {args.size} px; median (lowest to highest)"]
    for name in dict.fromkeys(args.models):
        with told_shortage(trial.device, f"with --batch-size {trial.batch_size}", "use less"):
            if args.loop_overhead:
                kind, found = "loop_overhead", measure_overhead(name, args.size, trial)
                lines = overhead_lines(name, found)
            elif args.data is not None:
                kind, found = "epochs", measure_epochs(name, args, trial)
                lines = epoch_lines(name, found)
            else:
                found = measure_rows(
                    name,
                    args.size,
                    trial,
                    with_compile=not args.without_compile,
                    with_memory=not args.without_memory,
                )
                lines = row_lines(name, found)
        report.setdefault(kind, {})[name] = found
        tables.append("\n".join(lines))
    text = "\n\n".join(tables) + "\n"
    tell_report(report, text, args.json, args.markdown)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("benchmark_train.py", main))
