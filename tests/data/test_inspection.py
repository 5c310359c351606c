"""What is said of a picture's bytes; broken is what training refuses, and nothing else."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from cspnet.data import inspection, survey
from cspnet.data.decode import UnreadableImageError, open_picture
from cspnet.data.findings import KINDS
from cspnet.data.inspection import Inspection, inspect_picture

SIZE = (60, 44)


def draw(mode: str = "RGB", width: int = SIZE[0], height: int = SIZE[1]) -> Image.Image:
    rgb = np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(rgb).convert(mode)


def encode(image: Image.Image, format_name: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_name, **options)
    return stream.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, end: bool = True) -> bytes:
    """A PNG written by hand; `rows` are filter bytes and pixels. Source: the PNG specification, 5.3 and 11.2."""
    data = b"\x89PNG\r\n\x1a\n"
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    for kind, content in [*chunks, *([(b"IEND", b"")] if end else [])]:
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


JPEG, PNG = encode(draw()), encode(draw(), "PNG")
THUMBNAIL = b"\xff\xe1" + struct.pack(">H", 2 + len(JPEG)) + JPEG  # an APP1 segment with a whole JPEG inside
WIDE_ROWS = b"".join(b"\0" + bytes(range(200)) + bytes(160) for _ in range(60))  # 60 px of 3 x 16 bits a row

# kinds of findings, by file name and contents
CASES: dict[str, tuple[str, bytes, set[str]]] = {
    "JPEG": ("x.jpg", JPEG, set()),
    "progressive": ("x.JPEG", encode(draw(), progressive=True), set()),
    "with restart markers": ("x.jpg", encode(draw(), restart_marker_blocks=1), set()),
    "with a thumbnail": ("x.jpg", JPEG[:2] + THUMBNAIL + JPEG[2:], set()),
    "grey": ("x.jpg", encode(draw("L")), set()),
    "PNG": ("x.png", PNG, set()),
    "palette": ("x.png", encode(draw("P"), "PNG"), set()),
    "black and white": ("x.png", encode(draw("1"), "PNG"), set()),
    "BMP": ("x.bmp", encode(draw(), "BMP"), set()),
    "PPM": ("x.ppm", encode(draw(), "PPM"), set()),
    "PGM": ("x.pgm", encode(draw("L"), "PPM"), set()),
    "TIFF": ("x.tif", encode(draw(), "TIFF"), set()),
    "LAB": ("x.tiff", encode(Image.new("LAB", SIZE), "TIFF"), set()),
    "WebP": ("x.webp", encode(draw(), "WEBP"), set()),
    "a name without an ending": ("x", PNG, set()),
    "empty": ("x.jpg", b"", {"zero_byte"}),
    "text": ("x.jpg", b"this is no picture\n" * 100, {"not_picture"}),
    "web page": ("x.jpg", b"<!DOCTYPE html><html><body>404</body></html>", {"not_picture"}),
    "zeros": ("x.jpg", bytes(5000), {"not_picture"}),
    "half a JPEG": ("x.jpg", JPEG[: len(JPEG) // 2], {"truncated"}),
    "a JPEG's first bytes": ("x.jpg", JPEG[:20], {"truncated"}),
    "half a progressive JPEG": ("x.jpg", encode(draw(), progressive=True)[:1500], {"truncated"}),
    "half a PNG": ("x.png", PNG[: len(PNG) // 2], {"truncated"}),
    "half a BMP": ("x.bmp", encode(draw(), "BMP")[:3000], {"truncated"}),
    "half a WebP": ("x.webp", encode(draw(), "WEBP")[:300], {"damaged"}),
    "bomb": ("x.png", png(60_000, 60_000, 8, 2, bytes(100)), {"bomb"}),
    "large and empty": ("x.png", png(3_000, 3_000, 8, 2, bytes(100)), {"truncated"}),
    "a JPEG without tables": ("x.jpg", JPEG[:2] + JPEG[-2:], {"damaged"}),
    "PNG named JPEG": ("x.jpg", PNG, {"misnamed"}),
    "JPEG named PNG": ("x.png", JPEG, {"misnamed"}),
    "GIF named PNG": ("x.png", encode(draw("P"), "GIF"), {"misnamed"}),
    "CMYK": ("x.jpg", encode(draw("CMYK")), {"cmyk"}),
    "16-bit grey": ("x.png", encode(Image.fromarray(np.full((60, 40), 999, np.uint16)), "PNG"), {"sixteen_bit"}),
    "16-bit grey TIFF": ("x.tif", encode(Image.fromarray(np.full((60, 40), 9, np.uint16)), "TIFF"), {"sixteen_bit"}),
    "16-bit grey PGM": ("x.pgm", b"P5 40 60 65535\n" + bytes(range(240)) * 20, {"sixteen_bit"}),
    "16-bit colours": ("x.png", png(60, 60, 16, 2, WIDE_ROWS), {"sixteen_bit"}),
    "floats": ("x.tif", encode(draw("F"), "TIFF"), {"sixteen_bit"}),
    "transparent": ("x.png", encode(draw("RGBA"), "PNG"), {"transparent"}),
    "transparent palette": ("x.png", encode(draw("P"), "PNG", transparency=3), {"transparent"}),
    "upright by EXIF": ("x.jpg", encode(draw(), exif=turned(1)), set()),
    "turned by EXIF": ("x.jpg", encode(draw(), exif=turned(6)), {"exif_rotated"}),
    "PNG turned by EXIF": ("x.png", encode(draw(), "PNG", exif=turned(3)), {"exif_rotated"}),
    "TIFF turned": ("x.tif", encode(draw(), "TIFF", tiffinfo={0x0112: 6}), {"exif_rotated"}),
    "damaged EXIF": ("x.jpg", encode(draw(), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"), set()),
    "animated GIF": (
        "x.gif", encode(draw("P"), "GIF", save_all=True, append_images=[draw("P").rotate(90)]), {"multi_frame"},
    ),
    "animated WebP": (
        "x.webp", encode(draw(), "WEBP", save_all=True, append_images=[draw().rotate(90)]), {"multi_frame"},
    ),
    "pages": ("x.tif", encode(draw(), "TIFF", save_all=True, append_images=[draw()]), {"multi_frame"}),
    "two pictures of a camera": (
        "x.jpg", encode(draw(), "MPO", save_all=True, append_images=[draw()]), {"multi_frame"},
    ),
    "tiny": ("x.jpg", encode(draw(width=31)), {"tiny"}),
    "just large enough": ("x.jpg", encode(draw(width=32, height=160)), set()),
    "elongated": ("x.jpg", encode(draw(width=32, height=161)), {"elongated"}),
    "one pixel": ("x.png", encode(draw(width=1, height=1), "PNG"), {"tiny"}),
    "trailing bytes": ("x.jpg", JPEG + b"more", {"trailing"}),
    "another JPEG behind": ("x.jpg", JPEG + JPEG, {"trailing"}),
    "trailing bytes, progressive": ("x.jpg", encode(draw(), progressive=True) + b"\xff\xd9", {"trailing"}),
    "trailing bytes of a PNG": ("x.png", PNG + bytes(9), {"trailing"}),
    "a PNG without its end": ("x.png", png(60, 60, 16, 2, WIDE_ROWS, end=False), {"no_end", "sixteen_bit"}),
    "several": ("x.png", encode(draw("CMYK", width=4), exif=turned(8)) + b"!", {
        "misnamed", "cmyk", "exif_rotated", "tiny", "elongated", "trailing",
    }),
}  # fmt: skip


def is_refused(data: bytes) -> bool:
    """Whether training does without this file."""
    try:
        open_picture(data).rgb()
    except UnreadableImageError:
        return True
    return False


def is_broken(seen: Inspection) -> bool:
    broken = [kind for kind, _ in seen.findings if KINDS[kind].severity == "broken"]
    assert len(broken) <= 1
    assert (seen.width == 0) is (seen.height == 0) is (seen.format == "") is (seen.mode == "") is bool(broken)
    return bool(broken)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(("name", "data", "kinds"), CASES.values(), ids=CASES)
def test_kinds(name: str, data: bytes, kinds: set[str]) -> None:
    seen = inspect_picture(data, name)
    assert sorted(kind for kind, _ in seen.findings) == sorted(kinds)
    assert is_broken(seen) is is_refused(data)
    assert seen.num_bytes == len(data)
    for _, text in seen.findings:
        assert text
        assert "\n" not in text
        assert "0x" not in text  # an address would differ from run to run
    assert seen == inspect_picture(data, name)


def test_huge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "HUGE_PIXELS", SIZE[0] * SIZE[1])
    assert inspect_picture(JPEG, "x.jpg").findings == ()
    monkeypatch.setattr(inspection, "HUGE_PIXELS", SIZE[0] * SIZE[1] - 1)
    assert inspect_picture(JPEG, "x.jpg").findings == (("huge", "60 x 44 px"),)


def test_the_limits_are_those_that_are_told() -> None:
    assert f"less than {inspection.TINY_PX} px" in KINDS["tiny"].meaning
    assert f"more than {inspection.ELONGATED_RATIO} times" in KINDS["elongated"].meaning
    assert f"more than {inspection.HUGE_PIXELS // 10**6} million" in KINDS["huge"].meaning
    assert Image.MAX_IMAGE_PIXELS == inspection.HUGE_PIXELS
    assert f"fewer than {survey.FEW_PICTURES} pictures" in KINDS["few_pictures"].meaning
    assert f"{survey.IMBALANCE_RATIO} times the smallest" in KINDS["imbalanced"].meaning


def test_facts() -> None:
    seen = inspect_picture(encode(draw("L", 50, 33)), "x.jpg")
    assert (seen.width, seen.height, seen.format, seen.mode) == (50, 33, "JPEG", "L")
    assert seen.digest != inspect_picture(encode(draw("L", 50, 34)), "x.jpg").digest


@pytest.mark.parametrize(
    "data",
    [JPEG, encode(draw(), progressive=True), PNG, encode(draw("CMYK")), encode(draw(), "WEBP"), encode(draw(), "TIFF")],
    ids=["JPEG", "progressive", "PNG", "CMYK", "WebP", "TIFF"],
)
def test_cut_anywhere_broken_is_what_training_refuses(data: bytes) -> None:
    cuts = [*range(0, len(data), max(1, len(data) // 40)), *range(len(data) - 12, len(data) + 1)]
    refused = [is_refused(data[:cut]) for cut in cuts]
    assert [is_broken(inspect_picture(data[:cut], "x.jpg")) for cut in cuts] == refused
    assert set(refused) == {True, False}


def test_bits_turned_anywhere_broken_is_what_training_refuses() -> None:
    rng, verdicts = np.random.default_rng(0), set()
    for data in (JPEG, PNG, encode(draw("I;16"), "TIFF"), encode(draw("P"), "GIF")):
        for place in rng.integers(0, min(len(data), 700), size=40):
            changed = bytearray(data)
            changed[place] ^= 1 << rng.integers(8)
            refused = is_refused(bytes(changed))
            assert is_broken(inspect_picture(bytes(changed), "x.jpg")) is refused, place
            verdicts.add(refused)
    assert verdicts == {True, False}


def test_sixteen_bit_colours_lose_their_lower_byte() -> None:
    """What the report says of them is what training does."""
    wide = np.frombuffer(WIDE_ROWS, dtype=np.uint8).reshape(60, 361)[:, 1:].reshape(60, 60, 3, 2)
    assert np.array_equal(np.asarray(open_picture(png(60, 60, 16, 2, WIDE_ROWS)).rgb()), wide[..., 0])


def test_a_tiff_is_turned_in_any_case() -> None:
    data = encode(draw(), "TIFF", tiffinfo={0x0112: 6})
    assert open_picture(data, "ignore").rgb().size == open_picture(data, "apply").rgb().size == SIZE[::-1]


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\xda", b"\xff\xda\0\2", b"\xff\xfe\0\2"])
def test_the_end_is_looked_for_once(filling: bytes) -> None:
    """Found by scripts/fuzz.py: a file of fillers or of scans that end nowhere took minutes."""
    started = time.monotonic()
    for end in (b"", b"\xff\xd9"):
        seen = inspect_picture(b"\xff\xd8\xff" + filling * (400_000 // len(filling)) + end, "x.jpg")
        assert is_broken(seen)
    assert time.monotonic() - started < 20
