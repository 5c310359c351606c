"""A cross stage's split and concatenation, written in other ways with the same parameters, and what each takes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cspnet.cli.build import build_model
from cspnet.cli.measure_speed import take_turns
from cspnet.errors import ModelError
from cspnet.models.layers import ConvNormAct
from cspnet.models.stages import CrossStage
from cspnet.recipe.schema import ModelRecipe, Recipe

__all__ = ["WAYS", "find_stages", "measure_stage"]


def _conv_part(layer: ConvNormAct, x: Tensor, start: int, end: int) -> Tensor:
    """The output channels from start to end of a 1x1 convolution with its BatchNorm and activation."""
    norm = layer.bn
    y = F.conv2d(x, layer.conv.weight[start:end])
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None and norm.momentum is not None
    y = F.batch_norm(
        y,
        mean[start:end],
        var[start:end],
        norm.weight[start:end],
        norm.bias[start:end],
        training=layer.training,
        momentum=norm.momentum,
        eps=norm.eps,
    )
    return layer.act(y)


def run_stage(stage: CrossStage, x: Tensor, *, two_convs: bool, summed: bool) -> Tensor:
    """What `stage(x)` is, behind its down-sampling, for a stage with a split by a convolution and a transition.

    Args:
        stage: the parameters.
        x: (N, C, H, W), behind conv_down and down_pool.
        two_convs: two 1x1 convolutions in the place of one and a split.
        summed: two 1x1 convolutions and a sum in the place of a concatenation and one.
    """
    spec, expand, join = stage.stage, stage.conv_exp, stage.conv_transition
    assert isinstance(expand, ConvNormAct) and isinstance(join, ConvNormAct)
    if two_convs:
        cross = _conv_part(expand, x, 0, spec.cross_chs)
        block = _conv_part(expand, x, spec.cross_chs, spec.cross_chs + spec.block_chs)
    else:
        cross, block = expand(x).split((spec.cross_chs, spec.block_chs), dim=1)
    block = stage.conv_transition_b(stage.blocks(block))
    first, second = (block, cross) if spec.block_first else (cross, block)
    if not summed:
        return join(torch.cat([first, second], dim=1))
    weight, chs = join.conv.weight, first.shape[1]
    return join.act(join.bn(F.conv2d(first, weight[:, :chs]) + F.conv2d(second, weight[:, chs:])))


WAYS = {
    "one convolution and a split, concatenation (ours)": {"two_convs": False, "summed": False},
    "two convolutions, concatenation": {"two_convs": True, "summed": False},
    "one convolution and a split, two summed": {"two_convs": False, "summed": True},
    "two convolutions, two summed": {"two_convs": True, "summed": True},
}
"""The first one is that of CrossStage."""


def find_stages(name: str, size_px: int, device: torch.device) -> list[tuple[CrossStage, torch.Size]]:
    """The cross stages of a network, each with the shape (1, C, H, W) of what its split takes.

    Raises:
        ModelError: it has none of the kind that this is about.
    """
    model = build_model(Recipe(model=ModelRecipe(name=name)), 1000, device)
    found: list[tuple[CrossStage, torch.Size]] = []

    def note(stage: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(stage, CrossStage)
        with torch.no_grad():
            found.append((stage, stage.down_pool(stage.conv_down(inputs[0])).shape))

    for module in model.modules():
        if isinstance(module, CrossStage) and module.stage.split == "conv" and module.stage.fusion == "csp":
            module.register_forward_hook(note)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, size_px, size_px, device=device).to(memory_format=torch.channels_last))
    if not found:
        raise ModelError(f"{name}: has no cross stage with a split by a convolution and a transition")
    return found


def measure_stage(
    stage: CrossStage, shape: torch.Size, batch_size: int, amp_dtype: torch.dtype, repeats: int
) -> dict[str, list[float]]:
    """Seconds of a forward and a backward pass, without the down-sampling, {way: one a repeat}; they take turns."""
    device = next(stage.parameters()).device
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, *shape[1:], generator=draw).to(device).to(memory_format=torch.channels_last)
    x.requires_grad_()
    stage.train()

    def pass_through(how: dict[str, bool]) -> Callable[[], float]:
        def work() -> float:
            began = time.perf_counter()
            with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not torch.float32):
                y = run_stage(stage, x, **how)
            y.float().sum().backward()
            assert x.grad is not None
            x.grad.flatten()[0].item()  # host sync: it is there when all is done
            taken = time.perf_counter() - began
            stage.zero_grad(set_to_none=True)
            x.grad = None
            return taken

        return work

    return take_turns({name: pass_through(how) for name, how in WAYS.items()}, repeats)
