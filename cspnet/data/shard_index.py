"""What is in a set of shards: scanned once, and kept.

The index is kept in index.npz beside the shards, or in the cache. It is taken as good while each shard has its size and
time stamp. Where a time stamp alone differs, as in a copy, a shard of ours is known by the plan at its start, which
stands for all names and labels, and by three of its members. Otherwise the shards are scanned anew, and a warning says
so.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from cspnet.data.decode import EXTENSIONS
from cspnet.data.findings import Complain, Problem, refuse
from cspnet.data.samples import RACY_NS, digest_samples, join_paths, read_arrays, write_arrays
from cspnet.data.shards import ShardIndex, ShardPlan, list_shards, original_name, read_plan
from cspnet.data.tar import BLOCK, Member, TarError, walk_tar
from cspnet.errors import DataError
from cspnet.runtime.tasks import closing, result_of, submit

__all__ = ["INDEX_NAME", "open_shards", "scan_shards", "stamp_shards", "write_index"]

INDEX_NAME = "index.npz"
_FORMAT = 2
_MAX_THREADS = 16

Stamp = tuple[str, int, int]
"""Name, size in bytes and time stamp (ns) of a shard."""


def open_shards(path: Path, cache: Path | None, complain: Complain, warn: Callable[[str], None]) -> ShardIndex:
    """The index of shards: the one beside them or in the cache, or made now, if the shards are not as they were.

    Args:
        path: see `holds_shards`.
        cache: the file that keeps the index; None keeps nothing.
        complain: told of what cannot be taken in: a shard that is cut short, damaged or of another plan than the
            others, shards that are missing, a picture without a label, a label without a picture, or one that is no
            number. If it returns, the shards are scanned in any case, and what it was told of is left out.
        warn: told of an index that is older than its shards.
    Raises:
        DataError: no shards, no pictures in them, or what `complain` raises.
    """
    files = list_shards(path)
    if not files:
        raise DataError(f"{path}: no such shards")
    whole = path.name == "*.tar"
    stale = ""
    for kept in (path.parent / INDEX_NAME if whole else None, cache):
        found = _read_index(kept, path.parent) if kept else None
        if found is None:
            if kept and kept.exists() and not stale:
                stale = f"{kept}: cannot be read by this version; the shards are scanned anew"
            continue
        index, stamps = found
        change = _find_change(index, stamps, files)
        if not change and complain is refuse:
            return replace(index, source=str(path))
        if change and not stale:
            stale = f"{kept}: is older than the shards ({change}); they are scanned anew"
    if stale:
        warn(stale)
    started_ns = time.time_ns()
    stamps = stamp_shards(files) if cache and complain is refuse else []
    index = scan_shards(files, whole=whole, complain=complain)
    if cache and stamps and all(changed_ns < started_ns - RACY_NS for _, _, changed_ns in stamps):
        with contextlib.suppress(OSError):  # it costs a scan at the next start, nothing else
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_index(cache, index, stamps)
    return replace(index, source=str(path))


def scan_shards(files: Sequence[Path], *, whole: bool = True, complain: Complain = refuse) -> ShardIndex:
    """An index, made from the shards alone.

    Args:
        files: the shards, in their order.
        whole: whether they must be all that their plan speaks of, if they have one.
        complain: see `open_shards`.
    Raises:
        DataError: no pictures in them, or what `complain` raises.
    """
    with closing(ThreadPoolExecutor(min(_MAX_THREADS, len(files)))) as pool:
        tasks = [submit(pool, _scan_shard, file) for file in files]
        found = [result_of(task) for task in tasks]
    for shard in found:
        for problem in shard.problems:
            complain(problem)
    _check_plans(files, found, whole, complain)
    names = [name for shard in found for name in shard.names]
    if not names:
        why = next((f": {problem}" for shard in found for problem in shard.problems), "")
        raise DataError(f"{files[0].parent}: no pictures in {files[0].name}{' and the others' * (len(files) > 1)}{why}")
    labels = [label for shard in found for label in shard.labels]
    pictures = [picture for shard in found for picture in shard.pictures]
    plan = found[0].plan
    encoding = plan.encoding if plan else ""
    paths, ends = join_paths(names)
    return ShardIndex(
        source=str(files[0].parent),
        paths=paths,
        ends=ends,
        labels=np.asarray(labels, dtype=np.int32),
        classes=(),
        fingerprint=digest_samples(names, labels, encoding),
        encoding=encoding,
        files=tuple(map(str, files)),
        shards=np.repeat(np.arange(len(files), dtype=np.int32), [len(shard.names) for shard in found]),
        offsets=np.asarray([picture.offset for picture in pictures], dtype=np.int64),
        sizes=np.asarray([picture.size for picture in pictures], dtype=np.int64),
        heads=np.asarray([picture.head for picture in pictures], dtype=np.uint32),
        plan=plan,
    )


class _Shard(NamedTuple):
    """What one shard holds: a name, a label and a member for each picture."""

    plan: ShardPlan | None
    names: list[str]
    labels: list[int]
    pictures: list[Member]
    problems: list[Problem]


def _check_plans(files: Sequence[Path], found: Sequence[_Shard], whole: bool, complain: Complain) -> None:
    """Whether shards belong together, and are all there."""
    plan = found[0].plan
    for file, shard in zip(files, found, strict=True):
        if shard.plan != plan:
            text = f"was not packed together with {files[0].name}; keep different shards apart"
            complain(Problem("mixed_shards", str(file), text))
    if plan is not None and whole and len(files) != plan.num_shards:
        text = f"holds {len(files)} of {plan.num_shards} shards; give the command that packed it again"
        complain(Problem("mixed_shards", str(files[0].parent), text))


def _scan_shard(file: Path) -> _Shard:
    plan = None
    pictures: dict[str, Member] = {}
    labels: dict[str, int] = {}
    problems: list[Problem] = []
    unlabelled: set[str] = set()  # and that has been said
    is_damaged = False

    def refuse_member(member: str, text: str) -> None:
        problems.append(Problem("bad_member", f"{file}: {member}", text))

    try:
        plan = read_plan(file)
        with file.open("rb", buffering=0) as opened:
            for member in walk_tar(opened):
                key, kind = _split_name(member.name)
                if not kind:
                    continue
                if not member.is_file:
                    refuse_member(member.name, "is a link, not a file; pack it with --dereference")
                elif key in (labels if kind == ".cls" else pictures):
                    refuse_member(member.name, f"there is another {kind} of that key")
                elif kind != ".cls":
                    pictures[key] = member
                elif isinstance(label := _read_label(opened, member), int):
                    labels[key] = label
                else:
                    refuse_member(member.name, f"expected a label of 0 or more, of at most 9 digits, got {label}")
                    unlabelled.add(key)
    except (OSError, TarError) as error:
        problems.append(Problem("damaged_shard", str(file), _reason(error)))
        is_damaged = True
    members = [pictures[key] for key in pictures if key in labels]
    if not is_damaged:  # else the other half of a sample may just be what is lost
        for key in sorted(pictures.keys() - labels.keys() - unlabelled):
            refuse_member(pictures[key].name, f"has no label; expected {key}.cls in the same shard")
        for key in sorted(labels.keys() - pictures.keys()):
            refuse_member(f"{key}.cls", f"has no picture; expected {key}.jpg or the like in the same shard")
    names = [original_name(member.name) if plan else member.name for member in members]
    return _Shard(plan, names, [labels[key] for key in pictures if key in labels], members, problems)


def _split_name(name: str) -> tuple[str, str]:
    """Key and kind of a member: .cls, picture, or nothing that counts."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.rpartition(".")
    if not stem or base.startswith("."):  # macOS leaves ._x.jpg beside x.jpg
        return name, ""
    extension = dot + extension.lower()
    return folder + slash + stem, extension if extension == ".cls" else "picture" * (extension in EXTENSIONS)


