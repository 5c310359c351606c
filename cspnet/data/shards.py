"""Pictures in tar archives (WebDataset's shards), read at random through an index of offsets.

A sample is a picture and the label beside it: `<key>.jpg` and `<key>.cls`, where the key is everything before the
extension; other members, such as `<key>.json`, are passed over. The order is that of the archives' names, and in an
archive that of its pictures. Shards of scripts/pack_dataset.py and other people's are read alike; ours say in a comment
at the start how they were made (`ShardPlan`).

**Reading** is by memory map. At every read the file is looked up and the member's header compared with the index, so a
shard that has vanished, was cut short or was replaced gives unreadable pictures, in every worker alike, and never wrong
ones. What is left is a shard that shrinks within the microseconds between look and copy: that kills the worker (SIGBUS)
and ends the run.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import numpy as np

from cspnet.data.decode import UnreadableImageError
from cspnet.data.samples import SampleIndex, are_whole, blame_file
from cspnet.data.tar import BLOCK, read_comment
from cspnet.errors import DataError

__all__ = ["ShardIndex", "ShardPlan", "holds_shards", "list_shards", "original_name", "read_plan"]

_FORMAT = 1
_PLAN_PREFIX = "cspnet shard "
_MAX_MAPS = 256
"""Maps that a process keeps open; each holds a file descriptor, of which there are often only 1024."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex(SampleIndex):
    """The samples of a split that lies in shards; 36 bytes a sample and its name.

    `paths` holds the names of the pictures as they were before packing. `files` are the shards; of each sample,
    `shards` (int32) is the number of its shard, `offsets` and `sizes` (int64) where its bytes lie, and `heads` (uint32)
    the CRC-32 of the 512 bytes before them.
    """

    files: tuple[str, ...]
    shards: np.ndarray = field(repr=False)
    offsets: np.ndarray = field(repr=False)
    sizes: np.ndarray = field(repr=False)
    heads: np.ndarray = field(repr=False)
    plan: ShardPlan | None = None
    """How the shards were made, if they are ours."""

    def check(self) -> None:
        """As for all indexes; each sample has to lie in one of the files, behind its header."""
        super().check()
        if not (
            are_whole(self.shards, len(self), np.int32, below=len(self.files))
            and are_whole(self.offsets, len(self), np.int64, at_least=BLOCK)
            and are_whole(self.sizes, len(self), np.int64)
            and are_whole(self.heads, len(self), np.uint32)
            and bool((np.diff(self.shards) >= 0).all())
        ):
            raise ValueError("not an index of shards")

    def name(self, i: int) -> str:
        """The name of sample i, without its shard."""
        return super().path(i)

    def path(self, i: int) -> str:
        """Shard and name of sample i, for messages: folder/train-000000.tar/class/name.jpg."""
        return f"{self.files[self.shards[i]]}/{self.name(i)}"

    def read(self, i: int) -> bytes:
        """The bytes of sample i's picture.

        Raises:
            UnreadableImageError: the shard has vanished, is shorter than the index says, or holds something else.
            DataError: this process has no more files or memory.
        """
        file, start = self.files[self.shards[i]], int(self.offsets[i])
        end = start + int(self.sizes[i])
        try:
            found = os.stat(file)
            if found.st_size < end:
                raise UnreadableImageError(f"the shard is cut short: it has {found.st_size:,} bytes, not {end:,}")
            view = _map_file(file, found.st_ino, found.st_size, found.st_mtime_ns)
        except OSError as error:
            raise blame_file(error, self.path(i), "the shard cannot be read: ") from error
        if zlib.crc32(view[start - BLOCK : start]) != self.heads[i]:
            raise UnreadableImageError("the shard has changed: it holds something else there than when it was indexed")
        return view[start:end]


@functools.lru_cache(maxsize=_MAX_MAPS)
def _map_file(file: str, inode: int, size: int, changed_ns: int) -> mmap.mmap:
    """A file, mapped; inode, size and time stamp tell it from others that had its name."""
    with open(file, "rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


class ShardPlan(NamedTuple):
    """What a packed split is made of; it stands in each of its shards."""

    source: str
    """The fingerprint of the pictures as they were before."""
    num_samples: int
    shard_size: int
    """Samples in a shard, but for the last one."""
    encoding: str
    """How they were encoded anew; empty: not at all."""

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> ShardPlan:
        """What a file says of itself.

        Raises:
            ValueError, TypeError: it cannot be so.
        """
        plan = cls(**values)
        numbers = ((plan.num_samples, 0), (plan.shard_size, 1))
        if not (
            all(isinstance(text, str) for text in (plan.source, plan.encoding))
            and all(type(number) is int and least <= number < 1 << 48 for number, least in numbers)
        ):
            raise ValueError("not a plan")
        return plan

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self.shard_size)

    def to_comment(self) -> str:
        """The comment that each shard starts with."""
        return _PLAN_PREFIX + json.dumps({"format": _FORMAT, **self._asdict()})


def read_plan(file: Path) -> ShardPlan | None:
    """How one of our shards was made; None for other people's.

    Raises:
        OSError, TarError: it cannot be read.
        DataError: a newer version of ours made it.
    """
    with file.open("rb", buffering=0) as opened:
        comment = read_comment(opened)
    if not comment.startswith(_PLAN_PREFIX):
        return None
    try:
        plan = json.loads(comment.removeprefix(_PLAN_PREFIX))
        if plan.pop("format") == _FORMAT:
            return ShardPlan.from_values(plan)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise DataError(f"{file}: was packed by another version of this program; pack the data set again")


def original_name(member: str) -> str:
    """The name that a picture had before packing, from that of its member in one of our shards.

    A member's name is the picture's, as `class/name.jpg`, where that makes a key of its own for all readers:
    WebDataset's ends at the first dot of the base name. Otherwise the base name is written with %2E for its dots (and
    %25 for %, and %2F and a number where it comes again), and the extension once more: `a.b.jpg` lies in
    `a%2Eb%2Ejpg.jpg`.
    """
    folder, slash, base = member.rpartition("/")
    key = base.rpartition(".")[0]
    return folder + slash + os.fsdecode(unquote_to_bytes(os.fsencode(key))).split("/")[0] if "%" in key else member


def holds_shards(path: Path) -> bool:
    """Whether a path names shards: a *.tar file, or such files by a pattern (`*`, `?`, `[a-z]`) in its last part."""
    return path.suffix == ".tar" and not path.is_dir()


def list_shards(path: Path) -> list[Path]:
    """The shards that a path names, in their order: links to nothing too, hidden files not."""
    if path.is_file():
        return [path]
    found = path.parent.glob(path.name)
    return sorted(file for file in found if not file.is_dir() and not file.name.startswith("."))
