"""Self-adversarial pictures against the gradient written out, and what must be left as it was.

Source: AlexeyAB/darknet src/network_kernels.cu, train_network_datum_gpu.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cspnet.training.adversarial import perturb

MEAN = torch.tensor([0.485, 0.456, 0.306]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.124, 0.325]).view(1, 3, 1, 1)
ZERO, ONE = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)


def create_net(drop_rate: float = 0.0) -> nn.Sequential:
    """A small network in training mode; its running statistics are not those of any batch."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Dropout(drop_rate),
        nn.Linear(8 * 9, 6),
    )
    nn.init.normal_(net[1].running_mean)
    nn.init.uniform_(net[1].running_var, 0.1, 0.5)
    nn.init.uniform_(net[1].weight, 0.5, 1.5)
    nn.init.normal_(net[1].bias)
    nn.init.normal_(net[6].weight)
    return net.train()


def logits_of(net: nn.Sequential, x: Tensor) -> Tensor:
    """The network's formula in float64, with its running statistics."""
    conv, norm, head = net[0], net[1], net[6]
    y = F.conv2d(x, conv.weight.double(), padding=1)
    mean, var, scale, shift = (
        value.detach().double().view(1, -1, 1, 1)
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    y = (y - mean) / torch.sqrt(var + norm.eps) * scale + shift
    y = torch.where(y > 0, y, 0.1 * y)
    y = F.adaptive_avg_pool2d(y, 3).flatten(1)
    return y @ head.weight.double().T + head.bias.double()


def expected_pictures(net: nn.Sequential, x: Tensor, step_size: float, mean: Tensor, std: Tensor) -> Tensor:
    """A step on pictures x of 0 to 1, each against its own logsumexp."""
    x = x.double().requires_grad_()
    (grad,) = torch.autograd.grad(logits_of(net, (x - mean) / std).exp().sum(1).log().sum(), x)
    return (x.detach() - step_size * grad).clamp(0, 1)


def draw_pictures(batch: int = 5, size_px: int = 9) -> Tensor:
    """Of 0 to 1, with some pixels at either end."""
    generator = torch.Generator().manual_seed(1)
    return (1.2 * torch.rand(batch, 3, size_px, size_px, generator=generator) - 0.1).clamp(0, 1)


def changed(
    net: nn.Module,
    x: Tensor,
    step_size: float,
    mean: Tensor = MEAN,
    std: Tensor = STD,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What perturb makes of pictures of 0 to 1, seen on the same scale."""
    images = (x - mean) / std
    out = perturb(net, images, step_size=step_size, mean=mean, std=std, amp_dtype=dtype or torch.float32)
    assert out.dtype == torch.float32
    assert not out.requires_grad and not images.requires_grad
    return out * std + mean


@pytest.mark.parametrize("step_size", [0.01, 0.3, 3.0])
@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), (ZERO, ONE)], ids=["normalised", "of 0 to 1"])
def test_a_step_against_the_confidence(step_size: float, mean: Tensor, std: Tensor) -> None:
    net, x = create_net(), draw_pictures()
    out, expected = changed(net, x, step_size, mean, std), expected_pictures(net, x, step_size, mean, std)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
    assert (out - x).abs().max() > 1e-4
    if step_size == 3.0:
        assert all(expected.eq(end).logical_and(x != end).any() for end in (0, 1))
        assert expected.gt(0).logical_and(expected < 1).any()


def test_a_linear_network_has_its_step_by_formula() -> None:
    """The gradient of logsumexp(W x + b) is W' softmax(W x + b), for each picture."""
    torch.manual_seed(2)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5)).train(), draw_pictures(6, 4)
    weight, bias = net[1].weight.detach(), net[1].bias.detach()
    shares = torch.softmax(((x - MEAN) / STD).flatten(1) @ weight.T + bias, dim=1)
    grad = (shares @ weight).view_as(x) / STD
    torch.testing.assert_close(changed(net, x, 0.2), (x - 0.2 * grad).clamp(0, 1), rtol=0, atol=1e-5)


