"""What a file of torch's would ask for when it is loaded, found out before it is.

`torch.load(weights_only=True)` runs no code of a file's, but it does what the file asks for with the few functions that
it knows. A hundred bytes can ask for a bytearray or a tensor of any size, for a text that doubles until it fills the
memory, for a key that takes for ever to look up, for 10**12 elements of which one is stored, or for a record that
inflates to gigabytes. So the archive's directory is read first, and then its pickle, by a reader to which names mean
nothing: a call gives a blank, and calls that tensors and built-in types do not need are refused.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["RefusedError", "check_file"]

_Unpickler: Any = pickle._Unpickler

_MOST_REPEATED = 1 << 24
"""Elements of a tensor that has more than are stored of it, as an expanded one does."""
_MAGIC = b"PK\3\4"
_END = struct.Struct("<4s4H2LH")
"""The end of a zip archive: its directory's size and offset are the sixth and seventh value."""
_LENGTHS_AT, _LENGTHS = 26, struct.Struct("<2H")
"""Where the header of a record has the lengths of its name and of its extra field, which stand before its content."""
_LARGE, _LARGE_END_BYTES = 0xFFFFFFFF, 56 + 20
"""What stands there in an archive of more than 4 GiB, and what it has before that end."""
_LEGACY_PICKLES = 5
"""Of a file of before torch 1.6: three of its version, the content, and the keys of the storages behind them."""
_ITEM_BYTES = {
    **dict.fromkeys(("ComplexDouble",), 16),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Half", "Short", "BFloat16"), 2),
}
"""Bytes of an element, by the name of its storage; of all others 1."""


class RefusedError(Exception):
    """A file asks for what none of ours, and none of anybody's weights, asks for; the message says for what."""


def check_file(path: Path) -> None:
    """Pass a file that torch.load may be trusted with.

    Raises:
        RefusedError: it asks for more than tensors and built-in types, or for more than it holds.
        Exception: whatever a damaged file makes of its readers.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(_MAGIC)) == _MAGIC:
            _check_archive(file, size)
            return
        file.seek(0)
        for _ in range(_LEGACY_PICKLES):
            _read_pickle(_Bounded(file, size), lambda key: size, size)


def _check_archive(file: BinaryIO, size: int) -> None:
    """The directory of a zip archive, and the pickle in it."""
    _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        sizes: dict[str, int] = {}
        for entry in archive.infolist():
            name = entry.filename.partition("/")[2].lower()  # torch's own reader takes both cases for the same
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or name in sizes:
                raise RefusedError(f"has a record that is compressed or there twice, {entry.filename}")
            sizes[name] = entry.file_size
        if sum(sizes.values()) > size:
            raise RefusedError("has more in its records than in all")
        first = archive.namelist()[0].partition("/")[0]
        content = _read_record(file, archive.getinfo(f"{first}/data.pkl"))
    _read_pickle(io.BytesIO(content), lambda key: sizes.get(f"data/{key}".lower(), 0), size)


def _read_record(file: BinaryIO, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of a record, whatever its checksum: there are archives without them."""
    file.seek(entry.header_offset + _LENGTHS_AT)
    name_length, extra_length = _LENGTHS.unpack(file.read(_LENGTHS.size))
    file.seek(name_length + extra_length, os.SEEK_CUR)
    return file.read(entry.file_size)


def _check_end(file: BinaryIO, size: int) -> None:
    """The archive ends with its directory, as torch writes it: so that all readers find the same one."""
    file.seek(max(0, size - _END.size))
    mark, *_, directory_size, directory_at, comment = _END.unpack(file.read(_END.size))
    between = size - _END.size - directory_size - directory_at
    if mark != b"PK\5\6" or comment or (between not in (0, _LARGE_END_BYTES) and directory_at != _LARGE):
        raise RefusedError("damaged: it does not end with the directory of its records")


def _read_pickle(file: Any, stored_bytes: Callable[[str], int], most_bytes: int) -> None:
    try:
        _Reader(file, stored_bytes, most_bytes).load()
    except (RefusedError, pickle.UnpicklingError):
        raise
    except Exception as error:  # what is no pickle fails in many ways
        raise pickle.UnpicklingError("not a pickle") from error


class _Bounded:
    """A file of which no more is read at once than there is."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.readline = file.readline
        self.file, self.size = file, size

    def read(self, count: int) -> bytes:
        return self.file.read(max(0, min(count, self.size - self.file.tell())))


class _Blank:
    """What stands for a name and for what is made by it; it takes what it is given, and is never looked into."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __setitem__(self, key: object, value: object) -> None:
        pass


