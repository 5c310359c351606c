"""How training speed grows with the processes of this machine, and what their exchange of gradients takes of it."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing.resource_tracker
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from cspnet.cli.build import build_network
from cspnet.cli.measure_speed import Trial, take_turns
from cspnet.cli.measure_training import OurUpdates, recipe_of
from cspnet.errors import DeviceError
from cspnet.recipe.schema import Recipe
from cspnet.runtime.device import choose_device
from cspnet.runtime.distributed import World
from cspnet.runtime.processes import held_back_signals, leave_with_parent

__all__ = ["Scaling", "counts_up_to", "measure_scaling"]

EXCHANGING, QUIET = "exchanging", "quiet"


def counts_up_to(processes: int) -> list[int]:
    """1, 2, 4, ... and the number itself."""
    return sorted({2**i for i in range(processes.bit_length())} | {processes})


@dataclass(frozen=True)
class Scaling:
    """What to measure. The batch is that of each process: weak scaling."""

    model: str
    size_px: int
    batch_size: int
    steps: int
    repeats: int
    device: str
    """cpu, with one thread in each process, or cuda, with one GPU for each."""
    precision: str

    @property
    def recipe(self) -> Recipe:
        """train.py's defaults for the rest."""
        return recipe_of(self.model, self.size_px, self.batch_size)


class _ParallelUpdates(OurUpdates):
    """The same updates through the data-parallel view."""

    def __init__(self, recipe: Recipe, trial: Trial, world: World) -> None:
        super().__init__(recipe, trial)
        self.network = build_network(self.model, world, trial.device)

    def quiet_update(self) -> Tensor:
        """One in which each process keeps its gradients to itself."""
        is_parallel = isinstance(self.network, torch.nn.parallel.DistributedDataParallel)
        with self.network.no_sync() if is_parallel else contextlib.nullcontext():  # type: ignore[operator]
            return self.update()


def measure_scaling(scaling: Scaling, counts: Sequence[int]) -> dict[int, dict[str, list[float]]]:
    """{processes: {exchanging, and quiet: images per second of all of them together, in each round}}.

    All processes are started once; of more than a count needs, the others wait. Counts, and steps with and without an
    exchange of gradients (and of BatchNorm's buffers), take turns.

    Raises:
        DeviceError: a process has failed.
    """
    with tempfile.TemporaryDirectory(prefix="cspnet-scaling-") as folder:
        answer = Path(folder) / "answer.json"
        try:
            _run(_work, (scaling, list(counts), f"{folder}/meeting", answer), max(counts))
        except (ProcessRaisedException, ProcessExitedException) as error:
            reason = str(error).strip().splitlines()[-1]
            raise DeviceError(f"{max(counts)} processes with --batch-size {scaling.batch_size}: {reason}") from error
        found: dict[str, dict[str, list[float]]] = json.loads(answer.read_text())
    return {int(count): rates for count, rates in found.items()}


def _run(work: Callable[..., None], args: tuple[Any, ...], processes: int) -> None:
    """work(rank, *args) in each of so many processes, which leave signals to this one and end with it."""
    multiprocessing.resource_tracker.ensure_running()  # its own start would let signals through again
    with held_back_signals():
        started = start_processes(work, args, nprocs=processes, join=False, daemon=True, start_method="spawn")
    try:
        while not started.join():
            pass
    except KeyboardInterrupt:
        for process in started.processes:
            process.kill()  # while they meet, they heed nothing else
        raise


def _work(rank: int, scaling: Scaling, counts: list[int], meeting: str, answer: Path) -> None:
    """One of the processes; the first one writes the answer."""
    leave_with_parent()
    _prctl_pr_set_pdeathsig(signal.SIGKILL)  # while the processes meet, no other thread gets to look after the parent
    is_cuda = scaling.device == "cuda"
    if not is_cuda:
        torch.set_num_threads(1)
    device = choose_device(scaling.device, rank)
    trial = Trial(device, scaling.precision, scaling.batch_size, scaling.steps, scaling.repeats)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=max(counts),
    )
    work: dict[tuple[int, str], Callable[[], float]] = {}
    for count in counts:
        # All processes make all groups, in the same order.
        made = dist.new_group(list(range(count)), backend="nccl" if is_cuda else "gloo")
        group = cast(dist.ProcessGroup, made) if count > 1 and rank < count else None
        updates = None
        if rank < count:
            world = World(rank, count, rank, count, launched=True, group=group)
            updates = _ParallelUpdates(scaling.recipe, trial, world)
        for mode in (EXCHANGING, QUIET):
            work[count, mode] = _timed(updates, count, mode)
    rates = take_turns(work, scaling.repeats, shows=rank == 0)
    if rank == 0:
        found = {count: {mode: rates[count, mode] for mode in (EXCHANGING, QUIET)} for count in counts}
        answer.write_text(json.dumps(found))
    _least(0.0)
    dist.destroy_process_group()


def _timed(updates: _ParallelUpdates | None, count: int, mode: str) -> Callable[[], float]:
    """Images per second of `count` processes together, by the slowest of them; the others wait for them."""

    def run() -> float:
        _least(0.0)
        rate = math.inf
        if updates is not None:
            rate = updates.time_training(updates.update if mode == EXCHANGING else updates.quiet_update)
        return count * _least(rate)

    return run


def _least(value: float) -> float:
    """The least of what all processes give, which wait for each other here; over gloo, so that no GPU is kept busy."""
    values = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(values, dist.ReduceOp.MIN)
    return float(values)
