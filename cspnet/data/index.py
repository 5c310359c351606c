"""Which pictures there are: folders, list files and shards, found once and kept in a cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cspnet.data.decode import EXTENSIONS
from cspnet.data.findings import Complain, Problem, refuse
from cspnet.data.samples import RACY_NS, SampleIndex, digest_samples, join_paths, read_arrays, write_arrays
from cspnet.data.shard_index import open_shards
from cspnet.data.shards import holds_shards, list_shards
from cspnet.errors import DataError

__all__ = ["find_left_out", "find_split", "open_index"]

_FORMAT = 1
_NO_FILE = "a pipe, a socket or a device, not a file"
_LIST_LINE = re.compile(r"\s*(?P<path>\S|\S.*\S)[ \t]+(?P<label>[0-9]{1,9})\s*")


def _pack(
    source: str, names: Sequence[str], folders: Sequence[str], labels: Sequence[int], classes: Sequence[str]
) -> SampleIndex:
    """An index of the files folder/name."""
    paths, ends = join_paths([os.path.join(folder, name) for folder, name in zip(folders, names, strict=True)])
    numbers = np.asarray(labels, dtype=np.int32)
    return SampleIndex(source, paths, ends, numbers, tuple(classes), digest_samples(names, labels))


def find_split(root: str, split: str, name: str, data_format: str, *, by_flags: bool = True) -> Path:
    """The folder, list file or shards of a split.

    Args:
        root: the data set's folder.
        split: train or val.
        name: auto, or a folder, a file or a pattern of shards, relative to root (or absolute).
        data_format: folder, list or shards, which decides what the other auto means; or auto, which takes what is
            there: class folders in root/split, shards in root/split or in root, a list in root.
        by_flags: whether errors may speak of the flags of train.py.
    Returns:
        A folder or a list file; shards are always given as a pattern, such as root/train/*.tar.
    Raises:
        DataError: it does not exist.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        advice = "; give the folder that holds train/ and val/ with --data-path"
        what = "not a folder" if folder.exists() else "no such folder"
        raise DataError(f"{'data.root: ' * by_flags}{root}: {what}{advice * by_flags}")
    candidates = _candidates(folder, split, data_format) if name == "auto" else [_or_shards(folder / name, data_format)]
    found = next((path for path in candidates if path.exists() or (holds_shards(path) and list_shards(path))), None)
    if found is not None:
        if name == "auto" and holds_shards(found):
            _check_names(found, split, by_flags)
        return found
    names = " or ".join(str(path.relative_to(folder) if name == "auto" else name) for path in candidates)
    inside = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if not p.name.startswith("."))
    there = f"it holds {', '.join(inside[:6])}{' …' * (len(inside) > 6)}" if inside else "it is empty"
    advice = f"name another with --{split}-split NAME or --{split}-list FILE" if by_flags else "is it another data set?"
    if folder.name in ("train", "val") and (folder.parent / split).exists():
        advice = f"did you mean {folder.parent}?"
    elif any(_is_picture(file.name) for file in folder.glob("*/*")):
        advice += f"; if its folders are the classes, set pictures aside with scripts/make_lists.py {folder}"
    raise DataError(f"{folder}: no {names} there ({there}); {advice}")


def _candidates(folder: Path, split: str, data_format: str) -> list[Path]:
    """Where a split may lie, best first."""
    inside, shards, listed = folder / split, folder / f"*{split}*.tar", folder / f"{split}_list.txt"
    return {
        "folder": [inside],
        "list": [listed],
        "shards": [inside / "*.tar", shards],
        "auto": [_or_shards(inside, "auto"), shards, listed],
    }[data_format]


def _check_names(shards: Path, split: str, by_flags: bool) -> None:
    """Shards that were found by their names must not be another split's as well: val is in interval-train-0.tar too."""
    for other in {"train", "val"} - {split}:
        both = [file.name for file in list_shards(shards) if other in file.name and shards.name != "*.tar"]
        if both:
            advice = f"say which shards are the split's with --{split}-split PATTERN, such as '{split}-*.tar'"
            if not by_flags:
                advice = f"put the shards of each split into a folder of its own: {shards.parent / split}"
            raise DataError(f"{shards.parent}: {both[0]} has both train and val in its name; {advice}")


def _or_shards(path: Path, data_format: str) -> Path:
    """A folder, or the shards in it if they are what is meant: it holds some and, with auto, no folders."""
    if data_format not in ("auto", "shards") or not path.is_dir() or not list_shards(path / "*.tar"):
        return path
    has_folders = any(entry.is_dir() and not entry.name.startswith(".") for entry in os.scandir(path))
    return path if data_format == "auto" and has_folders else path / "*.tar"


