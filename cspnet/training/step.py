"""One update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from cspnet.errors import ModelError
from cspnet.evaluation.metrics import count_correct
from cspnet.optim.losses import soft_cross_entropy
from cspnet.training.state import TrainState

__all__ = ["train_step"]


def _forward(network: nn.Module, images: Tensor) -> Tensor:
    try:
        return network(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ModelError(
            "a batch of one picture leaves BatchNorm a single value; use a larger --batch-size or --img-size"
        ) from error


def train_step(
    state: TrainState,
    network: nn.Module,
    micro_batches: Iterable[tuple[Tensor, Tensor]],
    *,
    lr: float,
    accumulate: int,
    amp_dtype: torch.dtype,
    clip_norm: float | None,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = soft_cross_entropy,
) -> Tensor:
    """Accumulate gradients over the micro-batches and update the weights once; no host sync.

    Args:
        state: changed in place; its progress is not.
        network: the raw model, or its data-parallel view.
        micro_batches: `accumulate` pairs of images (N, 3, H, W) float on the device and targets (N, K) probabilities.
        lr: learning rate of this update.
        amp_dtype: of autocast; float32 means none.
        clip_norm: largest gradient norm, or None.
        loss_fn: logits (N, K) and targets (N, K) -> the mean loss.
    Returns:
        (4,) on the device: loss * n, hits at 1 and at 5 of the likeliest target, n.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    totals = torch.zeros_like(state.window.values)
    for i, (images, targets) in enumerate(micro_batches):
        # Processes exchange gradients once a step, with the last micro-batch.
        quiet = isinstance(network, nn.parallel.DistributedDataParallel) and i < accumulate - 1
        with network.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(images.device.type, dtype=amp_dtype, enabled=amp_dtype is not torch.float32):
                logits = _forward(network, images)
            if not isinstance(logits, Tensor):
                raise ModelError(
                    f"{type(state.model).__name__} returns a {type(logits).__name__} in training, not logits"
                )
            loss = loss_fn(logits, targets)
            state.scaler.scale(loss / accumulate).backward()
        n = len(images)
        hits = count_correct(logits.detach(), targets.argmax(1))
        totals += torch.stack([loss.detach() * n, hits[0], hits[1], torch.full_like(loss, n)]).to(totals.dtype)
    if clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        state.ema.update(state.model, state.progress.step)
    return totals
