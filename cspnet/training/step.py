"""One update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cspnet.errors import ModelError
from cspnet.evaluation.metrics import count_correct
from cspnet.optim.losses import soft_cross_entropy
from cspnet.optim.optimizers import set_lr, step_unless
from cspnet.training.state import TrainState

__all__ = ["StepResult", "told_single_values", "train_step"]


@contextlib.contextmanager
def told_single_values() -> Iterator[None]:
    """In this block a network is trained; what a batch of one picture is refused for is said in words.

    Raises:
        ModelError: BatchNorm got a single value for each channel.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ModelError(
            "a batch of one picture leaves BatchNorm a single value; use a larger --batch-size or --img-size"
        ) from error


class StepResult(NamedTuple):
    """What came of a step, on the device."""

    totals: Tensor
    """(4,): loss * n, hits at 1 and at 5 of the likeliest target, n; all 0 if the step was skipped."""
    is_skipped: Tensor
    """() bool: the gradient, with which a loss goes that is not finite, was not: nothing was changed by this step. The
    same on all processes."""
    has_bad_loss: Tensor
    """() bool: a loss of this process was not finite."""


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
) -> StepResult:
    """Accumulate gradients over the micro-batches and update the weights once; no host sync.

    If the gradient is not finite, weights, buffers and the optimizer's state stay as they are; the moving average takes
    in the unchanged weights.

    Args:
        state: changed in place; its progress is not.
        network: the raw model, or its data-parallel view.
        micro_batches: `accumulate` pairs of images (N, 3, H, W) float on the device and targets (N, K) probabilities.
        lr: learning rate of this update.
        amp_dtype: of autocast; float32 means none.
        clip_norm: largest gradient norm, or None.
        loss_fn: logits (N, K) and targets (N, K) -> the mean loss.
    """
    set_lr(state.optimizer, lr)
    state.buffers.keep()
    totals = torch.zeros_like(state.window.values)
    is_good = torch.ones((), dtype=torch.bool, device=totals.device)
    for i, (images, targets) in enumerate(micro_batches):
        # Processes exchange gradients once a step, with the last micro-batch.
        quiet = isinstance(network, nn.parallel.DistributedDataParallel) and i < accumulate - 1
        with network.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
            in_half = torch.autocast(images.device.type, dtype=amp_dtype, enabled=amp_dtype is not torch.float32)
            with in_half, told_single_values():
                logits = network(images)
            if not isinstance(logits, Tensor):
                raise ModelError(
                    f"{type(state.model).__name__} returns a {type(logits).__name__} in training, not logits"
                )
            loss = loss_fn(logits, targets)
            is_finite = loss.detach().isfinite()
            is_good &= is_finite
            # 1 or nan: a loss that is not finite makes the whole gradient so, which all processes get to see.
            state.scaler.scale(loss * torch.where(is_finite, 1.0, math.nan) / accumulate).backward()
        n = len(images)
        hits = count_correct(logits.detach(), targets.argmax(1))
        totals += torch.stack([loss.detach() * n, hits[0], hits[1], torch.full_like(loss, n)]).to(totals.dtype)
    is_skipped = _update(state, clip_norm)
    if state.ema is not None:
        state.ema.update(state.model, state.progress.step)
    return StepResult(totals.masked_fill_(is_skipped, 0), is_skipped, ~is_good)


def _update(state: TrainState, clip_norm: float | None) -> Tensor:
    """Clip the gradients and take the step, unless they are not finite; whether it was skipped, () bool."""
    params = [p for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
    is_skipped = ~norm.isfinite()
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(params, clip_norm, norm)
    if state.scaler.is_enabled():
        state.scaler.step(
            state.optimizer
        )  # by its own finding: the same, but for a norm of finite gradients that is beyond float32
        state.scaler.update()
    else:
        step_unless(state.optimizer, is_skipped)
    state.optimizer.zero_grad(set_to_none=True)
    state.buffers.put_back_if(is_skipped)
    return is_skipped