def open_index(
    path: Path,
    *,
    root: str,
    cache_dir: str | None,
    classes: Sequence[str] = (),
    num_classes: int | None = None,
    outside_root: bool = False,
    complain: Complain = refuse,
    warn: Callable[[str], None] = lambda text: None,
) -> SampleIndex:
    """The index of a folder, a list file or shards, from the cache if nothing has changed since it was made.

    Args:
        path: a folder of class folders, a text file of `path label` lines, or shards (see `holds_shards`); the lines of
            a classes.txt beside list or shards are the names of classes 0, 1, 2 …
        root: the data set's folder, where a list's paths may start.
        cache_dir: where indexes are kept; one that cannot be written is left alone, None keeps nothing.
        classes: the class names to label by, from the training split; () takes the folder's own.
        num_classes: labels of a list or of shards must be below it; None accepts any.
        outside_root: whether a list's entries may lie outside of its folder and of root.
        complain: told of what cannot be taken in. If it returns, a line, a member or a shard is left out, an empty
            class is a class without samples, and unknown classes follow those of `classes`. Only `refuse` goes with
            the cache.
        warn: told of an index that is older than its shards, and of what is named as a picture and is no file (once:
            a kept index does not tell it again).
    Raises:
        DataError: empty or, from `refuse`, a class without pictures, an unknown class, a line that cannot be read, a
            missing file, one outside of the data set, a label out of range, or shards that are no whole set (see
            `open_shards`).
    """
    start = Path(root).expanduser().resolve()
    path = path.resolve() if path.is_dir() else path.parent.resolve() / path.name  # a link may have no name to go by
    if path.is_dir():
        index = _open_listed(path, start, None, False, cache_dir, complain, warn)
        return _relabel(index, classes, complain) if classes else index
    names = _read_class_names(path)
    num_classes = num_classes or len(names) or None
    if holds_shards(path):
        cache = _cache_file(path, start, cache_dir) if cache_dir is not None else None
        index = open_shards(path, cache, complain, warn)
    else:
        index = _open_listed(path, start, num_classes, outside_root, cache_dir, complain, warn)
    if classes and names and names != tuple(classes):
        text = "names other classes, or in another order, than training has"
        complain(Problem("unknown_class", str(path.parent / "classes.txt"), text))
    if num_classes is not None:  # a kept index may have been made for more
        for sample in map(int, np.flatnonzero(index.labels >= num_classes)):
            complain(_out_of_range(str(path), int(index.labels[sample]), index.path(sample), num_classes))
    return replace(index, classes=names)


def _open_listed(
    path: Path,
    root: Path,
    num_classes: int | None,
    outside_root: bool,
    cache_dir: str | None,
    complain: Complain,
    warn: Callable[[str], None],
) -> SampleIndex:
    """The index of a folder or a list, kept or new."""
    anywhere = Path(os.sep) if outside_root else root  # a list that was read by another rule is another one
    cache = _cache_file(path, anywhere, cache_dir) if cache_dir is not None and complain is refuse else None
    index = _read_cache(cache) if cache else None
    if index is None:
        started_ns = time.time_ns()
        if path.is_dir():
            index, stamps = _scan_folder(path, complain, warn)
        else:
            index, stamps = _read_list(path, root, num_classes, outside_root, complain)
        if cache and all(changed_ns < started_ns - RACY_NS for _, changed_ns in stamps):
            _write_cache(cache, index, stamps)
    return index


def _out_of_range(place: str, label: int, name: str, num_classes: int) -> Problem:
    text = f"label {label} of {name} is out of range: there are {num_classes} classes, 0 to {num_classes - 1}"
    return Problem("label_out_of_range", place, text)


def _scan_folder(
    path: Path, complain: Complain, warn: Callable[[str], None]
) -> tuple[SampleIndex, list[tuple[str, int]]]:
    """A folder of class folders, in torchvision.datasets.ImageFolder's order; and the time stamps of its folders."""
    stamps = [(str(path), path.stat().st_mtime_ns)]
    classes = _class_folders(path)
    if not classes:
        raise DataError(f"{path}: no class folders; expected {path}/<class>/<picture>")
    names: list[str] = []
    labels: list[int] = []
    left_out: list[str] = []
    for label, name in enumerate(classes):
        before = len(names)
        for folder, files, others in sorted(_walk(path / name, complain)):
            left_out += [os.path.join(folder, other) for other in others if _is_picture(other)]
            stamps.append((folder, os.stat(folder).st_mtime_ns))
            inside = os.path.relpath(folder, path)
            names += [os.path.join(inside, f) for f in sorted(files) if _is_picture(f)]
        if len(names) == before:
            complain(Problem("empty_class", str(path / name), "no pictures in this class folder; fill it or remove it"))
        labels += [label] * (len(names) - before)
    if left_out:
        more = f", as are {len(left_out) - 1} more of the kind" * (len(left_out) > 1)
        warn(f"{left_out[0]}: {_NO_FILE}: left out{more}")
    return _pack(str(path), names, [str(path)] * len(names), labels, classes), stamps


