"""Pickles that are built to do harm, in the two forms of file that torch reads."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Sequence

from cspnet.cli.fuzzing.watch import CANARY
from cspnet.cli.fuzzing.zips import pack_zip, zip_bomb

__all__ = ["archive_bomb", "archive_claiming", "archive_of", "hostile_pickles", "legacy_of", "pickled_tensor"]


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _whole(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def _tuple(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _call(module: str, name: str, *arguments: bytes) -> bytes:
    return _name(module, name) + _tuple(*arguments) + b"R"


def pickled_tensor(numel: int, offset: int, size: Sequence[int], stride: Sequence[int], key: str = "0") -> bytes:
    """A tensor of float32, as torch writes it, in a storage of `numel` elements."""
    storage = _tuple(_text("storage"), _name("torch", "FloatStorage"), _text(key), _text("cpu"), _whole(numel)) + b"Q"
    shape = (_tuple(*map(_whole, size)), _tuple(*map(_whole, stride)))
    hooks = _call("collections", "OrderedDict")
    return _call("torch._utils", "_rebuild_tensor_v2", storage, _whole(offset), *shape, b"\x89", hooks)


def hostile_pickles() -> list[bytes]:
    """Values for a pickle that run code, take memory, or are not what they seem."""
    touch = f"touch {CANARY}"
    harm = f"open({CANARY!r}, 'w')"
    tuples = b")q\0" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
    return [
        *(_call(module, "system", _text(touch)) for module in ("os", "posix", "nt")),
        *(
            _call(module, name, _text(harm))
            for module in ("builtins", "__builtin__")
            for name in ("eval", "exec", "compile")
        ),
        _call("subprocess", "Popen", _tuple(_text("touch"), _text(CANARY))),
        _call("builtins", "getattr", _name("os", "system"), _text("__call__")) + _tuple(_text(touch)) + b"R",
        _call(
            "torch._utils",
            "_rebuild_from_type_v2",
            _name("os", "system"),
            _name("torch", "Tensor"),
            _tuple(_text(touch)),
            b"}",
        ),
        _call("torch.hub", "load", _text("."), _text("x")),
        _name("argparse", "Namespace") + b")\x81" + b"}" + _text("a") + _call("os", "system", _text(touch)) + b"sb",
        b"(" + _text(touch) + b"ios\nsystem\n",
        *(
            pickled_tensor(*claim)
            for claim in (
                (10**6, 0, (10**6,), (1,)),
                (4, 0, (10**8,), (1,)),
                (4, 0, (10**12,), (0,)),
                (4, 0, (10**9, 10**9, 10**9), (0, 0, 0)),
                (4, 0, (4,), (-1,)),
                (4, -1, (1,), (1,)),
                (-4, 0, (4,), (1,)),
                (4, 0, (-4,), (1,)),
                (2**62, 0, (4,), (1,)),
                (4, 2**62, (4,), (1,)),
                (4, 0, (0, 10**18), (1, 1)),
                (4, 0, (2,) * 60, (0,) * 60),
                (4, 0, (2,), (1,), "../../x"),
                (4, 0, (2,), (1,), "0/../0"),
            )
        ),
        *(_call("builtins", "bytearray", _whole(number)) for number in (2 * 10**9, 10**14, -1)),
        *(_call("torch", kind, _whole(2 * 10**9)) for kind in ("Tensor", "FloatTensor", "ByteTensor", "FloatStorage")),
        *(_name("torch", kind) + _tuple(_whole(2 * 10**9)) + b"\x81" for kind in ("Tensor", "FloatTensor")),
        *(_call("torch.storage", kind, _whole(2 * 10**9)) for kind in ("UntypedStorage", "TypedStorage")),
        _call(
            "torch._utils",
            "_rebuild_from_type_v2",
            _name("builtins", "bytearray"),
            _name("torch", "Tensor"),
            _tuple(_whole(2 * 10**9)),
            b"}",
        ),
        _call(
            "torch._utils",
            "_rebuild_meta_tensor_no_storage",
            _name("torch", "float32"),
            _tuple(_whole(10**12)),
            _tuple(_whole(1)),
            b"\x89",
        ),
        _call(
            "torch._utils",
            "_rebuild_sparse_tensor",
            _call("torch.serialization", "_get_layout", _text("torch.sparse_coo")),
            _tuple(b"]", b"]", _tuple(_whole(10**12))),
        ),
        b"".join(
            (
                _name("_codecs", "encode"),
                _tuple(_call("_codecs", "encode", _text("x" * 100), _text("latin1")), _text("hex")),
                b"R",
            )
        ),
        _name("_codecs", "encode") * 25
        + _call("_codecs", "encode", _text("x" * 100), _text("latin1"))
        + (b"q\0" + _text("hex") + b"\x86R") * 25,
        b"}" + tuples + b"K\1s",
        tuples,
        b"]q\0h\0a",
        b"]" * 100_000,
        b"(" * 100_000,
        b"K\1r\xff\xff\xff\xff",
        b"K\1\x94",
        b"\x8b\xff\xff\xff\x7f" + bytes(100),
        b"\x8a\xff" + b"\xff" * 255,
        b"\x96" + struct.pack("<Q", 10**10) + bytes(10),
        b"\x8d" + struct.pack("<Q", 10**10) + bytes(10),
        b"\x8e" + struct.pack("<Q", 10**10) + bytes(10),
        b"X\xff\xff\xff\x7fabc",
        b"\x95" + struct.pack("<Q", 10**12) + b"K\1",
        b"\x82\1",
        b"Pabc\n",
        b"K\1Q",
        b")Q",
        b"N",
        b"K\1",
        b"I" + b"9" * 5000 + b"\n",
        b"L" + b"9" * 5000 + b"L\n",
    ]


def archive_of(value: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    """torch's archive around a pickle that holds the value as a state dict's tensor, and alone."""
    program = b"\x80\x02}" + _text("state_dict") + b"}" + _text("layers.0.conv.weight") + value + b"ss."
    members = [
        ("archive/data.pkl", program),
        ("archive/byteorder", b"little"),
        ("archive/data/0", bytes(16)),
        ("archive/version", b"3\n"),
    ]
    return pack_zip(members, method)


def legacy_of(value: bytes) -> bytes:
    """torch's format of old around a pickle that holds the value."""
    head = (
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}},
    )
    program = b"\x80\x02}" + _text("layers.0.conv.weight") + value + b"s."
    keys = pickle.dumps(["0"], 2)
    return b"".join(pickle.dumps(part, 2) for part in head) + program + keys + struct.pack("<q", 4) + bytes(16)


def archive_bomb(name: str, mib: int) -> bytes:
    """An archive of which one record becomes so many MiB."""
    members = {
        "archive/data.pkl": b"\x80\x02}.",
        "archive/byteorder": b"little",
        "archive/data/0": bytes(16),
        "archive/version": b"3\n",
    }
    head = members.pop(name, b"")
    return zip_bomb(name, head, mib, list(members.items()))


def archive_claiming(size: int) -> bytes:
    """An archive whose directory claims a size of every record."""
    data = bytearray(archive_of(pickled_tensor(4, 0, (4,), (1,))))
    at = 0
    while (at := data.find(b"PK\1\2", at)) >= 0:
        struct.pack_into("<II", data, at + 20, size, size)
        at += 4
    return bytes(data)
