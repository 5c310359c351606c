"""From pixels back to bytes, for data sets that are packed smaller than they are."""

from __future__ import annotations

import io

from PIL import Image

from cspnet.data.decode import open_picture

__all__ = ["encode_anew"]

_JPEG = b"\xff\xd8\xff"


def encode_anew(data: bytes, max_side_px: int, quality: int) -> bytes:
    """A picture as a JPEG whose longer side has at most `max_side_px`; a JPEG that is no larger keeps its bytes.

    A larger one is turned as its EXIF orientation says, scaled down by Pillow's Lanczos filter (antialiased), and
    encoded as a baseline 4:2:0 JPEG in RGB without metadata. None is enlarged.

    Args:
        data: the file's bytes.
        max_side_px: of width and height.
        quality: of the JPEG, 1 to 100, on the scale of libjpeg.
    Raises:
        UnreadableImageError: not a whole picture.
    """
    image = open_picture(data, "apply", decoder="pillow").rgb()
    longer = max(image.size)
    if data.startswith(_JPEG) and longer <= max_side_px:
        return data
    if longer > max_side_px:
        width, height = (max(1, round(side * max_side_px / longer)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=quality, subsampling="4:2:0")
    return encoded.getvalue()
