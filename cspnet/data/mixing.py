"""What happens to a batch on the device: mirroring, normalisation, soft targets, CutMix and Mixup."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cspnet.data.darknet_mixing import draw_mix, mix
from cspnet.recipe.schema import MixRecipe

__all__ = ["Normalizer", "cutmix", "cutmix_box", "mirror", "mix_batch", "mixup", "soft_targets"]


def mirror(images: Tensor, flipped: Tensor) -> Tensor:
    """Left and right of some pictures exchanged; no host sync.

    Args:
        images: (N, H, W, 3) uint8, may be changed in place.
        flipped: (N,) bool, on the same device.
    """
    # A CPU can be asked which they are, and touches no others then; torch.where takes it several times as long.
    return (_mirror_in_place if images.device.type == "cpu" else _mirror_by_choice)(images, flipped)


def _mirror_in_place(images: Tensor, flipped: Tensor) -> Tensor:
    for i in flipped.nonzero().flatten().tolist():
        images[i] = images[i].flip(1)
    return images


def _mirror_by_choice(images: Tensor, flipped: Tensor) -> Tensor:
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(2), images)


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
        self.mean = torch.tensor(mean).view(1, 3, 1, 1).to(device)
        self.std = torch.tensor(std).view(1, 3, 1, 1).to(device)
        self.shift = (torch.tensor(mean) * 255).view(1, 3, 1, 1).to(device)
        self.scale = 1 / (torch.tensor(std) * 255).view(1, 3, 1, 1).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8, anywhere -> (N, 3, H, W) float32 on the device, (image / 255 - mean) / std.

        The uint8 batch crosses to the device; seen as NCHW it already has channels_last memory order.
        """
        images = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        # Two passes: on a GPU the subtraction reads the bytes, and the floats are written once and changed in place.
        return torch.sub(images, self.shift).mul_(self.scale).contiguous(memory_format=self.memory_format)

    def restore(self, images: Tensor) -> np.ndarray:
        """The way back, for looking at: (N, 3, H, W) float -> (N, H, W, 3) uint8 on the host, rounded and clipped."""
        numbers = (images.float() / self.scale + self.shift).round().clamp(0, 255)
        return numbers.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def soft_targets(targets: Tensor, num_classes: int, smoothing: float, over: str = "all") -> Tensor:
    """(N,) int64 classes -> (N, num_classes) float32 probabilities.

    Args:
        smoothing: share s of the target that is spread.
        over: `all`: 1 - s + s / K for the class and s / K for the others. `others`: 1 - s for the class and
            s / (K - 1) for the others, as in Darknet; with a single class nothing is spread.
    Source: Rethinking the Inception Architecture, arXiv 1512.00567, section 7; torch's label_smoothing;
        AlexeyAB/darknet src/data.c, fill_truth_smooth.
    """
    if over == "others":
        smoothing = smoothing * num_classes / (num_classes - 1) if num_classes > 1 else 0.0
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


def cutmix(images: Tensor, targets: Tensor, rng: np.random.Generator, alpha: float) -> tuple[Tensor, Tensor]:
    """Paste one box of each picture's neighbour in the batch over it, and mix the targets by area.

    The order of a batch is random, so the neighbour is a random partner; the box is the same for the whole batch.

    Args:
        images: (N, C, H, W), changed in place.
        targets: (N, K) probabilities.
        alpha: of the Beta distribution, above 0.
    """
    height, width = images.shape[2:]
    top, bottom, left, right = cutmix_box(rng, height, width, alpha)
    images[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right].roll(1, dims=0)
    pasted_share = (bottom - top) * (right - left) / (height * width)
    return images, targets * (1 - pasted_share) + targets.roll(1, dims=0) * pasted_share


def mixup(images: Tensor, targets: Tensor, rng: np.random.Generator, alpha: float) -> tuple[Tensor, Tensor]:
    """Blend each picture with its neighbour in the batch, and the targets alike; one share for the whole batch.

    Args:
        images: (N, C, H, W).
        targets: (N, K) probabilities.
        alpha: of the Beta distribution that the share comes from, above 0.
    Source: mixup, arXiv 1710.09412.
    """
    own_share = float(rng.beta(alpha, alpha))
    return images.roll(1, dims=0).lerp_(images, own_share), targets.roll(1, dims=0).lerp_(targets, own_share)


def mix_batch(images: Tensor, targets: Tensor, rng: np.random.Generator, cfg: MixRecipe) -> tuple[Tensor, Tensor]:
    """Mix a batch as the recipe says, by CutMix or Mixup or in one of Darknet's ways, and blur some of it after that.

    Args:
        images: (N, C, H, W), may be changed in place.
        targets: (N, K) probabilities.
        rng: the addressed generator of this batch.
    """
    if (cfg.cutmix_alpha or cfg.mixup_alpha) and rng.random() < cfg.prob:
        takes_cutmix = cfg.cutmix_alpha and (not cfg.mixup_alpha or rng.random() < cfg.switch_prob)
        images, targets = (
            cutmix(images, targets, rng, cfg.cutmix_alpha)
            if takes_cutmix
            else mixup(images, targets, rng, cfg.mixup_alpha)
        )
    if cfg.darknet != "none" or cfg.blur_px:
        plan = draw_mix(rng, len(images), images.shape[2], images.shape[3], cfg.darknet, cfg.blur_px > 0)
        return mix(images, targets, plan, cfg.blur_px)
    return images, targets
