"""Darknet's learning rate and update against loops.

Source: AlexeyAB/darknet src/network.c (get_current_rate), src/convolutional_layer.c (update_convolutional_layer).
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cspnet.optim.optimizers import build_optimizer
from cspnet.optim.schedule import build_schedule
from cspnet.recipe.schema import OptimRecipe, ScheduleRecipe
from cspnet.training.state import Sums, TrainState
from cspnet.training.step import train_step

LR, BATCH, CLASSES, STEPS = 0.1, 16, 7, 20


def darknets_rate(iteration: int, lr: float, burn_in: int, max_batches: int, power: float) -> float:
    """The first update is iteration 1, and the decay runs from iteration 0, burn-in or not."""
    if iteration < burn_in:
        return lr * (iteration / burn_in) ** power
    return lr * (1 - iteration / max_batches) ** power


def rates_of(steps: list[int], total_steps: int, burn_in: int, power: float = 4.0, lr: float = LR) -> list[float]:
    cfg = ScheduleRecipe(name="darknet_poly", warmup_steps=burn_in, power=power)
    lr_at = build_schedule(cfg, peak_lr=lr, total_steps=total_steps, steps_per_epoch=10)
    return [lr_at(step) for step in steps]


def same(expected: list[float]) -> object:
    return pytest.approx(expected, rel=1e-7, abs=0)


@pytest.mark.parametrize("total_steps", [800_000, 1_200_000])
@pytest.mark.parametrize("burn_in", [0, 1000])
def test_rates_of_a_whole_training(total_steps: int, burn_in: int) -> None:
    places = [0, 1, burn_in - 3, burn_in - 2, burn_in - 1, burn_in, burn_in + 1, total_steps // 3, total_steps // 2]
    steps = sorted({step for step in [*places, *range(total_steps - 4, total_steps)] if step >= 0})
    expected = [darknets_rate(step + 1, LR, burn_in, total_steps, 4) for step in steps]
    assert rates_of(steps, total_steps, burn_in) == same(expected)
    assert expected[-1] == 0


def test_rates_worked_out_by_hand() -> None:
    """lr 0.1, burn-in 1,000, 800,000 iterations, power 4: the numbers themselves, no formula."""
    first, before, at, middle, last = rates_of([0, 998, 999, 399_999, 799_999], 800_000, 1000)
    assert first == pytest.approx(1e-13, rel=1e-7)
    assert before == pytest.approx(0.0996005996001, rel=1e-7)
    assert at == pytest.approx(0.09950093671948315, rel=1e-7)
    assert middle == pytest.approx(0.00625, rel=1e-7)
    assert last == 0


@pytest.mark.parametrize("power", [1.0, 2.5, 4.0])
@pytest.mark.parametrize(("total_steps", "burn_in"), [(60, 12), (60, 1), (60, 0), (30, 30), (25, 40)])
def test_every_rate_of_a_short_training(total_steps: int, burn_in: int, power: float) -> None:
    steps = list(range(total_steps))
    expected = [darknets_rate(step + 1, 0.4, burn_in, total_steps, power) for step in steps]
    assert rates_of(steps, total_steps, burn_in, power, lr=0.4) == same(expected)


def test_a_rate_is_a_function_of_its_step() -> None:
    steps = list(np.random.default_rng(0).permutation(60))
    assert rates_of(steps, 60, 12) == [rates_of([step], 60, 12)[0] for step in steps]


def create_net() -> nn.Module:
    """Convolutions without bias, norms and a linear classifier, in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6, momentum=0.01),
        nn.LeakyReLU(0.1),
        nn.Conv2d(6, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8, momentum=0.01),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net


