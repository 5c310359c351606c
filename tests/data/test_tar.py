"""The walk over a tar archive against the standard library's, and what that one passes over in silence."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
import zlib
from pathlib import Path

import pytest

from cspnet.data.tar import Member, TarError, read_comment, walk_tar

NAMES = (
    "a.jpg",
    "class/b.jpg",
    "ü/日本.jpg",
    "d" * 90 + "/" + "f" * 60 + ".jpg",
    "x" * 300 + ".jpg",
    "é" * 120 + ".jpg",
)
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write_tar(path: Path, names: tuple[str, ...] = NAMES, kind: str = "pax", comment: str | None = None) -> Path:
    headers = {"comment": comment} if comment is not None else None
    with tarfile.open(path, "w", format=FORMATS[kind], pax_headers=headers) as tar:
        for i, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = i * 511
            tar.addfile(member, io.BytesIO(bytes([i]) * member.size))
    return path


def walk(path: Path) -> list[Member]:
    with path.open("rb", buffering=0) as file:
        return list(walk_tar(file))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("comment", [None, "made by hand: =\n ü"])
def test_members_are_those_of_tarfile(tmp_path: Path, kind: str, comment: str | None) -> None:
    names = NAMES[:4] if kind == "ustar" else (*NAMES, os.fsdecode(b"caf\xe9.jpg"))
    path = write_tar(tmp_path / "x.tar", names, kind, comment)
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size, m.isfile()) for m in tar]
    found = walk(path)
    assert [(m.name, m.offset, m.size, m.is_file) for m in found] == expected
    assert [m.name for m in found] == list(names)
    assert [m.head for m in found] == [zlib.crc32(content[m.offset - 512 : m.offset]) for m in found]
    with path.open("rb") as file:
        assert read_comment(file) == (comment if kind == "pax" and comment else "")


def test_members_of_the_tar_command(tmp_path: Path) -> None:
    """Folders, links, and what the system's tar makes of them."""
    folder = tmp_path / "files"
    deep = folder / ("d" * 90)
    deep.mkdir(parents=True)
    (deep / ("n" * 90 + ".jpg")).write_bytes(b"1" * 1000)
    (folder / "a.jpg").write_bytes(b"2")
    (folder / "soft.jpg").symlink_to("a.jpg")
    os.link(folder / "a.jpg", folder / "hard.jpg")
    for kind in ("ustar", "gnu", "pax"):
        path = tmp_path / f"{kind}.tar"
        subprocess.run(["tar", "cf", path, f"--format={kind}", "."], cwd=folder, check=True)
        with tarfile.open(path) as tar:
            expected = [(m.name + "/" * m.isdir(), m.isfile()) for m in tar]
        assert [(m.name, m.is_file) for m in walk(path)] == expected


def test_every_cut_is_seen(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", NAMES[:3])
    content = path.read_bytes()
    last = walk(path)[-1]
    end = last.offset + -(-last.size // 512) * 512
    for size in range(0, end, 100):
        path.write_bytes(content[:size])
        with pytest.raises(TarError, match="cut short"):
            walk(path)
    path.write_bytes(content[:end])  # between two blocks, where tarfile sees nothing missing
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 3
    with pytest.raises(TarError, match="without the mark"):
        walk(path)


def test_a_damaged_header_is_no_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", ("a.jpg", "b.jpg", "c.jpg"))
    content = bytearray(path.read_bytes())
    content[walk(path)[1].offset - 512] ^= 1
    path.write_bytes(content)
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["a.jpg"]  # what must not happen here
    with pytest.raises(TarError, match="damaged: there is no good header at byte 512"):
        walk(path)


def test_what_is_no_tar(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"\x1f\x8b" + b"x" * 2000)
    with pytest.raises(TarError, match="not a tar archive"):
        walk(path)


def test_joined_archives_are_refused(tmp_path: Path) -> None:
    content = write_tar(tmp_path / "x.tar", ("a.jpg",)).read_bytes()[:2048]
    (tmp_path / "x.tar").write_bytes(content * 2)
    with pytest.raises(TarError, match="goes on after its end"):
        walk(tmp_path / "x.tar")


def test_sizes_beyond_octal_digits(tmp_path: Path) -> None:
    """8 GiB and more: GNU's binary numbers and pax records. The files have holes, so they take no room."""
    size = 2**33 + 5
    for kind, tail in ((tarfile.GNU_FORMAT, b""), (tarfile.PAX_FORMAT, b"")):
        member = tarfile.TarInfo("large.jpg")
        member.size = size
        path = tmp_path / "large.tar"
        head = member.tobuf(kind)
        with path.open("wb") as file:
            file.write(head)
            file.truncate(len(head) + -(-size // 512) * 512 + 1024 + len(tail))
        (found,) = walk(path)
        assert (found.name, found.offset, found.size) == ("large.jpg", len(head), size)


# Found by scripts/fuzz.py: a size below 0 leads back for ever, and what is read at once must be small.


def header(kind: bytes, size: bytes, name: bytes = b"a.jpg") -> bytes:
    """A header with a good checksum, whatever it says."""
    block = bytearray(tarfile.TarInfo("x").tobuf())
    block[:100], block[124:136], block[156:157] = name.ljust(100, b"\0"), size.ljust(12, b"\0"), kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def record(text: bytes, kind: bytes = b"x") -> bytes:
    """An extended header, and a member behind it."""
    return header(kind, b"%o" % len(text)) + text.ljust(-(-len(text) // 512) * 512, b"\0") + header(b"0", b"0")


HOSTILE = {
    "a size below 0": header(b"0", b"-0000001000"),
    "GNU's size below 0": header(b"0", b"\xff" * 12),
    "a size with a sign": header(b"0", b"+1"),
    "a size with an underscore": header(b"0", b"1_0"),
    "an extended size below 0": record(b"13 size=-512\n"),
    "an extended size that is no number": record(b"12 size=abc\n"),
    "an extended size that is empty": record(b"9 size=\n"),
    "an extended size of other digits": record("14 size=٣٣\n".encode()),
    "an extended size of 5000 digits": record(b"5012 size=" + b"9" * 5001 + b"\n"),
    "an extended record of 5000 digits": record(b"9" * 5000 + b" a=b\n"),
    "an extended header of 8 GiB": header(b"x", b"77777777777"),
    "a name of 8 GiB": header(b"L", b"77777777777"),
    "a comment of 2**87 bytes": header(b"g", b"\x80" + b"\x7f" * 11),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_headers_that_lead_nowhere(tmp_path: Path, case: str) -> None:
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.write(HOSTILE[case] + bytes(1024))
        file.truncate(2**34)  # a hole: large, and it takes no room
    with pytest.raises(TarError), path.open("rb", buffering=0) as file:
        read_comment(file)
        for count, _ in enumerate(walk_tar(file)):
            assert count < 10


def test_many_small_records_take_no_longer_each(tmp_path: Path) -> None:
    """A header of a mebibyte in records of five bytes: reading it anew for each would take minutes."""
    path = tmp_path / "x.tar"
    path.write_bytes(record(b"5 =b\n" * 200_000) + bytes(1024))
    started = time.monotonic()
    assert [member.name for member in walk(path)] == ["a.jpg"]
    assert time.monotonic() - started < 20
