"""Writing a split into shards: in parallel, complete or absent, and going on where it was stopped.

A shard gets its name when it is on the disk and has been read back. Its bytes are a function of the plan and the
pictures alone (and, where they are encoded anew, of Pillow's version), so shards that are there already stay, unless a
picture has been written since. The names are those of the loose files (`cspnet.data.shards.original_name`), in the same
order and with the same labels: unless the pictures are encoded anew, the fingerprint is that of the loose files, and a
run may go on from one to the other.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from cspnet.data.decode import EXTENSIONS, UnreadableImageError
from cspnet.data.encode import encode_anew
from cspnet.data.findings import Problem
from cspnet.data.samples import SampleIndex, digest_samples
from cspnet.data.shard_index import INDEX_NAME, scan_shards, stamp_shards, write_index
from cspnet.data.shards import ShardIndex, ShardPlan, list_shards, read_plan
from cspnet.data.tar import TarError, walk_tar
from cspnet.errors import DataError
from cspnet.runtime.files import replacing, write_atomically
from cspnet.runtime.processes import create_context, leave_with_parent
from cspnet.runtime.tasks import as_done, closing, submit

__all__ = ["BadPicture", "Encoding", "Packed", "Packing", "member_names", "pack_split", "plan_packing"]


_PLAN_WORDS = ("set of pictures", "number of pictures", "number of pictures a shard", "encoding")
"""What the fields of a `ShardPlan` are, in words."""


class Encoding(NamedTuple):
    """How pictures are encoded anew: see `encode_anew`."""

    max_side_px: int
    quality: int

    def __str__(self) -> str:
        return f"JPEG, longer side at most {self.max_side_px} px, Lanczos, quality {self.quality}, 4:2:0"


class BadPicture(NamedTuple):
    """A picture that cannot be packed."""

    path: str
    reason: str


@dataclass(frozen=True)
class Packing:
    """One split and how it is packed into a folder."""

    index: SampleIndex
    names: Sequence[str] = field(repr=False)
    members: Sequence[str] = field(repr=False)
    """The picture's name in its shard, one a sample."""
    folder: Path
    plan: ShardPlan
    encoding: Encoding | None

    def file(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{self.folder.name}-{shard:06d}.tar"

    def samples(self, shard: int) -> range:
        """The samples of a shard."""
        start = shard * self.plan.shard_size
        return range(start, min(start + self.plan.shard_size, self.plan.num_samples))


@dataclass(frozen=True)
class Packed:
    """What has become of a split."""

    index: ShardIndex
    left_out: tuple[str, ...]
    """The paths of the pictures that are not in it."""
    kept_shards: int
    """Shards that were there already."""
    renewed_shards: int
    """Shards that were there and have been written again, because pictures have changed since."""


def plan_packing(
    index: SampleIndex, folder: Path, *, root: Path, shard_size: int, encoding: Encoding | None
) -> Packing:
    """How a split will be packed.

    Args:
        index: the split.
        folder: where its shards go; its name starts theirs.
        root: the data set's folder, where the names of a list start.
        shard_size: pictures in a shard.
        encoding: how the pictures are encoded anew; None keeps the bytes of their files.
    """
    names = _read_names(index, root)
    _check_packable(index, names, any_format=encoding is not None)
    text = ", then ".join(filter(None, (index.encoding, str(encoding) if encoding else "")))
    source = digest_samples(names, index.labels.tolist(), index.encoding)
    plan = ShardPlan(source, len(names), shard_size, text)
    return Packing(index, names, member_names(names, jpeg_only=encoding is not None), folder, plan, encoding)


def _check_packable(index: SampleIndex, names: Sequence[str], *, any_format: bool) -> None:
    """What neither shards nor the classes.txt beside them can say is refused before anything is written."""
    for name in index.classes:
        if not name.strip() or "\n" in name or name.endswith("\r"):
            raise DataError(f"{index.source}: class {name!r}: a name that a line cannot hold; rename the folder")
    for i, name in enumerate(names):
        stem, dot, extension = name.rpartition("/")[2].rpartition(".")
        if not (stem and dot) or not (any_format or f".{extension}".lower() in EXTENSIONS):
            endings = " ".join(EXTENSIONS)
            raise DataError(f"{index.path(i)}: cannot be packed: its name does not end as a picture's ({endings})")


def _read_names(index: SampleIndex, root: Path) -> list[str]:
    """The names that the fingerprint of an index is made of: inside its folder, or from where a list's start."""
    if isinstance(index, ShardIndex):
        return [index.name(i) for i in range(len(index))]
    start = index.source if os.path.isdir(index.source) else os.path.dirname(index.source)
    starts = [os.path.join(folder, "") for folder in (start, root.expanduser().resolve())]
    names = []
    for path in map(index.path, range(len(index))):
        inside = next((start for start in starts if path.startswith(start)), "")
        names.append(path.removeprefix(inside))
    return names


def member_names(names: Sequence[str], *, jpeg_only: bool) -> list[str]:
    """The names of pictures in a shard, each with a key of its own; `original_name` gives the picture's name back.

    Args:
        names: as `class/name.jpg`.
        jpeg_only: whether all contents will be JPEGs, whatever the pictures' names end with.
    """
    keys = Counter(name.rpartition(".")[0] for name in names)
    again: Counter[str] = Counter()
    members = []
    for name in names:
        folder, slash, base = name.rpartition("/")
        stem, _, extension = base.rpartition(".")
        is_plain = keys[name.rpartition(".")[0]] == 1 and not {".", "%"} & set(stem)
        if is_plain and (not jpeg_only or extension.lower() in ("jpg", "jpeg")):
            members.append(name)
            continue
        key = base.replace("%", "%25").replace(".", "%2E")
        if again[name]:
            key += f"%2F{again[name]}"
        again[name] += 1
        members.append(f"{folder}{slash}{key}.{'jpg' if jpeg_only else extension}")
    return members


def pack_split(
    packing: Packing,
    *,
    workers: int,
    skip_bad: bool,
    report_bad: Callable[[BadPicture], None],
    report_done: Callable[[int], object],
) -> Packed:
    """Write the shards that are not there yet, then class names and index.

    Args:
        packing: what and where; one program at a time may write into the folder.
        workers: writing processes, a shard each at a time.
        skip_bad: whether pictures that cannot be packed are left out of their shards. Otherwise a shard that has any is
            not written: all others are, and then it ends in an error. A picture that is copied as it is need not be
            whole; it only has to be there.
        report_bad: told of every such picture.
        report_done: told of the number of pictures in each shard that is complete.
    Raises:
        DataError: the folder holds other shards, cannot be written or is full, or pictures cannot be packed.
    """
    try:
        packing.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{packing.folder}: cannot be made: {error.strerror}") from error
    there = _find_complete(packing)
    kept = {shard for shard in there if not _is_older(packing, shard)}
    _remove_leftovers(packing.folder)
    missing = [shard for shard in range(packing.plan.num_shards) if shard not in kept]
    report_done(sum(len(packing.samples(shard)) for shard in kept))
    num_bad = 0
    for shard, bad in _write_shards(packing, missing, workers, skip_bad):
        num_bad += len(bad)
        for picture in bad:
            report_bad(picture)
        report_done(len(packing.samples(shard)))
    if num_bad and not skip_bad:
        raise DataError(
            f"{packing.folder}: pictures that cannot be packed: {num_bad}; put them right and give the same command "
            "again, or leave them out with --bad skip"
        )
    return _finish(packing, len(kept), len(there) - len(kept), skip_bad)


def _find_complete(packing: Packing) -> set[int]:
    """The shards that are there, all of this plan."""
    numbers = {packing.file(shard): shard for shard in range(packing.plan.num_shards)}
    there = list_shards(packing.folder / "*.tar")
    for file in there:
        try:
            plan = read_plan(file)
        except (OSError, TarError) as error:
            raise DataError(f"{file}: cannot be read: {error}; remove it and give the same command again") from error
        if plan is None:
            advice = "remove it if it is damaged" if file in numbers else "pack into another folder"
            raise DataError(f"{file}: is not one of these shards; {advice}")
        for what, value, planned in zip(_PLAN_WORDS, plan, packing.plan, strict=True):
            if value != planned:
                raise DataError(
                    f"{file}: was packed with another {what} ({value or 'none'}, now {planned or 'none'}); "
                    "pack into another folder"
                )
        if file not in numbers:
            raise DataError(f"{file}: is not one of these shards; pack into another folder")
    return {numbers[file] for file in there}


def _is_older(packing: Packing, shard: int) -> bool:
    """Whether a picture of a shard has been written since; one that is not there is for the others to find."""
    written_ns = packing.file(shard).stat().st_mtime_ns
    index, samples = packing.index, packing.samples(shard)
    if isinstance(index, ShardIndex):
        sources = {index.files[number] for number in np.unique(index.shards[samples])}
    else:
        sources = set(map(index.path, samples))
    return any(os.stat(path).st_mtime_ns > written_ns for path in sources if os.path.exists(path))


def _remove_leftovers(folder: Path) -> None:
    """What a killed program has left of shards that were being written."""
    for file in folder.glob(".*.tmp"):
        file.unlink(missing_ok=True)


def _write_shards(
    packing: Packing, shards: Sequence[int], workers: int, skip_bad: bool
) -> Iterator[tuple[int, list[BadPicture]]]:
    """Each shard as it is done, with its bad pictures."""
    pool = ProcessPoolExecutor(min(workers, len(shards)) or 1, create_context(), _start_worker, (packing, skip_bad))
    try:
        with closing(pool):
            for task in as_done([submit(pool, _write_shard, shard) for shard in shards]):
                yield task.result()
    except BrokenProcessPool as error:
        raise DataError(
            f"{packing.folder}: a writing process was killed (out of memory?); use fewer --workers, and give the same "
            "command again: the shards that are complete stay"
        ) from error
    finally:
        _remove_leftovers(packing.folder)


_work: list[tuple[Packing, bool]] = []
"""What a writing process works on: handed over once, not with every shard."""


def _start_worker(packing: Packing, skip_bad: bool) -> None:
    """Set up a writing process: stopping is the main process's business, but it must not outlive that."""
    leave_with_parent()
    _work[:] = [(packing, skip_bad)]


class _BadPicturesError(Exception):
    """A shard cannot be written, because of its pictures."""


def _write_shard(shard: int) -> tuple[int, list[BadPicture]]:
    """Write one shard, unless it has bad pictures that must not be left out."""
    ((packing, skip_bad),) = _work
    file = packing.file(shard)
    bad: list[BadPicture] = []
    try:
        with replacing(file) as temporary:
            written = _write_tar(packing, shard, temporary, bad)
            if bad and not skip_bad:
                raise _BadPicturesError
            _verify(file, temporary, written)
    except _BadPicturesError:
        pass
    except OSError as error:
        advice = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "put that right"
        raise DataError(
            f"{file}: cannot be written: {error.strerror or error}; {advice} and give the same command again: the "
            "shards that are complete stay"
        ) from error
    return shard, bad


class _Written(NamedTuple):
    """A member that was written: its name, and the length and CRC-32 of its bytes."""

    name: str
    size: int
    crc: int


def _write_tar(packing: Packing, shard: int, temporary: Path, bad: list[BadPicture]) -> list[_Written]:
    written = []
    comment = {"comment": packing.plan.to_comment()}
    with (
        temporary.open("wb") as raw,
        tarfile.open(None, "w", raw, format=tarfile.PAX_FORMAT, pax_headers=comment) as tar,
    ):
        for i in packing.samples(shard):
            try:
                data = packing.index.read(i)
                if packing.encoding is not None:
                    data = encode_anew(data, *packing.encoding)
            except UnreadableImageError as error:
                bad.append(BadPicture(packing.index.path(i), str(error)))
                continue
            label = f"{packing.members[i].rpartition('.')[0]}.cls", str(packing.index.labels[i]).encode()
            for name, content in ((packing.members[i], data), label):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                written.append(_Written(name, len(content), zlib.crc32(content)))
    return written


def _verify(file: Path, temporary: Path, written: Sequence[_Written]) -> None:
    """Read a shard back, from the disk where the system allows it, and compare."""
    with temporary.open("rb", buffering=0) as opened:
        os.fsync(opened.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            found = [_Written(m.name, m.size, _crc(opened, m.offset, m.size)) for m in walk_tar(opened)]
        except TarError as error:
            raise DataError(f"{file}: what was written does not read back: {error}; is the disk failing?") from error
    for one, other in itertools.zip_longest(written, found):
        if one != other:
            name = (one or other).name
            raise DataError(f"{file}: {name}: what was written does not read back; is the disk failing?")


def _crc(opened: BinaryIO, offset: int, size: int) -> int:
    opened.seek(offset)
    return zlib.crc32(opened.read(size))


def _finish(packing: Packing, kept_shards: int, renewed_shards: int, skip_bad: bool) -> Packed:
    """Compare all shards with what was planned, then write the names of the classes and, last, the index."""
    files = [packing.file(shard) for shard in range(packing.plan.num_shards)]
    stamps = stamp_shards(files)

    def ask_to_remove(problem: Problem) -> None:
        raise DataError(f"{problem}; remove that file and give the same command again")

    index = scan_shards(files, complain=ask_to_remove)
    left_out, i = [], 0
    for sample, name in enumerate(packing.names):
        if i < len(index) and (index.name(i), index.labels[i]) == (name, packing.index.labels[sample]):
            i += 1
        else:
            left_out.append(packing.index.path(sample))
    if i != len(index):
        raise DataError(f"{index.path(i)}: is not what belongs there; remove {packing.folder} and pack again")
    if left_out and not skip_bad:
        raise DataError(
            f"{packing.folder}: pictures left out by an earlier --bad skip: {len(left_out)}, the first of them "
            f"{left_out[0]}; give --bad skip again, or remove the folder and pack again"
        )
    try:
        if packing.index.classes:
            names = "".join(f"{name}\n" for name in packing.index.classes)
            write_atomically(packing.folder / "classes.txt", names.encode("utf-8", "surrogateescape"))
        write_index(packing.folder / INDEX_NAME, index, stamps)
    except OSError as error:
        raise DataError(
            f"{packing.folder}: cannot write the index: {error.strerror or error}; give the same command again"
        ) from error
    return Packed(index, tuple(left_out), kept_shards, renewed_shards)
