"""From what the reading processes give to what the network is given."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from cspnet.data.feed import Batch
from cspnet.data.mixing import mirror, mix_batch, soft_targets
from cspnet.errors import DataError
from cspnet.optim.schedule import count_warmup_steps
from cspnet.runtime.distributed import broadcast_buffers
from cspnet.runtime.random import generator_at
from cspnet.training.adversarial import perturb
from cspnet.training.run import Run

__all__ = ["micro_batches", "prepare_batch"]


def micro_batches(run: Run, batches: Iterator[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    """The micro-batches of the current step, on the device: mirrored, normalised, erased, mixed, and perturbed.

    Raises:
        DataError: a picture cannot be read, and data.bad_images is raise; or none can.
    """
    progress = run.state.progress
    if run.recipe.adversarial.lr:
        # An attack sees the running statistics. Those of a process would be its own until its forward pass, and would
        # be the first one's in a run that goes on from a checkpoint here.
        broadcast_buffers(run.world, run.state.model)
    for micro in range(run.plan.accumulate):
        batch = next(batches)
        if batch.bad:
            _handle_bad(run, batch)
        images, soft = prepare_batch(run, batch, progress.step, progress.epoch, micro)
        images = _perturb(run, images, _slice_at(run, progress.step, micro))
        if micro == 0:
            run.watch.note_batch(run.report, run.state, images, soft)
        yield images, soft


def _slice_at(run: Run, step: int, micro: int) -> tuple[int, int]:
    """An address: the slice of the global batch, so that the split over processes does not change the draws."""
    return step, micro * run.world.size + run.world.rank


def prepare_batch(run: Run, batch: Batch, step: int, epoch: int, micro: int) -> tuple[Tensor, Tensor]:
    """A batch as the network sees it: images (N, 3, H, W) float, soft targets (N, K). Its own may change in place."""
    cfg, address = run.recipe, _slice_at(run, step, micro)
    images, targets, flipped = (tensor.to(run.device, non_blocking=True) for tensor in batch[:3])
    images = run.prepare(mirror(images, flipped))
    soft = soft_targets(targets, run.num_classes, cfg.loss.smoothing, cfg.loss.smoothing_over)
    images = run.erase(images, generator_at(cfg.train.seed, "erase", *address))
    if not cfg.mix.off_epoch or epoch < cfg.mix.off_epoch:
        images, soft = mix_batch(images, soft, generator_at(cfg.train.seed, "mix", *address), cfg.mix)
    return images, soft


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