class _Storage(_Blank):
    """What stands for the bytes behind tensors: `numel` elements."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel = numel


class _Letters(_Blank):
    """What stands for bytes."""


class _Reader(_Unpickler):  # type: ignore[misc]
    """Python's own reader of pickles, to which no name means anything.

    Args:
        file: at the beginning of a pickle.
        stored_bytes: how many bytes there are of a storage, by its key.
        most_bytes: how many there are of all.
    """

    def __init__(self, file: Any, stored_bytes: Callable[[str], int], most_bytes: int) -> None:
        super().__init__(file, encoding="latin1")
        self._stored_bytes = stored_bytes
        self._most_bytes = most_bytes
        self._taken_bytes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> _Blank:
        return _Blank(f"{module}.{name}")

    def persistent_load(self, pid: object) -> _Storage:
        """A storage: ("storage", type, key, location, elements, …)."""
        if not isinstance(pid, tuple) or len(pid) < 5 or type(pid[4]) is not int or not isinstance(pid[1], _Blank):
            raise RefusedError("names a storage that is none")
        key, numel = str(pid[2]), pid[4]
        kind = pid[1].name.rpartition(".")[2].removesuffix("Storage")
        num_bytes = numel * _ITEM_BYTES.get(kind, 1)
        self._taken_bytes[key] = max(num_bytes, self._taken_bytes.get(key, 0))
        if not 0 <= num_bytes <= self._stored_bytes(key) or sum(self._taken_bytes.values()) > self._most_bytes:
            raise RefusedError(f"asks for {numel:,} elements that it does not hold")
        return _Storage(numel)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], arguments)

    def load_setitem(self) -> None:
        _check_key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        super().load_setitems()

    def load_build(self) -> None:
        self.stack.pop()  # the attributes of a blank

    def refuse(self) -> None:
        raise RefusedError(_OBJECTS)


_Reader.dispatch = {
    **_Unpickler.dispatch,
    **dict.fromkeys((pickle.REDUCE[0], pickle.NEWOBJ[0]), _Reader.load_reduce),
    pickle.SETITEM[0]: _Reader.load_setitem,
    pickle.SETITEMS[0]: _Reader.load_setitems,
    pickle.BUILD[0]: _Reader.load_build,
    # Of these torch's reader knows none; to Python's they are calls, or sets of what may take for ever to look up.
    **{
        opcode[0]: _Reader.refuse
        for opcode in (pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.DICT)
        + (pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8, pickle.NEXT_BUFFER)
    },
}

_OBJECTS = "holds objects other than tensors and built-in types, which are not loaded"


def _call(function: object, arguments: object) -> _Blank:
    """What comes of a call: a blank, if it is one that weights need."""
    check = _CALLS.get(function.name) if isinstance(function, _Blank) else None
    if check is None or not isinstance(arguments, tuple):
        raise RefusedError(_OBJECTS)
    return check(*arguments) or _Blank()


def _check_tensor(storage: object = None, offset: object = 0, size: object = None, *others: object) -> None:
    """torch's _rebuild_tensor, of all versions: a view of a storage."""
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not all(type(n) is int for n in size):
        raise RefusedError("holds a tensor without a storage or a size")
    numel = math.prod(size)
    if numel > max(storage.numel, _MOST_REPEATED):
        raise RefusedError(f"holds a tensor of {numel:,} elements, of which it stores {storage.numel:,}")


def _check_typed(function: object = None, kind: object = None, arguments: object = None, *state: object) -> None:
    """torch's _rebuild_from_type_v2: another call, for a tensor with attributes."""
    _call(function, arguments)


def _check_container(*contents: object) -> None:
    """A dictionary or a set from a list of pairs or of keys."""
    for content in contents:
        for pair in content if isinstance(content, list | tuple) else ():
            _check_key(pair[0] if isinstance(pair, list | tuple) and pair else pair)


def _check_bytes(text: object = None, encoding: object = None, *others: object) -> _Blank:
    """_codecs.encode, which is how Python writes bytes: never of bytes again, which may double them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError(_OBJECTS)
    return _Letters()


def _check_bytearray(content: object = "", *encoding: object) -> None:
    """Of text or bytes, never of a size."""
    if not isinstance(content, str | _Letters):
        raise RefusedError(_OBJECTS)


def _check_key(key: object) -> None:
    if not isinstance(key, str | bytes | int | float | None):  # nested pairs of the same take for ever
        raise RefusedError(f"has a {type(key).__name__} for the key of a dictionary")


def _keep(*arguments: object) -> None:
    """A call that does no more than keep its arguments."""


_CALLS: dict[str, Callable[..., _Blank | None]] = {
    **dict.fromkeys((f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")), _check_tensor),
    "torch._utils._rebuild_parameter": _keep,
    "torch._utils._rebuild_parameter_with_state": _keep,
    "torch._utils._rebuild_sparse_tensor": _keep,
    "torch._tensor._rebuild_from_type_v2": _check_typed,
    "torch.nn.parameter.Parameter": _keep,
    "torch.serialization._get_layout": _keep,
    "torch.device": _keep,
    "torch.Size": _keep,
    **dict.fromkeys(("collections.OrderedDict", "collections.Counter"), _check_container),
    **dict.fromkeys(("builtins.set", "__builtin__.set"), _check_container),
    "_codecs.encode": _check_bytes,
    **dict.fromkeys(("builtins.bytearray", "__builtin__.bytearray"), _check_bytearray),
    "argparse.Namespace": _keep,
}
"""What a file may call, and what looks at the arguments."""