def _class_folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _walk(top: Path, complain: Complain) -> Iterator[tuple[str, list[str], list[str]]]:
    """Every folder below `top`, through links too, with its files, and with what is neither: pipes, sockets, devices.

    What a link leads to is not looked at: that would take a call for each.
    """
    waiting = [str(top)]
    while waiting:
        folder = waiting.pop()
        files: list[str] = []
        others: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        if not _is_loop(folder, entry):
                            waiting.append(entry.path)
                            continue
                        text = "links to a folder that it lies in; remove the link"
                        complain(Problem("link_loop", entry.path, text))
                    elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
                        files.append(entry.name)
                    else:
                        others.append(entry.name)
        except OSError as error:
            text = f"this folder cannot be read: {error.strerror}"
            complain(Problem("unreadable_folder", folder, text))
            continue
        yield folder, files, others


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False


def _is_loop(folder: str, entry: os.DirEntry[str]) -> bool:
    """Whether a folder is a link to one that it lies in."""
    return entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve())


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
        for folder, files, others in sorted(_walk(path / name, lambda problem: None)):
            for other in sorted(others):
                yield Problem("left_out", os.path.join(folder, other), _NO_FILE)
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
    path: Path, root: Path, num_classes: int | None, outside_root: bool, complain: Complain
) -> tuple[SampleIndex, list[tuple[str, int]]]:
    """A list of `path label` lines; a path starts at the list's folder or at the data set's root, and stays in it."""
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
        if match is None or "\0" in line:
            text = f"expected `path label` with a label of 0 or more, got {line.strip()!r}"
            complain(Problem("malformed_line", place, text))
            continue
        name, label = match["path"], int(match["label"])
        allowed = starts if outside_root else [start for start in starts if _stays_inside(name, start, starts)]
        found = next((start for start in allowed if os.path.isfile(os.path.join(start, name))), None)
        if not allowed:
            text = f"{name} lies outside of {' and '.join(map(str, starts))}; if that is meant, say --outside-root"
            complain(Problem("outside_root", place, text))
        elif found is None:
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


def _stays_inside(name: str, start: Path, folders: Sequence[Path]) -> bool:
    """Whether start/name lies in one of the folders.

    As it is written, so that links in a data set may lead where they want; they are followed where `..` comes behind
    one, and where an absolute path may be another name of the same place.
    """
    if not os.path.isabs(name) and ".." not in name:
        return True
    inside = tuple(os.path.join(folder, "") for folder in folders)
    if ".." not in name and name.startswith(inside):
        return True
    return os.path.realpath(os.path.join(start, name)).startswith(inside)


def _read_class_names(list_file: Path) -> tuple[str, ...]:
    """The lines of the classes.txt beside a list or shards, or nothing."""
    file = list_file.parent / "classes.txt"
    try:
        # In the bytes that folders may have as names; splitlines would cut at odd characters in them.
        text = file.read_bytes().decode("utf-8-sig", "surrogateescape")
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    names = [line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")] if text.strip() else []
    for number, name in enumerate(names, 1):
        if not name.strip() or "\0" in name:
            raise DataError(f"{file} line {number}: expected the name of class {number - 1}, one a line, got {name!r}")
    return tuple(names)


def _cache_file(path: Path, root: Path, cache_dir: str) -> Path:
    name = hashlib.sha256(os.fsencode(path) + b"\0" + os.fsencode(root)).hexdigest()[:24]
    return Path(cache_dir).expanduser() / f"index-{name}.npz"


def _read_cache(file: Path) -> SampleIndex | None:
    """A kept index, or None when there is none, it is damaged, or a folder has changed since."""
    found = read_arrays(file, _FORMAT)
    if found is None:
        return None
    meta, arrays = found
    try:
        if any(os.stat(name).st_mtime_ns != changed_ns for name, changed_ns in meta.pop("stamps")):
            return None
        index = SampleIndex(**{**arrays, **meta, "classes": tuple(meta["classes"])})
        index.check()
        return index
    except (OSError, KeyError, TypeError, ValueError):  # a folder is gone, or somebody else's file
        return None


def _write_cache(file: Path, index: SampleIndex, stamps: list[tuple[str, int]]) -> None:
    meta = {"source": index.source, "classes": index.classes, "fingerprint": index.fingerprint, "stamps": stamps}
    arrays = {"paths": index.paths, "ends": index.ends, "labels": index.labels}
    with contextlib.suppress(OSError):  # it costs a scan at the next start, nothing else
        file.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(file, _FORMAT, meta, arrays)
