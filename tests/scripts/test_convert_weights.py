"""Weight files converted there and back by the script."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cspnet
from cspnet.cli.flags import run_door
from cspnet.weights.darknet import darknet_bytes
from cspnet.weights.files import read_tensors
from cspnet.weights.load import load_weights
from tests.models.darknet_cfgs import CFGS
from tests.weights.scrambled import State, build_scrambled, check_equal, copy_state

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_weights.py"
Door = Callable[..., tuple[int, str, str]]


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Door:
    """Run the script with these words, in this process: exit code, output, errors."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
        code = run_door("convert_weights.py", runpy.run_path(str(SCRIPT))["main"])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def convert(door: Door) -> Callable[..., str]:
    """Run the script; what it prints. It has to succeed."""

    def run(*words: object) -> str:
        code, out, err = door(*words)
        assert code == 0, err
        return out + err

    return run


def save_checkpoint(model: nn.Module, file: Path, **options: Any) -> State:
    """The parts of a checkpoint that say what it holds."""
    recipe = {"model.name": "cspdarknet53", "model.options": options, "data.val_px": 192}
    eval_cfg = {"size_px": 192, "crop_ratio": 0.9, "interpolation": "bicubic", "mean": [0.1, 0.2, 0.3]}
    content: dict[str, Any] = {"arch": "cspdarknet53", "num_classes": 3, "classes": ["a", "b", "c"], "recipe": recipe}
    content |= {"eval_cfg": {**eval_cfg, "std": [0.4, 0.5, 0.6], "exif": "apply"}}
    state = copy_state(model)
    torch.save({**content, "state_dict": state, "state_dict_ema": None}, file)
    return state


ENDS = {"timm": "x.pth", "mmpretrain": "x.pth", "deepspark": "x.pth", "darknet": "x.weights"}


@pytest.mark.parametrize("layout", ENDS)
def test_our_checkpoint_there_and_back(tmp_path: Path, convert: Callable[..., str], layout: str) -> None:
    model = build_scrambled("cspdarknet53", 1, num_classes=3, activation="mish")
    state = save_checkpoint(model, tmp_path / "own.pt", activation="mish")
    theirs, back = tmp_path / ENDS[layout], tmp_path / "back.safetensors"
    said = convert(tmp_path / "own.pt", theirs, "--to", layout)
    assert "192 px, crop ratio 0.9, bicubic" in said
    assert "which the file does not say" in said
    classes = ("--num-classes", 3) if layout == "darknet" else ()  # its file does not say how many
    convert(theirs, back, "--to", "safetensors", "--model", "cspdarknet53_mish", "--source", layout, *classes)
    content = read_tensors(back)
    if layout == "darknet":  # it has no counters
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        content["state_dict"] = {key: content["state_dict"][key] for key in state}
    check_equal(content["state_dict"], state)
    assert (content["arch"], content["num_classes"]) == ("cspdarknet53_mish", 3)


def test_our_safetensors_say_what_the_checkpoint_said(tmp_path: Path, convert: Callable[..., str]) -> None:
    state = save_checkpoint(build_scrambled("cspdarknet53", 1, num_classes=3, drop_rate=0.1), tmp_path / "own.pt")
    convert(tmp_path / "own.pt", tmp_path / "own.safetensors", "--to", "safetensors")
    before, after = read_tensors(tmp_path / "own.pt"), read_tensors(tmp_path / "own.safetensors")
    check_equal(after.pop("state_dict"), state)
    assert after.pop("seen") == 0
    assert after == {key: before[key] for key in after}
    assert after.keys() >= {"arch", "num_classes", "classes", "recipe", "eval_cfg"}
    report = load_weights(cspnet.create_model("cspdarknet53", 3), tmp_path / "own.safetensors")
    assert report.layout == "cspnet"
    assert report.preprocessing is not None
    assert (report.preprocessing.size_px, report.preprocessing.mean) == (192, (0.1, 0.2, 0.3))


def test_options_given_for_a_checkpoint_are_what_the_result_says(tmp_path: Path, convert: Callable[..., str]) -> None:
    save_checkpoint(
        build_scrambled("cspdarknet53", 1, num_classes=3, drop_rate=0.1), tmp_path / "own.pt", drop_rate=0.1
    )
    words = ("--to", "safetensors", "--model-kwargs", "activation=mish")
    convert(tmp_path / "own.pt", tmp_path / "own.safetensors", *words)
    options = read_tensors(tmp_path / "own.safetensors")["recipe"]["model.options"]
    assert options == {"drop_rate": 0.1, "activation": "mish"}


