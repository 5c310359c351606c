"""validate.py with other projects' weight files: their layouts, and the geometry that comes with them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import functional as tv

import cspnet
from cspnet.cli.validate import main
from cspnet.weights.darknet import darknet_bytes
from cspnet.weights.layouts import LAYOUTS, export_state
from tests.models.darknet_cfgs import CFGS
from tests.weights.scrambled import build_scrambled

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def pictures(picture_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of each of four classes."""
    data = tmp_path_factory.mktemp("four")
    for folder in sorted((picture_tree / "val").iterdir()):
        (data / "val" / folder.name).mkdir(parents=True)
        shutil.copy(min(folder.iterdir()), data / "val" / folder.name)
    return data


def slow_loss(model: nn.Module, data: Path, geometry: dict[str, Any]) -> float:
    """Every picture on its own, as torchvision resizes and crops it."""
    losses = []
    size_px, mode = geometry["size_px"], tv.InterpolationMode(geometry["interpolation"])
    for label, folder in enumerate(sorted((data / "val").iterdir())):
        for file in folder.iterdir():
            image = Image.open(file).convert("RGB")
            image = tv.resize(image, [math.floor(size_px / geometry["crop_ratio"])], mode)
            pixels = tv.to_tensor(tv.center_crop(image, [size_px, size_px]))
            pixels = tv.normalize(pixels, list(geometry["mean"]), list(geometry["std"]))
            with torch.no_grad():
                losses.append(nn.functional.cross_entropy(model.eval()(pixels[None]), torch.tensor([label])).item())
    return sum(losses) / len(losses)


def validate(data: Path, *words: object) -> dict[str, Any]:
    fixed = ("--data-path", data, "--device", "cpu", "--workers", 0, "--precision", "fp32", "--json", "result.json")
    assert main([str(word) for word in (*words, *fixed)]) == 0
    return json.loads(Path("result.json").read_text())


def check(result: dict[str, Any], expected: dict[str, Any], model: nn.Module, data: Path) -> None:
    assert {key: result["eval_cfg"][key] for key in expected} == {
        key: list(value) if isinstance(value, tuple) else value for key, value in expected.items()
    }
    assert result["num_samples"] == 4
    assert result["loss"] == pytest.approx(slow_loss(model, data, expected), rel=1e-4)


def geometry(size_px: int, crop_ratio: float, interpolation: str, mean: Any, std: Any) -> dict[str, Any]:
    return {"size_px": size_px, "crop_ratio": crop_ratio, "interpolation": interpolation, "mean": mean, "std": std}


