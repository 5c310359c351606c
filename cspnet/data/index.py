"""Which pictures there are: folders and list files, found once and kept in a cache.

A million paths are held as one block of bytes with offsets, not as a million Python strings: reading them in forked
workers then copies nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cspnet.data.decode import EXTENSIONS, UnreadableImageError
from cspnet.errors import DataError
from cspnet.runtime.files import replacing

__all__ = ["SampleIndex", "find_split", "open_index"]

_FORMAT = 1
_LIST_LINE = re.compile(r"\s*(?P<path>\S|\S.*\S)[ \t]+(?P<label>[0-9]{1,9})\s*")
_RACY_NS = 2_000_000_000
"""A folder changed this shortly before its scan may change again without a new time stamp: such scans are not kept."""


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

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> str:
        """The path of sample i."""
        start = self.ends[i - 1] if i else 0
        return os.fsdecode(self.paths[start : self.ends[i]].tobytes())

    def read(self, i: int) -> bytes:
        """The bytes of sample i's file.

        Raises:
            UnreadableImageError: it cannot be read.
        """
        try:
            with open(self.path(i), "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise UnreadableImageError(error.strerror or str(error)) from error


def _pack(
    source: str, names: Sequence[str], folders: Sequence[str], labels: Sequence[int], classes: Sequence[str]
) -> SampleIndex:
    """An index of the files folder/name."""
    digest = hashlib.sha256()
    for name, label in zip(names, labels, strict=True):
        digest.update(b"%s\0%d\0" % (os.fsencode(name), label))
    encoded = [os.fsencode(os.path.join(folder, name)) for folder, name in zip(folders, names, strict=True)]
    return SampleIndex(
        source,
        np.frombuffer(b"".join(encoded), dtype=np.uint8),
        np.cumsum([len(path) for path in encoded], dtype=np.int64),
        np.asarray(labels, dtype=np.int32),
        tuple(classes),
        digest.hexdigest()[:16],
    )


def find_split(root: str, split: str, name: str, data_format: str) -> Path:
    """The folder or list file of a split.

    Args:
        root: the data set's folder.
        split: train or val.
        name: auto, or a folder or file relative to root (or absolute).
        data_format: folder or list; decides what auto means.
    Raises:
        DataError: it does not exist.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"data.root: {root}: no such folder; give the folder that holds train/ and val/ with --data-path"
        )
    if name == "auto":
        name = split if data_format == "folder" else f"{split}_list.txt"
    path = folder / name
    if not path.exists():
        found = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if not p.name.startswith("."))
        there = f"it holds {', '.join(found[:6])}{' …' * (len(found) > 6)}" if found else "it is empty"
        advice = f"name another with --{split}-split NAME or --{split}-list FILE"
        if folder.name in ("train", "val") and (folder.parent / split).exists():
            advice = f"did you mean {folder.parent}?"
        elif any(_is_picture(file.name) for file in folder.glob("*/*")):
            advice += f"; if its folders are the classes, set pictures aside with scripts/make_lists.py {folder}"
        raise DataError(f"{folder}: no {name} there ({there}); {advice}")
    return path


def open_index(
    path: Path,
    *,
    root: str,
    cache_dir: str | None,
    classes: Sequence[str] = (),
    num_classes: int | None = None,
) -> SampleIndex:
    """The index of a folder or a list file, from the cache if nothing has changed since it was made.

    Args:
        path: a folder of class folders, or a text file of `path label` lines; the lines of a classes.txt beside it
            are the names of classes 0, 1, 2 …
        root: the data set's folder, where a list's paths may start.
        cache_dir: where indexes are kept; one that cannot be written is left alone, None keeps nothing.
        classes: the class names to label by, from the training split; () takes the folder's own.
        num_classes: labels of a list must be below it; None accepts any.
    Raises:
        DataError: empty, a class without pictures, an unknown class, a missing file, a label out of range.
    """
    path, start = path.resolve(), Path(root).expanduser().resolve()
    cache = _cache_file(path, start, cache_dir) if cache_dir is not None else None
    index = _read_cache(cache) if cache else None
    if index is None:
        started_ns = time.time_ns()
        index, stamps = _scan_folder(path) if path.is_dir() else _read_list(path, start)
        if cache and all(changed_ns < started_ns - _RACY_NS for _, changed_ns in stamps):
            _write_cache(cache, index, stamps)
    if path.is_dir():
        return _relabel(index, classes) if classes else index
    index = replace(index, classes=_read_class_names(path))
    num_classes = num_classes or len(index.classes) or None
    if num_classes is not None and int(index.labels.max()) >= num_classes:
        line = int(np.argmax(index.labels >= num_classes))
        raise DataError(
            f"{path}: label {index.labels[line]} of {index.path(line)} is out of range: "
            f"there are {num_classes} classes, 0 to {num_classes - 1}"
        )
    return index


