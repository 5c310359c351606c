"""Whether a step gives the same bits twice, and whether a run goes on where the same bits come out."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from cspnet.cli.build_run import Place, describe_computing
from cspnet.cli.trial import Trial
from cspnet.data.sampler import BatchPlan
from cspnet.errors import DeviceError
from cspnet.recipe.schema import Recipe
from cspnet.runtime.distributed import gather_objects

__all__ = ["check_repeatable", "say_other_machine"]


def check_repeatable(
    recipe: Recipe, num_classes: int, plan: BatchPlan, place: Place, *, compiled: bool = False
) -> None:
    """For train.deterministic: take the same step twice, on throw-away networks, and compare every weight.

    PyTorch refuses what it knows to vary; this finds what it does not know, and says early what it refuses.

    Raises:
        DeviceError: some bits differ.
    """
    if not recipe.train.deterministic:
        return
    different: list[str] = []
    with contextlib.suppress(torch.OutOfMemoryError):  # the run's own step says that better
        first, second = (_take_step(recipe, num_classes, plan, place, compiled) for _ in range(2))
        different = [name for name, digest in first.items() if second[name] != digest]
    names = sorted(set().union(*gather_objects(place.world, different)))
    if names:
        raise DeviceError(
            f"--deterministic: two equal steps on {place.device} gave different bits in {names[0]} and "
            f"{len(names) - 1} other tensors; choose another --model or option of it, or leave it out"
        )
    place.console.say("deterministic: two equal steps gave equal bits (docs/BENCHMARKS.md: what it costs)")


def _take_step(recipe: Recipe, num_classes: int, plan: BatchPlan, place: Place, compiled: bool) -> dict[str, bytes]:
    """A digest of each tensor of the network behind a step."""
    trial = Trial(recipe, num_classes, place, compiled=compiled)
    trial.train(plan.batch_size, plan.accumulate, steps=1, lr=0.01)
    tensors = trial.state.model.state_dict()
    return {name: hashlib.sha256(tensor.cpu().numpy().tobytes()).digest() for name, tensor in tensors.items()}


def say_other_machine(checkpoint: Mapping[str, Any], plan: BatchPlan, place: Place) -> None:
    """Warn if a run goes on where its numbers come out differently: other hardware, threads, versions or passes."""
    saved = checkpoint.get("computed_on")
    if saved is None:  # an older checkpoint
        return
    before = {"torch": checkpoint["versions"]["torch"], **saved}
    now = {"torch": str(torch.__version__), **describe_computing(plan, place)}
    changes = [f"{key} {before[key]}, now {now[key]}" for key in before.keys() & now.keys() if before[key] != now[key]]
    if changes:
        place.console.warn(
            f"saved with {'; '.join(sorted(changes))}: the same pictures and crops, but not the same numbers to the bit"
        )