@pytest.mark.parametrize("name", ["csmobilenet_v2", "cfg/mobile.cfg"])
def test_darknet(pictures: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """No normalisation, no margin around the crop; the size is that of the network's cfg file."""
    model = build_scrambled("csmobilenet_v2", 1, num_classes=4)
    Path("theirs.weights").write_bytes(darknet_bytes(model, "theirs"))
    Path("mobile.cfg").write_text(CFGS["csmobilenet_v2"]())
    result = validate(pictures, "--model", name, "--weights", "theirs.weights", "--num-classes", "4")
    check(result, geometry(224, 1.0, "bilinear", (0, 0, 0), (1, 1, 1)), model, pictures)
    assert result["layout"] == "darknet"
    out = capsys.readouterr().out
    assert "pictures at 224 px, crop ratio 1, bilinear, mean 0 0 0, std 1 1 1" in out
    assert "geometry from theirs.weights (darknet)\n" in out


def test_mmpretrain_at_another_size(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the command line says goes first, value by value; the rest is theirs."""
    model = build_scrambled("cspresnet50", 1, num_classes=4)
    torch.save({"state_dict": export_state(model, LAYOUTS["mmpretrain"], "theirs")}, "theirs.pth")
    result = validate(pictures, "--model", "cspresnet50", "--weights", "theirs.pth", "--img-size", 64)
    check(result, geometry(64, 256 / 288, "bicubic", *IMAGENET), model, pictures)
    assert result["layout"] == "mmpretrain"
    out = capsys.readouterr().out
    assert "geometry from theirs.pth (mmpretrain); val_px from the command line\n" in out


def test_timm_with_a_crop_of_ones_own(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_scrambled("cspresnet50", 1, num_classes=4)
    torch.save(model.state_dict(), "theirs.pth")
    words = ("--model", "cspresnet50", "--weights", "theirs.pth", "--img-size", 64)
    check(validate(pictures, *words), geometry(64, 0.887, "bilinear", *IMAGENET), model, pictures)
    result = validate(pictures, *words, "--crop-pct", 1, "--mean", 0, 0, 0, "--std", 1, 1, 1)
    check(result, geometry(64, 1.0, "bilinear", (0, 0, 0), (1, 1, 1)), model, pictures)
    out = capsys.readouterr().out
    assert "geometry from the command line; val_interpolation from theirs.pth (timm)\n" in out


def test_weights_that_say_nothing_take_the_default_recipe(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_scrambled("cspdarknet_tiny", 1, num_classes=4)
    torch.save(model.state_dict(), "plain.pth")
    result = validate(pictures, "--model", "cspdarknet_tiny", "--weights", "plain.pth")
    check(result, geometry(224, 0.875, "bilinear", *IMAGENET), model, pictures)
    assert "geometry from the default recipe, as the file does not say\n" in capsys.readouterr().out


def test_a_warning_of_another_activation(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_scrambled("cspdarknet53", 1, num_classes=4)
    torch.save({"model": export_state(model, LAYOUTS["deepspark"], "theirs")}, "checkpoint.pth")
    result = validate(pictures, "--model", "cspdarknet53", "--weights", "checkpoint.pth", "--img-size", 64)
    check(result, geometry(64, 0.875, "bilinear", *IMAGENET), model, pictures)
    assert "activation=mish" in capsys.readouterr().err


def test_a_network_of_timms_brings_its_own_geometry(pictures: Path) -> None:
    model = build_scrambled("cspresnet50", 1, num_classes=4)
    torch.save(model.state_dict(), "theirs.pth")
    words = ("--model", "timm/cspresnet50", "--weights", "theirs.pth", "--img-size", 64)
    check(validate(pictures, *words), geometry(64, 0.887, "bilinear", *IMAGENET), model, pictures)


def test_the_source_can_be_said(pictures: Path) -> None:
    model = build_scrambled("cspdarknet53", 1, num_classes=4)
    torch.save(model.state_dict(), "theirs.pth")
    words = ("--model", "csdarknet53", "--weights", "theirs.pth", "--source", "timm", "--img-size", 64)
    model = cspnet.create_model("cspdarknet53", 4, leaky_slope=0.1)  # csdarknet53's slope, and timm's order
    cspnet.load_weights(model, "theirs.pth")
    check(validate(pictures, *words), geometry(64, 0.887, "bilinear", *IMAGENET), model, pictures)


def test_an_elastic_network_at_a_size_it_cannot_halve(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(cspnet.create_model("csdarknet53_elastic", 4).state_dict(), "elastic.pth")
    words = ["--model", "csdarknet53_elastic", "--weights", "elastic.pth", "--img-size", "100"]
    assert main([*words, "--data-path", str(pictures), "--device", "cpu", "--workers", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "multiples of 64 px" in line


BAD = {
    "cut short": (
        ["--model", "csmobilenet_v2", "--weights", "short.weights", "--num-classes", "4"],
        "4 too few for this network with 4 classes",
    ),
    "another number of classes": (
        ["--model", "csmobilenet_v2", "--weights", "whole.weights"],
        "that is the size with 4: if the file is not damaged, give this number as num_classes (--num-classes;",
    ),
    "no model": (["--weights", "short.weights"], "name it with --model NAME"),
    "another graph": (["--model", "cspresnet50", "--weights", "short.weights"], "no network with this model's layers"),
    "no average": (["--model", "csmobilenet_v2", "--weights", "short.weights", "--ema"], "no moving average"),
    "missing": (["--model", "csmobilenet_v2", "--weights", "gone.weights"], "no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(pictures: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    words, said = BAD[case]
    data = darknet_bytes(cspnet.create_model("csmobilenet_v2", 4), "theirs")
    Path("whole.weights").write_bytes(data)
    Path("short.weights").write_bytes(data[:-4])
    assert main([*words, "--data-path", str(pictures), "--device", "cpu", "--workers", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("validate.py: error: ")
    assert said in line


def test_options_of_the_model_follow_the_advice(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Darknet's weights in timm's graph: the warning says with which options the outputs are Darknet's."""
    model = build_scrambled("csdarknet53", 1, num_classes=4)
    Path("theirs.weights").write_bytes(darknet_bytes(model, "theirs"))
    words = ("--model", "cspdarknet53", "--weights", "theirs.weights", "--num-classes", 4, "--img-size", 64)
    validate(pictures, *words)
    assert "build it with activation=leaky_relu, leaky_slope=0.1" in capsys.readouterr().err
    result = validate(pictures, *words, "--model-kwargs", "activation=leaky_relu", "leaky_slope=0.1")
    assert capsys.readouterr().err == ""
    check(result, geometry(64, 1.0, "bilinear", (0, 0, 0), (1, 1, 1)), model, pictures)
