"""Whether a run's network can be compiled: tried on a throw-away one, before anything is written."""

from __future__ import annotations

from cspnet.cli.build_run import Place
from cspnet.cli.trial import Trial
from cspnet.data.sampler import BatchPlan
from cspnet.errors import UserError
from cspnet.recipe.schema import Recipe
from cspnet.runtime.device import load_compiler
from cspnet.runtime.distributed import gather_objects
from cspnet.runtime.memory import is_out_of_memory

__all__ = ["settle_compile"]


def settle_compile(recipe: Recipe, num_classes: int, plan: BatchPlan, place: Place) -> bool:
    """Whether to compile: train.compile asks for it, and in every process a compiled step has gone through.

    A compiler fails late: its first step builds the forward pass, and the backward pass when that is needed. What it
    made in the trial lies in its cache, where the run's own network finds it.
    """
    if not recipe.train.compile:
        return False
    load_compiler()
    import torch._dynamo

    place.console.say("compiling the network (train.compile): a minute or more ...")
    with torch._dynamo.config.patch(suppress_errors=False):
        own = _try(recipe, num_classes, plan, place)
    failures = [reason for reason in gather_objects(place.world, own) if reason]
    if failures:
        place.console.warn(f"train.compile: it cannot be compiled, and runs as it is: {failures[0]}")
        return False
    torch._dynamo.config.suppress_errors = True  # another size may fail yet: then that part runs as it is
    return True


def _try(recipe: Recipe, num_classes: int, plan: BatchPlan, place: Place) -> str:
    """Why a compiled step fails, in a line; empty if it does not, or if that is for the run's own step to tell."""
    # CUDA graphs are recorded in the second step, and played in the third.
    steps = 3 if recipe.train.compile_mode in ("reduce-overhead", "max-autotune") else 1
    try:
        Trial(recipe, num_classes, place, compiled=True).train(plan.batch_size, plan.accumulate, steps)
    except Exception as error:  # a compiler's errors have no kind of their own
        if is_out_of_memory(error) or isinstance(error, UserError):
            return ""
        cause = getattr(error, "inner_exception", error)  # torch._dynamo.exc.BackendCompilerFailed wraps it
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
    return ""
