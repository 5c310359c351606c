"""From bytes to pixels: a picture is opened, then asked for what is wanted of it.

JPEGs take the short way of `cspnet.data.jpeg`; everything else, and every JPEG that it refuses, is Pillow's. Both give
the same pixels (they wrap the same decoder), so which one was taken cannot be seen in a run, but for a damaged JPEG:
damage that makes Pillow refuse the picture is not met by a crop that ends above it.
"""

from __future__ import annotations

import io
import math
import warnings
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn import functional as F

from cspnet.data.jpeg import JpegHeader, count_scans, decode_jpeg, is_whole_jpeg, read_jpeg_header

__all__ = [
    "EXTENSIONS",
    "Picture",
    "UnreadableImageError",
    "WholePicture",
    "open_image",
    "open_picture",
    "pad",
    "resize",
]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File names that count as pictures in a folder; the contents decide how they are decoded."""

_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF")
"""What Pillow may take a file for. Of its others some hand the file to a program: PostScript is run by Ghostscript."""
_MOST_WORK = 2_000_000_000
"""Pixels of a JPEG times its scans: each goes over the whole picture and may take a few bytes. Encoders write about
10 scans."""

Box = tuple[int, int, int, int]

# Pillow warns of damaged EXIF data at every reading of such a picture; the picture is read as stored.
warnings.filterwarnings("ignore", message=r"(Possibly c|C)orrupt EXIF data", module=r"PIL\.")

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_TORCH_FILTERS = ("bilinear", "bicubic")
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 0x0112
_SHRINKS = (8, 4, 2)


class UnreadableImageError(Exception):
    """A file that is not a whole picture; the message is the reason."""


class Picture(ABC):
    """A picture of width x height pixels, upright and 8-bit RGB, of which as little is decoded as is asked for."""

    width: int
    height: int
    jpeg: bytes | memoryview | None = None
    """The file, if any JPEG decoder may be trusted to show it upright and in the right colours; None for all others."""

    @abstractmethod
    def rgb(self) -> Image.Image:
        """All of it.

        Raises:
            UnreadableImageError: it is damaged.
        """

    @abstractmethod
    def decode_box(self, box: Box, size: tuple[int, int] | None) -> tuple[np.ndarray, Box]:
        """At least the pixels of a box, (H, W, 3) uint8 from the top left corner on, and where it lies in them.

        With a size, the picture may be smaller than it is, as long as the box is no smaller than that.
        """

    def crop_resize(self, box: Box, size: tuple[int, int], interpolation: str, *, shrink: bool = False) -> np.ndarray:
        """The area `box` (left, top, right, bottom) in pixels, resized (antialiased): (height, width, 3) uint8.

        Bilinear and bicubic are torch's, which are within one grey level of Pillow's and several times faster.

        Args:
            box: inside the picture.
            size: (width, height) of the result, in pixels.
            interpolation: nearest, bilinear, bicubic or lanczos.
            shrink: decode a JPEG at half, a quarter or an eighth of its size where the box still has `size` pixels
                or more then. The box's sides move by up to half a pixel of the smaller picture.
        Raises:
            UnreadableImageError: the picture is damaged.
        """
        pixels, (left, top, right, bottom) = self.decode_box(box, size if shrink else None)
        area = pixels[top:bottom, left:right].copy()  # in one piece, for both that resize
        if (right - left, bottom - top) == size:
            return area
        if interpolation not in _TORCH_FILTERS:
            return np.array(Image.fromarray(area).resize(size, _FILTERS[interpolation]))
        # As a batch of one first: only with the strides of one does torch keep the channels last, and its fast kernel.
        image = torch.from_numpy(area)[None].permute(0, 3, 1, 2)
        image = F.interpolate(image, size[::-1], mode=interpolation, antialias=True)
        return image[0].permute(1, 2, 0).numpy()


class WholePicture(Picture):
    """A picture that is decoded already."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.width, self.height = image.size

    def rgb(self) -> Image.Image:
        return self._image

    def decode_box(self, box: Box, size: tuple[int, int] | None) -> tuple[np.ndarray, Box]:
        area = np.asarray(self._image.crop(box))  # not of the whole: it may be large
        return area, (0, 0, area.shape[1], area.shape[0])


