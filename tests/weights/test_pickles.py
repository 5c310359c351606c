"""What a weight file may ask for: nothing that runs, nothing that it does not hold, and not for ever.

Each file here is small, would be loaded by torch.load(weights_only=True), and would cost far more than it holds, or is
one that must be taken. They are written by hand, from the description of Python's pickle opcodes.
"""

from __future__ import annotations

import argparse
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from cspnet.errors import CheckpointError
from cspnet.weights.files import read_tensors


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def whole(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def row(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def name(dotted: str) -> bytes:
    module, _, last = dotted.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def call(dotted: str, *arguments: bytes) -> bytes:
    return name(dotted) + row(*arguments) + b"R"


def tensor(numel: int, size: tuple[int, ...], stride: tuple[int, ...], key: str = "0") -> bytes:
    """A float32 tensor in a storage that claims `numel` elements; the archive has four."""
    storage = row(text("storage"), name("torch.FloatStorage"), text(key), text("cpu"), whole(numel)) + b"Q"
    shape = (row(*map(whole, size)), row(*map(whole, stride)))
    return call("torch._utils._rebuild_tensor_v2", storage, whole(0), *shape, b"\x89", call("collections.OrderedDict"))


def write_archive(
    path: Path, value: bytes, method: int = zipfile.ZIP_STORED, more: dict[str, bytes] | None = None
) -> Path:
    """torch's form of a file, with {"a": value} in it."""
    program = b"\x80\x02}" + text("a") + value + b"s."
    records = {
        "x/data.pkl": program,
        "x/byteorder": b"little",
        "x/data/0": bytes(16),
        "x/version": b"3\n",
        **(more or {}),
    }
    with zipfile.ZipFile(path, "w", method) as archive:
        for record, content in records.items():
            archive.writestr(record, content)
    return path


def write_legacy(path: Path, value: bytes) -> Path:
    """The form of before torch 1.6."""
    sizes = {"short": 2, "int": 4, "long": 4}
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes})
    program = b"\x80\x02}" + text("a") + value.replace(b"K\4tQ", b"K\4NtQ") + b"s."
    parts = [pickle.dumps(part, 2) for part in head] + [
        program,
        pickle.dumps(["0"], 2),
        struct.pack("<q", 4),
        bytes(16),
    ]
    path.write_bytes(b"".join(parts))
    return path


def test_the_files_here_are_torchs(tmp_path: Path) -> None:
    """But for what is wrong with them, they would be loaded."""
    for write in (write_archive, write_legacy):
        path = write(tmp_path / "x.pt", tensor(4, (2, 2), (2, 1)))
        assert torch.equal(torch.load(path, weights_only=True)["a"], torch.zeros(2, 2))
        assert torch.equal(read_tensors(path)["a"], torch.zeros(2, 2))


# Pairs of pairs of pairs …, 60 deep: as a key, it takes 2**60 looks.
PAIRS = b")q\0" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
LETTERS = call("_codecs.encode", text("x" * 100), text("latin1"))
HOSTILE = {
    "a bytearray of 8 GB": (call("builtins.bytearray", whole(2**33)), "objects other than tensors"),
    "a tensor of 8 GB": (call("torch.Tensor", whole(2**31)), "objects other than tensors"),
    "a new tensor of 8 GB": (name("torch.FloatTensor") + row(whole(2**31)) + b"\x81", "objects other than tensors"),
    "a storage of 8 GB": (call("torch.storage.UntypedStorage", whole(2**33)), "objects other than tensors"),
    "a tensor of 8 GB in disguise": (
        call(
            "torch._tensor._rebuild_from_type_v2", name("builtins.bytearray"), name("torch.Tensor"), row(whole(9)), b"}"
        ),
        "objects other than tensors",
    ),
    "a text that doubles 40 times": (
        name("_codecs.encode") * 40 + LETTERS + (b"q\0" + text("hex") + b"\x86R") * 40,
        "objects other than tensors",
    ),
    "one element, 10**12 times": (tensor(4, (10**12,), (0,)), "a tensor of 1,000,000,000,000 elements"),
    "2**60 elements": (tensor(4, (2,) * 60, (0,) * 60), "elements, of which it stores 4"),
    "a storage that is not there": (tensor(4, (4,), (1,), key="9"), "asks for 4 elements"),
    "a storage of more than there is": (tensor(10**6, (4,), (1,)), "asks for 1,000,000 elements"),
    "a key that takes for ever": (b"}" + PAIRS + b"K\1s", "a tuple for the key"),
    "such a key among others": (b"}(" + PAIRS + b"K\1u", "a tuple for the key"),
    "such a key of a counter": (call("collections.Counter", b"](" + PAIRS + b"e"), "a tuple for the key"),
    "such a key in a set": (call("builtins.set", b"](" + PAIRS + b"e"), "a tuple for the key"),
    "a tensor without bytes": (
        call(
            "torch._utils._rebuild_meta_tensor_no_storage", name("torch.float32"), row(whole(9)), row(whole(1)), b"\x89"
        ),
        "objects other than tensors",
    ),
    "code": (call("os.system", text("touch canary")), "objects other than tensors"),
    "code, as of old": (b"(" + text("touch canary") + b"ios\nsystem\n", "objects other than tensors"),
}


