"""Weight files and checkpoints for their readers: valid ones, and some that are built to do harm."""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import json
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cspnet.cli import build
from cspnet.cli.fuzzing.cfgs import cfg_seeds
from cspnet.cli.fuzzing.pickles import (
    archive_bomb,
    archive_claiming,
    archive_of,
    hostile_pickles,
    legacy_of,
    pickled_tensor,
)
from cspnet.cli.fuzzing.watch import Change, Files
from cspnet.cli.fuzzing.zips import change_member
from cspnet.models import create_model
from cspnet.models.darknet_cfg import DarknetCfgNet
from cspnet.recipe.load import recipe_from_values, recipe_to_values
from cspnet.recipe.schema import Recipe
from cspnet.runtime.distributed import World
from cspnet.training.state import TrainState
from cspnet.weights.darknet import darknet_bytes
from cspnet.weights.files import write_safetensors

__all__ = [
    "CHECKPOINT_WORDS",
    "NUM_CLASSES",
    "WEIGHT_WORDS",
    "build_fresh_state",
    "build_net",
    "change_weights",
    "checkpoint_seeds",
    "checkpoint_traps",
    "weight_seeds",
    "weight_traps",
]

NUM_CLASSES = 5
CHECKPOINT_WORDS = (
    *(
        b"PK\1\2",
        b"PK\3\4",
        b"PK\5\6",
        b"PK\6\6",
        b"cos\nsystem\n",
        b"cbuiltins\neval\n",
        b"cbuiltins\nbytearray\n",
        b"R",
        b"Q",
        b"b",
        b"t",
        b"(",
    ),
    *(
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nTensor\n",
        b"ccollections\nOrderedDict\n",
        b"}",
        b"]",
        b"K\1",
        b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    ),
    *(
        b"state_dict",
        b"format",
        b'"dtype":"F32"',
        b'"shape":[',
        b'"data_offsets":[',
        b"archive/data/0",
        b"data.pkl",
        b"little",
        b"big",
    ),
)
WEIGHT_WORDS = (b"\0\0\0\0\2\0\0\0", b"\0\0\0\0\1\0\0\0", b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xbf", bytes(16))


def _recipe() -> Recipe:
    text = cfg_seeds()[0]["net.cfg"].decode()
    values = {"model.name": "cfg/net.cfg", "model.options": {"text": text}, "data.train_px": 32, "train.device": "cpu"}
    return recipe_from_values({**values, "ema.decay": 0.9, "train.precision": "fp32"}, "fuzz")


def build_net() -> DarknetCfgNet:
    """The network whose weights the files hold: a few hundred numbers."""
    net = create_model("cfg/net.cfg", NUM_CLASSES, text=cfg_seeds()[0]["net.cfg"].decode())
    assert isinstance(net, DarknetCfgNet)
    return net


def build_fresh_state() -> tuple[Recipe, TrainState]:
    """A run of that network before its first step."""
    recipe, device = _recipe(), torch.device("cpu")
    return recipe, build.build_state(recipe, build_net(), World(), device, torch.float32)


@functools.cache
def _checkpoint() -> dict[str, Any]:
    """What a run keeps, behind its first step."""
    recipe, state = build_fresh_state()
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    about = {"arch": recipe.model.name, "num_classes": NUM_CLASSES, "classes": [], "recipe": recipe_to_values(recipe)}
    geometry = {"size_px": 32, "crop_ratio": 0.875, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
    data = {"fingerprint": "0" * 16, "num_samples": 40}
    head = {"format": 1, **about, "eval_cfg": {**geometry, "exif": "apply"}, "global_batch_size": 16, "data": data}
    return {**head, **state.to_dict(), "ranks": [state.rank_to_dict()], "versions": {"torch": "2"}}


def _saved(content: object, **options: Any) -> bytes:
    target = io.BytesIO()
    torch.save(content, target, **options)
    return target.getvalue()


@functools.cache
def checkpoint_seeds() -> Sequence[Files]:
    """A checkpoint in torch's format of today and of old, with a checksum beside it, plain weights, and safetensors."""
    content = _checkpoint()
    saved = _saved(content)
    listed = f"{hashlib.sha256(saved).hexdigest()}  last.pt\n".encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        write_safetensors(
            path, content["state_dict"], {key: content[key] for key in ("arch", "num_classes", "classes", "recipe")}
        )
        tensors = path.read_bytes()
    plain = _saved({"module." + key: value for key, value in content["state_dict"].items()})
    old = _saved({"model": content["state_dict"]}, _use_new_zipfile_serialization=False)
    return (
        *({"last.pt": saved},) * 3,
        {"last.pt": saved, "last.pt.sha256": listed},
        {"last.pt": plain},
        {"last.pt": old},
        {"w.safetensors": tensors},
    )


def change_weights(data: bytes, change: Change, rng: np.random.Generator) -> bytes:
    """A file whose outer form is right again behind a change: one record of an archive, a safetensors header."""
    if data.startswith(b"PK"):
        return change_member(data, change, rng)
    if data[8:9] != b"{":
        return change(data)
    end = 8 + int.from_bytes(data[:8], "little")
    header = change(data[8:end])
    return struct.pack("<Q", len(header)) + header + data[end:]


def _tensors(header: object, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(64)


def _other_values(value: Any) -> tuple[object, ...]:
    """Values of another kind than a part of a checkpoint has."""
    return (
        None,
        3,
        -1,
        1e400,
        "x",
        "",
        [],
        [1],
        {},
        {"a": 1},
        {1: 2},
        [None],
        True,
        torch.zeros(0),
        torch.tensor(3),
        2**70,
    )


def _with(content: dict[str, Any], keys: Sequence[object], change: Callable[[Any, Any], None]) -> dict[str, Any]:
    """A copy of a checkpoint with a change at a place."""
    copied = copy.deepcopy(content)
    *way, last = keys
    part: Any = copied
    for key in way:
        part = part[key]
    change(part, last)
    return copied


def _places(part: object, depth: int = 0) -> list[tuple[object, ...]]:
    """The ways to the parts of a checkpoint, a few of each."""
    if depth == 4 or not isinstance(part, dict | list):
        return []
    pairs = list(part.items() if isinstance(part, dict) else enumerate(part))
    near = pairs if (depth < 2 and len(pairs) < 20) or depth == 0 else pairs[:3]
    return [(key, *way) for key, inner in near for way in ((), *_places(inner, depth + 1))]


def _misshapen() -> list[bytes]:
    """Our checkpoint, well packed, with parts that are missing or of another kind."""
    content, found = _checkpoint(), []
    for place in _places(content):
        if place[0] == "versions":
            continue
        found.append(_saved(_with(content, place, lambda part, key: part.pop(key))))
        values = _other_values(None) if len(place) == 1 else (None, "x", -1, [], 2**70)
        for value in values:
            found.append(_saved(_with(content, place, lambda part, key, value=value: part.__setitem__(key, value))))  # type: ignore[misc]
    return found


@functools.cache
def checkpoint_traps() -> Sequence[Files]:
    """Hostile pickles, bombs, and files that are well packed and hold something else."""
    pickles = hostile_pickles()
    nested = b"[" * 100_000
    headers: tuple[object, ...] = (
        *(
            {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
            {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}},
        ),
        *(
            {"a": {"dtype": "X9", "shape": [4], "data_offsets": [0, 16]}},
            {"a": 1},
            [],
            None,
            nested,
            b'{"a":' * 50_000,
            b"",
            b"{}",
        ),
        *(
            {"__metadata__": {"cspnet": text}}
            for text in ("{", "[]", "3", '{"arch": 3}', "[" * 100_000, '{"state_dict": 1}', '{"recipe": []}')
        ),
        {
            "__metadata__": {
                "cspnet": json.dumps({"arch": "cfg//etc/hostname", "num_classes": -1, "classes": 3, "recipe": {"a": 1}})
            }
        },
        {"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}},
    )
    models = (
        "timm/hf-hub:nobody/nothing",
        "timm/local-dir:.",
        "torchvision/resnet18",
        "cfg//dev/zero",
        "cfg//etc/hostname",
        "cfg/\0",
        "no",
        "",
    )
    archs = [
        {**_checkpoint(), "arch": name, "recipe": {**_checkpoint()["recipe"], "model.name": name}} for name in models
    ]
    files = (
        *map(archive_of, pickles),
        *map(legacy_of, pickles),
        *(pickle.dumps(_checkpoint()["recipe"], protocol) for protocol in range(6)),
        *(b"\x80\x02" + value + b"." for value in pickles),
        *(
            archive_bomb(name, 1500)
            for name in ("archive/data.pkl", "archive/data/0", "archive/byteorder", "archive/.data/x")
        ),
        *map(archive_claiming, (2**31, 2**32 - 2, 0, 17)),
        archive_of(pickled_tensor(4, 0, (4,), (1,)), zipfile.ZIP_DEFLATED),
        *map(_saved, archs),
        *_misshapen(),
        *map(
            _saved,
            (
                [],
                3,
                None,
                {},
                {1: 2},
                {"state_dict": {}},
                {"state_dict": {1: torch.zeros(1)}},
                {"format": 1},
                "x" * 100,
                {"a": torch.zeros(2).to_sparse()},
            ),
        ),
    )
    sums = (b"\xff", b"", b"x" * 100_000, b"\n" * 10_000, b"0" * 64)
    return (
        *({"last.pt": content} for content in files),
        *({"w.safetensors": _tensors(header)} for header in headers),
        *({"w.safetensors": _tensors({}, length)} for length in (0, 1, 2**32, 2**63, 2**64 - 1, 100_000_001)),
        *({**checkpoint_seeds()[0], "last.pt.sha256": text} for text in sums),
    )


@functools.cache
def weight_seeds() -> Sequence[Files]:
    """A file of either version, with as many classes as the network and with 1000."""
    whole = darknet_bytes(build_net(), "fuzz", seen=77)
    old = struct.pack("<3iI", 0, 1, 0, 77) + whole[20:]
    large = create_model("cfg/net.cfg", 1000, text=cfg_seeds()[0]["net.cfg"].decode())
    return {"net.weights": whole}, {"net.weights": old}, {"net.weights": darknet_bytes(large, "fuzz")}


@functools.cache
def weight_traps() -> Sequence[Files]:
    """Headers of all versions and every length near a header's; numbers that are none."""
    whole = weight_seeds()[0]["net.weights"]
    heads = [
        struct.pack("<3i", *version)
        for version in ((0, 2, 5), (0, 0, 0), (0, 3, 0), (-1, 2, 0), (0, -1, 0), (1, 2, 0), (10**9, 10**9, 0))
    ]
    contents = (
        *(whole[:size] for size in range(32)),
        *(head + whole[12:] for head in heads),
        *(
            whole[:20] + number * ((len(whole) - 20) // 4)
            for number in (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xbf", b"\xff" * 4)
        ),
        whole[:20] + bytes(1 << 20),
        whole[:12] + b"\xff" * 8 + whole[20:],
    )
    return tuple({"net.weights": content} for content in contents)