class _Jpeg(Picture):
    """A JPEG of which only the header has been read; upright as it is stored."""

    def __init__(self, data: bytes | memoryview, header: JpegHeader) -> None:
        self._data = data
        self._header = header
        self.width, self.height = header.width, header.height
        self.jpeg = data if header.plain_colors and is_whole_jpeg(data) else None

    def rgb(self) -> Image.Image:
        try:
            return Image.fromarray(decode_jpeg(self._data, self._header, self.height))
        except ValueError:
            return _decode(self._data, exif="ignore")

    def decode_box(self, box: Box, size: tuple[int, int] | None) -> tuple[np.ndarray, Box]:
        left, top, right, bottom = box
        larger = min((right - left) / size[0], (bottom - top) / size[1]) if size else 1
        shrink = next((factor for factor in _SHRINKS if factor <= larger), 1)
        try:
            pixels = decode_jpeg(self._data, self._header, bottom, shrink)
        except ValueError:
            return np.asarray(self.rgb()), box
        left, top = round(left / shrink), round(top / shrink)
        return pixels, (left, top, max(left + 1, round(right / shrink)), max(top + 1, round(bottom / shrink)))


def open_picture(
    data: bytes | memoryview, exif: Literal["apply", "ignore"] = "apply", decoder: Literal["fast", "pillow"] = "fast"
) -> Picture:
    """A picture from the bytes of its file.

    Grey, palette and CMYK pictures are converted, transparency is dropped (as torchvision and timm do), and 16-bit
    grey is scaled down by 256, where Pillow alone would clip it to white.

    Args:
        data: the file's bytes.
        exif: apply turns the picture as its EXIF orientation says; ignore reads it as stored.
        decoder: fast takes the short way for JPEGs; pillow decodes everything whole and by Pillow.
    Raises:
        UnreadableImageError: empty, truncated, too large to be true, or not a picture; what damage there is in a
            JPEG may come out only when its pixels are asked for.
    """
    header = read_jpeg_header(data) if decoder == "fast" else None
    if header is not None and not header.one_pass:
        _check_scans(data, header.width, header.height)
    if header is None or header.width * header.height > (Image.MAX_IMAGE_PIXELS or math.inf):
        return WholePicture(_decode(data, exif))
    if exif == "apply" and header.may_be_turned and _orientation(data) != 1:
        return WholePicture(_decode(data, exif))
    return _Jpeg(data, header)


def open_image(data: bytes | memoryview) -> Image.Image:
    """A picture as Pillow sees it, of the formats that are read here; of its pixels none is decoded yet.

    Raises:
        UnreadableImageError: a JPEG with so many scans that decoding it would take for ever.
        Exception: whatever Pillow's parsers trip over.
    """
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    _check_scans(data, *image.size)
    return image


def _check_scans(data: bytes | memoryview, width: int, height: int) -> None:
    if (scans := count_scans(data)) * width * height > _MOST_WORK:
        raise UnreadableImageError(f"{scans:,} scans of {width} x {height} px: it would take too long to decode")


def _orientation(data: bytes | memoryview) -> int:
    """The EXIF orientation of a JPEG, 1 if it is upright; 0 if that cannot be told."""
    try:
        with open_image(data) as image:
            return int(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # the parser raises anything; Pillow decides what becomes of the picture
        return 0


def _decode(data: bytes | memoryview, exif: Literal["apply", "ignore"]) -> Image.Image:
    """All of a picture, by Pillow."""
    try:
        with open_image(data) as image:
            image.load()
            if exif == "apply":
                image = _turn_upright(image)
            if image.mode in _WIDE_MODES:
                image = _narrow(image)
            return image if image.mode == "RGB" else image.convert("RGB")
    except (MemoryError, UnreadableImageError):  # the first is the machine's fault, not the picture's
        raise
    # Pillow's plugins raise whatever their parser trips over; a file that cannot be read is one thing to us.
    except Exception as error:
        raise UnreadableImageError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify image file"  # Pillow names the stream, which is nothing to the reader
    return " ".join(str(error).split()) or type(error).__name__


def _turn_upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; as stored, if its EXIF data are damaged."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
        return image
    except MemoryError:
        raise
    except Exception:  # the parser raises anything; the pixels are good all the same
        return image


def _narrow(image: Image.Image) -> Image.Image:
    """One channel of more than 8 bits to 8 bits."""
    values = np.asarray(image)
    if image.mode == "F":
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    wide = image.mode != "I" or values.max(initial=0) > 255
    return Image.fromarray((np.clip(values, 0, 65535) >> (8 if wide else 0)).astype(np.uint8))


def resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """The picture, resized (antialiased) to `size` (width, height); itself if that is its size."""
    return image if image.size == size else image.resize(size, _FILTERS[interpolation])


def pad(image: Image.Image, border_px: int, border: Literal["black", "reflect"] = "black") -> Image.Image:
    """The picture with a border: black, or itself mirrored at its edges, whose own pixels are not repeated."""
    if border == "reflect":
        width = ((border_px, border_px), (border_px, border_px), (0, 0))
        return Image.fromarray(np.pad(np.asarray(image), width, mode="reflect"))
    return ImageOps.expand(image, border_px) if border_px else image