def _read_label(opened: BinaryIO, member: Member) -> int | str:
    """A label; what stands there instead, if it is none."""
    opened.seek(member.offset)
    text = opened.read(min(member.size, 20)).strip()
    return int(text) if text.isdigit() and len(text) <= 9 else repr(text.decode("utf-8", "replace"))


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def stamp_shards(files: Sequence[Path]) -> list[Stamp]:
    """Names, sizes and time stamps of shards.

    Raises:
        DataError: one has vanished.
    """
    return [_stamp(file) for file in files]


def _stamp(file: Path) -> Stamp:
    try:
        found = file.stat()
    except OSError as error:
        raise DataError(f"{file}: {_reason(error)}") from error
    return file.name, found.st_size, found.st_mtime_ns


def _find_change(index: ShardIndex, stamps: Sequence[Stamp], files: Sequence[Path]) -> str:
    """In what the shards are not those of an index; empty if they are."""
    names = [file.name for file in files]
    known = [name for name, _, _ in stamps]
    gone, new = sorted({*known} - {*names}), sorted({*names} - {*known})
    if gone or new:
        return f"{gone[0]} is gone" if gone else f"{new[0]} is new"
    if known != names:  # so that the files of an index are those that are there, each where it is taken for
        return "it names them in another order"
    for number, (file, (name, size, changed_ns)) in enumerate(zip(files, stamps, strict=True)):
        try:
            _, size_now, changed_now_ns = _stamp(file)
            if size_now != size:
                return f"{name} has {size_now:,} bytes and had {size:,}"
            if changed_now_ns != changed_ns and not _is_a_copy(index, number):
                return f"{name} was written again"
        except (OSError, DataError, TarError) as error:
            return _reason(error)
    return ""


