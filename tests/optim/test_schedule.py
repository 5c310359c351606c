"""The learning rate, step by step, against torch's schedulers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from cspnet.optim.schedule import build_schedule
from cspnet.recipe.schema import ScheduleRecipe

PEAK, PER_EPOCH, TOTAL = 0.4, 10, 90


def rates_of_torch(create: Any, steps: int = TOTAL, peak_lr: float = PEAK) -> list[float]:
    """What torch.optim.lr_scheduler gives for updates 0, 1, 2 …"""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak_lr)
    scheduler = create(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates_of(steps: int = TOTAL, total_steps: int = TOTAL, **settings: Any) -> list[float]:
    lr_at = build_schedule(ScheduleRecipe(**settings), peak_lr=PEAK, total_steps=total_steps, steps_per_epoch=PER_EPOCH)
    return [lr_at(step) for step in range(steps)]


def close(reference: list[float]) -> Any:
    return pytest.approx(reference, rel=1e-9, abs=1e-12)


def torch_decay(name: str, steps: int) -> Any:
    """Torch's scheduler for the settings of DECAYS, with a decay over `steps`."""
    return {
        "constant": lambda o: lr_scheduler.ConstantLR(o, factor=1.0),
        "step": lambda o: lr_scheduler.StepLR(o, step_size=25, gamma=0.3),
        "multistep": lambda o: lr_scheduler.MultiStepLR(o, milestones=[15, 40], gamma=0.3),
        "exponential": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.3 ** (1 / 25)),
        "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=steps, eta_min=0.01),
        "poly": lambda o: lr_scheduler.PolynomialLR(o, total_iters=steps, power=2.5),
    }[name]


DECAYS: dict[str, dict[str, Any]] = {
    "constant": {},
    "step": {"step_epochs": 2.5, "gamma": 0.3},
    "multistep": {"milestones_epochs": (1.5, 4.0), "gamma": 0.3},
    "exponential": {"step_epochs": 2.5, "gamma": 0.3},
    "cosine": {"min_lr": 0.01},
    "poly": {"power": 2.5},
}


@pytest.mark.parametrize("name", DECAYS)
def test_decays_are_torchs(name: str) -> None:
    assert rates_of(name=name, **DECAYS[name]) == close(rates_of_torch(torch_decay(name, TOTAL)))


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize("warmup", [{"warmup_steps": 15}, {"warmup_epochs": 1.5}])
def test_warm_up_then_decay_is_torchs_sequence(name: str, warmup: dict[str, Any]) -> None:
    def sequence(optimizer: torch.optim.Optimizer) -> lr_scheduler.SequentialLR:
        line = lr_scheduler.LinearLR(optimizer, start_factor=0.02 / PEAK, total_iters=15)
        return lr_scheduler.SequentialLR(optimizer, [line, torch_decay(name, TOTAL - 15)(optimizer)], milestones=[15])

    ours = rates_of(name=name, **DECAYS[name], warmup_lr=0.02, decay_from="warmup_end", **warmup)
    assert ours == close(rates_of_torch(sequence))


@pytest.mark.parametrize("name", DECAYS)
def test_a_decay_from_the_start_runs_during_the_warm_up(name: str) -> None:
    ours = rates_of(name=name, **DECAYS[name], warmup_lr=0.02, warmup_steps=15, decay_from="start")
    line = rates_of_torch(lambda o: lr_scheduler.LinearLR(o, start_factor=0.02 / PEAK, total_iters=15))
    assert ours[:15] == close(line[:15])
    assert ours[15:] == close(rates_of_torch(torch_decay(name, TOTAL))[15:])


@pytest.mark.parametrize("warmup_lr", [0.0, 0.05])
@pytest.mark.parametrize("power", [1.0, 4.0])
def test_warm_up_power_is_darknets_burn_in(power: float, warmup_lr: float) -> None:
    """lr * pow(batch / burn_in, power), as get_current_rate() of Darknet's network.c has it."""
    ours = rates_of(name="constant", warmup_steps=20, warmup_power=power, warmup_lr=warmup_lr)
    expected = [warmup_lr + (PEAK - warmup_lr) * math.pow(i / 20, power) for i in range(20)]
    assert ours[:20] == close(expected)
    assert ours[20:] == close([PEAK] * (TOTAL - 20))


@pytest.mark.parametrize("name", ["step", "cosine", "poly"])
def test_the_decay_ends_at_the_lowest_rate(name: str) -> None:
    """With min_lr the same curve runs between the peak and min_lr."""
    settings = {key: value for key, value in DECAYS[name].items() if key != "min_lr"}
    plain = rates_of(name=name, **settings)
    raised = rates_of(name=name, **settings, min_lr=0.1)
    assert raised == close([0.1 + (PEAK - 0.1) * rate / PEAK for rate in plain])
    assert min(raised) >= 0.1


@pytest.mark.parametrize("name", ["cosine", "poly"])
@pytest.mark.parametrize("decay_from", ["start", "warmup_end"])
def test_rates_stay_lowest_after_the_end(name: str, decay_from: str) -> None:
    ours = rates_of(steps=TOTAL + 30, name=name, min_lr=0.03, warmup_steps=7, decay_from=decay_from)
    assert ours[TOTAL:] == close([0.03] * 30)
    assert all(a > b for a, b in itertools.pairwise(ours[7 : TOTAL + 1]))


def test_a_staircase_counts_epochs_in_steps() -> None:
    ours = rates_of(name="step", step_epochs=3.0, gamma=0.1)
    drops = [step for step in range(1, TOTAL) if ours[step] != ours[step - 1]]
    assert drops == [30, 60]
    assert ours[89] == pytest.approx(PEAK * 0.01)


def test_a_run_shorter_than_its_warm_up() -> None:
    for decay_from in ("start", "warmup_end"):
        ours = rates_of(steps=10, total_steps=10, name="cosine", warmup_steps=20, decay_from=decay_from)
        assert ours == close([PEAK * step / 20 for step in range(10)])


def test_a_rate_is_a_function_of_its_step() -> None:
    settings = ScheduleRecipe(name="cosine", warmup_epochs=2.0)
    lr_at = build_schedule(settings, peak_lr=PEAK, total_steps=TOTAL, steps_per_epoch=PER_EPOCH)
    forwards = [lr_at(step) for step in range(TOTAL)]
    assert [lr_at(step) for step in reversed(range(TOTAL))] == forwards[::-1]
    assert len(set(forwards)) > TOTAL // 2
