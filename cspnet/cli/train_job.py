"""train.py behind its command line: from a parsed command line to the objects that `fit` works with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cspnet.cli import build
from cspnet.cli.batch_size import settle_batch_size
from cspnet.cli.build_run import Place, build_run, count_steps
from cspnet.cli.compiling import settle_compile
from cspnet.cli.metering import keep_speed, say_speed
from cspnet.cli.micro_batch import Shortage, explain_shortage, note_shortage, settle_micro_batch
from cspnet.cli.repeating import check_repeatable, say_other_machine
from cspnet.cli.resume import check_checkpoint, check_same_run, restore, say_differences
from cspnet.cli.run_folder import CHECKPOINT_SOURCE, Start, find_start, prepare_folder, refuse_among_pictures
from cspnet.data.jpeg import IS_INSTALLED
from cspnet.data.loader import TrainLoader
from cspnet.errors import EXIT_DONE, CheckpointError, DataError, RecipeError, UserError, shared_errors
from cspnet.models.depth import list_parts
from cspnet.optim.optimizers import peak_lr
from cspnet.optim.schedule import count_warmup_steps
from cspnet.recipe.checks import list_idle
from cspnet.recipe.load import COMMAND_LINE, ResolvedRecipe, load_recipe
from cspnet.recipe.schema import Recipe
from cspnet.reporting.console import Console
from cspnet.runtime.determinism import deterministic_algorithms
from cspnet.runtime.device import choose_amp_dtype, choose_device
from cspnet.runtime.distributed import join_world, on_main, read_world
from cspnet.runtime.folder_lock import FolderLock
from cspnet.runtime.heap import keep_freed_memory
from cspnet.runtime.memory import told_shortage
from cspnet.runtime.signals import Stopped, StopRequest
from cspnet.training.checkpoint import check_parts, read_checkpoint
from cspnet.training.loop import fit
from cspnet.training.run import Run
from cspnet.training.state import TrainState
from cspnet.weights import load_weights

__all__ = ["TrainJob", "run_train_job"]


@dataclass(frozen=True)
class TrainJob:
    """A parsed command line."""

    recipe_file: Path | None
    overrides: Mapping[str, Any]
    output_dir: Path | None
    resume: str | None
    """None, auto, or a checkpoint file."""
    dry_run: bool
    test_only: bool
    profile_steps: int = 0
    """To record with torch.profiler; it needs a run folder."""

    @property
    def writes(self) -> bool:
        """Whether the job has a run folder."""
        return not (self.dry_run or self.test_only)


@dataclass(frozen=True)
class _Context:
    """What every part of the job needs to know."""

    job: TrainJob
    recipe: Recipe
    sources: Mapping[str, str]
    """{dotted key of the recipe: where its value came from}."""
    start: Start
    checkpoint: Mapping[str, Any] | None
    place: Place
    stop: StopRequest
    lock: FolderLock


def run_train_job(job: TrainJob, stop: StopRequest) -> int:
    """Train, validate only, or take one step; the exit code.

    Raises:
        Stopped: `stop` was made, and everything is saved.
    """
    with shared_errors():
        world = read_world()
        stop.speaks = world.is_main
        console = Console(world.rank, plain=world.launched)
    with FolderLock() as lock, join_world(world) as world:
        start = on_main(
            world, lambda: find_start(job.output_dir, job.resume, writes=job.writes, warn=console.warn, lock=lock)
        )
        checkpoint = read_checkpoint(start.checkpoint_file) if start.checkpoint_file else None
        with shared_errors():
            if checkpoint is not None and start.checkpoint_file is not None:
                check_parts(start.checkpoint_file, checkpoint)
            resolved = _resolve_recipe(job, checkpoint, start, console)
            recipe = resolved.recipe
        with deterministic_algorithms(enabled=recipe.train.deterministic):
            with shared_errors():
                device = choose_device(recipe.train.device, world.local_rank)
                amp_dtype = choose_amp_dtype(recipe.train.precision, device)
                keep_freed_memory(device)
            place = Place(world, device, amp_dtype, console)
            with told_shortage(device, "before the first step", "use a smaller --model, or another --device"):
                shortage = _run(_Context(job, recipe, resolved.sources, start, checkpoint, place, stop, lock))
            if shortage is not None:
                raise explain_shortage(recipe, place, shortage)
    return EXIT_DONE


_MOST_OF_THE_START = 0.1
"""Of a moving average, above which it is no average of a run."""


def _run(context: _Context) -> Shortage | None:
    """Everything is built and checked before the first thing is written. What is returned: memory was full."""
    job, console = context.job, context.place.console
    splits = build.open_splits(context.recipe, context.place.world, console.warn)
    with shared_errors():
        if job.writes:
            refuse_among_pictures(context.start.folder, build.list_picture_folders(context.recipe.data))
        model = _build_model(context, splits)  # what is wrong with weights is told before anything is tried
        if context.recipe.train.batch_size == "auto":
            context = replace(context, sources={**context.sources, "train.batch_size": "auto, tried out at the start"})
        from_checkpoint = (context.recipe, splits, context.place, context.checkpoint)
        context = replace(context, recipe=settle_batch_size(*from_checkpoint, trains=not job.test_only))
        loader = build.build_train_loader(context.recipe, splits, context.place.world, context.place.device)
        if not job.test_only:
            loader = settle_micro_batch(context.recipe, splits, loader, context.place)
            how = (context.recipe, splits.num_classes, loader.plan, context.place)
            context = replace(context, place=replace(context.place, compiles=settle_compile(*how)))
            check_repeatable(*how, compiled=context.place.compiles)
        state = _build_state(context, model)
        _check_lowest_lr(context.recipe, loader)
        if context.checkpoint is not None and not job.test_only:
            check_same_run(context.checkpoint, context.recipe, splits, loader.plan.global_batch_size, context.start)
            say_differences(context.checkpoint["recipe"], context.recipe, console)
            say_other_machine(context.checkpoint, loader.plan, context.place)
    _warn_of_odd_settings(context, splits, loader)
    if context.checkpoint is not None and state.progress.is_over(count_steps(context.recipe, loader)):
        console.say(f"{context.start.checkpoint_file}: the run is finished: {state.progress.step:,} steps are done")
        if not job.test_only:
            context.stop.end()
            return None
    if job.writes:
        what = (job.recipe_file, context.recipe, context.start)
        folder = on_main(
            context.place.world,
            lambda: prepare_folder(
                *what,
                sources=context.sources,
                warn=console.warn,
                lock=context.lock,
            ),
        )
        context = replace(context, start=replace(context.start, folder=folder))
        if context.place.world.is_main:
            console.keep_in(folder / "train.log")
    run = build_run(
        context.recipe,
        splits,
        state,
        loader,
        context.place,
        context.stop,
        folder=context.start.folder,
        resumed=context.checkpoint is not None,
        dry_run=job.dry_run,
        profile_steps=job.profile_steps,
    )
    try:
        if job.test_only:
            if (shortage := note_shortage(run, lambda: _test_only(context, run), trains=False)) is None:
                context.stop.end()
            return shortage
        _say_start(run, splits, context.start, console)
        with context.stop.noted():
            shortage = note_shortage(run, lambda: fit(run))
            if shortage is None:
                context.stop.end()
        if shortage is None:
            if context.start.folder is not None:
                keep_speed(context.start.folder, say_speed(run, splits), run)
            _say_end(run, context.start.folder, console)
        return shortage
    except Stopped as stopped:
        console.keep(str(stopped))  # what is told on the way out does not come by here
        raise
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        console.keep(f"error: {kind}{' '.join(str(error).split())}")
        raise
    finally:
        console.end_epoch()
        run.report.close()


def _build_model(context: _Context, splits: build.Splits) -> nn.Module:
    """The network a run starts with: fresh, from weights, or as a checkpoint's, which is still to be restored."""
    recipe, checkpoint, start = context.recipe, context.checkpoint, context.start
    model = build.build_model(recipe, splits.num_classes, context.place.device)
    if checkpoint is not None:
        check_checkpoint(checkpoint, recipe, splits, start)
    elif recipe.model.pretrained:
        report = load_weights(
            model,
            recipe.model.pretrained,
            recipe.model.pretrained_source,
            num_classes=recipe.model.pretrained_classes,
        )
        context.place.console.say(str(report))
        geometry = build.build_geometry(recipe.data)
        if context.job.test_only and report.preprocessing and not geometry.is_for(report.preprocessing):
            context.place.console.warn(
                f"the pictures are those of the recipe ({geometry}), not those that the weights were made for; "
                "validate.py --weights FILE takes these"
            )
        elif report.preprocessing and not geometry.has_colors_of(report.preprocessing):
            mean, std = (" ".join(f"{value:g}" for value in values) for values in report.preprocessing.colors)
            context.place.console.warn(
                f"the weights were made for other colours; to give them these: --mean {mean} --std {std}"
            )
    return model


