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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cspnet.data.decode import EXTENSIONS, UnreadableImageError
from cspnet.errors import DataError
from cspnet.runtime.files import replacing

__all__ = ["Problem", "SampleIndex", "find_left_out", "find_split", "open_index", "refuse"]

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


class Problem(NamedTuple):
    """Something in a data set that an index cannot take in, and where it stands."""

    kind: str
    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


Complain = Callable[[Problem], None]


def refuse(problem: Problem) -> None:
    """Ends the reading of a data set at its first problem.

    Raises:
        DataError: always.
    """
    raise DataError(str(problem))


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
    complain: Complain = refuse,
) -> SampleIndex:
    """The index of a folder or a list file, from the cache if nothing has changed since it was made.

    Args:
        path: a folder of class folders, or a text file of `path label` lines; the lines of a classes.txt beside it
            are the names of classes 0, 1, 2 …
        root: the data set's folder, where a list's paths may start.
        cache_dir: where indexes are kept; one that cannot be written is left alone, None keeps nothing.
        classes: the class names to label by, from the training split; () takes the folder's own.
        num_classes: labels of a list must be below it; None accepts any.
        complain: told of what cannot be taken in. If it returns, a line is left out, an empty class is a class
            without samples, and unknown classes follow those of `classes`. Only `refuse` goes with the cache.
    Raises:
        DataError: empty or, from `refuse`, a class without pictures, an unknown class, a line that cannot be read, a
            missing file, a label out of range.
    """
    path, start = path.resolve(), Path(root).expanduser().resolve()
    cache = _cache_file(path, start, cache_dir) if cache_dir is not None and complain is refuse else None
    index = _read_cache(cache) if cache else None
    names = () if path.is_dir() else _read_class_names(path)
    num_classes = num_classes or len(names) or None
    if index is None:
        started_ns = time.time_ns()
        if path.is_dir():
            index, stamps = _scan_folder(path, complain)
        else:
            index, stamps = _read_list(path, start, num_classes, complain)
        if cache and all(changed_ns < started_ns - _RACY_NS for _, changed_ns in stamps):
            _write_cache(cache, index, stamps)
    if path.is_dir():
        return _relabel(index, classes, complain) if classes else index
    if num_classes is not None and index.labels.max(initial=0) >= num_classes:  # it was kept with more classes
        sample = int(np.argmax(index.labels >= num_classes))
        complain(_out_of_range(str(path), int(index.labels[sample]), index.path(sample), num_classes))
    return replace(index, classes=names)


def _out_of_range(place: str, label: int, name: str, num_classes: int) -> Problem:
    text = f"label {label} of {name} is out of range: there are {num_classes} classes, 0 to {num_classes - 1}"
    return Problem("label_out_of_range", place, text)


def _scan_folder(path: Path, complain: Complain) -> tuple[SampleIndex, list[tuple[str, int]]]:
    """A folder of class folders, in torchvision.datasets.ImageFolder's order; and the time stamps of its folders."""
    stamps = [(str(path), path.stat().st_mtime_ns)]
    classes = _class_folders(path)
    if not classes:
        raise DataError(f"{path}: no class folders; expected {path}/<class>/<picture>")
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        before = len(names)
        for folder, files in sorted(_walk(path / name, complain)):
            stamps.append((folder, os.stat(folder).st_mtime_ns))
            inside = os.path.relpath(folder, path)
            names += [os.path.join(inside, f) for f in sorted(files) if _is_picture(f)]
        if len(names) == before:
            complain(Problem("empty_class", str(path / name), "no pictures in this class folder; fill it or remove it"))
        labels += [label] * (len(names) - before)
    return _pack(str(path), names, [str(path)] * len(names), labels, classes), stamps


def _class_folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _walk(top: Path, complain: Complain) -> Iterator[tuple[str, list[str]]]:
    """Every folder below `top`, through links too, with its files."""
    for folder, folders, files in os.walk(top, followlinks=True):
        for name in folders.copy():
            link = os.path.join(folder, name)
            if os.path.islink(link) and Path(folder).resolve().is_relative_to(Path(link).resolve()):
                complain(Problem("link_loop", link, "links to a folder that it lies in; remove the link"))
                folders.remove(name)
        yield folder, files


def _is_picture(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")  # macOS leaves ._x.jpg beside x.jpg


def find_left_out(path: Path) -> Iterator[Problem]:
    """What lies in a folder of class folders and is not in its index, sorted by folder."""
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if os.path.islink(entry.path) and not os.path.exists(entry.path):
            yield Problem("dangling_link", entry.path, "a link to nothing; as a class folder it is not seen")
        elif entry.name.startswith("."):
            yield Problem("left_out", entry.path, "hidden: its name starts with a dot")
        elif not entry.is_dir():
            yield Problem("left_out", entry.path, "not in a class folder")
    for name in _class_folders(path):
        for folder, files in sorted(_walk(path / name, lambda problem: None)):
            for file in sorted(file for file in files if not _is_picture(file)):
                reason = "hidden: its name starts with a dot" if file.startswith(".") else "not named as a picture"
                yield Problem("left_out", os.path.join(folder, file), reason)


def _relabel(index: SampleIndex, classes: Sequence[str], complain: Complain) -> SampleIndex:
    """The same samples, labelled by another split's classes; a split may lack classes but not have others."""
    unknown = sorted(set(index.classes) - set(classes))
    for name in unknown:
        text = f"class folder {name} is not among the model's {len(classes)} classes "
        text += f"({', '.join(classes[:4])}{' …' * (len(classes) > 4)})"
        complain(Problem("unknown_class", index.source, text))
    classes = (*classes, *unknown)
    numbers = {name: i for i, name in enumerate(classes)}
    table = np.asarray([numbers[name] for name in index.classes], dtype=np.int32)
    return replace(index, labels=table[index.labels], classes=tuple(classes))


def _read_list(
    path: Path, root: Path, num_classes: int | None, complain: Complain
) -> tuple[SampleIndex, list[tuple[str, int]]]:
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
        place = f"{path} line {number}"
        if match is None:
            text = f"expected `path label` with a label of 0 or more, got {line.strip()!r}"
            complain(Problem("malformed_line", place, text))
            continue
        name, label = match["path"], int(match["label"])
        found = next((start for start in starts if os.path.isfile(os.path.join(start, name))), None)
        if found is None:
            complain(Problem("missing_file", place, f"no file {name} in {' or '.join(map(str, starts))}"))
        elif num_classes is not None and label >= num_classes:
            complain(_out_of_range(place, label, name, num_classes))
        else:
            names.append(name)
            folders.append(str(found))
            labels.append(label)
    if not any(line.strip() for line in lines):
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
