#!/usr/bin/env python3
"""Which settings train a network fastest on this machine: all combinations are measured, and flags for train.py told.

    python3 scripts/tune.py cspresnet50 --batch-size 64
    python3 scripts/tune.py cspdarknet53 --size 256 --repeats 9 --json t.json
    python3 scripts/tune.py cspresnet50 --compile                             # and each of them compiled: minutes more
    python3 scripts/tune.py cspresnet50 --sweep 8 16 32 64 128                # batch sizes instead

The combinations take turns on one batch of random pictures, with train.py's step; the first round warms up. A row:
images per second, and against the fastest in the same round. What train.py takes by itself (`auto`) is said to be as
good as the fastest if it was at least as fast in one of the rounds.

With --sweep, batch sizes take turns instead, with train.py's other settings; and `--batch-size auto` looks among them
for the one it would train with, as it does at the start of a run, which the table then judges.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, non_empty_path, run_door
from cspnet.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    import torch

AXES: dict[str, tuple[Any, ...]] = {
    "train.compile": (False, True),
    "train.compile_mode": ("default", "max-autotune"),
    "train.channels_last": (True, False),
    "train.precision": ("fp32", "bf16", "fp16"),
}
"""Setting of the recipe -> its values. A setting that is added here is tuned as well."""

Values = Mapping[str, Any]


def list_combinations(device: torch.device, *, compiles: bool) -> list[dict[str, Any]]:
    """All of them that there are: fp16 has a scaler on a GPU only, max-autotune pays with CUDA graphs; and nothing is
    compiled unless asked."""
    every = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
    on_gpu = device.type == "cuda"
    return [
        values
        for values in every
        if (values["train.precision"] != "fp16" or on_gpu)
        and (compiles or not values["train.compile"])
        and (values["train.compile_mode"] == "default" or (on_gpu and values["train.compile"]))
    ]


def default_combination(device: torch.device) -> dict[str, Any]:
    """What train.py takes here by itself."""
    import torch

    from cspnet.recipe.load import load_recipe, recipe_to_values
    from cspnet.runtime.device import choose_amp_dtype

    defaults = recipe_to_values(load_recipe(None).recipe)
    values = {key: defaults[key] for key in AXES}
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    values["train.precision"] = names[choose_amp_dtype(values["train.precision"], device)]
    return values


def to_flags(values: Values) -> str:
    """As train.py takes them."""
    texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in values.items()}
    return " ".join(f"--{key} {text}" for key, text in texts.items())


def measure(
    name: str, size_px: int, batch_size: int, steps: int, repeats: int, device: torch.device, *, compiles: bool
) -> dict[str, Any]:
    """{flags: images per second in each round}, why some are missing, and the flags of what `auto` takes."""
    from cspnet.cli.measure_speed import Trial, take_turns
    from cspnet.cli.measure_training import OurUpdates, recipe_of
    from cspnet.runtime.memory import told_shortage

    with told_shortage(device, f"with --batch-size {batch_size}, all combinations side by side", "use less"):
        work = {}
        for values in list_combinations(device, compiles=compiles):
            trial = Trial(device, values["train.precision"], batch_size, steps, repeats)
            updates = OurUpdates(recipe_of(name, size_px, batch_size, values), trial)
            work[to_flags(values)] = updates.time_training
        rates = take_turns(work, repeats)
    return {"images_per_s": rates, "auto": to_flags(default_combination(device)), "trial": trial.size}


def sweep(name: str, size_px: int, sizes: list[int], steps: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """{batch size: images per second in each round}, and the one that `--batch-size auto` takes of them."""
    from cspnet.cli.batch_size import HostRoom, choose_size, try_sizes
    from cspnet.cli.build_run import Place
    from cspnet.cli.measure_speed import NUM_CLASSES, Trial, take_turns
    from cspnet.cli.measure_training import OurUpdates, recipe_of
    from cspnet.cli.trial import Trial as TriedRun
    from cspnet.reporting.console import Console
    from cspnet.runtime.distributed import World
    from cspnet.runtime.heap import keep_freed_memory
    from cspnet.runtime.memory import free_memory, told_shortage

    keep_freed_memory(device)  # as train.py does before it tries
    values = default_combination(device)
    trials = {size: Trial(device, values["train.precision"], size, steps, repeats) for size in sizes}
    with told_shortage(device, f"with --sweep up to {sizes[-1]}, all sizes side by side", "use less"):
        recipe = recipe_of(name, size_px, sizes[0], values)
        place = Place(World(), device, trials[sizes[0]].amp_dtype, Console(rank=1))
        host = HostRoom(place, size_px)
        tried = try_sizes(TriedRun(recipe, NUM_CLASSES, place), sizes, host)
        if not tried:
            raise UserError(f"--sweep: not even {sizes[0]} pictures fit; use less")
        if not host.is_likely(sizes[-1]):
            raise UserError(f"--sweep {sizes[-1]}: the host's memory is unlikely to have room for it; use less")
        free_memory(device)
        work = {
            str(size): OurUpdates(recipe_of(name, size_px, size, values), trial).time_training
            for size, trial in trials.items()
        }
        rates = take_turns(work, repeats)
    size = trials[sizes[0]].size.replace(f"batch {sizes[0]}, ", "")
    return {"images_per_s": rates, "auto": str(choose_size(tried)), "tried": tried, "trial": size}


def sweep_lines(found: dict[str, Any]) -> list[str]:
    """The table, the smallest size first, and what `auto` is worth."""
    from cspnet.cli.batch_size import show_rates
    from cspnet.cli.benchmark_report import ratios, spread

    rates, auto = found["images_per_s"], found["auto"]
    best = max(rates, key=lambda size: statistics.median(rates[size]))
    lines = ["| batch size | images/s | of the fastest |", "|---|---|---|"]
    for size, each in rates.items():
        mark = " (auto)" * (size == auto)
        lines.append(f"| {size}{mark} | {spread(each, 2)} | {spread(ratios(each, rates[best]), 3)} |")
    tried = show_rates(found["tried"])
    verdict = f"--batch-size auto takes {auto} ({tried}): {spread(ratios(rates[auto], rates[best]), 3)} of the fastest"
    return [*lines, "", verdict]


def table_lines(found: dict[str, Any]) -> list[str]:
    """The table, the fastest first, and what follows from it."""
    from cspnet.cli.benchmark_report import ratios, spread

    rates, auto = found["images_per_s"], found["auto"]
    ranking = sorted(rates, key=lambda flags: statistics.median(rates[flags]), reverse=True)
    best = ranking[0]
    lines = ["| flags | images/s | of the fastest |", "|---|---|---|"]
    for flags in ranking:
        mark = " (auto)" * (flags == auto)
        lines.append(f"| {flags}{mark} | {spread(rates[flags], 2)} | {spread(ratios(rates[flags], rates[best]), 3)} |")
    share = ratios(rates[auto], rates[best])
    if auto == best:
        verdict = "auto is the fastest: train.py takes it without any flag"
    elif max(share) >= 1:
        verdict = f"auto is within the spread of the fastest ({spread(share, 3)} of it): train.py needs no flag"
    else:
        verdict = f"auto is slower ({spread(share, 3)} of the fastest): the flags are worth giving"
    return [*lines, "", f"fastest: python3 train.py {best}", verdict]


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="tune.py", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="the network, as for train.py --model")
    parser.add_argument("--batch-size", type=int, metavar="N", help="pictures of a step [64]")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="side of a picture [%(default)s]")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="between looks at the clock [%(default)s]")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds measured [%(default)s]")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:<n> [%(default)s]")
    parser.add_argument("--compile", action="store_true", help="try all of them compiled as well")
    parser.add_argument("--sweep", type=int, nargs="+", metavar="N", help="measure these batch sizes instead")
    parser.add_argument("--json", type=non_empty_path, metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", type=non_empty_path, metavar="FILE", help="write what is printed there as well")
    args = parser.parse_all(sys.argv[1:])

    from cspnet.cli.benchmark_report import check_bounds, describe_machine, tell_report
    from cspnet.cli.outputs import check_outputs
    from cspnet.runtime.device import choose_device

    batch_size = 64 if args.batch_size is None else args.batch_size
    limits = [("batch-size", batch_size, 1, 10**6), ("size", args.size, 8, 4096)]
    check_bounds([*limits, ("steps", args.steps, 1, 10**6), ("repeats", args.repeats, 1, 1000)])
    check_outputs({"--json": args.json, "--markdown": args.markdown})
    device = choose_device(args.device)
    if device.type == "mps":
        raise UserError("--device mps: is not tuned for; use cpu or cuda")
    if args.sweep is not None:
        check_bounds([("sweep", size, 1, 10**6) for size in args.sweep])
        if args.compile:
            raise UserError("--sweep and --compile: one at a time")
        if args.batch_size is not None:
            raise UserError("--sweep and --batch-size: --sweep has the sizes")
        found = sweep(args.model, args.size, sorted(set(args.sweep)), args.steps, args.repeats, device)
    else:
        how = (args.model, args.size, batch_size, args.steps, args.repeats, device)
        found = measure(*how, compiles=args.compile)
    report = {"machine": describe_machine(("torch",)), "model": args.model, "size_px": args.size, **found}
    head = [report["machine"], f"{args.model}, {args.size} px, {found['trial']}; median (lowest to highest)", ""]
    text = "\n".join([*head, *(sweep_lines if args.sweep else table_lines)(found)]) + "\n"
    tell_report(report, text, args.json, args.markdown)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("tune.py", main))