def test_timm_reads_what_is_written_for_it(tmp_path: Path, convert: Callable[..., str]) -> None:
    import timm
    from safetensors.torch import load_file

    state = save_checkpoint(build_scrambled("cspdarknet53", 1, num_classes=3), tmp_path / "own.pt")
    convert(tmp_path / "own.pt", tmp_path / "timm.safetensors", "--to", "timm")
    theirs = timm.create_model("cspdarknet53", num_classes=3)
    theirs.load_state_dict(load_file(tmp_path / "timm.safetensors"), strict=True)
    check_equal(dict(theirs.state_dict()), state)


@pytest.mark.parametrize("kind", ["native", "cfg"])
def test_darknet_there_and_back(tmp_path: Path, convert: Callable[..., str], kind: str) -> None:
    """.weights -> ours -> .weights: the same bytes, `seen` included; or with another `seen`."""
    file, ours = tmp_path / "a.weights", tmp_path / "b.safetensors"
    file.write_bytes(darknet_bytes(build_scrambled("resnet10", 1), "a", seen=2**34))
    name = "resnet10"
    if kind == "cfg":
        (tmp_path / "resnet10.cfg").write_text(CFGS["resnet10"]())
        name = f"cfg/{tmp_path / 'resnet10.cfg'}"
    said = convert(file, ours, "--to", "safetensors", "--model", name)
    assert "made for 256 px, crop ratio 1, bilinear, mean 0 0 0, std 1 1 1\n" in said
    if kind == "cfg":
        (tmp_path / "resnet10.cfg").unlink()  # its text is in the file
    convert(ours, tmp_path / "c.weights", "--to", "darknet")
    assert (tmp_path / "c.weights").read_bytes() == file.read_bytes()
    convert(ours, tmp_path / "d.weights", "--to", "darknet", "--seen", 5)
    data = (tmp_path / "d.weights").read_bytes()
    assert (data[:12], data[12:20], data[20:]) == (file.read_bytes()[:12], b"\5" + bytes(7), file.read_bytes()[20:])


def test_our_checkpoint_knows_how_many_pictures_it_has_seen(tmp_path: Path, convert: Callable[..., str]) -> None:
    save_checkpoint(build_scrambled("cspdarknet53", 1, num_classes=3), tmp_path / "a.pt", leaky_slope=0.1)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    torch.save({**content, "progress": {"step": 70, "epoch": 1}, "global_batch_size": 512}, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "b.safetensors", "--to", "safetensors")
    for file in ("a.pt", "b.safetensors"):
        convert(tmp_path / file, tmp_path / f"{file}.weights", "--to", "darknet")
        header = (tmp_path / f"{file}.weights").read_bytes()[:20]
        assert int.from_bytes(header[12:20], "little") == 70 * 512


@pytest.mark.parametrize(
    ("name", "options", "layout", "said"),
    [
        (
            "csdarknet53",
            [],
            "timm",
            "timm's network has leaky_relu with slope 0.01, this one leaky_relu with slope 0.1",
        ),
        ("cspdarknet53", ["activation=mish"], "mmpretrain", "this one mish"),
        ("cspdarknet53", [], "deepspark", "DeepSpark's network has mish"),
        ("cspdarknet53", [], "darknet", "Darknet has leaky_relu with slope 0.1"),
        ("csdarknet53", ["activation=mish"], "darknet", "read it as that"),
        ("csdarknet53_omega", [], "darknet", ""),
        ("cspdarknet53", [], "timm", ""),
        ("cspdarknet53_mish", [], "deepspark", ""),
    ],
)
def test_another_activation_than_the_readers_is_told(
    tmp_path: Path, door: Door, name: str, options: list[str], layout: str, said: str
) -> None:
    about = {"arch": name, "num_classes": 3, "classes": ["a", "b", "c"], "recipe": {"model.options": {}}}
    torch.save({**about, "state_dict": cspnet.create_model(name, 3).state_dict()}, tmp_path / "a.pth")
    target = tmp_path / ("b.weights" if layout == "darknet" else "b.pth")
    more = ["--model-kwargs", *options] if options else []
    code, _, errors = door(tmp_path / "a.pth", target, "--to", layout, *more)
    assert code == 0, errors
    assert said in errors if said else errors == ""


