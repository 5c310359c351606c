"""Darknet's cfg files: valid ones, and some that are built to do harm."""

from __future__ import annotations

from collections.abc import Sequence

from cspnet.cli.fuzzing.watch import Files

__all__ = ["CFG_WORDS", "cfg_seeds", "cfg_traps"]

_CFG = b"""[net]
height=32
width=32
channels=3
batch=1

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[route]
layers=-1
groups=2
group_id=1

[convolutional]
batch_normalize=1
filters=4
size=1
activation=mish

[shortcut]
from=-2
activation=linear

[route]
layers=-1,-4

[maxpool]
size=2
stride=2

[upsample]
stride=2

[convolutional]
filters=5
size=1
activation=linear

[avgpool]

[softmax]
groups=1
"""
CFG_WORDS = (
    *(
        b"[convolutional]\nfilters=8\nsize=1\nactivation=relu\n",
        b"[route]\nlayers=-1,-2\n",
        b"[shortcut]\nfrom=-1\n",
        b"[avgpool]\n",
    ),
    *(
        b"[maxpool]\nsize=2\n",
        b"[upsample]\nstride=4\n",
        b"[dropout]\nprobability=.5\n",
        b"[scale_channels]\nfrom=-2\n",
        b"groups=2\n",
    ),
    *(
        b"pad=1\n",
        b"stride=65536\n",
        b"filters=65536\n",
        b"size=255\n",
        b"padding=100\n",
        b"=",
        b"[",
        b"]",
        b"#",
        b"layers=0\n",
        b"[net]\n",
    ),
)


def cfg_seeds() -> Sequence[Files]:
    """A network with a layer of most kinds, and one of the fewest lines."""
    short = b"[net]\nheight=8\nwidth=8\nchannels=1\n[convolutional]\nfilters=2\nsize=1\nactivation=linear\n[avgpool]\n"
    return {"net.cfg": _CFG}, {"net.cfg": short}


def cfg_traps() -> Sequence[Files]:
    """Networks that would not fit into any memory."""
    head = b"[net]\nheight=%d\nwidth=%d\nchannels=3\n"
    tail = b"[convolutional]\nfilters=2\nsize=1\nactivation=linear\n[avgpool]\n"
    conv = b"[convolutional]\nfilters=%d\nsize=%d\npad=1\nactivation=linear\n"
    small, large = head % (8, 8), head % (4096, 4096)
    texts = (
        small + conv % (65536, 255) * 2 + tail,
        small + conv % (65536, 1) * 50 + tail,
        small + conv % (4096, 3) * 200 + tail,
        small + (conv % (8, 1)) * 20_000 + tail,
        small + conv % (8, 1) + b"[route]\nlayers=-1,-1\n" * 60 + tail,
        small + conv % (8, 1) + b"[route]\nlayers=" + b",".join([b"-1"] * 100_000) + b"\n" + tail,
        small + b"[upsample]\nstride=512\n" + conv % (65536, 1) + tail,
        large + conv % (65536, 1) + tail,
        head % (10**9 - 1, 10**9 - 1) + tail,
        small + tail.replace(b"filters=2", b"filters=" + b"9" * 5000),
        small + tail.replace(b"activation", b"padding=256\nstride=1\nactivation") * 30,
        b"[" * 100_000,
        b"[net]\n" * 20_000,
        b"[net]\n" + b"x=1\n" * 100_000,
    )
    return tuple({"net.cfg": text} for text in texts)
