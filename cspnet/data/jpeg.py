"""JPEGs with as few pixels decoded as a crop needs: the rows above its lower edge, smaller where that will do.

A sequential JPEG is one stream from the top to the bottom. Told that the picture ends below the crop, the decoder stops
there, and the rows it gives are those it would have given. What this module refuses is left to Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

try:
    import simplejpeg
except ImportError:  # no wheel for this platform: Pillow decodes everything
    simplejpeg = None

__all__ = ["IS_INSTALLED", "JpegHeader", "count_scans", "decode_jpeg", "is_whole_jpeg", "read_jpeg_header"]

IS_INSTALLED = simplejpeg is not None
"""Whether there is a decoder for it."""

_SOI, _EOI, _SOS, _APP0, _APP1, _APP14 = b"\xff\xd8", b"\xff\xd9", 0xDA, 0xE0, 0xE1, 0xEE
_YCC = 1
"""Adobe's mark of YCbCr."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # these three are tables
_SEQUENTIAL_HUFFMAN = (0xC0, 0xC1)
_CONTEXT_ROWS = 2
"""Chroma at half the height is interpolated from the neighbours, so the rows below have to be decoded as well."""


@dataclass(frozen=True)
class JpegHeader:
    """What a JPEG says of itself before its data begin; sides in pixels, as stored."""

    width: int
    height: int
    height_at: int
    """Where the two bytes of the height stand in the file."""
    block_px: int
    """Rows that are coded together."""
    one_pass: bool
    """Whether all there is of a row stands before the next one's: no progressive and no separated colours."""
    may_be_turned: bool
    """Whether the metadata may hold an EXIF orientation (in XMP too)."""
    plain_colors: bool
    """Whether it holds grey or YCbCr and does not leave that to be guessed; others may hold RGB."""


def read_jpeg_header(data: bytes | memoryview) -> JpegHeader | None:
    """The header of an 8-bit JPEG in grey or three colours; None for whatever else.

    Source: ITU-T T.81, annex B.
    """
    if simplejpeg is None or data[:2] != _SOI:
        return None
    try:
        return _read_segments(data)
    except IndexError:  # it ends within a segment
        return None


def _read_segments(data: bytes | memoryview) -> JpegHeader | None:
    at, frame, may_be_turned, plain_colors = 2, None, False, False
    while data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF:  # a filler
            at += 1
            continue
        length = data[at + 2] << 8 | data[at + 3]
        if kind in _FRAMES:
            frame = at
        elif kind == _APP1:
            segment = bytes(data[at + 4 : at + 2 + length])
            may_be_turned |= b"\x01\x12" in segment or b"\x12\x01" in segment or b"Orientation" in segment
        elif kind == _APP0:
            plain_colors |= bytes(data[at + 4 : at + 8]) == b"JFIF"
        elif kind == _APP14 and bytes(data[at + 4 : at + 9]) == b"Adobe":
            plain_colors = data[at + 15] == _YCC
        elif kind == _SOS:
            break
        at += 2 + length
    else:
        return None
    if frame is None:
        return None
    bits, channels = data[frame + 4], data[frame + 9]
    height, width = data[frame + 5] << 8 | data[frame + 6], data[frame + 7] << 8 | data[frame + 8]
    if bits != 8 or channels not in (1, 3) or not height or not width:
        return None
    samplings = [data[frame + 11 + 3 * i] & 15 for i in range(channels)]
    return JpegHeader(
        width,
        height,
        frame + 5,
        8 * (max(samplings) if channels > 1 else 1),
        data[frame + 1] in _SEQUENTIAL_HUFFMAN and data[at + 4] == channels,
        may_be_turned,
        plain_colors or channels == 1,
    )


def is_whole_jpeg(data: bytes | memoryview) -> bool:
    """Whether the end mark is where it belongs; where it is missing, the file may be cut off."""
    return bytes(data[-2:]) == _EOI


def count_scans(data: bytes | memoryview) -> int:
    """How often a JPEG goes over its picture, at most: those of a thumbnail count as well."""
    return bytes(data).count(b"\xff\xda") if data[:2] == _SOI else 0


def decode_jpeg(data: bytes | memoryview, header: JpegHeader, bottom: int, shrink: int = 1) -> np.ndarray:
    """The rows of a picture down to `bottom` and perhaps some more: (rows, width, 3) uint8, as stored.

    Args:
        data: the file.
        header: of it.
        bottom: rows wanted, in pixels of the whole picture.
        shrink: 1, 2, 4 or 8: the picture at this fraction of its size (sides rounded up), which the inverse cosine
            transform gives for less than the whole.
    Raises:
        ValueError: it is damaged, or of a kind that the decoder does not know.
    """
    rows = min(header.height, -(-(bottom + _CONTEXT_ROWS * shrink) // header.block_px) * header.block_px)
    # Where the end mark is missing the file is cut off: that comes out when all of it is decoded.
    shorten = rows < header.height and header.one_pass and is_whole_jpeg(data)
    if shorten:
        data = b"".join([data[: header.height_at], rows.to_bytes(2, "big"), data[header.height_at + 2 :]])
    else:
        rows = header.height
    smaller = {"min_factor": shrink, "min_height": -(-rows // shrink), "min_width": -(-header.width // shrink)}
    # Not strict: what is left over below the last row would be an error.
    pixels: np.ndarray = simplejpeg.decode_jpeg(data, strict=not shorten, **smaller if shrink > 1 else {})
    return pixels
