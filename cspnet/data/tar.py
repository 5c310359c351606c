"""Where the members of a tar archive lie.

The standard library's tarfile takes a damaged header, or the missing end of a file that was cut between two members,
for the end of the archive. Here both are errors, so that no member is lost in silence; and the walk costs a third.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

__all__ = ["BLOCK", "Member", "TarError", "read_comment", "walk_tar"]

BLOCK = 512
_END = bytes(BLOCK)
_FILES = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK, _SPARSE = (b"x", b"X"), b"g", b"L", b"K", b"S"
_MOST_EXTRA = 1 << 20
"""Bytes of an extended header, which is read into memory; names and a comment take thousands."""
_MOST_DIGITS = 20


class TarError(Exception):
    """Not a whole tar archive; the message is the reason."""


class Member(NamedTuple):
    """A member: `size` bytes from `offset` on. `head` is the CRC-32 of the block before them, its header."""

    name: str
    offset: int
    size: int
    head: int
    is_file: bool


def walk_tar(file: BinaryIO) -> Iterator[Member]:
    """The members of an archive (ustar, pax, GNU; not compressed), in their order.

    Args:
        file: open for reading, best without a buffer.
    Raises:
        TarError: cut short, damaged, continued after its end, or of a kind that cannot be read in place.
    """
    file_size = file.seek(0, os.SEEK_END)
    offset, extra = 0, dict[bytes, bytes]()
    while True:
        file.seek(offset)
        block = file.read(BLOCK)
        if block == _END:
            if file.read(20 * BLOCK).strip(b"\0"):
                raise TarError(f"goes on after its end at byte {offset:,}: are these several archives in one file?")
            return
        if len(block) < BLOCK:
            raise TarError(f"cut short: it ends at byte {file_size:,} without the mark of an archive's end")
        kind, size = block[156:157], _check_header(block, offset)
        if kind == _SPARSE:
            raise TarError(f"holds a sparse file at byte {offset:,}; pack it without --sparse")
        is_extra = kind in (*_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK)
        if is_extra:
            _check_extra(size, offset)
        elif b"size" in extra:
            size = _read_size(extra[b"size"], offset)
        start = offset + BLOCK
        offset = start + (0 if kind in _WITHOUT_DATA else -(-size // BLOCK) * BLOCK)
        if offset > file_size:
            raise TarError(f"cut short: it ends at byte {file_size:,}, inside a member that ends at {offset:,}")
        if is_extra:
            content = file.read(size)
            if kind in _PAX:
                extra.update(_read_pax(content, start))
            elif kind == _LONG_NAME:
                extra[b"path"] = content.rstrip(b"\0")
            continue
        name = extra.get(b"path") or _read_name(block)
        yield Member(os.fsdecode(name), start, size, zlib.crc32(block), kind in _FILES and not name.endswith(b"/"))
        extra.clear()


def read_comment(file: BinaryIO) -> str:
    """The comment that an archive starts with (pax: the keyword `comment` of a global header), or nothing.

    Raises:
        TarError: the header is damaged.
    """
    file.seek(0)
    block = file.read(BLOCK)
    if len(block) < BLOCK or block[156:157] != _PAX_GLOBAL:
        return ""
    size = _check_header(block, 0)
    _check_extra(size, 0)
    content = file.read(size)
    return _read_pax(content, BLOCK).get(b"comment", b"").decode("utf-8", "replace")


def _check_header(block: bytes, offset: int) -> int:
    """The size that a header gives, 0 or more."""
    try:
        if sum(block) - sum(block[148:156]) + 8 * ord(" ") == _read_number(block[148:156]):
            return _read_number(block[124:136])
    except ValueError:
        pass
    what = "damaged" if offset else "not a tar archive"
    raise TarError(f"{what}: there is no good header at byte {offset:,}")


def _check_extra(size: int, offset: int) -> None:
    if size > _MOST_EXTRA:
        raise TarError(f"damaged: an extended header of {size:,} bytes at byte {offset:,}")


def _read_size(text: bytes, offset: int) -> int:
    """The size in an extended header, which counts instead of the header's own."""
    if not text.isdigit() or len(text) > _MOST_DIGITS:
        raise TarError(f"damaged: the extended header before byte {offset:,} gives no size")
    return int(text)


def _read_number(field: bytes) -> int:
    """An octal number in text, or GNU's binary form of a large one; never below 0: a walk would go back, for ever."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0", 1)[0].strip() or b"0"
    if not text.isdigit():
        raise ValueError
    return int(text, 8)


def _read_name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].split(b"\0", 1)[0]):
        return prefix + b"/" + name
    return name


def _read_pax(content: bytes, offset: int) -> dict[bytes, bytes]:
    """The records `length keyword=value\\n` of an extended header."""
    values = {}
    content, at = content.rstrip(b"\0"), 0
    try:
        while at < len(content):
            length = int(content[at : at + _MOST_DIGITS].split(b" ", 1)[0])
            record = content[at : at + length]
            keyword, value = record.split(b" ", 1)[1].split(b"=", 1)
            if not 5 <= length <= len(content) - at or not value.endswith(b"\n"):
                raise ValueError
            values[keyword] = value[:-1]
            at += length
    except (ValueError, IndexError) as error:
        raise TarError(f"damaged: there is no good extended header at byte {offset:,}") from error
    return values
