"""How Darknet's classifier shows a training picture: one affine sampling pass, a flip, and a change of colours.

Source: AlexeyAB/darknet, src/data.c `load_image_augment_paths`; src/image.c `random_augment_image`,
`rotate_crop_image`, `bilinear_interpolate`, `random_distort_image`, `distort_image`, `rand_scale`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cspnet.data.decode import Picture
from cspnet.recipe.schema import DarknetRecipe

__all__ = ["DarknetView", "View", "draw_view", "rand_scale", "render_view"]


@dataclass(frozen=True)
class View:
    """What is drawn for one picture."""

    aspect: float
    """Source pixels along x, measured in those along y."""
    scale: float
    """Output pixels per source pixel."""
    angle_rad: float
    dx: float
    """Shift of the view, in output pixels."""
    dy: float
    flip: bool
    """Whether to mirror it: the only part that is left to the device."""
    hue: float
    """Added to the hue, as a share of the circle."""
    saturation: float
    """Factor of the saturation."""
    exposure: float
    """Factor of the brightness."""


def rand_scale(rng: np.random.Generator, s: float) -> float:
    """A factor: uniform between s and 1 or, as often, one divided by such a number."""
    factor = rng.uniform(s, 1.0)
    return factor if rng.random() < 0.5 else 1 / factor


def draw_view(
    rng: np.random.Generator, width: int, height: int, size_px: int, cfg: DarknetRecipe, flip_prob: float
) -> View:
    """Draw how a width x height picture is shown on size_px x size_px.

    The shorter side is scaled to a whole number of pixels from min_crop_px to max_crop_px. Where that is more than
    size_px, the view is shifted at random inside the picture; where it is less, the picture stands in the middle.
    """
    aspect = rand_scale(rng, cfg.aspect)
    crop_px = int(rng.integers(cfg.min_crop_px, cfg.max_crop_px, endpoint=True))
    # The shorter side of the picture as the aspect changes it, in whole pixels; the view's own step along x is
    # multiplied by the aspect too, so that the two do not cancel. That is what the program does.
    scale = crop_px / max(1, min(height, int(width * aspect)))
    angle_rad = math.radians(cfg.angle_deg) * rng.uniform(-1, 1)
    room_x = max(0.0, (width * scale / aspect - size_px) / 2)
    room_y = max(0.0, (height * scale - size_px) / 2)
    return View(
        aspect=aspect,
        scale=scale,
        angle_rad=angle_rad,
        dx=room_x * rng.uniform(-1, 1),
        dy=room_y * rng.uniform(-1, 1),
        flip=bool(rng.random() < flip_prob),
        hue=cfg.hue * rng.uniform(-1, 1),
        saturation=rand_scale(rng, cfg.saturation),
        exposure=rand_scale(rng, cfg.exposure),
    )


def render_view(picture: Picture, view: View, size_px: int) -> np.ndarray:
    """A picture as the view shows it, not mirrored: Darknet does that before the colours, which no pixel can tell.

    Bilinear between the four neighbours, without antialiasing; what lies outside the picture is black, also as a
    neighbour. Everything is computed in float32 and rounded once, at the end.

    Returns:
        (size_px, size_px, 3) uint8.
    Raises:
        UnreadableImageError: the picture is damaged.
    """
    image = _distort(_sample(picture, view, size_px), view).clamp_(0, 255).add_(0.5)
    pixels = np.empty((size_px, size_px, 3), np.uint8)
    for channel, numbers in enumerate(image.numpy()):
        pixels[:, :, channel] = numbers  # by numpy, as torch turns floats into bytes one by one
    return pixels


def _source_map(view: View, width: int, height: int, size_px: int) -> np.ndarray:
    """(2, 3): source (x, y) = the matrix times output (x, y, 1), in pixels."""
    cos, sin = math.cos(view.angle_rad), math.sin(view.angle_rad)
    step_x, step_y = view.aspect / view.scale, 1 / view.scale
    turn = np.array([[cos * step_x, -sin * step_y], [sin * step_x, cos * step_y]])
    shift = turn @ (np.array([view.dx, view.dy]) - size_px / 2) + np.array([width / 2, height / 2])
    return np.column_stack([turn, shift])


def _sample(picture: Picture, view: View, size_px: int) -> Tensor:
    """(3, size_px, size_px) float32, on the scale of the bytes."""
    sides = picture.width, picture.height
    matrix = _source_map(view, *sides, size_px)
    # Only the part of the picture that is seen is decoded, and becomes float.
    corners = matrix @ np.array([[0, size_px, 0, size_px], [0, 0, size_px, size_px], [1, 1, 1, 1]])
    left, top = (int(max(0, value)) for value in np.floor(corners.min(axis=1)))
    right, bottom = (int(min(side, value)) for side, value in zip(sides, np.ceil(corners.max(axis=1)) + 1, strict=True))
    if left >= right or top >= bottom:
        return torch.zeros(3, size_px, size_px)
    pixels, (area_left, area_top, area_right, area_bottom) = picture.decode_box((left, top, right, bottom), None)
    # The numbers stay in the bytes' order, so that the three colours of a pixel are read together.
    area = pixels[area_top:area_bottom, area_left:area_right].astype(np.float32)
    seen = torch.from_numpy(area).permute(2, 0, 1)[None]
    matrix[:, 2] -= (left, top)
    grid = _create_grid(matrix, size_px, right - left, bottom - top)
    return F.grid_sample(seen, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def _create_grid(matrix: np.ndarray, size_px: int, width: int, height: int) -> Tensor:
    """(1, size_px, size_px, 2): where each output pixel lies in a source of width x height pixels.

    In torch's coordinates, in which pixel i of n has its centre at (2 i + 1) / n - 1.
    """
    sides, places = np.array([width, height]), np.arange(size_px)[:, None]
    columns = 2 / sides * matrix[:, 0] * places  # (size_px, 2) float64
    rows = 2 / sides * (matrix[:, 1] * places + matrix[:, 2]) + 1 / sides - 1
    # A pair as one complex number: twice as fast as x and y by themselves.
    rows, columns = (part.astype(np.float32).view(np.complex64)[:, 0] for part in (rows, columns))
    pairs = np.add.outer(rows, columns).view(np.float32)
    return torch.from_numpy(pairs).view(1, size_px, size_px, 2)


def _distort(image: Tensor, view: View) -> Tensor:
    """(3, H, W) with hue, saturation and brightness changed, in place; not clipped.

    The usual six cases of the hue in arithmetic, which is several times faster than choosing between them: two
    exchanges sort the colours, and each moves the hue's zero; then a channel is value - spread * clip(2 - d, 0, 1),
    where d is the distance on the circle, in sixths of it, between the hue and the one opposite the channel's own.
    The hue is not turned itself, but the three that are opposite, the other way round.
    """
    red, green, blue = image
    high, low = torch.maximum(green, blue), torch.minimum(green, blue)
    first, second = torch.empty_like(red), torch.empty_like(red)
    torch.lt(green, blue, out=first)  # 1 where exchanged, as a float: far cheaper than a mask
    torch.lt(red, high, out=second)
    value, middle = torch.maximum(red, high), torch.minimum(red, high)
    spread = value - torch.minimum(middle, low)
    hue = middle.sub_(low).div_(spread.clamp(min=1e-6))
    hue.sub_(first, alpha=6).addcmul_(second, first.mul_(12).sub_(2)).abs_()
    value.mul_(view.exposure)
    spread.mul_(view.exposure * view.saturation)
    opposite = torch.tensor([(sixth - 6 * view.hue) % 6 for sixth in (3.0, 5.0, 1.0)])
    # Between 0 and 6 apart on a line, they are d = 3 - |apart - 3| apart on the circle.
    share = torch.sub(hue, opposite.view(3, 1, 1), out=image).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)
    return torch.addcmul(value, share, spread, value=-1, out=image)


@dataclass(frozen=True)
class DarknetView:
    """Darknet's way to show a training picture."""

    cfg: DarknetRecipe
    flip_prob: float

    def __call__(self, picture: Picture, rng: np.random.Generator, size_px: int) -> tuple[np.ndarray, bool]:
        """A picture of any size -> (size_px, size_px, 3) uint8, and whether to mirror it."""
        view = draw_view(rng, picture.width, picture.height, size_px, self.cfg, self.flip_prob)
        return render_view(picture, view, size_px), view.flip
