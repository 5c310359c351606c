"""From a file to pixels. The one door to the picture library (Pillow), so that a faster decoder has one place to go."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

__all__ = ["EXTENSIONS", "UnreadableImageError", "crop_resize", "pad", "read_rgb", "resize"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File names that count as pictures in a folder; the contents decide how they are decoded."""

# Pillow warns of damaged EXIF data at every reading of such a picture; the picture is read as stored.
warnings.filterwarnings("ignore", message=r"(Possibly c|C)orrupt EXIF data", module=r"PIL\.")

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


class UnreadableImageError(Exception):
    """A file that is not a whole picture; the message is the reason."""


def read_rgb(path: str, exif: Literal["apply", "ignore"] = "apply") -> Image.Image:
    """A file as a whole, decoded 8-bit RGB picture.

    Grey, palette and CMYK pictures are converted, transparency is dropped (as torchvision and timm do), and 16-bit
    grey is scaled down by 256, where Pillow alone would clip it to white.

    Args:
        path: the file.
        exif: apply turns the picture as its EXIF orientation says; ignore reads it as stored.
    Raises:
        UnreadableImageError: missing, empty, truncated, too large to be true, or not a picture.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if exif == "apply":
                image = _turn_upright(image)
            if image.mode in _WIDE_MODES:
                image = _narrow(image)
            return image.convert("RGB")
    # Pillow's plugins raise whatever their parser trips over; a file that cannot be read is one thing to us.
    except Exception as error:
        raise UnreadableImageError(_reason(error, path)) from error


def _reason(error: Exception, path: str) -> str:
    """What went wrong, on one line and without the path, which the reader is told in any case."""
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return " ".join(text.replace(repr(path), "").replace(path, "").split())


def _turn_upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; as stored, if its EXIF data are damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the parser raises anything; the pixels are good all the same
        return image


def _narrow(image: Image.Image) -> Image.Image:
    """One channel of more than 8 bits to 8 bits."""
    values = np.asarray(image)
    if image.mode == "F":
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    wide = image.mode != "I" or values.max(initial=0) > 255
    return Image.fromarray((np.clip(values, 0, 65535) >> (8 if wide else 0)).astype(np.uint8))


def crop_resize(
    image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int], interpolation: str
) -> Image.Image:
    """The area `box` (left, top, right, bottom) in pixels, resized (antialiased) to `size` (width, height)."""
    return image.crop(box).resize(size, _FILTERS[interpolation])


def resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """The picture, resized (antialiased) to `size` (width, height); itself if that is its size."""
    return image if image.size == size else image.resize(size, _FILTERS[interpolation])


def pad(image: Image.Image, border_px: int) -> Image.Image:
    """The picture with a black border."""
    return ImageOps.expand(image, border_px) if border_px else image
