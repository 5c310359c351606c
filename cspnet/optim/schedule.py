"""The learning rate as a pure function of the step: nothing to save, nothing to restore.

There is no schedule that waits for a plateau: it would depend on what validation measured, that is on more than the
step, and a resumed run, or one validated less often, would be another run.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

from cspnet.recipe.schema import ScheduleRecipe

__all__ = ["build_schedule", "cosine", "count_warmup_steps", "darknet_poly", "exponential", "poly", "staircase"]


def staircase(step: int, *, step_size: int, gamma: float) -> float:
    """Gamma ** (whole step_sizes done): torch's StepLR."""
    return gamma ** (step // step_size)


def cosine(step: int, *, total_steps: int) -> float:
    """Half a cosine from 1 at step 0 to 0 at total_steps. Source: SGDR, arXiv 1608.03983, equation 5."""
    return 0.5 * (1 + math.cos(math.pi * min(step / total_steps, 1.0)))


def poly(step: int, *, total_steps: int, power: float) -> float:
    """(1 - step / total_steps) ** power, 0 from total_steps on."""
    return max(0.0, 1 - step / total_steps) ** power


def exponential(step: int, *, step_size: float, gamma: float) -> float:
    """Gamma ** (step / step_size): the staircase as a smooth curve. Source: TensorFlow's exponential_decay."""
    return gamma ** (step / step_size)


def darknet_poly(step: int, *, peak_lr: float, total_steps: int, burn_in: int, power: float) -> float:
    """Darknet's learning rate of update number `step` (0-based), burn-in and decay with one exponent.

    The program counts the pictures of a batch before it asks for the rate, so its first iteration has the number 1 and
    the last one, number total_steps, the rate 0. The decay's clock starts at iteration 0, not behind the burn-in.
    Source: AlexeyAB/darknet src/network.c, get_current_rate.
    """
    iteration = step + 1
    if iteration < burn_in:
        return peak_lr * (iteration / burn_in) ** power
    return peak_lr * max(0.0, 1 - iteration / total_steps) ** power


def count_warmup_steps(cfg: ScheduleRecipe, steps_per_epoch: int) -> int:
    """Length of the warm-up in steps."""
    return cfg.warmup_steps or round(cfg.warmup_epochs * steps_per_epoch)


def build_schedule(
    cfg: ScheduleRecipe, *, peak_lr: float, total_steps: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """The learning rate of update number `step` (0-based).

    Warm-up goes from warmup_lr to peak_lr as (step / warm-up steps) ** warmup_power; after it the decay's factor f
    gives min_lr + (peak_lr - min_lr) * f. With decay_from "start" the decay's clock runs during the warm-up too.
    Darknet's schedule has a warm-up of its own.
    """
    warmup_steps = count_warmup_steps(cfg, steps_per_epoch)
    if cfg.name == "darknet_poly":
        return lambda step: darknet_poly(
            step, peak_lr=peak_lr, total_steps=total_steps, burn_in=warmup_steps, power=cfg.power
        )
    decay_start = warmup_steps if cfg.decay_from == "warmup_end" else 0
    decay_steps = max(1, total_steps - decay_start)
    step_size = max(1, round(cfg.step_epochs * steps_per_epoch))
    milestones = [round(epochs * steps_per_epoch) for epochs in cfg.milestones_epochs]
    factors: dict[str, Callable[[int], float]] = {
        "constant": lambda step: 1.0,
        "step": lambda step: staircase(step, step_size=step_size, gamma=cfg.gamma),
        "multistep": lambda step: cfg.gamma ** bisect.bisect_right(milestones, step),
        "exponential": lambda step: exponential(step, step_size=cfg.step_epochs * steps_per_epoch, gamma=cfg.gamma),
        "cosine": lambda step: cosine(step, total_steps=decay_steps),
        "poly": lambda step: poly(step, total_steps=decay_steps, power=cfg.power),
    }
    factor = factors[cfg.name]

    def lr_at(step: int) -> float:
        if step < warmup_steps:
            return cfg.warmup_lr + (peak_lr - cfg.warmup_lr) * (step / warmup_steps) ** cfg.warmup_power
        return cfg.min_lr + (peak_lr - cfg.min_lr) * factor(step - decay_start)

    return lr_at