def _is_a_copy(index: ShardIndex, number: int) -> bool:
    """Whether a shard is one of ours, of the same plan, with its first, middle and last picture where they were."""
    if index.plan is None or read_plan(Path(index.files[number])) != index.plan:
        return False
    first, last = np.searchsorted(index.shards, [number, number + 1])
    if first == last:
        return False
    with open(index.files[number], "rb", buffering=0) as file:
        for i in (first, (first + last) // 2, last - 1):
            file.seek(int(index.offsets[i]) - BLOCK)
            if zlib.crc32(file.read(BLOCK)) != index.heads[i]:
                return False
    return True


_ARRAYS = ("paths", "ends", "labels", "shards", "offsets", "sizes", "heads")


def write_index(file: Path, index: ShardIndex, stamps: Sequence[Stamp]) -> None:
    """Write an index, with the stamps that its shards had before they were scanned.

    Raises:
        OSError: it cannot be written.
    """
    meta = {"fingerprint": index.fingerprint, "encoding": index.encoding, "plan": index.plan, "stamps": stamps}
    write_arrays(file, _FORMAT, meta, {name: getattr(index, name) for name in _ARRAYS})


def _read_index(file: Path, folder: Path) -> tuple[ShardIndex, list[Stamp]] | None:
    """A kept index and the stamps of its shards; None when there is none or it is damaged."""
    found = read_arrays(file, _FORMAT)
    if found is None:
        return None
    meta, arrays = found
    try:
        stamps = [(str(name), int(size), int(changed_ns)) for name, size, changed_ns in meta.pop("stamps")]
        files = tuple(str(folder / name) for name, _, _ in stamps)
        planned = meta.pop("plan")
        plan = ShardPlan.from_values(dict(zip(ShardPlan._fields, planned, strict=True))) if planned else None
        place = {"source": str(folder), "classes": (), "files": files}
        index = ShardIndex(**{**meta, **arrays, **place, "plan": plan})
        index.check()
        return index, stamps
    except (KeyError, TypeError, ValueError, OverflowError):  # somebody else's index.npz
        return None
