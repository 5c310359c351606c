"""Zip archives, in which torch and numpy keep what they save."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

import numpy as np

from cspnet.cli.fuzzing.watch import Change

__all__ = ["change_member", "pack_zip", "zip_bomb"]


def pack_zip(members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return target.getvalue()


def zip_bomb(name: str, head: bytes, mib: int, others: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """A zip archive with a member that becomes so many MiB."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo(name)
        entry.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(entry, "w") as member:
            member.write(head)
            for _ in range(mib):
                member.write(bytes(1 << 20))
        for other, content in others:
            archive.writestr(zipfile.ZipInfo(other), content)
    return target.getvalue()


def change_member(data: bytes, change: Change, rng: np.random.Generator) -> bytes:
    """A zip archive packed anew with one of its members changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    of_text = [i for i, (name, _) in enumerate(members) if name.endswith(("data.pkl", "meta.npy"))]
    place = of_text[0] if of_text and rng.random() < 0.6 else int(rng.integers(len(members)))
    name, content = members[place]
    members[place] = (name, change(content))
    return pack_zip(members)
