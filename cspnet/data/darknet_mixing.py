"""Darknet's ways to mix the pictures of a batch: MixUp, CutMix, Mosaic, and a blur.

What is mixed with what is drawn first, as numbers (`draw_mix`); what the numbers say is then done on the device
(`mix`). Darknet reads the other pictures of a mix anew; here they are other pictures of the same batch, which is a
random draw itself: no picture is decoded twice, and each looks as it would there.
Source: AlexeyAB/darknet, src/data.c `load_data_augment`, `blend_truth`, `blend_truth_mosaic`; src/parser.c
`parse_net_options`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["MixPlan", "draw_mix", "mix"]

_GROUP = 4  # Darknet's 32 loading threads take 128 / 32 pictures each, and each thread decides once for all of its own
_MIXED_PROB = 0.5
_BLUR_PROB = 0.25
_METHODS = {
    "none": ("none",),
    "mixup": ("mixup",),
    "cutmix": ("cutmix",),
    "mosaic": ("mosaic",),
    "cutmix_mosaic": ("cutmix", "mosaic"),
}


@dataclass(frozen=True)
class MixPlan:
    """What becomes of each of N pictures."""

    kinds: tuple[str, ...]
    """none, mixup, cutmix or mosaic."""
    sources: np.ndarray
    """(N, 4) int64: the pictures of the batch that are used, itself first. MixUp and CutMix take two; Mosaic takes
    four: top left, top right, bottom left, bottom right."""
    boxes: np.ndarray
    """(N, 4) int64, in pixels: CutMix (top, bottom, left, right), Mosaic (cut_y, cut_x, 0, 0)."""
    weights: np.ndarray
    """(N, 4) float32: each source's share of the target."""
    blurred: np.ndarray
    """(N,) bool."""


def draw_mix(rng: np.random.Generator, num_images: int, height: int, width: int, method: str, blur: bool) -> MixPlan:
    """Draw the plan of a batch.

    Groups of four pictures are mixed as a whole or not at all, with equal chance. CutMix pastes a box with sides of 0.3
    to 0.8 of the picture's, always inside of it; Mosaic cuts at 0.2 to 0.8; a quarter of all pictures is blurred.

    Args:
        method: none, mixup, cutmix, mosaic, or cutmix_mosaic: either, picture by picture.
        blur: whether any are blurred.
    """
    itself = np.arange(num_images)[:, None]
    ahead = rng.integers(1, max(2, num_images), size=(num_images, 3))  # never the picture itself, if there is another
    sources = np.concatenate([itself, (itself + ahead) % num_images], axis=1)
    boxes = np.zeros((num_images, 4), dtype=np.int64)
    weights = np.tile(np.array([1, 0, 0, 0], dtype=np.float32), (num_images, 1))
    groups = -(-num_images // _GROUP)
    is_mixed = np.repeat(rng.random(groups) < _MIXED_PROB, _GROUP)[:num_images]
    choice = rng.integers(len(_METHODS[method]), size=num_images)
    kinds = tuple(_METHODS[method][number] if mixed else "none" for number, mixed in zip(choice, is_mixed, strict=True))
    for i, kind in enumerate(kinds):
        if kind == "mixup":
            weights[i] = 0.5, 0.5, 0, 0
        elif kind == "cutmix":
            boxes[i] = _cutmix_box(rng, height, width)
            top, bottom, left, right = boxes[i]
            share = (bottom - top) * (right - left) / (height * width)
            weights[i] = 1 - share, share, 0, 0
        elif kind == "mosaic":
            cut_y, cut_x = _integer(rng, 0.2 * height, 0.8 * height), _integer(rng, 0.2 * width, 0.8 * width)
            boxes[i] = cut_y, cut_x, 0, 0
            up, down, left, right = cut_y, height - cut_y, cut_x, width - cut_x
            weights[i] = np.array([up * left, up * right, down * left, down * right]) / (height * width)
    return MixPlan(kinds, sources, boxes, weights, (rng.random(num_images) < _BLUR_PROB) & blur)


def _integer(rng: np.random.Generator, low: float, high: float) -> int:
    """A whole number from low to high, both rounded down and included."""
    return int(rng.integers(int(low), int(high), endpoint=True))


def _cutmix_box(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    box_w, box_h = _integer(rng, 0.3 * width, 0.8 * width), _integer(rng, 0.3 * height, 0.8 * height)
    left, top = _integer(rng, 0, max(0, width - box_w - 1)), _integer(rng, 0, max(0, height - box_h - 1))
    return top, top + box_h, left, left + box_w


def mix(images: Tensor, targets: Tensor, plan: MixPlan, blur_px: int) -> tuple[Tensor, Tensor]:
    """Do what a plan says.

    Args:
        images: (N, C, H, W) float, changed in place.
        targets: (N, K) probabilities.
        blur_px: size of the blur's kernel, an odd number of pixels; 1 means 15.
    Returns:
        images and targets, mixed.
    """
    if any(kind != "none" for kind in plan.kinds):
        weights = torch.from_numpy(plan.weights).to(targets.device, non_blocking=True)
        sources = torch.from_numpy(plan.sources).to(targets.device, non_blocking=True)
        targets = (weights.to(targets.dtype)[:, :, None] * targets[sources]).sum(1)
        images = _paste(images, plan)
    if plan.blurred.any():
        chosen = torch.from_numpy(plan.blurred.nonzero()[0]).to(images.device, non_blocking=True)
        kernel_px = 15 if blur_px == 1 else blur_px
        from torchvision.transforms.functional import gaussian_blur  # here: torchvision takes a second to import

        images[chosen] = gaussian_blur(images[chosen], [kernel_px, kernel_px])
    return images, targets


def _paste(images: Tensor, plan: MixPlan) -> Tensor:
    """Copy regions between the pictures; what is pasted comes from the pictures as they were."""
    original = images.clone()
    for i, (kind, sources, box) in enumerate(zip(plan.kinds, plan.sources.tolist(), plan.boxes.tolist(), strict=True)):
        if kind == "mixup":
            torch.lerp(original[i], original[sources[1]], 0.5, out=images[i])
        elif kind == "cutmix":
            top, bottom, left, right = box
            images[i, :, top:bottom, left:right] = original[sources[1], :, top:bottom, left:right]
        elif kind == "mosaic":
            cut_y, cut_x, _, _ = box
            images[i, :, :cut_y, cut_x:] = original[sources[1], :, :cut_y, cut_x:]
            images[i, :, cut_y:, :cut_x] = original[sources[2], :, cut_y:, :cut_x]
            images[i, :, cut_y:, cut_x:] = original[sources[3], :, cut_y:, cut_x:]
    return images
