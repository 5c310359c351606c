"""Which part of a picture is used: geometry in whole pixels, drawn from an addressed generator.

What comes out is uint8, and whether it is to be mirrored: drawn here, done on the device, as are float work,
normalisation and mixing (`cspnet.data.mixing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from cspnet.data.darknet import DarknetView
from cspnet.data.decode import Picture, pad, resize
from cspnet.data.policies import Policy, build_policy
from cspnet.recipe.schema import DataRecipe, Recipe

__all__ = [
    "EvalTransform",
    "RandomPadView",
    "RandomResizedView",
    "SizeRamp",
    "TrainTransform",
    "build_train_transform",
    "random_resized_box",
    "resized_size",
]


def random_resized_box(
    rng: np.random.Generator,
    width: int,
    height: int,
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int, int, int]:
    """A random area of a width x height picture, as (left, top, right, bottom) in pixels.

    Its share of the picture is uniform in `scale`, its width / height log-uniform in `aspect`. After ten draws that do
    not fit, the largest centred area with the nearest allowed aspect is taken.
    Source: the RandomResizedCrop of torchvision (Inception-style cropping, arXiv 1409.4842).
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    ratio = min(max(width / height, aspect[0]), aspect[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    w, h = max(w, 1), max(h, 1)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def resized_size(width: int, height: int, shorter_px: int) -> tuple[int, int]:
    """(width, height) after the shorter side is resized to `shorter_px`; the longer one is rounded down."""
    if width <= height:
        return shorter_px, int(shorter_px * height / width)
    return int(shorter_px * width / height), shorter_px


@dataclass(frozen=True)
class RandomResizedView:
    """A random area, resized, and perhaps a flip."""

    scale: tuple[float, float]
    aspect: tuple[float, float]
    flip_prob: float
    interpolation: str
    shrink: bool
    """Whether JPEGs may be decoded at less than their size, where the area is large."""

    def draw(self, rng: np.random.Generator, width: int, height: int) -> tuple[tuple[int, int, int, int], bool]:
        """The area (left, top, right, bottom) of a width x height picture, in pixels, and whether to mirror it."""
        flip = rng.random() < self.flip_prob
        return random_resized_box(rng, width, height, self.scale, self.aspect), flip

    def __call__(self, picture: Picture, rng: np.random.Generator, size_px: int) -> tuple[np.ndarray, bool]:
        """A picture of any size -> (size_px, size_px, 3) uint8, and whether to mirror it."""
        box, flip = self.draw(rng, picture.width, picture.height)
        return picture.crop_resize(box, (size_px, size_px), self.interpolation, shrink=self.shrink), flip


@dataclass(frozen=True)
class RandomPadView:
    """The whole picture with a border, shifted, and perhaps a flip."""

    pad_px: int
    border: Literal["black", "reflect"]
    flip_prob: float
    interpolation: str

    def __call__(self, picture: Picture, rng: np.random.Generator, size_px: int) -> tuple[np.ndarray, bool]:
        """A picture of any size -> (size_px, size_px, 3) uint8, and whether to mirror it."""
        flip = rng.random() < self.flip_prob
        image = pad(resize(picture.rgb(), (size_px, size_px), self.interpolation), self.pad_px, self.border)
        left, top = (int(offset) for offset in rng.integers(2 * self.pad_px + 1, size=2))
        return np.array(image.crop((left, top, left + size_px, top + size_px))), flip


@dataclass(frozen=True)
class SizeRamp:
    """The side of a training picture as a function of the epoch: constant, then rising, then constant."""

    start_px: int
    end_px: int
    first_epoch: int = 0
    last_epoch: int = 0

    def sizes(self) -> list[int]:
        """All sizes, in rising order."""
        return sorted({self.size_at(epoch) for epoch in range(self.last_epoch + 1)})

    def size_at(self, epoch: int) -> int:
        """start_px up to first_epoch, end_px from last_epoch on, in between a straight line in steps of 32 px."""
        if epoch >= self.last_epoch:
            return self.end_px
        if epoch <= self.first_epoch:
            return self.start_px
        done = (epoch - self.first_epoch) / (self.last_epoch - self.first_epoch)
        return min(self.end_px, self.start_px + 32 * round((self.end_px - self.start_px) * done / 32))


@dataclass(frozen=True)
class TrainTransform:
    """How a picture is seen in training, and what is changed about it then."""

    view: Callable[[Picture, np.random.Generator, int], tuple[np.ndarray, bool]]
    sizes: SizeRamp
    policy: Policy
    flip: Literal["random", "alternate"] = "random"

    def __call__(self, picture: Picture, rng: np.random.Generator, size_px: int) -> tuple[np.ndarray, bool]:
        """A picture of any size -> (size_px, size_px, 3) uint8, and whether to mirror it."""
        pixels, flip = self.view(picture, rng, size_px)
        return self.policy(pixels, rng), flip


def _limit_aspect(image: Image.Image, aspect: int = 16) -> Image.Image:
    """The middle of a picture more than `aspect` times as long as wide: resized whole, it could fill the memory."""
    width, height = min(image.width, aspect * image.height), min(image.height, aspect * image.width)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image if (width, height) == image.size else image.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class EvalTransform:
    """Shorter side to size_px / crop_ratio (rounded down), then the centre: torchvision's and timm's pixels."""

    size_px: int
    crop_ratio: float
    interpolation: str

    def __call__(self, picture: Picture) -> np.ndarray:
        """A picture of any size -> (size_px, size_px, 3) uint8."""
        shorter_px = max(self.size_px, math.floor(self.size_px / self.crop_ratio))
        image = _limit_aspect(picture.rgb())
        image = resize(image, resized_size(image.width, image.height, shorter_px), self.interpolation)
        left, top = round((image.width - self.size_px) / 2), round((image.height - self.size_px) / 2)
        return np.asarray(image.crop((left, top, left + self.size_px, top + self.size_px)))


def build_sizes(cfg: DataRecipe) -> SizeRamp:
    """The recipe's side of a training picture, by epoch."""
    return SizeRamp(cfg.start_px or cfg.train_px, cfg.train_px, *cfg.ramp_epochs)


def build_train_transform(recipe: Recipe) -> TrainTransform:
    """The training transform of a recipe."""
    cfg = recipe.data
    views: dict[str, Callable[[Picture, np.random.Generator, int], tuple[np.ndarray, bool]]] = {
        "random_resized": RandomResizedView(
            cfg.train_scale, cfg.train_aspect, cfg.flip_prob, cfg.train_interpolation, cfg.shrink
        ),
        "random_pad": RandomPadView(cfg.pad_px, cfg.pad_with, cfg.flip_prob, cfg.train_interpolation),
        "darknet": DarknetView(recipe.darknet, cfg.flip_prob),
    }
    return TrainTransform(
        view=views[cfg.train_crop],
        sizes=build_sizes(cfg),
        policy=build_policy(recipe.augment, cfg.mean, cfg.train_px),
        flip=cfg.flip,
    )