def _build_state(context: _Context, model: nn.Module) -> TrainState:
    """The state a run starts from, with a checkpoint's restored. It seeds the generators."""
    recipe, checkpoint, start = context.recipe, context.checkpoint, context.start
    if recipe.train.sync_bn:
        model = build.convert_sync_bn(model, context.place.device)
    state = build.build_state(recipe, model, context.place.world, context.place.device, context.place.amp_dtype)
    if checkpoint is not None:
        restore(state, checkpoint, recipe.train.seed, context.place.world, start, context.place.console)
    return state


def _check_lowest_lr(recipe: Recipe, loader: TrainLoader) -> None:
    peak, lowest = peak_lr(recipe.optim, loader.plan.global_batch_size), recipe.schedule.min_lr
    if lowest > peak:
        raise RecipeError(
            f"schedule.min_lr: {lowest} is above the peak of {peak:g}: optim.lr {recipe.optim.lr:g} for "
            f"{recipe.optim.lr_base_size} pictures, scaled to {loader.plan.global_batch_size}"
        )


def _warn_of_classes_without_validation(splits: build.Splits, console: Console) -> None:
    if splits.val is None:
        return
    trained, validated = (
        np.bincount(index.labels, minlength=splits.num_classes) > 0 for index in (splits.train, splits.val)
    )
    missing, names = np.flatnonzero(trained & ~validated), splits.train.classes or splits.val.classes
    if len(missing):
        few = ", ".join(names[i] if names else str(i) for i in missing[:3]) + ", ..." * (len(missing) > 3)
        console.warn(f"{len(missing)} of {splits.num_classes} classes have no pictures to validate ({few})")