@pytest.mark.parametrize("write", [write_archive, write_legacy])
@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_file_may_not_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, write: Any) -> None:
    monkeypatch.chdir(tmp_path)
    value, said = HOSTILE[case]
    path = write(tmp_path / "x.pt", value)
    assert path.stat().st_size < 4000
    with pytest.raises(CheckpointError, match=r"^.*x\.pt: ") as caught:
        read_tensors(path)
    if write is write_archive or "storage" not in case:
        assert said in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_records_that_inflate(tmp_path: Path) -> None:
    for record in ("x/data.pkl", "x/data/0", "x/.data/more"):
        path = write_archive(tmp_path / "x.pt", b"N", zipfile.ZIP_DEFLATED, {record: bytes(1000)})
        with pytest.raises(CheckpointError, match="a record that is compressed"):
            read_tensors(path)


@pytest.mark.parametrize("record", ["x/DATA/0", "x/Data.pkl", "y/data.pkl"])
def test_records_of_one_name(tmp_path: Path, record: str) -> None:
    """torch's reader takes upper and lower case for the same: which one is read must not be a matter of the reader."""
    path = write_archive(tmp_path / "x.pt", tensor(4, (4,), (1,)), more={record: b"\x80\x02}."})
    with pytest.raises(CheckpointError, match="there twice"):
        read_tensors(path)


def test_a_directory_that_another_reader_would_not_find(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "x.pt", tensor(4, (4,), (1,)))
    content = path.read_bytes()
    for changed in (content + b"x", b"PK\3\4" + content, content[:-2] + b"\1\0x"):
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="directory"):
            read_tensors(path)


def with_attribute() -> torch.Tensor:
    made = torch.arange(3.0)
    made.author = "me"
    return made


TAKEN: dict[str, Any] = {
    "dense": torch.arange(6.0).reshape(2, 3),
    "a part": torch.arange(6.0)[1:4],
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "expanded": torch.arange(3.0).expand(1000, 3),
    "empty": torch.zeros(0, 3),
    "a number": torch.tensor(3),
    "a parameter": torch.nn.Parameter(torch.ones(2)),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "bytes": torch.get_rng_state(),
    "of a younger kind": torch.ones(3, dtype=torch.uint16),
    "complex": torch.ones(2, dtype=torch.complex64),
    "with an attribute": with_attribute(),
    "ordered": OrderedDict(a=1, b=torch.ones(1)),
    "counted": Counter("aab"),
    "a set": {1, "b"},
    "letters": b"abc",
    "an array of letters": bytearray(b"abc"),
    "a record": argparse.Namespace(lr=0.1, names=["a"]),
    "a size": torch.Size([2, 3]),
    "a device": torch.device("cpu"),
    "a type": torch.float16,
    "lists": [1, (2.0, None, True), {"x": [2**70]}],
}


@pytest.mark.parametrize(
    ("case", "legacy"),
    [(case, legacy) for case in TAKEN for legacy in (False, True) if not (legacy and case == "of a younger kind")],
)
def test_what_files_of_others_hold_is_taken(tmp_path: Path, case: str, legacy: bool) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": TAKEN[case], "b": TAKEN[case]}, path, _use_new_zipfile_serialization=not legacy)
    found = read_tensors(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        expected = torch.load(path, weights_only=True)
    for key in "ab":
        if isinstance(TAKEN[case], torch.Tensor):
            assert torch.equal(found[key], expected[key])
            assert found[key].stride() == expected[key].stride()
        else:
            assert found[key] == expected[key] == TAKEN[case]
