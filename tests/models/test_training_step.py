"""Every row of the table takes a step; computing blocks twice to save memory changes nothing but the memory."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cspnet.models import create_model
from cspnet.models.zoo import ZOO
from tests.models.comparing import draw_images

TARGETS = torch.tensor([1, 4])
# The same stages as another row's, with another activation or more blocks.
TWINS = ("_omega", "_mish", "densenet169", "densenet201")


@dataclass
class Step:
    """A network in training, and what one forward and backward pass left: loss, gradients, statistics."""

    name: str
    model: nn.Module
    logits: Tensor
    loss: Tensor
    grads: dict[str, Tensor | None]
    buffers_before: dict[str, Tensor]
    buffers: dict[str, Tensor]


def copy_buffers(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.named_buffers()}


@pytest.fixture(scope="module", params=ZOO)
def step(request: pytest.FixtureRequest) -> Step:
    torch.manual_seed(0)
    model = create_model(request.param, num_classes=5, zero_init_last=False).train()
    before = copy_buffers(model)
    logits = model(draw_images(2, 64))
    loss = F.cross_entropy(logits, TARGETS)
    loss.backward()
    grads = {key: p.grad for key, p in model.named_parameters()}
    return Step(request.param, model, logits.detach(), loss.detach(), grads, before, copy_buffers(model))


def test_grad_checkpointing_gives_the_same_step(step: Step) -> None:
    """The same loss, gradients and running statistics: the second pass must not count."""
    model = step.model
    if step.name.endswith(TWINS):
        pytest.skip("the same stages as another row's")
    for key, value in model.named_buffers():
        assert not torch.equal(value, step.buffers_before[key]), key
        value.copy_(step.buffers_before[key])
    model.zero_grad(set_to_none=True)
    passes: list[int] = []
    blocks = [block for stage in model.stages for block in stage.blocks]
    handles = [block.register_forward_pre_hook(lambda *_, i=i: passes.append(i)) for i, block in enumerate(blocks)]
    model.set_grad_checkpointing()
    try:
        loss = F.cross_entropy(model(draw_images(2, 64)), TARGETS)
        loss.backward()
    finally:
        model.set_grad_checkpointing(False)
        for handle in handles:
            handle.remove()
    assert sorted(passes) == sorted([*range(len(blocks))] * 2)
    assert torch.equal(loss, step.loss)
    for key, p in model.named_parameters():
        expected = step.grads[key]
        if not p.requires_grad:
            assert p.grad is None and expected is None, key
            continue
        assert p.grad is not None and expected is not None, key
        torch.testing.assert_close(p.grad, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item(), msg=key)
    for key, value in model.named_buffers():
        assert torch.equal(value, step.buffers[key]), key
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.momentum for m in norms} == {model.spec.bn_momentum} and all(m.track_running_stats for m in norms)


def test_every_network_trains_a_step(step: Step) -> None:
    model = step.model
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    assert step.logits.shape == (2, 5)
    assert step.loss.isfinite()
    for key, p in model.named_parameters():
        grad = step.grads[key]
        if not p.requires_grad:
            continue
        assert grad is not None, key
        assert grad.isfinite().all() and grad.abs().max() > 0, key
        p.grad = grad
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for key, p in model.named_parameters():
        assert torch.equal(p, before[key]) != p.requires_grad, key


def count_saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights not counted, inputs of blocks counted."""
    kept: dict[int, tuple[Tensor, int]] = {}
    weights = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = x, storage.nbytes()  # holding the tensor keeps the address its own
        return x

    def keep_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        keep(args[0])

    blocks = [block for stage in model.stages for block in stage.blocks]
    handles = [block.register_forward_pre_hook(keep_input) for block in blocks]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(images)
    for handle in handles:
        handle.remove()
    return sum(nbytes for _, nbytes in kept.values())


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize(
    "name", ["cspdarknet_tiny", "csppeleenet", "resnet10", "csmobilenet_v2", "csresnext50_elastic"]
)
def test_grad_checkpointing_keeps_less(name: str, features_only: bool) -> None:
    images = draw_images(2, 64)
    model = create_model(name, features_only=features_only).train()
    plain = count_saved_bytes(model, images)
    model.set_grad_checkpointing()
    assert 0 < count_saved_bytes(model, images) < plain


def test_grad_checkpointing_is_for_training_only() -> None:
    model = create_model("cspdarknet_tiny", num_classes=5).eval()
    images = draw_images(2, 64)
    expected = model(images)
    plain = count_saved_bytes(model, images)
    model.set_grad_checkpointing()
    before = copy_buffers(model)
    assert torch.equal(model(images), expected)
    assert count_saved_bytes(model, images) == plain
    with torch.no_grad():
        model.train()(images)
    assert all(int(v) == 1 for key, v in model.named_buffers() if key.endswith("num_batches_tracked"))
    assert any(not torch.equal(v, before[key]) for key, v in model.named_buffers())


def test_frozen_statistics_stay_frozen_under_grad_checkpointing() -> None:
    """Fine-tuning with BatchNorm in evaluation mode: both passes use the running statistics and leave them alone."""
    torch.manual_seed(0)
    model = create_model("cspdarknet_tiny", num_classes=5, zero_init_last=False).train()
    model(draw_images(4, 64))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    before = copy_buffers(model)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(draw_images(2, 64)), TARGETS).backward()
        grads.append({key: p.grad for key, p in model.named_parameters()})
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, rtol=1e-5, atol=1e-7, msg=key)
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
