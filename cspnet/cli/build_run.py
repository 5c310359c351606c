"""Everything the loop works with, from a recipe, its pictures and a state."""

from __future__ import annotations

import functools
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import cspnet
from cspnet.cli import build
from cspnet.cli.metering import build_meter, build_trace
from cspnet.cli.resume import restore
from cspnet.cli.run_folder import Start
from cspnet.data.loader import TrainLoader
from cspnet.data.policies import Eraser
from cspnet.data.sampler import BatchPlan
from cspnet.errors import RunFolderError
from cspnet.optim.losses import build_loss
from cspnet.optim.optimizers import peak_lr
from cspnet.optim.schedule import build_schedule
from cspnet.recipe.load import recipe_to_values, recipe_to_yaml
from cspnet.recipe.schema import CheckpointRecipe, Recipe
from cspnet.reporting.console import Console
from cspnet.reporting.run_report import BadImageLog, RunReport
from cspnet.runtime.distributed import World, hurry, on_main
from cspnet.runtime.signals import StopRequest
from cspnet.training.checkpoint import FORMAT, find_checkpoint, forget_later, read_checkpoint
from cspnet.training.meter import Meter
from cspnet.training.run import Run
from cspnet.training.saving import Saver
from cspnet.training.state import TrainState
from cspnet.training.watching import Watch

__all__ = ["Place", "build_run", "count_steps", "describe_computing"]


@dataclass(frozen=True)
class Place:
    """Where a run is computed, and where it speaks."""

    world: World
    device: torch.device
    amp_dtype: torch.dtype
    """Of autocast; float32 means none."""
    console: Console
    compiles: bool = False
    """Whether what is trained is compiled."""


def count_steps(recipe: Recipe, loader: TrainLoader) -> int:
    """Steps of the whole run."""
    return recipe.train.steps or recipe.train.epochs * loader.plan.steps_per_epoch


def build_run(
    recipe: Recipe,
    splits: build.Splits,
    state: TrainState,
    loader: TrainLoader,
    place: Place,
    stop: StopRequest,
    *,
    folder: Path | None = None,
    resumed: bool = False,
    dry_run: bool = False,
    profile_steps: int = 0,
) -> Run:
    """What `fit` takes.

    Args:
        stop: what may end the run early.
        folder: the run's folder; None writes nothing.
        resumed: the state comes from a checkpoint: records begin behind its step.
        dry_run: one more step and one validation batch.
        profile_steps: steps to record; there must be a folder for them.
    """
    world, device, plan = hurry(place.world, recipe.train.timeout_s), place.device, loader.plan
    bad_images = BadImageLog(folder, place.console, state.bad_images)
    validate = None
    if splits.val is not None:
        validate = build.build_validation(
            recipe,
            splits.val,
            world=world,
            device=device,
            amp_dtype=place.amp_dtype,
            report_bad=lambda bad: bad_images.add(bad, "counted as wrong in validation"),
            micro_batch=plan.batch_size,
            one_batch=dry_run,
        )
    total_steps = count_steps(recipe, loader)
    lr_at = build_schedule(
        recipe.schedule,
        peak_lr=peak_lr(recipe.optim, plan.global_batch_size),
        total_steps=total_steps,
        steps_per_epoch=plan.steps_per_epoch,
    )
    if dry_run:
        total_steps, recipe = state.progress.step + 1, replace(recipe, log=replace(recipe.log, every_steps=1))
    meter = Meter(world, device, plan)
    if folder is not None and world.is_main:
        meter = build_meter(recipe, state.model, plan, world, device, place.amp_dtype)
        if profile_steps:
            steps_left = total_steps - state.progress.step
            meter.trace = build_trace(folder, device, profile_steps, steps_left, place.console)
    return Run(
        state=state,
        network=build.build_network(
            state.model, world, device, compile_mode=recipe.train.compile_mode if place.compiles else None
        ),
        recipe=recipe,
        num_classes=splits.num_classes,
        loader=loader,
        prepare=build.build_normalizer(recipe, device),
        erase=Eraser(recipe.augment, device),
        loss_fn=build_loss(recipe.loss),
        lr_at=lr_at,
        total_steps=total_steps,
        validate=validate,
        world=world,
        device=device,
        amp_dtype=place.amp_dtype,
        report=_open_report(recipe, state, place, folder, resumed=resumed),
        meter=meter,
        bad_images=bad_images,
        folder=folder,
        roll_back=functools.partial(_roll_back, place=place),
        saver=_build_saver(folder / "checkpoints", recipe.checkpoint, place.console) if folder else None,
        stop=stop,
        watch=build_watch(recipe, splits, place),
        checkpoint_header=_checkpoint_header(recipe, splits, plan, place),
    )


