"""Zip archives, in which torch and numpy keep what they save."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from cspnet.cli.fuzzing.watch import Change

__all__ = ["change_member", "deflate_zeros", "pack_zip", "zip_bomb"]


def pack_zip(members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return target.getvalue()


def deflate_zeros(head: bytes, mib: int) -> bytes:
    """So many MiB of zeros behind a head, deflated to a thousandth, without header and checksum.

    A block behind a full flush knows nothing of those before it: one is made, and repeated.
    """
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = deflate.compress(head) + deflate.flush(zlib.Z_FULL_FLUSH)
    zeros = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return start + zeros * mib + deflate.flush()


def zip_bomb(name: str, head: bytes, mib: int, others: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """A zip archive with a member that becomes so many MiB of zeros behind its head; its checksum is wrong."""
    data = bytearray(pack_zip([(name, deflate_zeros(head, mib)), *others]))
    directory = int.from_bytes(data[-6:-2], "little")
    for at, method_at, size_at in ((0, 8, 22), (directory, 10, 24)):
        struct.pack_into("<H", data, at + method_at, zipfile.ZIP_DEFLATED)
        struct.pack_into("<I", data, at + size_at, len(head) + (mib << 20))
    return bytes(data)


def change_member(data: bytes, change: Change, rng: np.random.Generator) -> bytes:
    """A zip archive packed anew with one of its members changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    of_text = [i for i, (name, _) in enumerate(members) if name.endswith(("data.pkl", "meta.npy"))]
    place = of_text[0] if of_text and rng.random() < 0.6 else int(rng.integers(len(members)))
    name, content = members[place]
    members[place] = (name, change(content))
    return pack_zip(members)
