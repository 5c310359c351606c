"""A contact sheet: small pictures in rows, each with a line about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from cspnet.runtime.files import replacing

__all__ = ["MADE_BY", "SIDE_PX", "Caption", "draw_sheet", "fit_picture", "lay_out"]

MADE_BY = b"a contact sheet of cspnet"
"""Stands in a sheet's first bytes, so that it is known for one."""
SIDE_PX = 160
"""The longer side of a picture on the sheet."""
_GAP_PX, _LINE_PX, _FONT_PX = 8, 16, 12
_COLUMNS = 6


@dataclass(frozen=True)
class Caption:
    """A picture, and the two lines below it."""

    picture: np.ndarray | None
    """(H, W, 3) uint8, at most SIDE_PX long; None where it cannot be read."""
    text: str
    more: str = ""


def fit_picture(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, smaller if it is too large for a sheet, and some whole number of times as large if that fits."""
    longer = max(picture.shape[:2])
    if longer > SIDE_PX:
        image = Image.fromarray(picture)
        image.thumbnail((SIDE_PX, SIDE_PX))
        return np.asarray(image)
    times = SIDE_PX // longer
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def draw_sheet(file: Path, captions: Sequence[Caption]) -> None:
    """Write a sheet.

    Raises:
        OSError: the file cannot be written.
    """
    mark = PngInfo()
    mark.add_text("Software", MADE_BY.decode())
    with replacing(file) as temporary:
        if file.suffix.lower() == ".png":
            lay_out(captions).save(temporary, "PNG", pnginfo=mark)
        else:
            lay_out(captions).save(temporary, "JPEG", quality=90, comment=MADE_BY)


def lay_out(captions: Sequence[Caption]) -> Image.Image:
    """A sheet, six pictures in a row; in the place of one that cannot be read is a grey square."""
    columns = min(_COLUMNS, len(captions))
    rows = math.ceil(len(captions) / columns)
    wide, high = SIDE_PX + _GAP_PX, SIDE_PX + 2 * _LINE_PX + _GAP_PX
    sheet = Image.new("RGB", (columns * wide + _GAP_PX, rows * high + _GAP_PX), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_PX)
    for i, caption in enumerate(captions):
        x, y = _GAP_PX + i % columns * wide, _GAP_PX + i // columns * high
        if caption.picture is None:
            picture = Image.new("RGB", (SIDE_PX, SIDE_PX), "lightgrey")
        else:
            picture = Image.fromarray(caption.picture)
        sheet.paste(picture, (x + (SIDE_PX - picture.width) // 2, y + (SIDE_PX - picture.height) // 2))
        for line, text in enumerate((caption.text, caption.more)):
            pen.text((x, y + SIDE_PX + line * _LINE_PX), _shorten(text, font), "black" if line == 0 else "grey", font)
    return sheet


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, without what does not fit below a picture, and with what no font shows written out."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    kept = text
    while font.getlength(kept + "…" * (kept != text)) > SIDE_PX:
        kept = kept[:-1]
    return kept + "…" * (kept != text)
