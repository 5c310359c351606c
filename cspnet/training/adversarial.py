"""Darknet's self-adversarial training: the first of two passes changes the pictures, the second one trains on them.

Source: AlexeyAB/darknet, src/network_kernels.cu `train_network_datum_gpu` (adversarial_lr); YOLOv4, arXiv 2004.10934,
section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cspnet.models.modes import evaluating

__all__ = ["perturb"]


def perturb(
    model: nn.Module, images: Tensor, *, step_size: float, mean: Tensor, std: Tensor, amp_dtype: torch.dtype
) -> Tensor:
    """Change pictures so that the network becomes less sure of anything: down the gradient of logsumexp(logits).

    The label plays no part: all logits are lowered, each by its probability. BatchNorm uses its running statistics and
    leaves them alone; gradients reach the pictures only, and no other process hears of it.

    Args:
        model: the raw model, in training mode.
        images: (N, 3, H, W) float, (x - mean) / std of pictures x in [0, 1].
        step_size: of the plain gradient of the sum over the batch, on the scale of x.
        mean, std: (1, 3, 1, 1).
        amp_dtype: of autocast; float32 means none.
    Returns:
        (N, 3, H, W): the changed pictures, x clipped to [0, 1], normalised like the given ones.
    """
    with evaluating(model), torch.enable_grad():
        inputs = images.detach().requires_grad_()
        with torch.autocast(images.device.type, dtype=amp_dtype, enabled=amp_dtype is not torch.float32):
            logits = model(inputs)
        # In float16 small gradients would vanish on their way back.
        factor = 1024.0 if amp_dtype is torch.float16 else 1.0
        (gradient,) = torch.autograd.grad(factor * logits.float().logsumexp(1).sum(), inputs)
        gradient = gradient / factor
    # d/dx = d/dimages / std, as images = (x - mean) / std
    pixels = (images.detach() * std + mean - step_size * gradient / std).clamp_(0, 1)
    return (pixels - mean) / std
