"""What became of the steps behind: counted, told, kept as evidence, and the way back when too many were skipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cspnet.errors import RunFolderError, TrainingError, shared_errors
from cspnet.runtime.distributed import on_any_rank
from cspnet.runtime.files import replacing
from cspnet.training.batches import prepare_batch
from cspnet.training.run import Run
from cspnet.training.skipped import Fate

__all__ = ["TooManySkipped", "look_back", "roll_back"]

_MOST_EVIDENCE = 3
"""Skipped steps whose batches a process keeps: they are large, and a run that is broken skips many."""


class TooManySkipped(Exception):  # noqa: N818 (it is not the user's business)
    """So many steps in a row were skipped that the state before them is not to be trusted."""


def look_back(run: Run, *, leave: int) -> bool:
    """Take note of what became of the last step but `leave`; whether any process has been asked to stop.

    Both are agreed upon in one exchange.
    """
    fate = run.latest.read(leave)
    is_asked, is_loss_bad = on_any_rank(run.world, run.stop.is_made, fate is not None and fate.has_bad_loss)
    if fate is not None:
        _judge(run, fate, is_loss_bad)
    return is_asked


def _judge(run: Run, fate: Fate, is_loss_bad: bool) -> None:
    """Count a step that was skipped, say so, and keep the batch; `is_loss_bad`: that of any process."""
    progress, most = run.state.progress, run.recipe.train.max_skipped
    if not fate.is_skipped:
        progress.skipped_in_a_row = 0
        return
    if run.state.scaler.is_enabled() and not is_loss_bad and run.state.scaler.get_scale() > 1:
        return  # half precision: the scaler is looking for its scale, which halves at each such step
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    if progress.skipped_in_a_row == 1 or progress.skipped <= most:
        run.report.console.warn(
            f"step {fate.step + 1:,} was skipped: its {'loss' if is_loss_bad else 'gradient'} is not finite "
            f"({progress.skipped_in_a_row} in a row, of at most {most}; {progress.skipped} in all)"
        )
    if fate.has_bad_loss or not is_loss_bad:
        _keep_evidence(run, fate)


def _keep_evidence(run: Run, fate: Fate) -> None:
    """Write what this process gave to a skipped step into the run's folder; of the first few such steps only."""
    # On another machine the run's folder may not exist.
    if run.folder is None or not run.folder.is_dir() or run.num_evidence >= _MOST_EVIDENCE:
        return
    run.num_evidence += 1
    # A batch is a function of its address, so it need not be remembered for this.
    batches = replace(run.loader, workers=0).start_at(fate.epoch, fate.samples_done)
    addresses = run.plan.addresses(run.world.rank, fate.epoch, fate.samples_done)
    parts = []
    for micro in range(run.plan.accumulate):
        address, batch = next(addresses), next(batches)
        # Copies on the host: the memory of a batch is used again, and a GPU may have no room for all of them.
        images, targets = (tensor.to("cpu", copy=True) for tensor in (batch.images, batch.targets))
        inputs, soft = (tensor.cpu() for tensor in prepare_batch(run, batch, fate.step, fate.epoch, micro))
        parts.append((address.samples, address.positions, images, targets, inputs, soft))
    samples, positions, *tensors = (list(column) for column in zip(*parts, strict=True))
    images, targets, inputs, soft = (torch.cat(column) for column in tensors)
    index = run.loader.pictures.reader.index
    path = run.folder / "skipped" / f"step-{fate.step + 1:08d}-rank-{run.world.rank}.pt"
    content = {
        "step": fate.step + 1,
        "epoch": fate.epoch,
        "samples": torch.from_numpy(np.concatenate(samples)),
        "positions": torch.from_numpy(np.concatenate(positions)),
        "paths": [index.path(int(sample)) for sample in np.concatenate(samples)],
        **{"images": images, "targets": targets, "inputs": inputs, "soft_targets": soft},
    }
    try:
        _write(path, content)
    except RunFolderError as error:
        run.report.console.warn_own(str(error))
    else:
        run.report.console.warn_own(f"{path}: the pictures of this step, as they were read and as the network saw them")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Keep what a skipped step was made of: tensors and built-in types, for torch.load(path, weights_only=True).

    Raises:
        RunFolderError: it cannot be written.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            torch.save(dict(content), temporary)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError when the disk is full
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise RunFolderError(f"{path}: cannot be written: {reason}") from error


def roll_back(run: Run) -> None:
    """Back to the last good checkpoint, once.

    Raises:
        TrainingError: it was done before, or there is none.
    """
    progress = run.state.progress
    run.report.console.end_epoch()
    trouble = f"step {progress.step:,}: the last {progress.skipped_in_a_row} steps had no finite loss or gradient"
    advice = "try a lower --lr, a longer warm-up, --clip-grad or --precision fp32"
    if run.was_rolled_back:
        with shared_errors():
            raise TrainingError(f"{trouble}, again; the checkpoints are from before: {advice}, and --resume auto")
    if run.saver:
        run.saver.wait()
    run.was_rolled_back = True
    run.latest.forget()
    file = run.roll_back(run)
    if file is None:
        with shared_errors():
            raise TrainingError(f"{trouble}, and there is no checkpoint from before: {advice}")
    run.report.console.warn(f"{trouble}: going on from {file}, once; if that does not help: {advice}")
