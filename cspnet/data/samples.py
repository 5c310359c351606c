"""The samples of a split as a few arrays.

A million paths are held as one block of bytes with offsets, not as a million Python strings: reading them in forked
workers then copies nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cspnet.data.decode import UnreadableImageError
from cspnet.errors import DataError
from cspnet.runtime.files import replacing

__all__ = [
    "RACY_NS",
    "SampleIndex",
    "are_whole",
    "blame_file",
    "digest_samples",
    "join_paths",
    "read_arrays",
    "write_arrays",
]

_AT_ONCE = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Opening a pipe would wait for whoever writes to it."""
RACY_NS = 2_000_000_000
"""What changed this shortly before its scan may change again without a new time stamp: such scans are not kept."""


@dataclass(frozen=True)
class SampleIndex:
    """The samples of one split, in a fixed order.

    `paths` (uint8) holds all paths, UTF-8, one after the other; `ends` (int64, one a sample) where each ends;
    `labels` (int32, one a sample) the classes. `classes` are their names, empty for a list without classes.txt.
    """

    source: str
    paths: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    fingerprint: str
    """A digest of names and labels in their order; the same wherever the data set lies."""
    encoding: str = ""
    """How the pictures were encoded anew when they were packed; empty: they are the original files."""

    def __len__(self) -> int:
        return len(self.labels)

    def check(self) -> None:
        """Whether what was read from a file can be an index at all.

        Raises:
            ValueError: it cannot.
        """
        texts = (self.source, self.fingerprint, self.encoding, *self.classes)
        most = len(self.classes) or None
        if not (
            len(self) > 0
            and all(isinstance(text, str) for text in texts)
            and are_whole(self.paths, len(self.paths), np.uint8)
            and are_whole(self.ends, len(self), np.int64)
            and bool((np.diff(self.ends, prepend=0) >= 0).all())
            and self.ends[-1] == len(self.paths)
            and bool(self.paths.all())  # no system has a file with a zero in its name
            and are_whole(self.labels, len(self), np.int32, below=most)
        ):
            raise ValueError("not an index")

    def path(self, i: int) -> str:
        """The path of sample i."""
        start = self.ends[i - 1] if i else 0
        return os.fsdecode(self.paths[start : self.ends[i]].tobytes())

    def read(self, i: int) -> bytes:
        """The bytes of sample i's file.

        Raises:
            UnreadableImageError: it cannot be read.
            DataError: this process has no more files or memory.
        """
        try:
            return _read_file(self.path(i))
        except OSError as error:
            raise blame_file(error, self.path(i)) from error


def _read_file(path: str) -> bytes:
    """What a file holds; a pipe, a socket or a device, which may never end, is not even waited for."""
    opened = os.open(path, _AT_ONCE)
    try:
        found = os.fstat(opened)
        if stat.S_ISDIR(found.st_mode):
            raise UnreadableImageError(os.strerror(errno.EISDIR))
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableImageError("a pipe, a socket or a device, not a file")
        parts = []
        while part := os.read(opened, found.st_size + 1):
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(opened)


def are_whole(
    values: object, length: int, kind: type[np.generic], *, at_least: int = 0, below: int | None = None
) -> bool:
    """Whether something is an array of so many numbers of a kind and in a range."""
    return (
        isinstance(values, np.ndarray)
        and values.shape == (length,)
        and values.dtype == kind
        and bool((values >= at_least).all())
        and (below is None or bool((values < below).all()))
    )


def blame_file(error: OSError, path: str, what: str = "") -> Exception:
    """What to raise for a picture's file that could not be read: whose fault it is.

    Returns:
        UnreadableImageError: the file's. DataError: the machine's, for which no picture may be called bad.
    """
    reason = what + (error.strerror or str(error))
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return DataError(f"{path}: {reason}: allow more (ulimit -n), or use fewer --workers")
    if error.errno == errno.ENOMEM:
        return DataError(f"{path}: {reason}: use fewer --workers or a smaller --batch-size")
    return UnreadableImageError(reason)


def digest_samples(names: Iterable[str], labels: Iterable[int], encoding: str = "") -> str:
    """The fingerprint of samples; pictures encoded anew are other pictures."""
    digest = hashlib.sha256(encoding.encode())
    for name, label in zip(names, labels, strict=True):
        digest.update(b"%s\0%d\0" % (os.fsencode(name), label))
    return digest.hexdigest()[:16]


def join_paths(paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """`paths` and `ends` of an index."""
    encoded = [os.fsencode(path) for path in paths]
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), np.cumsum([len(path) for path in encoded], dtype=np.int64)


def write_arrays(file: Path, version: int, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Keep arrays, and what JSON can say of them, in an .npz file.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps({"format": version, **meta}).encode("utf-8", "surrogateescape")
    with replacing(file) as temporary, temporary.open("wb") as archive:
        np.savez(archive, **{"meta": np.frombuffer(text, dtype=np.uint8), **arrays})  # type: ignore[arg-type]


def read_arrays(file: Path, version: int) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """What `write_arrays` kept; None when there is none, it is damaged, or of another version.

    What it holds may be anything that was written by a stranger: arrays of numbers, no larger than the file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return None  # not ours, and a few bytes may become any number of them
        with np.load(file, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        meta = dict(json.loads(arrays.pop("meta").tobytes()))
    except Exception:  # a damaged archive makes zipfile and numpy raise anything
        return None
    return (meta, arrays) if meta.pop("format", None) == version else None
