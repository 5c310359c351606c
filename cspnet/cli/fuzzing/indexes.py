"""Indexes of data sets, beside shards and in the cache: valid ones, and some that are built to do harm."""

from __future__ import annotations

import functools
import io
import json
import os
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cspnet.cli.fuzzing.tars import SAMPLES, pack_tar
from cspnet.cli.fuzzing.watch import CANARY, Files
from cspnet.cli.fuzzing.zips import pack_zip, zip_bomb
from cspnet.data.shard_index import INDEX_NAME, scan_shards, stamp_shards, write_index

__all__ = ["INDEX_WORDS", "SHARD_TIME_S", "cache_seeds", "cache_traps", "index_seeds", "index_traps"]

SHARD_TIME_S = 1_000_000_000
"""The time stamp that shards have to get for their index to be theirs."""
INDEX_WORDS = (
    b'"stamps"',
    b'"plan"',
    b'"format": 2',
    b"{}",
    b"[]",
    b"null",
    b"'descr': '|O'",
    b"<i8",
    b"<f8",
    b"<U9",
    b"(1000000000,)",
    b"../",
)


@functools.cache
def index_seeds() -> Sequence[Files]:
    """Two shards with the index beside them."""
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, bytes] = {}
        for i, kind in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
            path = Path(folder) / f"{i}.tar"
            files[path.name] = pack_tar({f"{i}/{name}": content for name, content in SAMPLES.items()}, kind)
            path.write_bytes(files[path.name])
            os.utime(path, (SHARD_TIME_S, SHARD_TIME_S))
        shards = [Path(folder) / name for name in files]
        write_index(Path(folder) / INDEX_NAME, scan_shards(shards), stamp_shards(shards))
        return ({INDEX_NAME: (Path(folder) / INDEX_NAME).read_bytes(), **files},)


def _npz(arrays: Mapping[str, Any], meta: object, method: int = zipfile.ZIP_STORED) -> bytes:
    text = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
    members = {"meta": np.frombuffer(text, dtype=np.uint8), **arrays}
    packed = []
    for name, value in members.items():
        target = io.BytesIO()
        if isinstance(value, bytes):
            target.write(value)
        else:
            np.save(target, value, allow_pickle=True)
        packed.append((f"{name}.npy", target.getvalue()))
    return pack_zip(packed, method)


class _Harm:
    """Makes the canary when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {CANARY}",)


def _npy_header(shape: str, kind: str = "|u1") -> bytes:
    """An array file that claims a shape and holds next to nothing."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text) + 1) + text + b"\n" + bytes(16)


def _hostile_indexes(kept: bytes) -> list[bytes]:
    """Variations of a kept index: other values, other types, other sizes, code, and bombs."""
    with np.load(io.BytesIO(kept), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    meta = json.loads(arrays.pop("meta").tobytes())
    found = []
    for name, value in arrays.items():
        harm = np.array([_Harm()] * len(value), dtype=object)
        wide = value.astype(np.int64)
        others = (
            *((wide - 10**6).astype(value.dtype), (wide + 10**6).astype(value.dtype), wide, value.astype(np.float64)),
            *(value[:-1], value[:0], np.repeat(value, 2), value[None]),
            *(
                value.astype(np.complex128),
                value.astype("U8"),
                np.array(3),
                harm,
                np.full_like(value, np.iinfo(value.dtype).max),
            ),
            *(
                _npy_header("(1000000000000,)"),
                _npy_header("(10000000000,)"),
                _npy_header("(-1,)"),
                _npy_header("(" * 5000),
            ),
            *(
                _npy_header("(16,)", "|O"),
                _npy_header("(16,)", "V1000000000"),
                np.full_like(value, np.iinfo(value.dtype).min),
                value[::-1],
            ),
        )
        found += [_npz({**arrays, name: other}, meta) for other in others]
        found.append(_npz({key: kept for key, kept in arrays.items() if key != name}, meta))
    for key in meta:
        values: tuple[object, ...] = (None, 3, -1, "x", [], {}, [1], [[1, 2, 3]], [["a", 1, 1]], 1e999, {"a": 1}, True)
        found += [_npz(arrays, {**meta, key: value}) for value in values]
        found.append(_npz(arrays, {name: value for name, value in meta.items() if name != key}))
    found += [
        _npz(arrays, {**meta, "paths": [1], "files": ["/etc/hostname"], "source": 3}),
        _npz(arrays, {**meta, "x": 1}),
    ]
    found += [_npz(arrays, text) for text in (b"[" * 100_000, b"null", b"[]", b"{", b"\xff", b'"x"', b"9" * 5000)]
    bomb = np.zeros(1, dtype=np.uint8)
    target = io.BytesIO(_npz({**arrays, "paths": bomb}, meta, zipfile.ZIP_DEFLATED))
    found.append(target.getvalue())
    found.append(zip_bomb("meta.npy", _npy_header("(1500000000,)")[:-16], 1500))
    return found


@functools.cache
def index_traps() -> Sequence[Files]:
    """Indexes beside shards that say what is not so."""
    (files,) = index_seeds()
    found = [{**files, INDEX_NAME: content} for content in _hostile_indexes(files[INDEX_NAME])]
    with np.load(io.BytesIO(files[INDEX_NAME])) as archive:
        arrays = {name: archive[name] for name in archive.files}
    meta = json.loads(arrays.pop("meta").tobytes())
    stamps = meta["stamps"]
    for other in (
        *(
            stamps[::-1],
            stamps * 2,
            stamps[:1],
            [["../x.tar", *stamps[0][1:]], stamps[1]],
            [["/etc/hostname", 1, 1], *stamps],
        ),
        *([[stamps[0][0], stamps[0][1], 10**400], stamps[1]], [[*stamps[0], 1], stamps[1]], [stamps[0], stamps[0]]),
    ):
        found.append({**files, INDEX_NAME: _npz(arrays, {**meta, "stamps": other})})
    return tuple(found)


@functools.cache
def cache_seeds() -> Sequence[Files]:
    """An index as it is kept of a list of two pictures."""
    arrays = {
        "paths": np.frombuffer(b"x/a.jpgx/b.jpg", dtype=np.uint8),
        "ends": np.array([7, 14], dtype=np.int64),
        "labels": np.array([0, 1], dtype=np.int32),
    }
    meta = {"format": 1, "source": "x", "classes": ["a", "b"], "fingerprint": "0" * 16, "stamps": []}
    return ({"index.npz": _npz(arrays, meta)},)


@functools.cache
def cache_traps() -> Sequence[Files]:
    """Kept indexes that say what is not so."""
    return tuple({"index.npz": content} for content in _hostile_indexes(cache_seeds()[0]["index.npz"]))
