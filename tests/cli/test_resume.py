"""Checkpoints that are well packed and hold something else under our names. Found by scripts/fuzz.py."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from cspnet.cli.fuzzing.weights import NUM_CLASSES, build_fresh_state, build_net, checkpoint_seeds
from cspnet.cli.resume import restore
from cspnet.cli.run_folder import Start, find_start
from cspnet.errors import CheckpointError
from cspnet.reporting.console import Console
from cspnet.runtime.distributed import World
from cspnet.runtime.folder_lock import FolderLock
from cspnet.training.checkpoint import check_parts, read_checkpoint
from cspnet.weights.load import load_weights
from cspnet.weights.match import describes_itself


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "last.pt").write_bytes(checkpoint_seeds()[0]["last.pt"])
    return tmp_path / "last.pt"


def resume(file: Path, content: dict[str, Any]) -> None:
    check_parts(file, content)
    _, state = build_fresh_state()
    restore(state, content, 0, World(), Start(None, file), Console(1))


def test_a_checkpoint_as_it_should_be(file: Path) -> None:
    content = read_checkpoint(file)
    assert describes_itself(content)
    assert content["num_classes"] == NUM_CLASSES
    resume(file, content)


def nest() -> list[object]:
    """60 lists, which are 2**60 values to whoever looks at them one by one."""
    value: list[object] = []
    for _ in range(60):
        value = [value, value]
    return value


MISFITS: dict[str, tuple[str, object]] = {
    "a name that is none": ("arch", 3),
    "classes that are a number": ("classes", 5),
    "classes of tensors": ("classes", [torch.zeros(1)]),
    "classes without an end": ("classes", nest()),
    "a recipe that is a list": ("recipe", []),
    "a recipe of tensors": ("recipe", {"model.options": {"a": torch.zeros(2)}}),
    "a recipe with other keys": ("recipe", {1: 2}),
    "no geometry": ("eval_cfg", None),
    "no data": ("data", {}),
    "weights that are a number": ("state_dict", 3),
    "an average that is a list": ("state_dict_ema", [1]),
    "no optimizer": ("optimizer", None),
    "progress of more": ("progress", {"step": 1, "more": 2}),
    "progress of text": ("progress", {"step": "1"}),
    "progress below 0": ("progress", {"step": -1}),
    "ranks by name": ("ranks", {}),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_part_that_is_something_else(file: Path, case: str) -> None:
    part, value = MISFITS[case]
    content = {**read_checkpoint(file), part: value}
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=f"its {part} is something else"):
        find_start(None, str(file), writes=False, warn=print, lock=FolderLock())


DEEPER: dict[str, tuple[tuple[object, ...], object, str]] = {
    "no tensor": (("state_dict", "layers.0.conv.weight"), [1], "has no tensor"),
    "no groups": (("optimizer", "param_groups"), 3, "optimizer"),
    "a state of no parameter": (("optimizer", "state"), {0: 3}, "state of its optimizer is something else"),
    "a momentum of another shape": (
        ("optimizer", "state", 0, "momentum_buffer"),
        torch.zeros(3),
        "momentum_buffer of its",
    ),
    "a momentum of text": (("optimizer", "state", 0, "momentum_buffer"), "x", "momentum_buffer of its optimizer"),
    "sums of text": (("ranks", 0, "window"), "x", "scaler or random state"),
    "no random state": (("ranks", 0, "torch_rng"), torch.zeros(3), "scaler or random state"),
    "a rank that is none": (("ranks", 0), None, "scaler or random state"),
}


@pytest.mark.parametrize("case", DEEPER)
def test_something_else_deeper_inside(file: Path, case: str) -> None:
    place, value, said = DEEPER[case]
    content = copy.deepcopy(read_checkpoint(file))
    part: Any = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(CheckpointError, match=said):
        resume(file, content)


@pytest.mark.parametrize("part", ["num_classes", "classes", "recipe"])
def test_a_file_that_describes_itself_wrongly_describes_nothing(file: Path, part: str) -> None:
    content = read_checkpoint(file)
    for value in (None, 3.5, [3], {"model.options": 3}, "x", {1: 2}):
        assert not describes_itself({**content, part: value})


def test_a_format_that_is_no_number(file: Path) -> None:
    torch.save({**read_checkpoint(file), "format": torch.zeros(0)}, file)
    with pytest.raises(CheckpointError, match="has format"):
        read_checkpoint(file)


@pytest.mark.parametrize(
    "eval_cfg",
    [
        *(3, [], torch.zeros(0), {"size_px": 32}, {"mean": 3}),
        *({"mean": [1, 2, 3], "std": torch.zeros(()), "size_px": 32, "crop_ratio": 1, "interpolation": "bilinear"},),
        *({"mean": [1, 2, 2**1024], "std": [1, 1, 1], "size_px": 32, "crop_ratio": 1, "interpolation": "bilinear"},),
        *({"mean": [1, 2, 3], "std": [1, 1, 1], "size_px": "x", "crop_ratio": 1, "interpolation": "bilinear"},),
    ],
)
def test_a_geometry_that_is_none(file: Path, eval_cfg: object) -> None:
    torch.save({**read_checkpoint(file), "eval_cfg": eval_cfg}, file)
    with pytest.raises(CheckpointError, match="eval_cfg is not the geometry"):
        load_weights(build_net(), file)
