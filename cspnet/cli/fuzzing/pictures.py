"""Pictures for the decoders: valid ones of all formats, and some that are small and claim or become much."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cspnet.cli.fuzzing.watch import CANARY, Files
from cspnet.cli.fuzzing.zips import deflate_zeros
from cspnet.runtime.random import generator_at

__all__ = ["JPEG_WORDS", "PICTURE_WORDS", "jpeg_seeds", "jpeg_traps", "picture_seeds", "picture_traps", "repair_png"]

JPEG_WORDS = (
    *(
        b"\xff\xd8",
        b"\xff\xd9",
        b"\xff\xda",
        b"\xff\xc0",
        b"\xff\xc2",
        b"\xff\xc4",
        b"\xff\xdb",
        b"\xff\xdd\0\4\0\1",
        b"\xff\xd0",
    ),
    *(
        b"\xff\xe1\0\x20Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0",
        b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1",
        b"\xff\xff\xff",
    ),
    *(b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0", b"\xff\xc9", b"\xff\xfe\xff\xff", b"\xff\x00"),
)
PICTURE_WORDS = (
    b"IHDR",
    b"IDAT",
    b"IEND",
    b"tRNS",
    b"PLTE",
    b"acTL",
    b"eXIf",
    b"zTXt",
    b"RIFF",
    b"VP8X",
    b"ANIM",
    b"II*\0",
    b"P6 ",
    b"GIF89a",
)
_PNG = b"\x89PNG\r\n\x1a\n"


def _encode(mode: str, kind: str, **options: object) -> bytes:
    """A drawn picture of 40 x 24 px."""
    values = generator_at(0, "fuzz pictures").integers(0, 256, size=(3, 5, 3), dtype=np.uint8)
    image = Image.fromarray(values).resize((40, 24), Image.Resampling.BICUBIC).convert(mode)
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


@functools.cache
def jpeg_seeds() -> Sequence[Files]:
    """Baseline, progressive, grey, CMYK and turned JPEGs."""
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = (
        _encode("RGB", "JPEG"),
        _encode("RGB", "JPEG", subsampling="4:4:4", quality=95),
        _encode("RGB", "JPEG", progressive=True),
        _encode("L", "JPEG"),
        _encode("CMYK", "JPEG"),
        _encode("RGB", "JPEG", exif=exif.tobytes(), restart_marker_blocks=2),
    )
    return tuple({"picture.jpg": content} for content in contents)


def _with_size(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame claims another size."""
    at = next(jpeg.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in jpeg)
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def _many_scans(jpeg: bytes, scans: int) -> bytes:
    """A progressive JPEG with its last scan again and again."""
    at = jpeg.rindex(b"\xff\xda")
    return jpeg[:at] + jpeg[at:-2] * scans + jpeg[-2:]


@functools.cache
def jpeg_traps() -> Sequence[Files]:
    """Huge sides, endless scans, and what is no JPEG at all."""
    baseline, _, progressive, *_ = (files["picture.jpg"] for files in jpeg_seeds())
    sizes = ((65500, 65500), (65535, 1), (1, 65535), (65535, 65535), (9400, 9400), (13000, 13000), (0, 0), (16, 65500))
    postscript = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(" + CANARY.encode() + b") (w) file closefile\nshowpage\n"
    )
    contents = (
        *(_with_size(jpeg, *size) for jpeg in (baseline, progressive) for size in sizes),
        *(_many_scans(progressive, scans) for scans in (50, 500, 20_000)),
        *(_with_size(_many_scans(progressive, scans), 9000, 9000) for scans in (50, 500)),
        baseline[:2] + b"\xff\xe1\xff\xff" + b"II*\0" * 16383 + baseline[2:],
        baseline[:2] + b"\xff\xfe\0\2" * 200_000 + baseline[2:],
        baseline[:2] + b"\xff" * 500_000 + baseline[2:],
        postscript,
        b"",
    )
    return tuple({"picture.jpg": content} for content in contents)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def repair_png(data: bytes) -> bytes:
    """A PNG with the checksums of its chunks put right; anything else as it is."""
    if not data.startswith(_PNG):
        return data
    at, pieces = len(_PNG), [_PNG]
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        content = data[at + 8 : at + 8 + length]
        pieces.append(_chunk(data[at + 4 : at + 8], content))
        at += 12 + length
    return b"".join(pieces)