def build_watch(recipe: Recipe, splits: build.Splits, place: Place) -> Watch:
    """What TensorBoard shows besides numbers."""
    return Watch(
        recipe.log,
        build.build_normalizer(recipe, place.device),
        place.amp_dtype,
        splits.train.classes or [str(number) for number in range(splits.num_classes)],
        functools.partial(build.take_sample, recipe, splits.val) if splits.val is not None else None,
    )


def _open_report(recipe: Recipe, state: TrainState, place: Place, folder: Path | None, *, resumed: bool) -> RunReport:
    """The files of a run that goes on behind the state's step.

    Raises:
        RunFolderError: they cannot be written.
    """
    try:
        return RunReport(
            place.console,
            folder if place.world.is_main else None,
            step=state.progress.step if resumed else -1,
            is_ended=not state.progress.epoch_is_trained,
            epochs=state.progress.epoch,
            recipe=recipe_to_yaml(recipe),
            tensorboard=recipe.log.tensorboard,
        )
    except OSError as error:
        raise RunFolderError(f"{folder}: its records cannot be written: {error.strerror}; nothing was lost") from error


def _roll_back(run: Run, place: Place) -> Path | None:
    """See `Run.roll_back`."""

    def find() -> Path | None:
        if run.folder is None:
            return None
        found = find_checkpoint(run.folder / "checkpoints", place.console.warn, behind_good_step=True)
        if found is None:
            return None
        forget_later(found[0])
        return found[0]

    file = on_main(run.world, find)
    if file is not None:
        restore(
            run.state, read_checkpoint(file), run.recipe.train.seed, run.world, Start(run.folder, file), place.console
        )
        run.report.close()
        run.report = _open_report(run.recipe, run.state, place, run.folder, resumed=True)
    return file


def _build_saver(folder: Path, cfg: CheckpointRecipe, console: Console) -> Saver:
    keep = None if cfg.keep == "all" else cfg.keep
    return Saver(folder, keep=keep, max_failures=cfg.max_failures, warn=console.warn_own)


def describe_computing(plan: BatchPlan, place: Place) -> dict[str, Any]:
    """What numbers depend on, besides the versions and the recipe.

    Their last bits: hardware, precision, and on a CPU the threads. Who is mixed with whom: the size of a forward pass.
    """
    is_cuda, is_cpu = place.device.type == "cuda", place.device.type == "cpu"
    return {
        "device": torch.cuda.get_device_name(place.device) if is_cuda else place.device.type,
        "pictures a forward pass": plan.batch_size,
        "precision": str(place.amp_dtype).removeprefix("torch."),
        "compiled": place.compiles,
        **({"threads": torch.get_num_threads()} if is_cpu else {}),
    }


def _checkpoint_header(recipe: Recipe, splits: build.Splits, plan: BatchPlan, place: Place) -> dict[str, Any]:
    geometry = build.build_geometry(recipe.data)
    eval_cfg = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(geometry).items()}
    return {
        "format": FORMAT,
        "arch": recipe.model.name,
        "num_classes": splits.num_classes,
        "classes": list(splits.train.classes),
        "recipe": recipe_to_values(recipe),
        "eval_cfg": eval_cfg,
        "global_batch_size": plan.global_batch_size,
        "data": {"num_samples": len(splits.train), "fingerprint": splits.train.fingerprint},
        "versions": {
            "cspnet": cspnet.__version__,
            "torch": str(torch.__version__),
            "python": sys.version.split()[0],
        },
        "computed_on": describe_computing(plan, place),
    }
