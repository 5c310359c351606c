"""What is in the bytes of a picture, and what is odd about them; broken is exactly what `Picture.rgb` refuses."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from cspnet.data.decode import UnreadableImageError, open_image
from cspnet.data.samples import SampleIndex

__all__ = ["DIGEST_BYTES", "Inspection", "inspect_picture", "inspect_sample"]

DIGEST_BYTES = 16
TINY_PX = 32
ELONGATED_RATIO = 5
HUGE_PIXELS = 89_478_485
"""Where Pillow begins to warn; at twice as many it refuses."""

_FORMATS_OF = {
    ".jpg": ("JPEG", "MPO"),  # MPO: a JPEG with further ones behind it, as some cameras write
    ".jpeg": ("JPEG", "MPO"),
    ".png": ("PNG",),
    ".ppm": ("PPM",),
    ".pgm": ("PPM",),
    ".bmp": ("BMP", "DIB"),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
    ".webp": ("WEBP",),
}
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"GIF8")
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION, _BITS_PER_SAMPLE = 0x0112, 0x0102
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # not a stuffed byte, not a restart inside a scan
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9


class Inspection(NamedTuple):
    """What one file holds."""

    num_bytes: int
    digest: bytes
    """BLAKE2b of the contents, DIGEST_BYTES long."""
    width: int
    """In pixels, as stored; 0 if the picture is broken, as is `height`; `format` and `mode` are empty then."""
    height: int
    format: str
    mode: str
    findings: tuple[tuple[str, str], ...]
    """(kind, text) of all that is broken or odd about it; the kinds are keys of `findings.KINDS`."""


def inspect_sample(index: SampleIndex, i: int) -> Inspection:
    """Read and inspect sample i of an index."""
    path = index.path(i)
    try:
        data = bytes(index.read(i))
    except UnreadableImageError as error:
        kind = "dangling_link" if os.path.islink(path) and not os.path.exists(path) else "unreadable"
        return Inspection(0, bytes(DIGEST_BYTES), 0, 0, "", "", ((kind, str(error)),))
    # The names of pictures that were encoded anew are those from before.
    return inspect_picture(data, "" if index.encoding else path)


def inspect_picture(data: bytes, name: str) -> Inspection:
    """Decode a picture as a whole and say what is odd about it; nothing is raised for what cannot be decoded.

    Args:
        data: the contents of its file.
        name: its file name, of which the ending is compared with the contents; empty if it says nothing of them.
    """
    digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow would warn of is found here, and not said for each file
            with open_image(data) as image:
                width, height = image.size
                mode, kind = image.mode, image.format or ""
                turned = _tiff_number(image, _ORIENTATION)  # loading a TIFF turns it and forgets this
                _decode(image)
                odd = (*_oddities(image, mode, data, turned), *_odd_shape(width, height), *_odd_bytes(data, kind, name))
    except MemoryError:  # the machine's fault, not the picture's
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parser trips over
        return Inspection(len(data), digest, 0, 0, "", "", (_broken(error, data),))
    return Inspection(len(data), digest, width, height, kind, mode, odd)


def _decode(image: Image.Image) -> None:
    """All that reading a picture by Pillow does and that can fail."""
    image.load()
    if image.mode in _WIDE_MODES:
        np.asarray(image)
    elif image.mode not in ("RGB", "L"):
        image.convert("RGB")


def _broken(error: Exception, data: bytes) -> tuple[str, str]:
    """The kind and the reason of a picture that cannot be decoded."""
    text = " ".join(re.sub(r"<_io\.\S+ object at \w+>", "", str(error)).split()) or type(error).__name__
    begins = data.startswith(_SIGNATURES)
    if not data:
        return "zero_byte", "0 bytes"
    if isinstance(error, Image.DecompressionBombError | UnreadableImageError):
        return "bomb", text
    if isinstance(error, UnidentifiedImageError) and not begins:
        return "not_picture", f"begins with {data[:24]!r}"
    if "truncated" in text.lower() or (begins and _end_of(data) is None):
        return "truncated", f"{text}; {len(data)} bytes"
    return "damaged", text


def _oddities(image: Image.Image, mode: str, data: bytes, tiff_orientation: int) -> Iterator[tuple[str, str]]:
    """What is odd about how a decoded picture is stored."""
    if mode == "CMYK":
        yield "cmyk", "CMYK"
    bits = _bits(image, mode, data)
    if bits > 8:
        yield "sixteen_bit", f"{bits} bits, mode {mode}"
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        yield "transparent", f"mode {mode}"
    orientation = tiff_orientation or _orientation(image)
    if orientation in range(2, 9):
        yield "exif_rotated", f"orientation {orientation}" + "; a TIFF is turned in any case" * bool(tiff_orientation)
    frames = _num_frames(image)
    if frames > 1:
        yield "multi_frame", f"{frames} frames"


def _bits(image: Image.Image, mode: str, data: bytes) -> int:
    """Bits a channel, as stored; Pillow's mode does not tell it of colours."""
    if image.format == "PNG":
        return data[24]
    return _tiff_number(image, _BITS_PER_SAMPLE) or (16 if mode in _WIDE_MODES else 8)


def _tiff_number(image: Image.Image, tag: int) -> int:
    """The (largest) value of a TIFF's tag; 0 if it has none, or is no TIFF."""
    try:
        return int(np.max(getattr(image, "tag_v2", {}).get(tag, 0)))
    except Exception:  # a damaged tag need not keep the picture from being read
        return 0


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data: the picture is read as stored
        return 1


def _num_frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # damaged behind the first frame, which is all that is used
        return 1


def _odd_shape(width: int, height: int) -> Iterator[tuple[str, str]]:
    size = f"{width} x {height} px"
    shorter, longer = sorted((width, height))
    if shorter < TINY_PX:
        yield "tiny", size
    if longer > ELONGATED_RATIO * shorter:
        yield "elongated", size
    if width * height > HUGE_PIXELS:
        yield "huge", size


def _odd_bytes(data: bytes, kind: str, name: str) -> Iterator[tuple[str, str]]:
    """What is odd about a file whose picture is whole."""
    ending = os.path.splitext(name)[1].lower()
    if kind not in _FORMATS_OF.get(ending, (kind,)):
        yield "misnamed", f"{kind} inside"
    end = len(data) if kind == "MPO" else _end_of(data)
    if end is None:
        yield "no_end", f"{len(data)} bytes"
    elif end < len(data):
        yield "trailing", f"{len(data) - end} of {len(data)} bytes"


def _end_of(data: bytes) -> int | None:
    """Where the picture ends, in bytes; None if its end mark is missing. All of the data for formats without one."""
    if data.startswith(b"\xff\xd8"):
        return _end_of_jpeg(data)
    if data.startswith(b"\x89PNG"):
        return _end_of_png(data)
    return len(data)


def _end_of_jpeg(data: bytes) -> int | None:
    at = 2
    before_last = data.rfind(b"\xff\xd9", 0, -2) if data.endswith(b"\xff\xd9") else len(data)
    while match := _JPEG_MARKER.search(data, at):
        at, marker = match.end(), match[1][0]
        if marker == _JPEG_END:
            return at
        # Searching a scan for markers takes as long as decoding it. No end mark before the last bytes: they are it.
        if marker == _JPEG_SCAN and before_last < at:
            return len(data)
        at += int.from_bytes(data[at : at + 2], "big")  # past the segment, which may hold a thumbnail
    return None


def _end_of_png(data: bytes) -> int | None:
    at = 8
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        at += 12 + length
        if kind == b"IEND":
            return at
    return None