def _png(width: int, height: int, bits: int, color: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return _PNG + _chunk(b"IHDR", header) + b"".join(chunks) + _chunk(b"IEND", b"")


@functools.cache
def _zeros(mib: int) -> bytes:
    """So many MiB of zeros, in zlib's form."""
    checksum = functools.reduce(lambda value, _: zlib.adler32(bytes(1 << 20), value), range(mib), 1)
    return b"\x78\xda" + deflate_zeros(b"", mib) + struct.pack(">I", checksum)


@functools.cache
def picture_seeds() -> Sequence[Files]:
    """PNG, WebP, TIFF, BMP, PPM and GIF in several modes."""
    kinds = (
        *(
            ("RGB", "PNG"),
            ("RGBA", "PNG"),
            ("P", "PNG"),
            ("I;16", "PNG"),
            ("1", "PNG"),
            ("RGB", "WEBP"),
            ("RGBA", "WEBP"),
        ),
        *(
            ("RGB", "TIFF"),
            ("I;16", "TIFF"),
            ("CMYK", "TIFF"),
            ("RGB", "BMP"),
            ("L", "BMP"),
            ("RGB", "PPM"),
            ("L", "PPM"),
            ("P", "GIF"),
        ),
    )
    contents = [_encode("L" if mode == "I;16" else mode, kind) for mode, kind in kinds if mode != "I;16"]
    grey = Image.fromarray(np.arange(40 * 24, dtype=np.uint16).reshape(24, 40))
    for kind, options in (
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
    ):
        target = io.BytesIO()
        grey.save(target, kind, **options)
        contents.append(target.getvalue())
    contents.append(_encode("RGB", "TIFF", compression="jpeg"))
    contents.append(_encode("RGB", "WEBP", lossless=True))
    return tuple({"picture.png": content} for content in contents)


@functools.cache
def picture_traps() -> Sequence[Files]:
    """Bombs: small files that claim, or become, very large pictures, texts or colour profiles."""
    gif = _encode("P", "GIF")
    webp = _encode("RGBA", "WEBP", lossless=True)
    tiff = _encode("RGB", "TIFF")
    contents = (
        _png(13_000, 13_000, 8, 0, _chunk(b"IDAT", _zeros(162))),
        _png(13_300, 13_300, 1, 0, _chunk(b"IDAT", _zeros(22))),
        _png(9_000, 9_000, 8, 6, _chunk(b"IDAT", _zeros(310))),
        _png(9_000, 9_000, 16, 0, _chunk(b"IDAT", _zeros(155))),
        _png(40_000, 40_000, 8, 2, _chunk(b"IDAT", _zeros(64))),
        _png(2**31 - 1, 2**31 - 1, 16, 6, _chunk(b"IDAT", _zeros(64))),
        _png(1, 2**31 - 1, 1, 0, _chunk(b"IDAT", _zeros(64))),
        _png(8, 8, 8, 0, _chunk(b"zTXt", b"a\0\0" + _zeros(310)), _chunk(b"IDAT", _zeros(1))),
        _png(
            8, 8, 8, 0, *(_chunk(b"zTXt", b"a%d\0\0" % i + _zeros(22)) for i in range(40)), _chunk(b"IDAT", _zeros(1))
        ),
        _png(8, 8, 8, 0, _chunk(b"iCCP", b"a\0\0" + _zeros(310)), _chunk(b"IDAT", _zeros(1))),
        _png(8, 8, 8, 0, *[_chunk(b"tEXt", b"a\0b")] * 50_000, _chunk(b"IDAT", _zeros(1))),
        gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:],
        b"P6 60000 60000 255\n" + bytes(100),
        b"P6 13000 13000 255\n" + bytes(100),
        b"P5 13000 13000 65535\n" + bytes(100),
        b"P3 9000 9000 255\n" + b"1 " * 1000,
        b"P6 " + b"9" * 5000 + b" 1 255\n",
        b"BM" + bytes(8) + struct.pack("<IIiiHHIIiiII", 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(64),
        b"BM" + bytes(8) + struct.pack("<IIiiHHIIiiII", 54, 40, 13_000, -13_000, 1, 4, 2, 0, 0, 0, 0, 0) + bytes(64),
        webp[:24] + b"\xff\xff\xff\xff" + webp[28:],
        tiff.replace(struct.pack("<HHII", 256, 4, 1, 40), struct.pack("<HHII", 256, 4, 1, 2**31)),
        tiff.replace(struct.pack("<HHII", 256, 3, 1, 40), struct.pack("<HHII", 256, 4, 1, 60_000)),
        b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + struct.pack("<HHII", 256, 4, 2**32 - 1, 8) * 3000,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9000 9000\n%%EndComments\nshowpage\n",
        b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3) + bytes(100),
    )
    return tuple({"picture.png": content} for content in contents)