def _scan_folder(path: Path) -> tuple[SampleIndex, list[tuple[str, int]]]:
    """A folder of class folders, in torchvision.datasets.ImageFolder's order; and the time stamps of its folders."""
    stamps = [(str(path), path.stat().st_mtime_ns)]
    classes = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DataError(f"{path}: no class folders; expected {path}/<class>/<picture>")
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        before = len(names)
        for folder, files in sorted(_walk(path / name)):
            stamps.append((folder, os.stat(folder).st_mtime_ns))
            inside = os.path.relpath(folder, path)
            names += [os.path.join(inside, f) for f in sorted(files) if _is_picture(f)]
        if len(names) == before:
            raise DataError(f"{path / name}: no pictures in this class folder; fill it or remove it")
        labels += [label] * (len(names) - before)
    return _pack(str(path), names, [str(path)] * len(names), labels, classes), stamps


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder below `top`, through links too, with its files."""
    for folder, folders, files in os.walk(top, followlinks=True):
        for link in (os.path.join(folder, name) for name in folders):
            if os.path.islink(link) and Path(folder).resolve().is_relative_to(Path(link).resolve()):
                raise DataError(f"{link}: links to a folder that it lies in; remove the link")
        yield folder, files


def _is_picture(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")  # macOS leaves ._x.jpg beside x.jpg


def _relabel(index: SampleIndex, classes: Sequence[str]) -> SampleIndex:
    """The same samples, labelled by another split's classes; a split may lack classes but not have others."""
    numbers = {name: i for i, name in enumerate(classes)}
    unknown = [name for name in index.classes if name not in numbers]
    if unknown:
        raise DataError(
            f"{index.source}: class folder {unknown[0]} is not among the model's {len(classes)} classes "
            f"({', '.join(classes[:4])}{' …' * (len(classes) > 4)})"
        )
    table = np.asarray([numbers[name] for name in index.classes], dtype=np.int32)
    return replace(index, labels=table[index.labels], classes=tuple(classes))


def _read_list(path: Path, root: Path) -> tuple[SampleIndex, list[tuple[str, int]]]:
    """A list of `path label` lines; a path starts at the list's folder or at the data set's root."""
    stamps = [(str(path), path.stat().st_mtime_ns)]
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # splitlines would cut at odd characters in names
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the list: it must be a text file in UTF-8") from error
    starts = [path.parent] if path.parent == root else [path.parent, root]
    names: list[str] = []
    folders: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LIST_LINE.fullmatch(line)
        if match is None:
            raise DataError(
                f"{path} line {number}: expected `path label` with a label of 0 or more, got {line.strip()!r}"
            )
        name = match["path"]
        found = next((start for start in starts if os.path.isfile(os.path.join(start, name))), None)
        if found is None:
            raise DataError(f"{path} line {number}: no file {name} in {' or '.join(map(str, starts))}")
        names.append(name)
        folders.append(str(found))
        labels.append(int(match["label"]))
    if not names:
        raise DataError(f"{path}: the list is empty; expected `path label` lines")
    return _pack(str(path), names, folders, labels, ()), stamps


def _read_class_names(list_file: Path) -> tuple[str, ...]:
    """The lines of the classes.txt beside a list, or nothing."""
    try:
        return tuple((list_file.parent / "classes.txt").read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{list_file.parent / 'classes.txt'}: expected a text file with one class name a line"
        ) from error


def _cache_file(path: Path, root: Path, cache_dir: str) -> Path:
    name = hashlib.sha256(os.fsencode(path) + b"\0" + os.fsencode(root)).hexdigest()[:24]
    return Path(cache_dir).expanduser() / f"index-{name}.npz"


def _read_cache(file: Path) -> SampleIndex | None:
    """A kept index, or None when there is none, it is damaged, or a folder has changed since."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            meta = json.loads(arrays["meta"].tobytes())
            if meta["format"] != _FORMAT:
                return None
            if any(os.stat(name).st_mtime_ns != changed_ns for name, changed_ns in meta["stamps"]):
                return None
            return SampleIndex(
                meta["source"],
                arrays["paths"],
                arrays["ends"],
                arrays["labels"],
                tuple(meta["classes"]),
                meta["fingerprint"],
            )
    except Exception:  # a damaged archive makes zipfile and numpy raise anything; it costs a scan, nothing else
        return None


def _write_cache(file: Path, index: SampleIndex, stamps: list[tuple[str, int]]) -> None:
    meta = {
        "format": _FORMAT,
        "source": index.source,
        "classes": index.classes,
        "fingerprint": index.fingerprint,
        "stamps": stamps,
    }
    meta_bytes = np.frombuffer(json.dumps(meta).encode("utf-8", "surrogateescape"), dtype=np.uint8)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary, temporary.open("wb") as archive:
            np.savez(archive, meta=meta_bytes, paths=index.paths, ends=index.ends, labels=index.labels)
    except OSError:
        return  # a cache that cannot be written costs a scan at the next start, nothing else