def _warn_of_odd_settings(context: _Context, splits: build.Splits, loader: TrainLoader) -> None:
    cfg, console, plan = context.recipe, context.place.console, loader.plan
    if splits.num_classes == 1:
        console.warn("there is one class only: there is nothing to learn")
    if cfg.model.freeze and not cfg.model.pretrained and context.checkpoint is None:
        console.warn("model.freeze: what is frozen is as it was drawn; start from weights, with --pretrained FILE")
    unseen = splits.num_classes - len(np.unique(splits.train.labels))
    if unseen > 0:
        console.warn(f"{unseen} of {splits.num_classes} classes have no pictures to train on: are the labels right?")
    _warn_of_classes_without_validation(splits, console)
    if cfg.data.decoder == "fast" and not IS_INSTALLED:
        console.warn(
            "data.decoder: simplejpeg is not installed: JPEGs are decoded whole, by Pillow, slower and with "
            "other pixels where data.shrink would have decoded a smaller picture"
        )
    if context.job.test_only:
        return
    warmup_steps = count_warmup_steps(cfg.schedule, plan.steps_per_epoch)
    total_steps = count_steps(cfg, loader)
    if warmup_steps >= total_steps:
        console.warn(
            f"the warm-up takes {warmup_steps:,} steps and the whole run {total_steps:,}: lr never gets to its peak"
        )
    kept = cfg.ema.decay**total_steps if cfg.ema.decay and not cfg.ema.warmup else 0.0
    if kept > _MOST_OF_THE_START:
        console.warn(
            f"ema.decay: {cfg.ema.decay:g} is slow for {total_steps:,} steps: at the end {kept:.0%} of the moving "
            "average are the weights of the start; use --ema.warmup true, or a smaller one"
        )
    if cfg.data.train_crop == "darknet" and cfg.darknet.min_crop_px > 2 * cfg.data.train_px:
        console.warn(
            f"darknet.min_crop_px: the shorter side becomes {cfg.darknet.min_crop_px} to {cfg.darknet.max_crop_px} px, "
            f"of which {cfg.data.train_px} px are seen: set both sizes to suit data.train_px"
        )
    epochs = -(-total_steps // plan.steps_per_epoch)
    late = [epoch for epoch in cfg.schedule.milestones_epochs if epoch >= epochs]
    if cfg.schedule.name == "multistep" and late:
        console.warn(f"schedule.milestones_epochs: {late[0]:g} is not reached in a run of {epochs} epochs")
    if cfg.mix.is_on and cfg.mix.off_epoch > epochs:
        console.warn(f"mix.off_epoch: {cfg.mix.off_epoch} is not reached in a run of {epochs} epochs")
    if cfg.data.ramp_epochs[1] >= epochs:
        console.warn(
            f"the pictures grow until epoch {cfg.data.ramp_epochs[1] + 1} and the run has {epochs}: none is of "
            f"{cfg.data.train_px} px"
        )
    if plan.batch_size == 1 and (cfg.mix.cutmix_alpha or cfg.mix.mixup_alpha or cfg.mix.darknet != "none"):
        console.warn("a batch of one picture has no other to mix it with: mixing does nothing")


def _resolve_recipe(
    job: TrainJob, checkpoint: Mapping[str, Any] | None, start: Start, console: Console
) -> ResolvedRecipe:
    """The recipe of the run. A resumed run without --recipe goes on by its own.

    A setting of the command line or of the file itself that does nothing is named; what lies further down may be meant
    for other recipes.
    """
    below = []
    if checkpoint is not None and not job.recipe_file:
        below = [(f"{CHECKPOINT_SOURCE}{start.checkpoint_file}", checkpoint["recipe"])]
    resolved = load_recipe(job.recipe_file, job.overrides, below)
    for key, needs in list_idle(resolved.recipe):
        if resolved.sources[key] in (COMMAND_LINE, str(job.recipe_file)):
            console.warn(f"{key}: does nothing here; it needs {needs}")
    return replace(resolved, recipe=build.embed_cfg(resolved.recipe))


def _test_only(context: _Context, run: Run) -> None:
    if run.validate is None:
        raise DataError("--test-only: there is no validation split (data.val is null)")
    if context.checkpoint is None and not run.recipe.model.pretrained:
        raise CheckpointError(
            "--test-only: no weights to test; give a checkpoint with --resume or weights with --pretrained"
        )
    context.place.console.say(str(run.validate(run.state.model)))
    if run.state.ema is not None and context.checkpoint is not None:
        context.place.console.say(f"moving average:{run.validate(run.state.ema.module)}")


def _say_start(run: Run, splits: build.Splits, start: Start, console: Console) -> None:
    plan, cfg = run.plan, run.recipe
    params = sum(p.numel() for p in run.state.model.parameters())
    val = f"{len(splits.val):,} to validate" if splits.val is not None else "no validation"
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[run.amp_dtype]
    console.say(
        f"data    {len(splits.train):,} pictures to train, {val}, {splits.num_classes} classes: {cfg.data.root}"
    )
    for name, index in (("training", splits.train), ("validation", splits.val)):
        if index is not None and index.encoding:
            console.say(f"        {name} pictures encoded anew: {index.encoding}")
    left_out = plan.num_samples - plan.steps_per_epoch * plan.global_batch_size
    console.say(f"model   {cfg.model.name}, {params:,} parameters{_describe_parts(run)}")
    console.say(
        f"batch   {plan.global_batch_size} pictures a step ({plan.batch_size} x {plan.accumulate} micro-batches x "
        f"{run.world.size} processes), lr {peak_lr(cfg.optim, plan.global_batch_size):g} {cfg.schedule.name}, "
        f"{count_steps(cfg, run.loader):,} steps, {plan.steps_per_epoch:,} an epoch (pictures left out of an epoch: "
        f"{left_out})"
    )
    console.say(
        f"device  {run.device}, {precision}, {run.loader.workers} workers; "
        f"validation at {build.build_geometry(cfg.data)}"
    )
    console.say(f"folder  {start.folder or 'none: nothing is written'}")
    if start.checkpoint_file:
        progress = run.state.progress
        console.say(
            f"resumed from {start.checkpoint_file}: step {progress.step:,} of {run.total_steps:,}, "
            f"{progress.samples_done:,} pictures into epoch {progress.epoch + 1}"
        )


def _describe_parts(run: Run) -> str:
    """What of the network is frozen or trained slower; empty if nothing is."""
    parts, cfg, text = [name for name, _ in list_parts(run.state.model)], run.recipe, ""
    if run.state.frozen:
        trained = sum(p.numel() for p in run.state.model.parameters() if p.requires_grad)
        text = f"; frozen: {', '.join(parts[: len(run.state.frozen)])}; {trained:,} are trained"
    moving = parts[len(run.state.frozen) :]
    if cfg.optim.layer_decay < 1 and len(moving) > 1:
        text += f"; lr of {moving[0]} {cfg.optim.layer_decay ** (len(moving) - 1):.3g} times that of {moving[-1]}"
    return text


def _say_end(run: Run, folder: Path | None, console: Console) -> None:
    progress = run.state.progress
    if folder is None:
        console.say("dry run done: everything was built, one training step and one validation batch went through")
        return
    if progress.best_acc1 is not None and progress.best_epoch is not None:
        console.say(f"done: best Acc@1 {progress.best_acc1:.3f} in epoch {progress.best_epoch + 1}")
        best = folder / "checkpoints" / "best.pt"  # resumed in a new folder, a run may have none
        file = best if best.exists() else best.with_name("last.pt")
        console.say(f"check it: python3 validate.py --checkpoint {file} --data-path {run.recipe.data.root}")
    else:
        console.say(f"done: {folder / 'checkpoints' / 'last.pt'}")
