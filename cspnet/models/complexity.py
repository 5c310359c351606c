"""What a network costs: weights, multiply-adds, and the numbers of the papers it is compared with.

Nothing is computed: a copy without values (on PyTorch's meta device) is called once, and hooks see the shapes.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cspnet.errors import ModelError
from cspnet.models.layers import Shortcut

__all__ = ["Complexity", "count_complexity", "count_forward_macs"]

# A linear layer counts as the 1x1 convolution of one pixel that Darknet has in its place.
_PRODUCTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


@dataclass(frozen=True)
class Complexity:
    """The cost of a network; all but the weights for one picture.

    "Convolutions" are convolutions and linear layers, a linear layer being a 1x1 convolution of one pixel.
    """

    params: int
    """Learnable parameters: convolutions, biases, scales and shifts of normalisations; frozen ones too."""
    conv_weights: int
    """Weights of the convolutions: no bias, no normalisation. This is `#Parameter` of the CSPNet authors' README."""
    macs: int
    """Multiply-adds of the convolutions: weights of one output element times output elements."""
    bflops: float
    """Billions of operations as Darknet prints them: 2 a multiply-add of a convolution, kernel area for each output
    element of a pool, 1 for each output element of a shortcut."""
    activations: int
    """Elements that the convolutions put out (timm's "activations")."""
    cio: int
    """Elements that the convolutions take in and put out: the traffic if every tensor goes through memory once for
    each convolution that reads or writes it."""


def count_complexity(model: nn.Module, input_px: int, in_chs: int = 3) -> Complexity:
    """Count a network's cost for one picture, in evaluation mode. The model itself is not touched.

    Layers are seen as modules. So pools count if they are `nn.MaxPool2d` or `nn.AvgPool2d` (global pools cost nothing
    in Darknet either), and additions if they are `cspnet.models.layers.Shortcut`, as in this project's networks and
    cfg files; additions inside timm's and torchvision's code are not seen, which lowers their `bflops` by less than
    1 %, and neither are attention's products of two activations. A module called twice works twice and weighs once.

    Args:
        model: any classifier or backbone, on any device.
        input_px: side of the square picture.
        in_chs: colour channels of the picture.
    Raises:
        ModelError: the model cannot take such a picture.
    Source:
        bflops: AlexeyAB/darknet src/convolutional_layer.c, maxpool_layer.c (local average pools too), shortcut_layer.c.
        activations: Radosavovic et al., "Designing Network Design Spaces", arXiv 2003.13678; fvcore's count.
        cio: Chao et al., "HarDNet", arXiv 1909.00948, equation 1, which section 3 of CSPNet takes up.
    """
    if input_px < 1 or in_chs < 1:
        raise ModelError(f"a picture of {in_chs} x {input_px} x {input_px}: use sizes from 1 on")
    model = copy.deepcopy(model).to("meta").float().eval()
    work: Counter[str] = Counter()

    def count_pool(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        size: Any = module.kernel_size
        area = size * size if isinstance(size, int) else size[0] * size[-1]
        work["pooled"] += area * output.numel()

    def count_shortcut(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        work["added"] += output.numel()

    conv_weights = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, _PRODUCTS)}
    _watch_products(model, work)
    for module in model.modules():
        if isinstance(module, _POOLS):
            module.register_forward_hook(count_pool)
        elif isinstance(module, Shortcut):
            module.register_forward_hook(count_shortcut)
    try:
        with torch.inference_mode():
            model(torch.empty(1, in_chs, input_px, input_px, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"cannot take a picture of {in_chs} x {input_px} x {input_px}: {reason}") from error
    return Complexity(
        params=sum(p.numel() for p in model.parameters()),
        conv_weights=sum(conv_weights.values()),
        macs=work["macs"],
        bflops=(2 * work["macs"] + work["pooled"] + work["added"]) / 1e9,
        activations=work["outputs"],
        cio=work["inputs"] + work["outputs"],
    )


def count_forward_macs(model: nn.Module, input_px: int, device: torch.device) -> int:
    """The multiply-adds that `count_complexity` counts, for one RGB picture, by a forward pass on the model's device.

    Nothing is copied, and the meta device, whose first use takes PyTorch two seconds, is not needed. The model stays as
    it is, and so do torch's generators.

    Raises:
        Exception: whatever the model raises.
    """
    work: Counter[str] = Counter()
    was_training, handles = model.training, _watch_products(model.eval(), work)
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            model.forward(torch.zeros(1, 3, input_px, input_px, device=device))  # not a compiled form of it
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return work["macs"]


def _watch_products(model: nn.Module, work: Counter[str]) -> list[RemovableHandle]:
    """From now on the work of convolutions and linear layers is counted, as `macs`, `inputs` and `outputs`."""

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Any = module.weight
        work["macs"] += weight.numel() * (output.numel() // weight.shape[0])
        work["inputs"] += inputs[0].numel()
        work["outputs"] += output.numel()

    return [module.register_forward_hook(count) for module in model.modules() if isinstance(module, _PRODUCTS)]
