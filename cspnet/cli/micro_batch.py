"""How many pictures fit into a forward pass: tried at the start (train.micro_batch auto), and when memory was full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from cspnet.cli.build import Splits, build_geometry
from cspnet.cli.build_run import Place
from cspnet.cli.trial import Trial
from cspnet.data.loader import TrainLoader
from cspnet.data.sampler import BatchPlan
from cspnet.data.transforms import build_sizes
from cspnet.errors import DeviceError
from cspnet.recipe.batch import list_splits, settle_eval_batch
from cspnet.recipe.schema import Recipe
from cspnet.runtime.distributed import gather_objects, sum_over_ranks
from cspnet.runtime.memory import (
    MARGIN,
    can_be_measured,
    describe_memory,
    find_largest,
    free_memory,
    is_out_of_memory,
    peak_bytes,
)
from cspnet.training.run import Run

__all__ = ["Shortage", "explain_shortage", "note_shortage", "settle_micro_batch"]

_LESS = "use a smaller --img-size, --grad-checkpointing, or another --model"


def settle_micro_batch(recipe: Recipe, splits: Splits, loader: TrainLoader, place: Place) -> TrainLoader:
    """The loader, for train.micro_batch auto with the largest micro-batch with which training and validation fit.

    The pictures of a step stay the same. All processes take the smallest of their answers.

    Raises:
        DeviceError: not even one picture fits, or a validation batch of the size asked for does not.
    """
    plan, device, world = loader.plan, place.device, place.world
    if recipe.train.micro_batch != "auto":
        return loader
    if not can_be_measured(device):
        place.console.say(
            f"micro-batch {plan.batch_size}, as without train.micro_batch auto: a CUDA GPU says how much fits, and "
            f"{device.type} does not"
        )
        return loader
    share = plan.batch_size * plan.accumulate
    sum_over_ranks(world, torch.zeros(1, device=device))  # what nccl takes for itself is taken from here on
    # No process waits for another in a trial: one that is short of memory would leave the others waiting.
    answers = gather_objects(world, _find_for_run(recipe, splits, share, place))
    least = min(size for size, _ in answers)
    if not least:
        raise DeviceError(f"train.micro_batch: not even one picture fits on {describe_memory(device)}: {_LESS}")
    if not all(fits for _, fits in answers):
        raise DeviceError(
            f"eval.batch_size: {recipe.eval.batch_size} pictures do not fit on {describe_memory(device)}; "
            f"leave --validation-batch-size out to take the micro-batch, {least}"
        )
    place.console.say(
        f"micro-batch {least} fits (auto): {least} x {share // least} pictures a step in each process, with "
        f"{MARGIN:.0%} of the memory left over; {describe_memory(device)}"
    )
    return replace(loader, plan=replace(plan, batch_size=least, accumulate=share // least))


def _find_for_run(recipe: Recipe, splits: Splits, share: int, place: Place) -> tuple[int, bool]:
    """The largest micro-batch of this process, 0 if none fits, and whether the validation batch asked for fits."""
    device, eval_size = place.device, recipe.eval.batch_size
    trial = _build_trial(recipe, splits.num_classes, place)
    if trial is None:
        return 0, False

    def attempt(size: int) -> None:
        trial.train(size, share // size)
        if splits.val is not None and eval_size is None:
            trial.validate(size)

    found = find_largest(list_splits(share, share + 1), attempt, device)
    if not found or splits.val is None or eval_size is None:
        return found or 0, True
    return found, find_largest([eval_size], trial.validate, device) is not None


def _build_trial(recipe: Recipe, num_classes: int, place: Place) -> Trial | None:
    """None: network and optimizer alone are too large."""
    try:
        return Trial(recipe, num_classes, place)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


@dataclass(frozen=True)
class Shortage:
    """When memory was full, and for what: plain values, so that nothing of the run is kept alive."""

    moment: str
    trains: bool
    """Not a job that validates only."""
    peak_bytes: int
    num_classes: int
    plan: BatchPlan
    size_px: int
    eval_batch: int | None
    """Pictures of the validation batch, if it was that."""
    saves: bool


def note_shortage(run: Run, work: Callable[[], None], *, trains: bool = True) -> Shortage | None:
    """Do some of a run's work; what there is to know if memory was full, else None."""
    try:
        work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        progress, data = run.state.progress, run.recipe.data
        validates = not trains or progress.epoch_is_trained
        behind = f" behind step {progress.step:,}" if trains else ""
        return Shortage(
            moment=f"in the validation{behind}" if validates else f"in step {progress.step + 1:,}",
            trains=trains,
            peak_bytes=peak_bytes(run.device),
            num_classes=run.num_classes,
            plan=run.plan,
            size_px=build_geometry(data).size_px if validates else build_sizes(data).size_at(progress.epoch),
            eval_batch=settle_eval_batch(run.recipe, run.plan.batch_size) if validates else None,
            saves=run.saver is not None,
        )
    return None


def explain_shortage(recipe: Recipe, place: Place, shortage: Shortage) -> DeviceError:
    """What to do about it: what fits is tried, so the run that ended must be gone, and with it what it held."""
    device, plan = place.device, shortage.plan
    free_memory(device)
    used = f", {shortage.peak_bytes / 2**30:.1f} of them in use at the height" if shortage.peak_bytes else ""
    pictures = shortage.eval_batch or plan.batch_size
    go_on = "; nothing that was saved is lost: go on with --resume auto" if shortage.saves else ""
    return DeviceError(
        f"out of memory {shortage.moment}, with {pictures} pictures of {shortage.size_px} px at once, on "
        f"{describe_memory(device)}{used}: {_find_remedy(recipe, place, shortage)}{go_on}"
    )


def _find_remedy(recipe: Recipe, place: Place, shortage: Shortage) -> str:
    plan, device = shortage.plan, place.device
    share = plan.batch_size * plan.accumulate
    flag = "--micro-batch" if shortage.eval_batch is None else "--validation-batch-size"
    if not can_be_measured(device):
        return f"use a smaller {flag}"
    nothing = f"not even one picture fits: {_LESS}"
    trial = _build_trial(recipe, shortage.num_classes, place)
    if trial is None:
        return nothing
    if shortage.eval_batch is None:
        found = _find_for_training(trial, share, plan.batch_size)
        if not found:
            return nothing
        return f"{flag} {found}, or auto, fits and takes the same steps ({found} x {share // found} in each process)"
    if shortage.trains:
        _find_for_training(trial, share, plan.batch_size + 1)  # the optimizer's state is there in a validation too
    halves = [shortage.eval_batch >> i for i in range(1, shortage.eval_batch.bit_length())]
    found = find_largest(halves, trial.validate, device)
    return f"{flag} {found} fits" if found else nothing


def _find_for_training(trial: Trial, share: int, below: int) -> int | None:
    return find_largest(list_splits(share, below), lambda size: trial.train(size, share // size), trial.place.device)