def test_pictures_do_not_depend_on_each_other() -> None:
    """The objective is a sum over the batch, and BatchNorm takes no statistics of it."""
    net, x = create_net(), draw_pictures()
    together = changed(net, x, 0.5)
    alone = torch.cat([changed(net, x[n : n + 1], 0.5) for n in range(len(x))])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_confidence_falls() -> None:
    net, x = create_net(), draw_pictures()
    net_eval = copy.deepcopy(net).eval()
    with torch.no_grad():
        before, after = (net_eval((y - MEAN) / STD).logsumexp(1) for y in (x, changed(net, x, 0.05)))
    assert (after < before).all()


def test_no_step_changes_nothing() -> None:
    net, x = create_net(), draw_pictures()
    torch.testing.assert_close(changed(net, x, 0.0), x, rtol=0, atol=1e-6)


def test_autocast_takes_nearly_the_same_step() -> None:
    net, x = create_net(), draw_pictures()
    out, expected = changed(net, x, 0.3, dtype=torch.bfloat16), expected_pictures(net, x, 0.3, MEAN, STD)
    step = (expected - x).abs()
    assert ((out - expected).abs() > 0.1 * step.max()).float().mean() < 0.01
    assert step.mean() > 0.01


def snapshot(net: nn.Module) -> dict[str, object]:
    """All that a call could leave behind."""
    return {
        "values": {name: value.clone() for name, value in net.state_dict().items()},
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in net.named_parameters()},
        "training": {name: module.training for name, module in net.named_modules()},
        "torch's generator": torch.get_rng_state(),
        "gradients are on": torch.is_grad_enabled(),
    }


def assert_same(before: object, after: object, path: str = "") -> None:
    assert type(before) is type(after), path
    if isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key], f"{path}/{key}")
    elif isinstance(before, Tensor):
        assert torch.equal(before, after), path
    else:
        assert before == after, path


@pytest.mark.parametrize("grads", ["none", "of earlier micro-batches"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_network_is_left_as_it_was(grads: str, frozen: bool, dtype: torch.dtype) -> None:
    net, x = create_net(drop_rate=0.5), draw_pictures()
    net[0].weight.requires_grad_(not frozen)
    if grads != "none":
        F.cross_entropy(net(x), torch.arange(5)).backward()
        assert net[6].weight.grad is not None
    before = snapshot(net)
    out = changed(net, x, 0.3, dtype=dtype)
    assert_same(before, snapshot(net))
    assert net.training
    assert (out - x).abs().max() > 1e-3
    assert torch.equal(out, changed(net, x, 0.3, dtype=dtype))  # dropout is off


class Stumbling(nn.Module):
    """Fails behind the network, forwards or backwards."""

    def __init__(self, net: nn.Module, backwards: bool) -> None:
        super().__init__()
        self.net, self.backwards = net, backwards

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        if not self.backwards:
            raise RuntimeError("stumbled")
        y.register_hook(self.stumble)
        return y

    def stumble(self, _: Tensor) -> None:
        raise RuntimeError("stumbled")


@pytest.mark.parametrize("backwards", [False, True])
def test_the_network_is_left_as_it_was_by_an_error_too(backwards: bool) -> None:
    net = Stumbling(create_net(drop_rate=0.5), backwards).train()
    before = snapshot(net)
    with pytest.raises(RuntimeError, match="stumbled"):
        changed(net, draw_pictures(), 0.3)
    assert_same(before, snapshot(net))
    assert net.training


def test_a_training_step_after_it_is_the_usual_one() -> None:
    """Gradients and statistics of the changed pictures are those of a network that was never asked for them."""
    net, x = create_net(), draw_pictures()
    fresh = copy.deepcopy(net)
    pictures = perturb(net, (x - MEAN) / STD, step_size=0.3, mean=MEAN, std=STD, amp_dtype=torch.float32)
    for network in (net, fresh):
        F.cross_entropy(network(pictures), torch.arange(5)).backward()
    assert_same(snapshot(fresh), snapshot(net))
