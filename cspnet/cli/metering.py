"""The meter of a run: what it goes by, and what it says at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cspnet.cli.build import Splits
from cspnet.data.sampler import BatchPlan
from cspnet.data.shards import ShardIndex
from cspnet.data.transforms import build_sizes
from cspnet.models.complexity import count_forward_macs
from cspnet.recipe.schema import Recipe
from cspnet.reporting.console import Console
from cspnet.reporting.verdict import Setting, judge
from cspnet.runtime.device import choose_amp_dtype
from cspnet.runtime.distributed import World
from cspnet.runtime.files import write_atomically
from cspnet.runtime.peak import find_peak
from cspnet.runtime.processes import count_cores
from cspnet.training.meter import WARM_UP_STEPS, Meter
from cspnet.training.run import Run
from cspnet.training.trace import StepTrace

__all__ = ["SPEED_FILE", "build_meter", "build_trace", "keep_speed", "say_speed"]

SPEED_FILE = "speed.json"
"""In a run's folder: what `say_speed` has said last."""


def build_meter(
    recipe: Recipe, model: nn.Module, plan: BatchPlan, world: World, device: torch.device, amp_dtype: torch.dtype
) -> Meter:
    """The meter of the first process, with the network's FLOPs and the device's peak where there are any.

    Args:
        model: raw; it may be anybody's, and then there may be nothing to count.
    """
    macs = _count_macs(recipe, model, device)
    if recipe.model.freeze:
        macs = {}  # a step's operations are not three times a forward pass's then
    return Meter(world, device, plan, macs, find_peak(device, amp_dtype) if macs else None)


def _count_macs(recipe: Recipe, model: nn.Module, device: torch.device) -> dict[int, int]:
    """{side: multiply-adds} for all sizes of the run's pictures; empty for a network that cannot be counted."""
    try:
        counted = {side: count_forward_macs(model, side, device) for side in build_sizes(recipe.data).sizes()}
    except Exception:  # code of others may fail in any way, and the run does not depend on this
        return {}
    return {side: macs for side, macs in counted.items() if macs}


def build_trace(folder: Path, device: torch.device, steps: int, steps_left: int, console: Console) -> StepTrace:
    """Records steps behind the first ones, which are not like the others; all there are if the run is shorter."""
    asked, steps = steps, min(steps, steps_left)
    skip = min(WARM_UP_STEPS, steps_left - steps)
    if steps_left < WARM_UP_STEPS + asked:
        console.warn(
            f"--profile {asked}: only {steps_left} steps are left; {steps} are recorded, slower ones of the first "
            f"{WARM_UP_STEPS} among them"
        )
    return StepTrace(folder / "profile", device, steps, skip, console.say, console.warn)


def say_speed(run: Run, splits: Splits) -> dict[str, Any] | None:
    """How fast the run was since its start, and what bounds it: in lines, and the same for a file."""
    meter, console = run.meter, run.report.console
    total = meter.total
    if not total.steps:
        console.say(
            f"speed   not told: the first {WARM_UP_STEPS} steps of a start are not counted, and there are no more"
        )
        return None
    peak = f" of {meter.peak}" if meter.mfu(total) is not None else ""
    console.say(f"speed   {meter.describe(total)}{peak}")
    exchange_ratio = (meter.exchange_s or 0.0) * total.steps / total.elapsed_s
    verdict = judge(total.data_wait_ratio, exchange_ratio, _read_setting(run, splits))
    console.say(f"verdict {verdict}")
    return {"steps": total.steps, **meter.figures(total), "exchange_ratio": exchange_ratio, "verdict": verdict}


def keep_speed(folder: Path, speed: dict[str, Any] | None, run: Run) -> None:
    """Write what was said into the run's folder; that there is no room for it is no reason to fail."""
    if speed is None or not run.world.is_main:
        return
    try:
        content = {"step": run.state.progress.step, **speed}
        write_atomically(folder / SPEED_FILE, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        run.report.console.warn(f"{SPEED_FILE}: cannot be written: {error.strerror or error}")


def _read_setting(run: Run, splits: Splits) -> Setting:
    cfg, device = run.recipe, run.device
    data, is_cuda = cfg.data, device.type == "cuda"
    crops_at_random = data.train_crop == "random_resized"
    return Setting(
        workers=run.loader.workers,
        cores=max(1, count_cores() // run.world.local_size),
        is_packed=isinstance(splits.train, ShardIndex),
        is_encoded=bool(splits.train.encoding),
        decoder=data.decoder,
        can_decode_on_gpu=is_cuda and crops_at_random and not cfg.augment.policy and not cfg.augment.color_jitter,
        could_shrink=not data.shrink and crops_at_random and data.decoder == "fast",
        faster_precision=_find_faster_precision(run),
        is_channels_last=cfg.train.channels_last,
        device=device.type,
        memory_ratio=run.meter.peak_memory_bytes() / torch.cuda.mem_get_info(device)[1] if is_cuda else None,
        processes=run.world.size,
        accumulate=run.plan.accumulate,
        global_batch=cfg.train.global_batch,
        grad_checkpointing=cfg.train.grad_checkpointing,
        deterministic=cfg.train.deterministic,
    )


def _find_faster_precision(run: Run) -> str | None:
    """What train.precision auto would take, if the run computes in float32 and that is another one."""
    if run.amp_dtype is not torch.float32:
        return None
    faster = choose_amp_dtype("auto", run.device)
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(faster)