def batches() -> list[tuple[Tensor, Tensor]]:
    """A batch a step, with soft targets."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(BATCH, 3, 9, 9, generator=generator, dtype=torch.float64),
            torch.rand(BATCH, CLASSES, generator=generator, dtype=torch.float64).mul(3).softmax(1),
        )
        for _ in range(STEPS)
    ]


def rates() -> list[float]:
    """A burn-in and a decay to 0."""
    return [darknets_rate(step + 1, 0.5, 6, STEPS, 2) for step in range(STEPS)]


def train(net: nn.Module, cfg: OptimRecipe, pieces: int) -> list[dict[str, np.ndarray]]:
    """The parameters after every update of the project's, with the batch in so many micro-batches."""
    cpu = torch.device("cpu")
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(net, build_optimizer(net, cfg), None, scaler, Sums(cpu), Sums(cpu))
    states = []
    for (images, targets), lr in zip(batches(), rates(), strict=True):
        micro_batches = zip(images.chunk(pieces), targets.chunk(pieces), strict=True)
        train_step(
            state,
            net,
            micro_batches,
            lr=lr,
            accumulate=pieces,
            amp_dtype=torch.float32,
            clip_norm=None,
            loss_fn=F.cross_entropy,
        )
        states.append({name: p.detach().numpy().copy() for name, p in net.named_parameters()})
    return states


def darknets_updates(net: nn.Module, momentum: float, decay: float, pieces: int) -> list[dict[str, np.ndarray]]:
    """update: what was summed over the pictures, and what is left of the updates before. Decay for weights alone."""
    weights = {name: p.detach().numpy().copy() for name, p in net.named_parameters()}
    update = {name: np.zeros_like(value) for name, value in weights.items()}
    states = []
    for (images, targets), lr in zip(batches(), rates(), strict=True):
        for x, t in zip(images.chunk(pieces), targets.chunk(pieces), strict=True):
            logits = net(x)
            net.zero_grad()
            logits.backward(gradient=t - logits.detach().softmax(1))
            for name, p in net.named_parameters():
                update[name] += p.grad.numpy()
        for name, p in net.named_parameters():
            if not name.endswith("bias") and p.ndim > 1:
                update[name] += -decay * BATCH * weights[name]
            weights[name] = weights[name] + lr / BATCH * update[name]
            update[name] *= momentum
            with torch.no_grad():
                p.copy_(torch.from_numpy(weights[name]))
        states.append(dict(weights))
    return states


def largest_difference(a: list[dict[str, np.ndarray]], b: list[dict[str, np.ndarray]]) -> float:
    return max(np.abs(x[name] - y[name]).max() for x, y in zip(a, b, strict=True) for name in x)


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("pieces", [1, 4])
def test_updates_are_darknets(pieces: int, momentum: float, decay: float) -> None:
    """In micro-batches too, with BatchNorm's statistics over each of these."""
    cfg = OptimRecipe(momentum=momentum, weight_decay=decay, decay_norm_and_bias=False)
    ours = train(create_net().train(), cfg, pieces)
    expected = darknets_updates(create_net().train(), momentum, decay, pieces)
    assert largest_difference(ours, expected) < 1e-9


def test_four_micro_batches_are_one_batch() -> None:
    """Where no statistics are taken of them."""
    cfg = OptimRecipe(momentum=0.9, weight_decay=5e-4, decay_norm_and_bias=False)
    one, four = (train(create_net().eval(), cfg, pieces) for pieces in (1, 4))
    assert largest_difference(one, four) < 1e-9
    start = {name: p.detach().numpy() for name, p in create_net().named_parameters()}
    assert all(np.abs(one[-1][name] - start[name]).max() > 1e-3 for name in start)


def test_decay_takes_weights_alone() -> None:
    """One update with the gradient switched off shrinks every weight by lr * decay and nothing else."""
    net = create_net()
    before = copy.deepcopy(dict(net.named_parameters()))
    optimizer = build_optimizer(net, OptimRecipe(lr=0.5, momentum=0.9, weight_decay=0.1, decay_norm_and_bias=False))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    shrunk = {"0.weight", "3.weight", "8.weight"}  # of the convolutions and the classifier
    for name, p in net.named_parameters():
        torch.testing.assert_close(p, before[name] * (1 - 0.5 * 0.1 if name in shrunk else 1), rtol=1e-12, atol=0)
