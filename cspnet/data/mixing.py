"""What happens to a batch on the device: normalisation, soft targets, CutMix."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Normalizer", "cutmix", "cutmix_box", "soft_targets"]


class Normalizer:
    """uint8 pictures to float tensors on a device.

    Args:
        mean, std: of red, green and blue, on a scale of 0 to 1.
        device: where the batch goes.
        channels_last: memory order of the result.
    """

    def __init__(
        self,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device,
        channels_last: bool = True,
    ) -> None:
        self.device = device
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # On the device once and for all: a copy from the host in every step would wait for the device.
        self.shift = (torch.tensor(mean) * 255).view(1, 3, 1, 1).to(device)
        self.scale = 1 / (torch.tensor(std) * 255).view(1, 3, 1, 1).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8, anywhere -> (N, 3, H, W) float32 on the device, (image / 255 - mean) / std.

        The uint8 batch crosses to the device; seen as NCHW it already has channels_last memory order.
        """
        images = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return images.float().sub_(self.shift).mul_(self.scale).contiguous(memory_format=self.memory_format)


def soft_targets(targets: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """(N,) int64 classes -> (N, num_classes) float32 probabilities: 1 - s + s / K for the class, s / K for the others.

    Source: Rethinking the Inception Architecture, arXiv 1512.00567, section 7; torch's label_smoothing.
    """
    return F.one_hot(targets, num_classes).float().mul_(1 - smoothing).add_(smoothing / num_classes)


def cutmix_box(rng: np.random.Generator, height: int, width: int, alpha: float) -> tuple[int, int, int, int]:
    """A box (top, bottom, left, right) in pixels whose share of the picture is 1 - Beta(alpha, alpha).

    Its centre is uniform over the picture, and what hangs over the edge is cut off.
    Source: CutMix, arXiv 1905.04899, algorithm A1.
    """
    side_ratio = np.sqrt(1.0 - rng.beta(alpha, alpha))
    box_h, box_w = int(height * side_ratio), int(width * side_ratio)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(y - box_h // 2, 0), min(y + box_h // 2, height)
    left, right = max(x - box_w // 2, 0), min(x + box_w // 2, width)
    return top, bottom, left, right


def cutmix(
    images: Tensor, targets: Tensor, rng: np.random.Generator, *, alpha: float, prob: float
) -> tuple[Tensor, Tensor]:
    """Paste one box of each picture's neighbour in the batch over it, and mix the targets by area.

    The order of a batch is random, so the neighbour is a random partner; the box is the same for the whole batch.

    Args:
        images: (N, C, H, W), changed in place.
        targets: (N, K) probabilities.
        rng: the addressed generator of this batch.
        alpha: of the Beta distribution; 0 turns CutMix off.
        prob: probability that the batch is mixed.
    """
    if alpha == 0 or rng.random() >= prob:
        return images, targets
    height, width = images.shape[2:]
    top, bottom, left, right = cutmix_box(rng, height, width, alpha)
    images[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right].roll(1, dims=0)
    pasted_share = (bottom - top) * (right - left) / (height * width)
    return images, targets * (1 - pasted_share) + targets.roll(1, dims=0) * pasted_share
