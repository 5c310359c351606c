#!/usr/bin/env python3
"""What it costs that nothing is lost: looking for bad numbers, saving, and agreeing with other processes.

    python3 scripts/benchmark_safety.py                                     # cspresnet50, batch 32, 224 px
    python3 scripts/benchmark_safety.py --model cspdarknet53 --batch-size 64 --repeats 9

A training step is measured in turn with the same step that looks for nothing; a save by how long it keeps the step
waiting, in turn with one that is waited for; the agreement of processes by itself, over gloo, between some on this
machine.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, run_door
from cspnet.errors import EXIT_DONE, UserError
from cspnet.reporting.console import open_bar

AGREEMENTS = 500


class Steps:
    """A network in training on one batch, which does not matter."""

    def __init__(self, model_name: str, batch_size: int, size_px: int) -> None:
        import torch

        from cspnet.cli.build import build_model, build_state
        from cspnet.data.mixing import soft_targets
        from cspnet.recipe.load import load_recipe
        from cspnet.runtime.device import choose_amp_dtype, choose_device
        from cspnet.runtime.distributed import World

        recipe = load_recipe(None, {"model.name": model_name, "data.train_px": size_px}).recipe
        self.device = choose_device("auto", 0)
        self.amp_dtype = choose_amp_dtype("auto", self.device)
        model = build_model(recipe, 1000, self.device)
        self.state = build_state(recipe, model, World(), self.device, self.amp_dtype)
        images = torch.randn(batch_size, 3, size_px, size_px, device=self.device)
        self.images = images.to(memory_format=torch.channels_last)
        self.targets = soft_targets(torch.arange(batch_size, device=self.device) % 1000, 1000, 0.1)

    def ours(self) -> None:
        """A step as `train.py` takes it, and the look back."""
        from cspnet.training.skipped import LatestSteps
        from cspnet.training.step import train_step

        latest = LatestSteps()
        how: dict[str, Any] = {"lr": 0.0, "accumulate": 1, "amp_dtype": self.amp_dtype, "clip_norm": None}
        latest.note(self.state.progress, train_step(self.state, self.state.model, [(self.images, self.targets)], **how))
        latest.read(leave=0)

    def bare(self) -> None:
        """The same update, whatever comes of it."""
        import torch

        from cspnet.evaluation.metrics import count_correct
        from cspnet.optim.losses import soft_cross_entropy

        optimizer = self.state.optimizer
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not torch.float32):
            logits = self.state.model(self.images)
        loss = soft_cross_entropy(logits, self.targets)
        loss.backward()
        hits = count_correct(logits.detach(), self.targets.argmax(1))
        torch.stack([loss.detach() * len(logits), *hits]).double()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def timed(self, work: Callable[[], object]) -> float:
        """Seconds, until the device is done."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()
        started_s = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started_s


def measure_saving(steps: Steps, folder: Path) -> Iterator[tuple[float, float]]:
    """(seconds a step waits for a save, seconds of a save that is waited for), again and again."""
    from cspnet.training.checkpoint import save_checkpoint
    from cspnet.training.saving import Saver

    saver = Saver(folder / "beside", keep=1, max_failures=0, warn=print)
    number = 0
    while True:
        number += 1
        content = steps.state.to_dict()
        waiting_s = steps.timed(lambda: saver.save(content, step=number, is_best=False))  # noqa: B023
        if failure := saver.find_failure():
            raise failure
        how: dict[str, Any] = {"step": number, "is_best": False, "keep": 1}
        yield waiting_s, steps.timed(lambda: save_checkpoint(folder / "waited", content, **how))  # noqa: B023


def agree(rank: int, processes: int, meeting: str, answers: Any) -> None:
    """One process of some that agree on two flags, many times."""
    import torch.distributed as dist

    from cspnet.runtime.distributed import World, on_any_rank

    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    world = World(rank, processes, rank, processes, launched=True)
    for i in range(2 * AGREEMENTS):
        if i == AGREEMENTS:
            started_s = time.perf_counter()
        on_any_rank(world, False, False)
    if rank == 0:
        answers.put((time.perf_counter() - started_s) / AGREEMENTS)
    dist.destroy_process_group()


def measure_agreement(processes: int, folder: Path) -> float:
    """Seconds of one agreement."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    meeting = tempfile.mktemp(dir=folder)
    group = [context.Process(target=agree, args=(rank, processes, meeting, answers)) for rank in range(processes)]
    for process in group:
        process.start()
    for process in group:
        process.join()
    if any(process.exitcode for process in group):
        raise UserError("the processes could not agree over gloo on this machine")
    return float(answers.get())


def describe(values: list[float], unit: str) -> str:
    """`median (lowest to highest) unit`."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g}) {unit}"


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="benchmark_safety.py", description=__doc__)
    parser.add_argument("--model", default="cspresnet50", metavar="NAME", help="the network [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="pictures of a step [%(default)s]")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="their side [%(default)s]")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds measured [%(default)s]")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="that agree [%(default)s]")
    args = parser.parse_all(sys.argv[1:])
    for name in ("batch_size", "size", "repeats", "processes"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: use a number from 1 on")
    steps = Steps(args.model, args.batch_size, args.size)
    seconds: dict[str, list[float]] = {name: [] for name in ("bare", "ours", "waiting", "waited", "agreeing")}
    with tempfile.TemporaryDirectory() as folder, open_bar(args.repeats, "measured", "round") as bar:
        saves = measure_saving(steps, Path(folder))
        for repeat in range(-1, args.repeats):
            taken = {"bare": steps.timed(steps.bare), "ours": steps.timed(steps.ours)}
            taken["waiting"], taken["waited"] = next(saves)
            if args.processes > 1:
                taken["agreeing"] = measure_agreement(args.processes, Path(folder))
            if repeat >= 0:  # the first round warms everything up
                bar.update()
                for name, value in taken.items():
                    seconds[name].append(value)
    print(
        f"{args.model}, batch {args.batch_size}, {args.size} px, {steps.device.type}, {steps.amp_dtype}; "
        f"n = {args.repeats}, median (lowest to highest)"
    )
    print(f"a step that looks for nothing: {describe(seconds['bare'], 's')}")
    extra = [100 * (mine / theirs - 1) for mine, theirs in zip(seconds["ours"], seconds["bare"], strict=True)]
    print(f"looking for bad numbers: {describe(extra, '% of it')}")
    print(f"a save that is waited for: {describe([1000 * value for value in seconds['waited']], 'ms')}")
    print(f"how long a step waits for one beside it: {describe([1000 * value for value in seconds['waiting']], 'ms')}")
    if args.processes > 1:
        text = describe([1e6 * value for value in seconds["agreeing"]], "us")
        print(f"{args.processes} processes agree, once a step: {text}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("benchmark_safety.py", main))
