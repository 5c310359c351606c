"""Lists of pictures and records of runs: valid ones, and some that are built to do harm."""

from __future__ import annotations

from collections.abc import Sequence

from cspnet.cli.fuzzing.watch import Files

__all__ = ["LIST_WORDS", "RECORD_WORDS", "list_seeds", "list_traps", "record_seeds", "record_traps"]

_PICTURES: Files = {"a.jpg": b"1", "train/b c.jpg": b"2", "train/ü.jpg": b"3"}
_LIST = "a.jpg 0\ntrain/b c.jpg 1\ntrain/ü.jpg\t2\n\n".encode()
LIST_WORDS = (
    b"../",
    b"/",
    b" 0\n",
    b"a.jpg",
    b"train/",
    b"./",
    b"\n",
    b"\r\n",
    b"\t",
    b" -1\n",
    b"train",
    b"\xef\xbb\xbf",
    b"~",
)


def list_seeds() -> Sequence[Files]:
    """A list, with and without names for its classes; the list is in a folder of its own, as its root is."""
    pictures = {f"data/{name}": content for name, content in _PICTURES.items()}
    beside = {f"lists/{name}": content for name, content in _PICTURES.items()}
    outside: Files = {"outside.jpg": b"4"}
    return (
        {"lists/list.txt": _LIST, "lists/classes.txt": b"one\ntwo\nthree\n", **pictures, **outside},
        {"lists/list.txt": b"\xef\xbb\xbf" + _LIST.replace(b"\n", b"\r\n"), **beside, **outside},
    )


def list_traps() -> Sequence[Files]:
    """Lists that leave their folder, or are long in one way or another."""
    seed = dict(list_seeds()[0])
    lines = (
        *(b"../outside.jpg 0\n", b"../data/../outside.jpg 0\n", b"train/../../outside.jpg 0\n", b"/etc/hostname 0\n"),
        *(
            b"/proc/self/mem 0\n",
            b"/dev/zero 0\n",
            b". 0\n",
            b"train 0\n",
            b"a.jpg 999999999\n",
            b"a.jpg " + b"9" * 5000 + b"\n",
        ),
        *(
            b"x" * 5000 + b" 0\n",
            b"x/" * 5000 + b"a.jpg 0\n",
            b"../" * 5000 + b"etc/hostname 0\n",
            b"a\0.jpg 0\n",
            b"\n" * 100_000,
        ),
        *(
            b"a.jpg 0\n" * 20_000,
            b"a.jpg \xd9\xa3\n",
            b"a.jpg" + b" " * 100_000 + b"0\n",
            b" " * 100_000 + b"x\n",
            b"\\\\host\\x.jpg 0\n",
        ),
        b"a.jpg 0\x0b1\n",
    )
    return (
        *({**seed, "lists/list.txt": line} for line in lines),
        {**seed, "lists/classes.txt": b"\n" * 100_000 + b"x"},
        {**seed, "lists/classes.txt": b"x" * 1_000_000},
    )


_METRICS = (
    b"".join(
        b'{"step": %d, "epoch": %d, "train/loss": 1.5, "train/lr": 0.1}\n' % (step, step // 4) for step in range(1, 9)
    )
    + b'{"step": 4, "epoch": 0, "train/epoch_loss": 2.0, "val/acc1": 50.0}\n'
)
_SUMMARY = b"epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n0,2.0,1.9,50.0,90.0,0.1\n1,1.5,1.4,60.0,95.0,0.1\n"
RECORD_WORDS = (
    b'"step"',
    b'{"step": 3}\n',
    b"{}",
    b"[]",
    b"null",
    b"NaN",
    b"Infinity",
    b"true",
    b'"train/epoch_loss"',
    b"\n",
    b",",
    b'"',
)


def record_seeds() -> Sequence[Files]:
    """What a run of two epochs has written."""
    return ({"metrics.jsonl": _METRICS, "summary.csv": _SUMMARY},)


def record_traps() -> Sequence[Files]:
    """Records that nest, and numbers that are none."""
    lines = (
        *(
            b"[" * 200_000,
            b'{"step":' * 100_000,
            b'{"step": 1' + b"0" * 400 + b"}",
            b'{"step": ' + b"9" * 5000 + b"}",
            b'"step"',
        ),
        *(
            b'{"step": null}',
            b'{"step": [1]}',
            b'{"step": "3"}',
            b'{"step": NaN}',
            b'{"step": -Infinity}',
            b'[{"step": 3}]',
            b"\xff",
        ),
    )
    rows = (b"9" * 5000 + b",1,1,1,1,1", b"\xb2,1,1,1,1,1", b"0" * 100_000, b"-1,1", b"1e9,1")
    return (
        *({"metrics.jsonl": _METRICS + line + b"\n", "summary.csv": _SUMMARY} for line in lines),
        *({"metrics.jsonl": _METRICS, "summary.csv": _SUMMARY + row + b"\n"} for row in rows),
    )
