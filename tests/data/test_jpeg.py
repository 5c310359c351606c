"""The short way of decoding against Pillow's whole pictures, and what it leaves to Pillow."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cspnet.data.decode import Picture, UnreadableImageError, open_picture
from cspnet.data.jpeg import decode_jpeg, read_jpeg_header

simplejpeg = pytest.importorskip("simplejpeg")

SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
SIZES = ((64, 48), (61, 47), (17, 130), (1, 1), (9, 300), (200, 8))


def draw_photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes with some noise, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, size=(6, 7, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray(np.clip(pixels + rng.integers(-9, 10, size=pixels.shape), 0, 255).astype(np.uint8))


def encode(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def pillows(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def is_short(data: bytes) -> bool:
    """Whether fewer rows than all are decoded for the topmost one."""
    header = read_jpeg_header(data)
    assert header is not None
    return len(decode_jpeg(data, header, 1)) < header.height


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "options",
    [
        *({"subsampling": subsampling} for subsampling in SUBSAMPLINGS),
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"restart_marker_blocks": 3, "subsampling": "4:2:0"},
        {"quality": 20, "optimize": True},
        {"keep_rgb": True},
    ],
    ids=str,
)
def test_the_rows_of_a_part_are_those_of_the_whole(options: dict[str, Any], size: tuple[int, int]) -> None:
    data = encode(draw_photo(*size), **options)
    header = read_jpeg_header(data)
    assert header is not None
    assert (header.width, header.height) == size
    whole = pillows(data)
    for bottom in {1, 7, 8, 9, 15, 16, 17, 31, 33, size[1] - 1, size[1]} & set(range(1, size[1] + 1)):
        part = decode_jpeg(data, header, bottom)
        assert part.dtype == np.uint8
        assert part.shape[1:] == (size[0], 3)
        assert np.array_equal(part[:bottom], whole[:bottom]), bottom


def test_fewer_rows_are_decoded_where_the_stream_allows_it() -> None:
    photo = draw_photo(80, 200)
    assert is_short(encode(photo))
    assert is_short(encode(photo.convert("L")))
    assert is_short(encode(photo, restart_marker_rows=1))
    assert not is_short(encode(photo, progressive=True))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", SIZES)
def test_all_of_a_picture_is_pillows(size: tuple[int, int], mode: str) -> None:
    data = encode(draw_photo(*size).convert(mode))
    assert np.array_equal(np.asarray(open_picture(data).rgb()), pillows(data))


def crop_both(data: bytes, box: tuple[int, int, int, int], size: tuple[int, int], **options: Any) -> list[np.ndarray]:
    pictures = (open_picture(data, decoder=decoder) for decoder in ("fast", "pillow"))
    return [picture.crop_resize(box, size, "bilinear", **options) for picture in pictures]


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_crops_do_not_depend_on_the_decoder(subsampling: str) -> None:
    data = encode(draw_photo(130, 97), subsampling=subsampling)
    rng = np.random.default_rng(1)
    for _ in range(40):
        left, top = int(rng.integers(129)), int(rng.integers(96))
        right, bottom = int(rng.integers(left + 1, 131)), int(rng.integers(top + 1, 98))
        fast, slow = crop_both(data, (left, top, right, bottom), (20, 24))
        assert np.array_equal(fast, slow)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pictures_are_cropped_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(draw_photo(60, 40), exif=exif)
    picture = open_picture(data)
    assert (picture.width, picture.height) == ((60, 40) if orientation < 5 else (40, 60))
    fast, slow = crop_both(data, (3, 5, 33, 39), (20, 20))
    assert np.array_equal(fast, slow)


def test_a_turn_that_only_xmp_tells_is_pillows() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    data = encode(draw_photo(60, 40))
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    assert (open_picture(data).width, open_picture(data).height) == open_picture(data, decoder="pillow").rgb().size


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
def test_shrunk_parts_are_those_of_the_shrunk_whole(subsampling: str, shrink: int) -> None:
    """Pillow's draft mode is the same transform."""
    pixels = np.ascontiguousarray(draw_photo(203, 333))
    data = simplejpeg.encode_jpeg(pixels, colorsubsampling=subsampling)
    whole = Image.open(io.BytesIO(data))
    whole.draft("RGB", (203 // shrink, 333 // shrink))
    assert whole.size == (-(-203 // shrink), -(-333 // shrink))
    header = read_jpeg_header(data)
    assert header is not None
    for bottom in (14, 16, 62, 100, 126, 320, 333):
        part = decode_jpeg(data, header, bottom, shrink)
        rows = -(-bottom // shrink)
        assert part.shape[1:] == (-(-203 // shrink), 3)
        assert np.array_equal(part[:rows], np.asarray(whole)[:rows])
        assert len(part) < len(np.asarray(whole)) or bottom > 300


def test_shrinking_stays_near_the_unshrunk() -> None:
    """Mean difference over photograph-like pictures, in grey levels; and nothing is shrunk below the size asked for."""
    rng = np.random.default_rng(2)
    for seed in range(10):
        data = encode(draw_photo(640, 480, seed), quality=90)
        w, h = (int(rng.integers(128, limit)) for limit in (640, 480))
        left, top = int(rng.integers(640 - w)), int(rng.integers(480 - h))
        box = (left, top, left + w, top + h)
        exact, shrunk = (open_picture(data).crop_resize(box, (64, 64), "bilinear", shrink=on) for on in (False, True))
        assert not np.array_equal(exact, shrunk)
        assert np.abs(exact.astype(int) - shrunk).mean() < 2
        unchanged = [
            open_picture(data).crop_resize(box, (w // 2 + 1, h // 2), "bilinear", shrink=on) for on in (False, True)
        ]
        assert np.array_equal(*unchanged)


@pytest.mark.parametrize("size", [(1, 1), (2, 1)])
@pytest.mark.parametrize("box", [(3, 3, 5, 5), (0, 0, 130, 97), (129, 96, 130, 97), (1, 5, 17, 22)])
def test_shrunk_boxes_are_never_empty(box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    data = encode(draw_photo(130, 97))
    assert open_picture(data).crop_resize(box, size, "bilinear", shrink=True).shape == (*size[::-1], 3)


def outcome(picture: Picture | None, box: tuple[int, int, int, int]) -> np.ndarray | str:
    if picture is None:
        return "refused"
    try:
        return picture.crop_resize(box, (16, 16), "bilinear")
    except UnreadableImageError:
        return "refused"


def open_or_none(data: bytes, decoder: str) -> Picture | None:
    try:
        return open_picture(data, decoder=decoder)
    except UnreadableImageError:
        return None


def test_damaged_files_come_out_as_with_pillow() -> None:
    """Cut off anywhere, with bytes changed anywhere, with something behind the end.

    Damage that only comes out below a crop is not met by it; all of such a picture is refused by both.
    """
    rng = np.random.default_rng(3)
    sound = [
        encode(draw_photo(90, 120), subsampling="4:2:0"),
        encode(draw_photo(90, 120), restart_marker_rows=1),
        encode(draw_photo(90, 120), progressive=True),
    ]
    cases = [data[: int(rng.integers(len(data)))] for data in sound for _ in range(60)]
    cases += [data[: int(rng.integers(len(data)))] + b"\xff\xd9" for data in sound for _ in range(60)]
    cases += [data + bytes(rng.integers(0, 256, size=20, dtype=np.uint8)) for data in sound for _ in range(5)]
    for data in sound:
        for _ in range(150):
            damaged = bytearray(data)
            for at in rng.integers(2, len(data), size=int(rng.integers(1, 4))):
                damaged[at] = rng.integers(256)
            cases.append(bytes(damaged))
    kinds = {"refused": 0, "shown": 0}
    for data in cases:
        slow = open_or_none(data, "pillow")
        side = (0, 0) if slow is None else (slow.width, slow.height)
        fast = open_or_none(data, "fast")
        if slow is None and fast is None:
            kinds["refused"] += 1
            continue
        if fast is not None and slow is not None:
            assert (fast.width, fast.height) == side
        width, height = side if slow else (fast.width, fast.height)
        box = (width // 3, height // 4, width // 3 + max(1, width // 2), height // 4 + max(1, height // 3))
        a, b = outcome(fast, box), outcome(slow, box)
        if isinstance(b, str) and fast is not None:
            assert isinstance(outcome(fast, (0, 0, fast.width, fast.height)), str)
            assert isinstance(a, str) or is_short(data)
        else:
            assert type(a) is type(b), (a, b)
        if not isinstance(a, str) and not isinstance(b, str):
            assert np.array_equal(a, b)
        kinds["refused" if isinstance(a, str) else "shown"] += 1
    assert min(kinds.values()) > 100


def test_what_is_not_for_the_short_way() -> None:
    photo = draw_photo(30, 20)
    png = io.BytesIO()
    photo.save(png, "PNG")
    cmyk = encode(photo.convert("CMYK"))
    for data in (png.getvalue(), b"", b"\xff\xd8", encode(photo)[:200], cmyk, b"\xff\xd8" + bytes(99)):
        assert read_jpeg_header(data) is None
    assert np.array_equal(np.asarray(open_picture(cmyk).rgb()), pillows(cmyk))
