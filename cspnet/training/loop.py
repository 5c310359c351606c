"""The loop.

while the run is not over:
    batches = loader.start_at(epoch, samples_done)         # nothing before them is read
    for step in the rest of the epoch:
        lr = lr_at(step)                                   # a pure function
        train_step(state, micro-batches)                   # no host sync; bad numbers change nothing
        look back at the step before                       # skipped? too many in a row: back to a checkpoint, once
        every log.every_steps, and at the end of an epoch: one record, with what the meter says  # host sync: here, once
        asked to stop: a checkpoint, and out               # all processes alike
        every checkpoint.every_steps: a checkpoint
    validate: raw weights, and their moving average        # asked to stop: out, and it begins anew when resumed
    record, summary row, checkpoint (last, best)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from cspnet.data.loader import Batch
from cspnet.data.transforms import build_sizes
from cspnet.errors import RunFolderError, TrainingError, UserError
from cspnet.evaluation.metrics import EvalResult
from cspnet.runtime.distributed import broadcast_buffers, gather_objects, naming_the_missing, sum_over_ranks
from cspnet.runtime.signals import Stopped
from cspnet.training.batches import micro_batches
from cspnet.training.looking_back import TooManySkipped, look_back, roll_back
from cspnet.training.run import Run
from cspnet.training.state import Progress
from cspnet.training.step import train_step

__all__ = ["fit"]


def fit(run: Run) -> None:
    """Train until the recipe's length is reached, from wherever `run.state.progress` stands.

    Raises:
        Stopped: `run.stop` was made; there is a checkpoint of the last step, from which the run goes on as if it had
            not been stopped.
        RunFolderError: checkpoints cannot be written any more, or the last one could not.
        TrainingError: loss or gradients stay broken.
        LostProcessError: another process has died, or does not come.
    """
    try:
        with naming_the_missing(run.world, lambda: _place(run.state.progress)):
            _fit(run)
    finally:
        if run.saver:
            run.saver.wait()


def _place(progress: Progress) -> str:
    """Where the processes meet next."""
    if progress.epoch_is_trained:
        return f"the validation behind step {progress.step:,}"
    return f"step {progress.step + 1:,}" + f" (all had done step {progress.step:,})" * bool(progress.step)


def _fit(run: Run) -> None:
    if run.state.progress.is_over(run.total_steps):
        return
    run.meter.prepare(sum(p.numel() for p in run.state.model.parameters() if p.requires_grad))
    try:
        while not run.state.progress.is_over(run.total_steps):
            with contextlib.suppress(TooManySkipped):
                _train(run)
                continue
            roll_back(run)  # out here, where the batches and their reading processes are gone
        _finish_saving(run)
    except Stopped as stopped:
        run.meter.finish()
        _save(run, is_best=False, is_last=True)
        _finish_saving(run)
        saved = "saved: go on with --resume auto" if run.saver else "nothing was to be saved"
        ended = Stopped(f"{stopped} behind step {run.state.progress.step:,}; {saved}")
        ended.is_saved = True
        raise ended from None


def _train(run: Run) -> None:
    """From where the run stands to its end.

    Raises:
        TooManySkipped: on all processes.
    """
    progress = run.state.progress
    batches = run.loader.start_at(progress.epoch, progress.samples_done)
    while not progress.is_over(run.total_steps):
        if not progress.epoch_is_trained:
            with run.meter.timing(batches, build_sizes(run.recipe.data).size_at(progress.epoch)) as timed:
                _train_epoch(run, timed)
        _end_epoch(run)


def _stop_if_asked(run: Run, *, leave: int = 0) -> None:
    """Look back, too; raises Stopped on all processes if a signal has reached any."""
    if look_back(run, leave=leave):
        raise Stopped(f"stopped by {run.stop.signal_name or 'a signal to another process'}")


def _train_epoch(run: Run, batches: Iterator[Batch]) -> None:
    """The rest of the current epoch, or of the run."""
    progress, cfg = run.state.progress, run.recipe
    steps_per_epoch, global_batch_size = run.plan.steps_per_epoch, run.plan.global_batch_size
    console = run.report.console
    first_step = progress.samples_done // global_batch_size
    last_step = min(steps_per_epoch, first_step + run.total_steps - progress.step)
    console.start_epoch(progress.epoch + 1, run.epochs, first_step, steps_per_epoch)
    run.state.set_training()
    for step_in_epoch in range(first_step, last_step):
        result = train_step(
            run.state,
            run.network,
            micro_batches(run, batches),
            lr=run.lr_at(progress.step),
            accumulate=run.plan.accumulate,
            amp_dtype=run.amp_dtype,
            clip_norm=cfg.optim.clip_norm,
            loss_fn=run.loss_fn,
        )
        run.state.window.add(result.totals)
        run.state.epoch_sums.add(result.totals)
        run.latest.note(progress, result)
        progress.step += 1
        progress.samples_done += global_batch_size
        run.meter.advance()
        console.advance()
        if progress.step % cfg.log.every_steps == 0 or step_in_epoch + 1 == last_step:
            _log(run, step_in_epoch + 1)
        progress.epoch_is_trained = step_in_epoch + 1 == last_step
        _stop_if_asked(run, leave=1)
        if progress.skipped_in_a_row >= cfg.train.max_skipped:
            raise TooManySkipped
        every = cfg.checkpoint.every_steps
        if every and progress.step % every == 0 and step_in_epoch + 1 < last_step:
            _save(run, is_best=False)
    console.end_epoch()
    console.say(f"epoch {progress.epoch + 1}/{run.epochs} trained: {run.meter.describe(run.meter.epoch)}")


def _log(run: Run, steps_in_epoch: int) -> None:
    """One record of the steps since the last one."""
    progress = run.state.progress
    sums = sum_over_ranks(run.world, run.state.window.values.clone())
    loss_sum, correct1, correct5, count = sums.tolist()  # host sync: once a record
    run.state.window.reset()
    spent = run.meter.take()
    if not count:  # all of them were skipped
        return
    record = {
        "step": progress.step,
        "epoch": progress.epoch,
        "train/loss": loss_sum / count,
        "train/acc1": 100 * correct1 / count,
        "train/acc5": 100 * correct5 / count,
        "train/lr": run.lr_at(progress.step - 1),
        **run.meter.figures(spent),
    }
    run.report.write(record)
    run.report.console.show_record(
        record,
        epochs=run.epochs,
        step_in_epoch=steps_in_epoch,
        steps=run.plan.steps_per_epoch,
        eta_s=(run.total_steps - progress.step) * spent.elapsed_s / spent.steps,
    )


def _end_epoch(run: Run) -> None:
    """Validate, write the epoch's record, save."""
    progress, cfg = run.state.progress, run.recipe
    is_last = progress.step >= run.total_steps
    loss_sum, correct1, _, count = sum_over_ranks(run.world, run.state.epoch_sums.values.clone()).tolist()  # host sync
    look_back(run, leave=0)
    if progress.skipped_in_a_row >= cfg.train.max_skipped:
        raise TooManySkipped
    record: dict[str, Any] = {
        "step": progress.step,
        "epoch": progress.epoch,
        "train/epoch_loss": loss_sum / count if count else None,
        "train/epoch_acc1": 100 * correct1 / count if count else None,
        "train/skipped": progress.skipped,
    }
    result: EvalResult | None = None
    if run.saver:
        run.saver.wait()  # a validation forks its reading processes
    if run.validate and (is_last or (progress.epoch + 1) % cfg.eval.every_epochs == 0):
        broadcast_buffers(run.world, run.state.model)
        shown = run.state.model
        result = run.validate(shown, lambda: _stop_if_asked(run))
        record |= {"val/loss": result.loss, "val/acc1": result.acc1, "val/acc5": result.acc5}
        record["val/unreadable"] = result.num_unreadable
        text = f"epoch {progress.epoch + 1}/{run.epochs} validated:{result}"
        if result.num_unreadable:
            text += f" ({result.num_unreadable} of {result.num_samples} pictures cannot be read and count as wrong)"
        if run.state.ema:
            shown = run.state.ema.module
            broadcast_buffers(run.world, shown)
            result = run.validate(shown, lambda: _stop_if_asked(run))
            record |= {"val_ema/loss": result.loss, "val_ema/acc1": result.acc1, "val_ema/acc5": result.acc5}
            text += f"  moving average:{result}"
        run.report.console.say(text)
        run.watch.note_validation(run.report, progress.step, shown)
    run.watch.note_epoch(run.report, run.state)
    # With a moving average, that is what one takes home, so it decides which epoch is best.
    is_best = result is not None and progress.rank(result.acc1, cfg.checkpoint.keep_best)
    record["data/bad_images"] = sum(gather_objects(run.world, len(run.state.bad_images)))
    run.report.write(record)
    run.report.write_epoch(
        {
            "epoch": progress.epoch,
            "train_loss": loss_sum / count if count else "",
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
    _save(run, is_best=is_best, is_last=is_last)


def _save(run: Run, *, is_best: bool, is_last: bool = False) -> None:
    """A checkpoint, written by the first process with what the others have for themselves, while the run goes on.

    A network that is not finite is not saved; if it is the last save of a run, the run has failed. One that is saved
    while steps are skipped does not push out any that was saved before.
    """
    look_back(run, leave=0)
    failure = run.saver.find_failure() if run.saver and run.world.is_main else None
    if is_last and isinstance(failure, RunFolderError):
        failure = None  # there may be room again: what counts is how this one ends
    if run.world.is_main and not (is_finite := run.state.is_finite()):
        text = f"behind step {run.state.progress.step:,} the weights are not finite, so they are not saved"
        if is_last:
            failure = TrainingError(f"{text}; the checkpoints are from before")
        else:
            run.report.console.warn(text)
    shares = gather_objects(run.world, (run.state.rank_to_dict(), failure))
    _raise_for_all(shares[0][1])
    if run.saver is None or not run.world.is_main or not is_finite:
        return
    progress = run.state.progress
    content = {**run.checkpoint_header, **run.state.to_dict(), "ranks": [share for share, _ in shares]}
    content["epoch"] = progress.epoch
    run.saver.save(
        content,
        step=progress.step,
        is_best=is_best,
        protected=[step for step, _ in progress.ranking],
        prunes=not progress.skipped_in_a_row,
    )


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
