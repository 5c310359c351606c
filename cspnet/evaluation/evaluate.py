"""One pass over a validation split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cspnet.errors import DataError
from cspnet.evaluation.metrics import EvalResult, count_hits, rank_classes
from cspnet.models.modes import evaluating
from cspnet.runtime.distributed import World, gather_objects, sum_over_ranks

__all__ = ["evaluate"]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    between: Callable[[], None] = lambda: None,
    *,
    batches: Iterable[Any],
    common_batches: int,
    num_samples: int,
    prepare: Callable[[Tensor], Tensor],
    device: torch.device,
    amp_dtype: torch.dtype,
    world: World,
    report_bad: Callable[[list[Any]], None],
    note: Callable[[Tensor, Tensor], None] = lambda top, targets: None,
) -> EvalResult:
    """Count the right answers of this process's share and add up all processes' counts.

    Args:
        model: a raw model (not wrapped for data parallelism); it is put into eval mode and back.
        between: called in front of each batch, on all processes equally often; it may raise.
        batches: (images uint8 (N, H, W, 3), targets int64 (N,), flags that training alone has a use for, unreadable
            pictures) of this process's share.
        common_batches: how many of them every process has.
        num_samples: pictures of the whole split.
        prepare: uint8 images to float ones on the device.
        amp_dtype: of autocast; float32 means none.
        report_bad: called on the first process with the unreadable pictures of all, if there are any.
        note: called with each batch's highest classes (N, 5), as `rank_classes` gives them, and its targets (N,); both
            are on the device, and the targets are overwritten later.
    Raises:
        DataError: another number of pictures was seen than the split has.
    """
    counts = torch.zeros(4, dtype=torch.int64, device=device)  # correct1, correct5, seen, unreadable
    loss_sum = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    bad: list[Any] = []
    with evaluating(model):
        for i, (images, targets, _, unreadable) in enumerate(batches):
            if i < common_batches:
                between()
            bad += unreadable
            targets = targets.to(device, non_blocking=True)
            with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not torch.float32):
                logits = model(prepare(images))
            logits = logits.float()
            top = rank_classes(logits)
            counts[:2] += count_hits(top, targets)
            note(top, targets)
            counts[2] += len(targets)
            counts[3] += (targets < 0).sum()
            loss_sum += F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
    sum_over_ranks(world, counts)
    sum_over_ranks(world, loss_sum)
    correct1, correct5, seen, num_unreadable = counts.tolist()  # host sync: once, at the end
    if seen != num_samples:
        raise DataError(f"validated {seen} pictures, but the split has {num_samples}")
    if num_unreadable:
        everyones = [item for share in gather_objects(world, bad) for item in share]
        if world.is_main:
            report_bad(everyones)
    return EvalResult(correct1, correct5, seen, num_unreadable, loss_sum.item() / max(1, seen - num_unreadable))
