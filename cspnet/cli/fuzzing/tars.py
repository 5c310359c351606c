"""Tar archives of pictures: valid ones, and some that are built to do harm."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Mapping, Sequence

from cspnet.cli.fuzzing.watch import Files
from cspnet.data.shards import ShardPlan

__all__ = ["SAMPLES", "TAR_WORDS", "pack_tar", "repair_tar", "tar_seeds", "tar_traps"]

_BLOCK = 512
SAMPLES = {
    "n01/a.jpg": b"a" * 700,
    "n01/a.cls": b"0",
    "n02/b.c.png": b"b" * 40,
    "n02/b.c.cls": b"7\n",
    "c.json": b"{}",
}
TAR_WORDS = (
    *(
        b"ustar\x0000",
        b"ustar  \0",
        b"\x80" + bytes(7),
        b"\xff" * 8,
        b"-0000001000\0",
        b"30 size=-512\n",
        b"20 size=99999999999\n",
    ),
    *(
        b"path=../../x.jpg\n",
        b"12 size=abc\n",
        b"0 =\n",
        b"././@LongLink",
        b"x" * 600,
        b"L",
        b"x",
        b"g",
        b"S",
        b"5",
        b"2",
        b".jpg",
        b".cls",
    ),
)


def pack_tar(members: Mapping[str, bytes], kind: int, comment: str = "") -> bytes:
    """An archive of a format of tarfile's."""
    target = io.BytesIO()
    with tarfile.open(
        fileobj=target, mode="w", format=kind, pax_headers={"comment": comment} if comment else None
    ) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return target.getvalue()


@functools.cache
def tar_seeds() -> Sequence[Files]:
    """Shards of three makes, with long names too, and one of ours."""
    long_names = {f"{'d' * 120}/{name}": content for name, content in SAMPLES.items()}
    plan = ShardPlan("0" * 16, 2, 2, "").to_comment()
    contents = (
        *(
            pack_tar(members, kind)
            for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
            for members in (SAMPLES, long_names)
        ),
        pack_tar(SAMPLES, tarfile.USTAR_FORMAT),
        pack_tar(SAMPLES, tarfile.PAX_FORMAT, plan),
    )
    return tuple({"a.tar": content} for content in contents)


def _header(name: bytes, kind: bytes, size: bytes) -> bytes:
    """A header with its checksum."""
    block = bytearray(_BLOCK)
    block[: len(name[:100])] = name[:100]
    block[124 : 124 + len(size[:12])] = size[:12]
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    return _with_checksum(bytes(block))


def _with_checksum(block: bytes) -> bytes:
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    return block[:148] + b"%06o\0 " % total + block[156:]


def repair_tar(data: bytes) -> bytes:
    """An archive with the checksums of its headers put right, as far as their sizes lead from one to the next."""
    at, repaired = 0, data
    while at + _BLOCK <= len(data) and any(data[at : at + _BLOCK]):
        block = data[at : at + _BLOCK]
        repaired = repaired[:at] + _with_checksum(block) + repaired[at + _BLOCK :]
        digits = block[124:135].strip(b" \0")
        size = int(digits, 8) if digits and all(digit in b"01234567" for digit in digits) else 0
        at += _BLOCK + -(-size // _BLOCK) * _BLOCK
    return repaired


def _records(*pairs: bytes) -> bytes:
    content = b"".join(pairs)
    return content + bytes(-len(content) % _BLOCK)


@functools.cache
def tar_traps() -> Sequence[Files]:
    """Archives that walk in a circle, claim sizes that are not there, and lead out of their folder."""
    (start, *_), end = (files["a.tar"] for files in tar_seeds()), bytes(2 * _BLOCK)
    label = _header(b"x.cls", b"0", b"1") + b"0" + bytes(511)
    sizes = (
        *(
            b"-0000001000",
            b"-1000",
            b"\xff" * 12,
            b"\x80" + bytes(3) + b"\xff" * 8,
            b"\x80" + b"\x7f" * 11,
            b"77777777777",
        ),
        *(
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe\0",
            b"+1",
            b"1_0",
            b" ",
            b"9",
            b"0x10",
            b"\x80" + bytes(8) + b"\x40\0\0",
        ),
    )
    kinds = (b"0", b"L", b"K", b"x", b"g", b"S", b"5", b"7", b"V")
    pax = (
        *(
            b"30 size=-512\n",
            b"18 size=-0000512\n",
            b"12 size=abc\n",
            b"14 size=\xd9\xa3\xd9\xa3\n",
            b"10 size=\n",
            b"-5 a=b\n",
            b"0 a=b\n",
        ),
        *(
            b"999999999 a=b\n",
            b"9" * 5000 + b" a=b\n",
            b"15 size=1000000\n",
            b"33 size=99999999999999999999999\n",
            b"20 path=../../x.jpg\n",
        ),
        *(b"5 =b\n" * 200_000, b"\0" * 4000 + b"1", b"7 path=\n", b"18 path=/etc/hostx\n", b"18 size=1e1000000\n"),
    )
    plans: Sequence[Mapping[str, object]] = (
        *(
            {"num_samples": 0, "shard_size": 0},
            {"num_samples": "x", "shard_size": [1]},
            {"num_samples": -1, "shard_size": -1},
        ),
        *(
            {"num_samples": 10**30, "shard_size": 1},
            {"num_samples": 1e300, "shard_size": 1e-300},
            {"source": {}, "encoding": []},
        ),
    )
    comments = [
        "cspnet shard " + json.dumps({"format": 1, **ShardPlan("0" * 16, 2, 2, "")._asdict(), **plan}) for plan in plans
    ]
    comments += [
        f"cspnet shard {text}" for text in ("[" * 100_000, "null", "[]", '{"format": 1}', '{"format": NaN}', "")
    ]
    contents = (
        *(_header(b"x.jpg", kind, size) + bytes(1024) + label + end for kind in kinds for size in sizes),
        *(start[: -len(end)] + _header(b"x.jpg", b"0", size) + label + end for size in sizes),
        *(
            _header(b"p", kind, b"%o" % len(text))
            + _records(text)
            + _header(b"x.jpg", b"0", b"5")
            + bytes(512)
            + label
            + end
            for kind in (b"x", b"g", b"L")
            for text in pax
        ),
        *(
            _header(name, kind, b"0") + label + end
            for name in (b"../x.jpg", b"/x.jpg", b"", b".jpg", b"a/../../x.jpg")
            for kind in kinds
        ),
        *(pack_tar(SAMPLES, tarfile.PAX_FORMAT, comment) for comment in comments),
        label * 2000 + end,
        _header(b"x", b"L", b"10") * 2000 + end,
        b"".join(_header(b"%d.jpg" % i, b"0", b"0") + _header(b"%d.cls" % i, b"0", b"0") for i in range(500)) + end,
        start.replace(b"7\n", b"\xb2 ") + end,
        b"",
        end,
    )
    return tuple({"a.tar": content} for content in contents)
