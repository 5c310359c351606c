"""Pictures of every kind, and files that are none."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps
from torchvision.datasets.folder import pil_loader

from cspnet.data.decode import UnreadableImageError, open_picture
from cspnet.data.index import open_index
from cspnet.data.inspection import inspect_picture
from cspnet.errors import DataError

ORIENTATION = 0x0112


def draw_pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


def pixels_of(path: Path, **options: str) -> np.ndarray:
    image = open_picture(path.read_bytes(), **options).rgb()
    assert image.mode == "RGB"
    return np.asarray(image)


def test_colour_is_kept(tmp_path: Path) -> None:
    rgb = draw_pixels(7, 9, 3)
    Image.fromarray(rgb).save(tmp_path / "x.png")
    assert np.array_equal(pixels_of(tmp_path / "x.png"), rgb)


@pytest.mark.parametrize("suffix", ["png", "bmp", "pgm", "tif"])
def test_grey_is_three_equal_channels(tmp_path: Path, suffix: str) -> None:
    grey = draw_pixels(7, 9)
    Image.fromarray(grey).save(tmp_path / f"x.{suffix}")
    assert np.array_equal(pixels_of(tmp_path / f"x.{suffix}"), np.stack([grey] * 3, axis=-1))


def test_black_and_white(tmp_path: Path) -> None:
    bits = draw_pixels(7, 9) > 127
    Image.fromarray(bits).save(tmp_path / "x.png")
    assert np.array_equal(pixels_of(tmp_path / "x.png"), np.stack([bits * np.uint8(255)] * 3, axis=-1))


@pytest.mark.parametrize("transparency", [None, 3])
def test_palette_colours_are_looked_up(tmp_path: Path, transparency: int | None) -> None:
    palette, numbers = draw_pixels(256, 3), draw_pixels(7, 9)
    image = Image.fromarray(numbers, mode="L")
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "x.png", **({} if transparency is None else {"transparency": transparency}))
    assert Image.open(tmp_path / "x.png").mode == "P"
    assert np.array_equal(pixels_of(tmp_path / "x.png"), palette[numbers])


def test_transparency_is_dropped(tmp_path: Path) -> None:
    rgba = draw_pixels(7, 9, 4)
    Image.fromarray(rgba).save(tmp_path / "x.png")
    assert np.array_equal(pixels_of(tmp_path / "x.png"), rgba[..., :3])
    Image.fromarray(rgba[..., :2]).save(tmp_path / "grey.png")
    assert np.array_equal(pixels_of(tmp_path / "grey.png"), np.stack([rgba[..., 0]] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_are_torchvisions(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(draw_pixels(20, 30, 3)).convert(mode).save(path)
    assert Image.open(path).mode == mode
    assert np.array_equal(pixels_of(path), np.asarray(pil_loader(str(path))))


def test_the_contents_decide_not_the_name(tmp_path: Path) -> None:
    rgb = draw_pixels(7, 9, 3)
    Image.fromarray(rgb).save(tmp_path / "x.jpg", format="PNG")
    assert np.array_equal(pixels_of(tmp_path / "x.jpg"), rgb)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    wide = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(wide).save(tmp_path / f"x.{suffix}")
    assert np.array_equal(pixels_of(tmp_path / f"x.{suffix}"), np.stack([wide // 256] * 3, axis=-1))


# What a viewer does for each orientation of the EXIF standard.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"x.{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(draw_pixels(6, 10, 3)).save(path, exif=exif)
    stored = np.asarray(pil_loader(str(path)))
    assert stored.shape == (6, 10, 3)
    assert np.array_equal(pixels_of(path, exif="ignore"), stored)
    assert np.array_equal(pixels_of(path, exif="apply"), TURNS[orientation](stored))


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of (tag, type, count, four bytes of value) entries."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)


TURN_RIGHT = (ORIENTATION, 3, 1, b"\x06\0\0\0")
DAMAGED_EXIF = {
    "not an EXIF block": (b"Exif\0\0garbage, garbage, garbage", 1),
    "cut off": (b"Exif\0\0II*\0\x08\0\0\0\x05\0", 1),
    "orientation of 99": (exif_block((ORIENTATION, 3, 1, b"\x63\0\0\0")), 1),
    "orientation as text": (exif_block((ORIENTATION, 2, 4, b"abc\0")), 1),
    "a negative value where none may be": (exif_block((0x0103, 9, 1, b"\xff\xff\xff\xff"), TURN_RIGHT), 6),
    "a text where a number must be": (exif_block((0x0111, 2, 4, b"abc\0"), TURN_RIGHT), 6),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(("block", "orientation"), DAMAGED_EXIF.values(), ids=DAMAGED_EXIF)
def test_damaged_exif_does_not_lose_the_picture(tmp_path: Path, block: bytes, orientation: int) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(draw_pixels(6, 10, 3)).save(path, exif=block)
    stored = np.asarray(pil_loader(str(path)))
    assert np.array_equal(pixels_of(path, exif="ignore"), stored)
    kept = pixels_of(path, exif="apply")  # turned or not, where the rest of the block is damaged
    assert any(np.array_equal(kept, pixels) for pixels in (stored, TURNS[orientation](stored)))


def encode(format_name: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(draw_pixels(64, 64, 3)).save(stream, format=format_name, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    chunks = b"\x89PNG\r\n\x1a\n"
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(100))),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return chunks


UNREADABLE = {
    "empty": (b"", "cannot identify"),
    "text": (b"this is no picture\n" * 100, "cannot identify"),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "cannot identify"),
    "zeros": (bytes(5000), "cannot identify"),
    "half a JPEG": (encode("JPEG")[:1500], "truncated"),
    "a JPEG's first bytes": (encode("JPEG")[:20], "[Tt]runcated|cannot identify"),
    "half a PNG": (encode("PNG")[:3000], "truncated|Truncated"),
    "half a BMP": (encode("BMP")[:3000], "truncated"),
    "bomb": (png_header(60_000, 60_000), "3600000000 pixels"),
    "huge and empty": (png_header(8_000, 8_000), "truncated"),
}


@pytest.mark.parametrize("decoder", ["fast", "pillow"])
@pytest.mark.parametrize(("content", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_files_name_the_reason(content: bytes, reason: str, decoder: str) -> None:
    for use in (lambda picture: picture.rgb(), lambda picture: picture.crop_resize((0, 0, 4, 4), (2, 2), "bilinear")):
        with pytest.raises(UnreadableImageError, match=reason) as caught:
            use(open_picture(content, decoder=decoder))
        message = str(caught.value)
        assert message
        assert "\n" not in message
        assert "BytesIO" not in message  # the caller names the file


@pytest.mark.parametrize("place", ["open", "load", "exif"])
def test_no_memory_is_not_a_broken_picture(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def no_memory(*args: object, **options: object) -> None:
        raise MemoryError

    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    target, name = {
        "open": (Image, "open"),
        "load": (ImageFile.ImageFile, "load"),
        "exif": (ImageOps, "exif_transpose"),
    }[place]
    monkeypatch.setattr(target, name, no_memory)
    with pytest.raises(MemoryError):
        open_picture(stream.getvalue())
    if place != "exif":  # which an inspection does not turn
        with pytest.raises(MemoryError):
            inspect_picture(stream.getvalue(), "x.png")


def test_no_more_files_is_not_a_broken_picture(picture_tree: Path) -> None:
    index = open_index(picture_tree / "val", root=str(picture_tree), cache_dir=None)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(DataError, match=r"Too many open files: allow more \(ulimit -n\)"):
            index.read(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert index.read(0)


# Bombs: small files that become, or take, very much. Found by scripts/fuzz.py, or while it was written.


def with_scans(jpeg: bytes, scans: int, width: int, height: int) -> bytes:
    """A progressive JPEG of another size, with its last scan again and again."""
    at, last = jpeg.index(b"\xff\xc2"), jpeg.rindex(b"\xff\xda")
    sides = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return jpeg[: at + 5] + sides + jpeg[at + 9 : last] + jpeg[last:-2] * scans + jpeg[-2:]


@pytest.mark.parametrize("decoder", ["fast", "pillow"])
def test_a_jpeg_of_too_many_scans(decoder: str) -> None:
    progressive = encode("JPEG", progressive=True)
    with pytest.raises(UnreadableImageError, match="scans of 9000 x 9000 px"):
        open_picture(with_scans(progressive, 500, 9000, 9000), decoder=decoder)
    image = Image.open(io.BytesIO(progressive))
    many = with_scans(progressive, 20, *image.size)  # odd, and quick to read
    assert open_picture(many, decoder=decoder).rgb().size == image.size


def test_a_baseline_jpeg_is_not_counted() -> None:
    """Its scan goes over the picture once; what looks like another one may be a thumbnail."""
    data = encode("JPEG")
    thumbnail = b"\xff\xfe\xff\xfe" + b"\xff\xda" * 32766
    assert open_picture(data[:2] + thumbnail * 20 + data[2:]).rgb().tobytes() == open_picture(data).rgb().tobytes()


@pytest.mark.parametrize("decoder", ["fast", "pillow"])
@pytest.mark.parametrize("start", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", b"8BPS\0\1"])
def test_formats_that_no_data_set_has_are_not_opened(start: bytes, decoder: str) -> None:
    """Pillow would hand the first of them to Ghostscript."""
    with pytest.raises(UnreadableImageError, match="cannot identify"):
        open_picture(start + bytes(1000), decoder=decoder)
