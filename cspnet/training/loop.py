"""The loop.

while the run is not over:
    batches = loader.start_at(epoch, samples_done)         # nothing before them is read
    for step in the rest of the epoch:
        lr = lr_at(step)                                   # a pure function
        train_step(state, micro-batches)                   # no host sync
        every log.every_steps, and at the end of an epoch: one record  # host sync: here, once
        asked to stop: a checkpoint, and out               # all processes alike
        every checkpoint.every_steps: a checkpoint
    validate: raw weights, and their moving average        # asked to stop: out, and it begins anew when resumed
    record, summary row, checkpoint (last, best)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cspnet.data.loader import Batch, TrainLoader
from cspnet.data.mixing import Normalizer, mix_batch, soft_targets
from cspnet.data.policies import Eraser
from cspnet.data.sampler import BatchPlan
from cspnet.errors import DataError, TrainingError, UserError
from cspnet.evaluation.metrics import EvalResult
from cspnet.optim.schedule import count_warmup_steps
from cspnet.recipe.schema import Recipe
from cspnet.reporting.run_report import BadImageLog, RunReport
from cspnet.runtime.distributed import World, broadcast_buffers, gather_objects, on_any_rank, sum_over_ranks
from cspnet.runtime.random import generator_at
from cspnet.runtime.signals import Stopped, StopRequest
from cspnet.training.adversarial import perturb
from cspnet.training.saving import Saver
from cspnet.training.state import TrainState
from cspnet.training.step import train_step

__all__ = ["Run", "fit"]


@dataclass
class Run:
    """What the loop works with; `state` alone changes."""

    state: TrainState
    network: nn.Module
    """The raw model, or its data-parallel view."""
    recipe: Recipe
    num_classes: int
    loader: TrainLoader
    prepare: Normalizer
    erase: Eraser
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    lr_at: Callable[[int], float]
    total_steps: int
    validate: Callable[..., EvalResult] | None
    """Of a model, and of what is called between batches; None when there is no validation split."""
    world: World
    device: torch.device
    amp_dtype: torch.dtype
    report: RunReport
    bad_images: BadImageLog
    saver: Saver | None
    """None saves nothing (a dry run); the first process's is the one that writes."""
    stop: StopRequest
    checkpoint_header: dict[str, Any]
    """What a checkpoint holds besides the state: recipe, geometry, class names, versions."""

    @property
    def plan(self) -> BatchPlan:
        """How the pictures are shared out."""
        return self.loader.plan

    @property
    def epochs(self) -> int:
        """Epochs of the whole run; the last one may be cut short by train.steps."""
        return -(-self.total_steps // self.plan.steps_per_epoch)


class _Clock:
    """Time since the last record, and how much of it was spent waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.started_s = time.perf_counter()
        self.data_s = 0.0
        self.steps = 0

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started_s


def fit(run: Run) -> None:
    """Train until the recipe's length is reached, from wherever `run.state.progress` stands.

    Raises:
        Stopped: `run.stop` was made; there is a checkpoint of the last step, from which the run goes on as if it had
            not been stopped.
        RunFolderError: checkpoints cannot be written any more, or the last one could not.
    """
    progress = run.state.progress
    if progress.is_over(run.total_steps):
        return
    batches = run.loader.start_at(progress.epoch, progress.samples_done)
    try:
        while not progress.is_over(run.total_steps):
            if not progress.epoch_is_trained:
                _train_epoch(run, batches)
            _end_epoch(run)
        _finish_saving(run)
    except Stopped as stopped:
        _save(run, is_best=False)
        _finish_saving(run)
        saved = "saved: go on with --resume auto" if run.saver else "nothing was to be saved"
        raise Stopped(f"{stopped} behind step {progress.step:,}; {saved}") from None
    finally:
        if run.saver:
            run.saver.wait()


def _stop_if_asked(run: Run) -> None:
    """Raises Stopped on all processes if a signal has reached any."""
    if on_any_rank(run.world, run.stop.is_made):
        raise Stopped(f"stopped by {run.stop.signal_name or 'a signal to another process'}")


def _train_epoch(run: Run, batches: Iterator[Batch]) -> None:
    """The rest of the current epoch, or of the run."""
    progress, cfg = run.state.progress, run.recipe
    steps_per_epoch, global_batch_size = run.plan.steps_per_epoch, run.plan.global_batch_size
    console = run.report.console
    first_step = progress.samples_done // global_batch_size
    last_step = min(steps_per_epoch, first_step + run.total_steps - progress.step)
    console.start_epoch(progress.epoch + 1, run.epochs, first_step, steps_per_epoch)
    run.state.model.train()
    clock = _Clock()
    for step_in_epoch in range(first_step, last_step):
        totals = train_step(
            run.state,
            run.network,
            _micro_batches(run, batches, clock),
            lr=run.lr_at(progress.step),
            accumulate=run.plan.accumulate,
            amp_dtype=run.amp_dtype,
            clip_norm=cfg.optim.clip_norm,
            loss_fn=run.loss_fn,
        )
        run.state.window.add(totals)
        run.state.epoch_sums.add(totals)
        progress.step += 1
        progress.samples_done += global_batch_size
        clock.steps += 1
        console.advance()
        if progress.step % cfg.log.every_steps == 0 or step_in_epoch + 1 == last_step:
            _log(run, clock, step_in_epoch + 1)
        progress.epoch_is_trained = step_in_epoch + 1 == last_step
        _stop_if_asked(run)
        every = cfg.checkpoint.every_steps
        if every and progress.step % every == 0 and step_in_epoch + 1 < last_step:
            _save(run, is_best=False)
    console.end_epoch()


def _micro_batches(run: Run, batches: Iterator[Batch], clock: _Clock) -> Iterator[tuple[Tensor, Tensor]]:
    """The micro-batches of one step, on the device: normalised, erased, mixed, changed against the network."""
    cfg, step = run.recipe, run.state.progress.step
    for micro in range(run.plan.accumulate):
        waiting_since_s = time.perf_counter()
        batch = next(batches)
        clock.data_s += time.perf_counter() - waiting_since_s
        if batch.bad:
            _handle_bad(run, batch)
        images = run.prepare(batch.images)
        targets = batch.targets.to(run.device, non_blocking=True)
        soft = soft_targets(targets, run.num_classes, cfg.loss.smoothing, cfg.loss.smoothing_over)
        # The address names the slice of the global batch, so that the split over processes does not change the draws.
        address = (step, micro * run.world.size + run.world.rank)
        images = run.erase(images, generator_at(cfg.train.seed, "erase", *address))
        if not cfg.mix.off_epoch or run.state.progress.epoch < cfg.mix.off_epoch:
            images, soft = mix_batch(images, soft, generator_at(cfg.train.seed, "mix", *address), cfg.mix)
        yield _perturb(run, images, address), soft


def _perturb(run: Run, images: Tensor, address: tuple[int, int]) -> Tensor:
    """Self-adversarial training, when it is on: half of the micro-batches behind the warm-up."""
    cfg, iteration = run.recipe, run.state.progress.step + 1
    if not cfg.adversarial.lr or iteration <= count_warmup_steps(cfg.schedule, run.plan.steps_per_epoch):
        return images
    if generator_at(cfg.train.seed, "adversarial", *address).random() >= 0.5:
        return images
    return perturb(
        run.state.model,
        images,
        step_size=cfg.adversarial.lr * iteration / run.total_steps,
        mean=run.prepare.mean,
        std=run.prepare.std,
        amp_dtype=run.amp_dtype,
    )


def _handle_bad(run: Run, batch: Batch) -> None:
    first = batch.bad[0]
    if run.recipe.data.bad_images == "raise":
        raise DataError(f"{first.path}: cannot be read: {first.reason} (data.bad_images is raise)")
    run.bad_images.add(batch.bad, "replaced by the next readable picture")
    if not len(batch.images):
        raise DataError(
            f"{first.path}: cannot be read, nor can the {len(batch.bad) - 1} pictures after it: {first.reason}"
        )


def _log(run: Run, clock: _Clock, steps_in_epoch: int) -> None:
    """One record of the steps since the last one."""
    progress = run.state.progress
    sums = sum_over_ranks(run.world, run.state.window.values.clone())
    loss_sum, correct1, correct5, count = sums.tolist()  # host sync: once a record
    _check_finite(run, [loss_sum])
    run.state.window.reset()
    elapsed_s = clock.elapsed_s
    record = {
        "step": progress.step,
        "epoch": progress.epoch,
        "train/loss": loss_sum / count,
        "train/acc1": 100 * correct1 / count,
        "train/acc5": 100 * correct5 / count,
        "train/lr": run.lr_at(progress.step - 1),
        "train/images_per_s": clock.steps * run.plan.global_batch_size / elapsed_s,
        "train/data_wait_ratio": min(1.0, clock.data_s / elapsed_s),
    }
    run.report.write(record)
    run.report.console.show_record(
        record,
        epochs=run.epochs,
        step_in_epoch=steps_in_epoch,
        steps=run.plan.steps_per_epoch,
        eta_s=(run.total_steps - progress.step) * elapsed_s / clock.steps,
    )
    clock.restart()


def _check_finite(run: Run, sums: list[float]) -> None:
    """Stop before a broken network is saved over good ones; the sums are those of all processes, or of each."""
    if not all(map(math.isfinite, sums)):
        raise TrainingError(
            f"the loss is not finite any more at step {run.state.progress.step}; the checkpoints are from before: "
            "go on from one with --resume auto and a lower --lr, a longer warm-up, --clip-grad or --precision fp32"
        )


def _end_epoch(run: Run) -> None:
    """Validate, write the epoch's record, save."""
    progress, cfg = run.state.progress, run.recipe
    is_last = progress.step >= run.total_steps
    loss_sum, correct1, _, count = sum_over_ranks(run.world, run.state.epoch_sums.values.clone()).tolist()  # host sync
    _check_finite(run, [loss_sum])
    record: dict[str, Any] = {
        "step": progress.step,
        "epoch": progress.epoch,
        "train/epoch_loss": loss_sum / count,
        "train/epoch_acc1": 100 * correct1 / count,
    }
    result: EvalResult | None = None
    if run.saver:
        run.saver.wait()  # a validation forks its reading processes
    if run.validate and (is_last or (progress.epoch + 1) % cfg.eval.every_epochs == 0):
        broadcast_buffers(run.world, run.state.model)
        result = run.validate(run.state.model, lambda: _stop_if_asked(run))
        record |= {"val/loss": result.loss, "val/acc1": result.acc1, "val/acc5": result.acc5}
        record["val/unreadable"] = result.num_unreadable
        text = f"epoch {progress.epoch + 1}/{run.epochs} validated:{result}"
        if result.num_unreadable:
            text += f" ({result.num_unreadable} of {result.num_samples} pictures cannot be read and count as wrong)"
        if run.state.ema:
            broadcast_buffers(run.world, run.state.ema.module)
            result = run.validate(run.state.ema.module, lambda: _stop_if_asked(run))
            record |= {"val_ema/loss": result.loss, "val_ema/acc1": result.acc1, "val_ema/acc5": result.acc5}
            text += f"  moving average:{result}"
        run.report.console.say(text)
    # With a moving average, that is what one takes home, so it decides which epoch is best.
    is_best = result is not None and progress.rank(result.acc1, cfg.checkpoint.keep_best)
    record["data/bad_images"] = sum(gather_objects(run.world, len(run.bad_images.seen)))
    run.report.write(record)
    run.report.write_epoch(
        {
            "epoch": progress.epoch,
            "train_loss": loss_sum / count,
            "eval_loss": result.loss if result else "",
            "eval_top1": result.acc1 if result else "",
            "eval_top5": result.acc5 if result else "",
            "lr": run.lr_at(progress.step - 1),
        }
    )
    run.state.epoch_sums.reset()
    if progress.samples_done + run.plan.global_batch_size > run.plan.num_samples:
        progress.epoch, progress.samples_done = progress.epoch + 1, 0
    progress.epoch_is_trained = False
    _save(run, is_best=is_best)


def _save(run: Run, *, is_best: bool) -> None:
    """A checkpoint, written by the first process with what the others have for themselves, while the run goes on."""
    failure = run.saver.find_failure() if run.saver and run.world.is_main else None
    shares = gather_objects(run.world, (run.state.rank_to_dict(), failure))
    _raise_for_all(shares[0][1])
    ranks = [share for share, _ in shares]
    _check_finite(run, [share[name][0] for share in ranks for name in ("window", "epoch_sums")])
    if run.saver is None or not run.world.is_main:
        return
    progress = run.state.progress
    content = {**run.checkpoint_header, **run.state.to_dict(), "ranks": ranks}
    content["epoch"] = progress.epoch
    run.saver.save(content, step=progress.step, is_best=is_best, protected=progress.ranking)


def _finish_saving(run: Run) -> None:
    """Wait until the last checkpoint is written; if it could not be, the run ends with that."""
    if run.saver is not None:
        failure = run.saver.find_failure(is_last=True) if run.world.is_main else None
        _raise_for_all(gather_objects(run.world, failure)[0])


def _raise_for_all(failure: Exception | None) -> None:
    """Raise the first process's failure on all of them."""
    if isinstance(failure, UserError):
        failure.shared = True
    if failure is not None:
        raise failure
