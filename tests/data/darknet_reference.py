"""Darknet's training pictures written out in loops and float64: slow, and plain enough to be read against the C.

Source: AlexeyAB/darknet src/image.c (rotate_crop_image, flip_image, distort_image) and src/data.c (load_data_augment,
fill_truth_smooth); OpenCV's GaussianBlur.
"""

from __future__ import annotations

import math

import numpy as np

Rgb = tuple[float, float, float]


def tap(picture: np.ndarray, x: int, y: int) -> np.ndarray:
    """One pixel; what lies outside the picture is black."""
    height, width, channels = picture.shape
    return picture[y, x] if 0 <= x < width and 0 <= y < height else np.zeros(channels)


def sample(
    picture: np.ndarray, size_px: int, *, aspect: float, scale: float, angle_rad: float, dx: float, dy: float
) -> np.ndarray:
    """(H, W, 3) float64 -> (S, S, 3): each pixel is looked up in the picture, between its four neighbours there."""
    height, width = picture.shape[:2]
    out = np.zeros((size_px, size_px, 3))
    for y in range(size_px):
        for x in range(size_px):
            u = (x - size_px / 2) * aspect / scale + dx * aspect / scale
            v = (y - size_px / 2) / scale + dy / scale
            rx = math.cos(angle_rad) * u - math.sin(angle_rad) * v + width / 2
            ry = math.sin(angle_rad) * u + math.cos(angle_rad) * v + height / 2
            left, top = math.floor(rx), math.floor(ry)
            for ty in (top, top + 1):
                for tx in (left, left + 1):
                    out[y, x] += (1 - abs(rx - tx)) * (1 - abs(ry - ty)) * tap(picture, tx, ty)
    return out


def flipped(picture: np.ndarray) -> np.ndarray:
    """The mirror image."""
    height, width = picture.shape[:2]
    out = np.zeros_like(picture)
    for y in range(height):
        for x in range(width):
            out[y, x] = picture[y, width - 1 - x]
    return out


def rgb_to_hsv(red: float, green: float, blue: float) -> Rgb:
    """Hue as a share of the circle, saturation and value. A grey has hue 0 and saturation 0."""
    value, low = max(red, green, blue), min(red, green, blue)
    delta = value - low
    if delta == 0:
        return 0.0, 0.0, value
    if red == value:
        hue = (green - blue) / delta
    elif green == value:
        hue = 2 + (blue - red) / delta
    else:
        hue = 4 + (red - green) / delta
    return (hue + 6 if hue < 0 else hue) / 6, delta / value, value


def hsv_to_rgb(hue: float, saturation: float, value: float) -> Rgb:
    """The way back. Saturation and value may be above 1, and the result outside of 0 to 1 then."""
    sector = math.floor(6 * hue)
    f = 6 * hue - sector
    p = value * (1 - saturation)
    q = value * (1 - saturation * f)
    t = value * (1 - saturation * (1 - f))
    return [(value, t, p), (q, value, p), (p, value, t), (p, q, value), (t, p, value), (value, p, q)][sector % 6]


def recolour(picture: np.ndarray, hue: float, saturation: float, exposure: float) -> np.ndarray:
    """Turn the hue, multiply saturation and value."""
    out = np.zeros_like(picture)
    for y in range(picture.shape[0]):
        for x in range(picture.shape[1]):
            h, s, v = rgb_to_hsv(*picture[y, x])
            h += hue
            if h > 1:
                h -= 1
            if h < 0:
                h += 1
            out[y, x] = hsv_to_rgb(h, s * saturation, v * exposure)
    return out


def render(
    pixels: np.ndarray,
    size_px: int,
    *,
    aspect: float,
    scale: float,
    angle_rad: float,
    dx: float,
    dy: float,
    flip: bool,
    hue: float,
    saturation: float,
    exposure: float,
) -> np.ndarray:
    """(H, W, 3) uint8 -> (S, S, 3) float64 of 0 to 255, not rounded: sampled, flipped, coloured and then clipped."""
    out = sample(pixels / 255, size_px, aspect=aspect, scale=scale, angle_rad=angle_rad, dx=dx, dy=dy)
    if flip:
        out = flipped(out)
    return np.clip(recolour(out, hue, saturation, exposure), 0, 1) * 255


def cutmix(picture: np.ndarray, other: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """(C, H, W): the box of the other picture, at its own place, over this one."""
    out = picture.copy()
    for y in range(top, bottom):
        for x in range(left, right):
            out[:, y, x] = other[:, y, x]
    return out


def mosaic(four: list[np.ndarray], cut_y: int, cut_x: int) -> np.ndarray:
    """(C, H, W): top left, top right, bottom left and bottom right of four pictures, each pixel at its own place."""
    out = np.zeros_like(four[0])
    for y in range(out.shape[1]):
        for x in range(out.shape[2]):
            out[:, y, x] = four[2 * (y >= cut_y) + (x >= cut_x)][:, y, x]
    return out


def mixup(picture: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The average of two pictures."""
    return 0.5 * picture + 0.5 * other


def label_weights(kind: str, box: tuple[int, int, int, int], height: int, width: int) -> list[float]:
    """What each of up to four pictures has of the label: its share of the pixels, counted one by one."""
    if kind == "none":
        return [1.0, 0.0, 0.0, 0.0]
    if kind == "mixup":
        return [0.5, 0.5, 0.0, 0.0]
    counts = [0, 0, 0, 0]
    for y in range(height):
        for x in range(width):
            if kind == "cutmix":
                top, bottom, left, right = box
                counts[int(top <= y < bottom and left <= x < right)] += 1
            else:
                cut_y, cut_x = box[:2]
                counts[2 * (y >= cut_y) + (x >= cut_x)] += 1
    return [count / (height * width) for count in counts]


def smooth_label(target: int, num_classes: int, smoothing: float) -> np.ndarray:
    """1 - e for the class, and e shared out evenly among the other ones."""
    out = np.zeros(num_classes)
    for k in range(num_classes):
        out[k] = 1 - smoothing if k == target else smoothing / (num_classes - 1)
    return out


def mirrored(i: int, size: int) -> int:
    """The place inside that stands for i, where the border mirrors and the outermost pixel is not repeated."""
    while not 0 <= i < size:
        i = -i if i < 0 else 2 * (size - 1) - i
    return i


def gaussian_blur(picture: np.ndarray, kernel_px: int) -> np.ndarray:
    """(C, H, W): a Gaussian of the width that goes with its kernel's size, tap by tap in both directions."""
    sigma = 0.3 * ((kernel_px - 1) * 0.5 - 1) + 0.8
    radius = kernel_px // 2
    kernel = np.array([math.exp(-((i - radius) ** 2) / (2 * sigma**2)) for i in range(kernel_px)])
    kernel /= kernel.sum()
    for axis in (1, 2):
        size = picture.shape[axis]
        rows = np.moveaxis(picture.astype(np.float64), axis, 0)
        out = np.zeros_like(rows)
        for y in range(size):
            for i in range(kernel_px):
                out[y] += kernel[i] * rows[mirrored(y + i - radius, size)]
        picture = np.moveaxis(out, 0, axis)
    return picture
