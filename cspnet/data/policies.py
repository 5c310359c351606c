"""Well-known ways to vary pictures, as torchvision and timm have them. This file is the data's door to both.

Their parts draw from global generators. Here each draws from an address: the generators are seeded around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cspnet.recipe.schema import AugmentRecipe
from cspnet.runtime.random import seeded_globally

__all__ = ["Eraser", "Policy", "build_policy"]


@dataclass(frozen=True)
class Policy:
    """Changes to a picture in a worker, one after the other; none at all if there are no parts.

    timm and torchvision mirror a picture before that, here the device does behind it. The pictures are as likely either
    way: a shift, a turn or a shear to one side is the mirror image of the one to the other, sides are drawn evenly, and
    colours and blur have none. Only ShearY does not fit in: it holds the left edge in its place, and behind a mirror
    that is the right edge, so that each of the two is held in its share of the sheared pictures.
    """

    parts: tuple[Callable[[Image.Image], Image.Image], ...]

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(S, S, 3) uint8 -> (S, S, 3) uint8."""
        if not self.parts:
            return pixels
        image = Image.fromarray(np.ascontiguousarray(pixels))
        with seeded_globally(rng):
            for part in self.parts:
                image = part(image)
        return np.asarray(image)


def build_policy(cfg: AugmentRecipe, mean: tuple[float, float, float], size_px: int) -> Policy:
    """The policy and the colour jitter of a recipe, in this order.

    Args:
        mean: of red, green and blue, 0 to 1: the colour that timm's policies fill empty places with.
        size_px: side of a training picture; timm's RandAugment shifts by up to 0.45 of it.
    """
    parts: list[Callable[[Image.Image], Image.Image]] = []
    if cfg.policy == "trivial":
        from torchvision.transforms import TrivialAugmentWide

        parts.append(TrivialAugmentWide())
    elif cfg.policy is not None:
        parts.append(_create_timm_policy(cfg.policy, mean, size_px))
    if cfg.color_jitter:
        from torchvision.transforms import ColorJitter

        parts.append(ColorJitter(cfg.color_jitter, cfg.color_jitter, cfg.color_jitter))
    return Policy(tuple(parts))


def _create_timm_policy(config: str, mean: tuple[float, float, float], size_px: int) -> Any:
    from timm.data.auto_augment import auto_augment_transform, posterize, rand_augment_transform

    hparams = {
        "translate_const": int(size_px * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
    }
    if not config.startswith("rand"):
        return auto_augment_transform(config, hparams)
    policy = rand_augment_transform(config, hparams)
    for op in policy.ops:
        if op.aug_fn is posterize:
            op.aug_fn = _posterize
    return policy


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's. Its strongest magnitude keeps no bits at all: black, which newer Pillows refuse to make."""
    from timm.data.auto_augment import posterize

    return Image.new("RGB", image.size) if bits == 0 else posterize(image, bits, **options)


class Eraser:
    """Random erasing on the device: rectangles of pictures become normal noise.

    Source: timm data/random_erasing.py, mode pixel; Random Erasing, arXiv 1708.04896.
    """

    def __init__(self, cfg: AugmentRecipe, device: torch.device) -> None:
        self.device = device
        self.erase: Callable[[Tensor], Tensor] | None = None
        if cfg.erase_prob:
            from timm.data.random_erasing import RandomErasing

            self.erase = RandomErasing(
                probability=cfg.erase_prob, mode="pixel", max_count=cfg.erase_count, device=str(device)
            )

    def __call__(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """(N, C, H, W) normalised pictures on the device, changed in place."""
        if self.erase is None:
            return images
        with seeded_globally(rng, self.device):
            return self.erase(images)