def test_a_warning_is_printed(tmp_path: Path, door: Door) -> None:
    (tmp_path / "a.weights").write_bytes(darknet_bytes(build_scrambled("csdarknet53", 1, num_classes=3), "a"))
    words = (tmp_path / "a.weights", tmp_path / "b.pth", "--to", "timm", "--model", "cspdarknet53")
    code, _, err = door(*words)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "that is the size with 3: " in err
    code, _, err = door(*words, "--num-classes", 3)
    assert (code, len(err.splitlines())) == (0, 1)
    assert "leaky_slope=0.1" in err


def test_as_a_person_runs_it(tmp_path: Path, fork_script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    words = (write_tiny(tmp_path), tmp_path / "o.safetensors", "--to", "safetensors", "--model", "cspdarknet_tiny")
    done = fork_script("scripts/convert_weights.py", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o.safetensors").is_file()
    done = fork_script("scripts/convert_weights.py", *words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


# What is refused


def write_tiny(folder: Path) -> Path:
    torch.save(cspnet.create_model("cspdarknet_tiny", 3).state_dict(), folder / "tiny.pth")
    return folder / "tiny.pth"


BAD: dict[str, tuple[Callable[[Path], list[object]], tuple[str, ...]]] = {
    "no such file": (lambda tmp: [tmp / "gone.pt", tmp / "o.pth", "--to", "timm", "--model", "x"], ("no such file",)),
    "no model": (lambda tmp: [write_tiny(tmp), tmp / "o.safetensors", "--to", "safetensors"], ("--model",)),
    "unknown model": (
        lambda tmp: [write_tiny(tmp), tmp / "o.safetensors", "--to", "safetensors", "--model", "cspdarknet_tini"],
        ("did you mean cspdarknet_tiny",),
    ),
    "a layout without it": (
        lambda tmp: [write_tiny(tmp), tmp / "o.pth", "--to", "mmpretrain", "--model", "cspdarknet_tiny"],
        ("o.pth", "mmpretrain has cspdarknet53"),
    ),
    "darknet without it": (
        lambda tmp: [write_tiny(tmp), tmp / "o.weights", "--to", "darknet", "--model", "cspdarknet_tiny"],
        ("o.weights", "Darknet has no network"),
    ),
    "another ending": (
        lambda tmp: [write_tiny(tmp), tmp / "o.pth", "--to", "darknet", "--model", "cspdarknet_tiny"],
        ("o.pth", ".weights"),
    ),
    "the result is there": (
        lambda tmp: [write_tiny(tmp), tmp / "tiny.pth", "--to", "timm", "--model", "cspdarknet_tiny"],
        ("tiny.pth", "is there already"),
    ),
    "no folder": (
        lambda tmp: [write_tiny(tmp), tmp / "no" / "o.pth", "--to", "timm", "--model", "cspdarknet_tiny"],
        ("there is no folder",),
    ),
    "seen for timm": (
        lambda tmp: [write_tiny(tmp), tmp / "o.pth", "--to", "timm", "--model", "x", "--seen", 3],
        ("--seen", "--to darknet"),
    ),
    "seen beyond the header": (
        lambda tmp: [write_tiny(tmp), tmp / "o.weights", "--to", "darknet", "--model", "x", "--seen", 2**64],
        (f"--seen {2**64}", "from 0 to"),
    ),
    "unknown source": (
        lambda tmp: [write_tiny(tmp), tmp / "o.pth", "--to", "timm", "--model", "x", "--source", "keras"],
        ("--source keras", "mmpretrain"),
    ),
    "unknown target": (lambda tmp: [write_tiny(tmp), tmp / "o.pth", "--to", "keras"], ("keras",)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, door: Door, case: str) -> None:
    build, said = BAD[case]
    words = build(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, _, err = door(*words)
    assert code == 2, err
    (line,) = err.splitlines()
    assert line.startswith("convert_weights.py: error: ")
    for part in said:
        assert part in line
    assert sorted(tmp_path.iterdir()) == before
