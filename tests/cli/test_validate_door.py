"""validate.py from its command line, against a slow loop written out here."""

from __future__ import annotations

import json
import math
import multiprocessing
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import functional as tv

import cspnet
from cspnet.cli.train import main as train
from cspnet.cli.validate import main
from cspnet.errors import ModelError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def eight_classes(picture_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of the tree, dealt out to eight classes, so that the first five are not all of them."""
    data = tmp_path_factory.mktemp("eight")
    for split in ("train", "val"):
        for i, file in enumerate(sorted((picture_tree / split).rglob("*.jpg"))):
            folder = data / split / f"kind_{i % 8}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / f"{file.parent.name}_{file.name}")
    return data


@pytest.fixture(scope="module")
def checkpoint(eight_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a short run with a moving average, at a geometry of its own."""
    folder = tmp_path_factory.mktemp("validate")
    words = ("--data-path", eight_classes, "--model", "cspdarknet_tiny", "--workers", 0, "--batch-size", 8)
    geometry = ("--train-crop-size", 32, "--val-crop-size", 40, "--crop-pct", 0.8, "--interpolation", "bicubic")
    length = ("--epochs", 2, "--lr", 0.02, "--ema.decay", 0.8, "--precision", "fp32", "--device", "cpu")
    places = ("--output-dir", folder / "run", "--data.cache_dir", folder / "cache")
    assert train([str(word) for word in (*words, *geometry, *length, *places)]) == 0
    return folder / "run" / "checkpoints" / "last.pt"


def slow_counts(
    state: dict[str, torch.Tensor], folder: Path, *, name: str, px: int, crop_ratio: float, interpolation: str
) -> dict[str, Any]:
    """Every picture on its own, as torchvision resizes and crops it."""
    classes = sorted(path.name for path in folder.iterdir())
    model = cspnet.create_model(name, num_classes=len(classes))
    model.load_state_dict(state)
    model.eval()
    correct1 = correct5 = count = 0
    losses = []
    for label, kind in enumerate(classes):
        for file in sorted((folder / kind).iterdir()):
            image = Image.open(file).convert("RGB")
            image = tv.resize(image, [math.floor(px / crop_ratio)], tv.InterpolationMode(interpolation))
            pixels = tv.normalize(tv.to_tensor(tv.center_crop(image, [px, px])), list(MEAN), list(STD))
            with torch.no_grad():
                logits = model(pixels[None])[0]
            ranking = logits.argsort(descending=True).tolist()
            correct1 += ranking[0] == label
            correct5 += label in ranking[:5]
            count += 1
            losses.append(F.cross_entropy(logits, torch.tensor(label)).item())
    return {"correct1": correct1, "correct5": correct5, "num_samples": count, "loss": sum(losses) / count}


def validate(*words: object) -> int:
    return main([str(word) for word in (*words, "--device", "cpu", "--workers", 0)])


def check_result(result: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in ("correct1", "correct5", "num_samples"):
        assert result[key] == expected[key], key
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert result["acc1"] == pytest.approx(100 * expected["correct1"] / expected["num_samples"])
    assert result["acc5"] == pytest.approx(100 * expected["correct5"] / expected["num_samples"])
    assert result["num_unreadable"] == 0


SOURCES = {"--ema": "state_dict_ema", "--no-ema": "state_dict", "": "state_dict_ema"}


@pytest.mark.parametrize("flag", SOURCES)
def test_counts_are_those_of_a_slow_loop(
    flag: str, checkpoint: Path, eight_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(checkpoint, weights_only=True)[SOURCES[flag]]
    geometry = {"px": 40, "crop_ratio": 0.8, "interpolation": "bicubic"}
    expected = slow_counts(state, eight_classes / "val", name="cspdarknet_tiny", **geometry)
    file = tmp_path / "result.json"
    words = ["--checkpoint", checkpoint, "--data-path", eight_classes, "--json", file, "--batch-size", 3]
    assert validate(*words, *([flag] if flag else [])) == 0
    result = json.loads(file.read_text())
    check_result(result, expected)
    assert result["weights"] == ("raw" if flag == "--no-ema" else "ema")
    out = capsys.readouterr().out
    assert f" * Acc@1 {result['acc1']:.3f} Acc@5 {result['acc5']:.3f}\n" in out
    for part in ("cspdarknet_tiny", "40 px", "0.8", "bicubic"):
        assert part in out


def test_raw_weights_and_their_average_differ(checkpoint: Path, eight_classes: Path, tmp_path: Path) -> None:
    losses = []
    for flag in ("--ema", "--no-ema"):
        words = ("--checkpoint", checkpoint, "--data-path", eight_classes, "--json", tmp_path / "result.json", flag)
        assert validate(*words) == 0
        losses.append(json.loads((tmp_path / "result.json").read_text())["loss"])
    assert losses[0] != losses[1]


def test_size_and_crop_can_be_overridden(
    checkpoint: Path, eight_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(checkpoint, weights_only=True)["state_dict_ema"]
    geometry = {"px": 32, "crop_ratio": 1.0, "interpolation": "bilinear"}
    expected = slow_counts(state, eight_classes / "val", name="cspdarknet_tiny", **geometry)
    overrides = ("--img-size", 32, "--crop-pct", 1, "--interpolation", "bilinear")
    file = tmp_path / "result.json"
    assert validate("--checkpoint", checkpoint, "--data-path", eight_classes, *overrides, "--json", file) == 0
    check_result(json.loads(file.read_text()), expected)
    assert "32 px" in capsys.readouterr().out


def test_the_data_set_can_be_the_argument_and_the_split_another(
    checkpoint: Path, eight_classes: Path, tmp_path: Path
) -> None:
    file = tmp_path / "result.json"
    assert validate(eight_classes, "--checkpoint", checkpoint, "--val-split", "train", "--json", file) == 0
    assert json.loads(file.read_text())["num_samples"] == 48


def test_a_split_with_some_of_the_classes_keeps_their_numbers(
    checkpoint: Path, eight_classes: Path, tmp_path: Path
) -> None:
    data = tmp_path / "some"
    shutil.copytree(eight_classes / "val" / "kind_5", data / "val" / "kind_5")
    file = tmp_path / "result.json"
    assert validate("--checkpoint", checkpoint, "--data-path", data, "--json", file) == 0
    for kind in {path.name for path in (eight_classes / "val").iterdir()} - {"kind_5"}:
        (data / "val" / kind).mkdir()
    state = torch.load(checkpoint, weights_only=True)["state_dict_ema"]
    geometry = {"px": 40, "crop_ratio": 0.8, "interpolation": "bicubic"}
    expected = slow_counts(state, data / "val", name="cspdarknet_tiny", **geometry)
    check_result(json.loads(file.read_text()), expected)


def test_timm_weights_by_model_name(eight_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import timm

    torch.manual_seed(3)
    model = timm.create_model("cspresnet50", num_classes=8)
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    geometry = {"px": 64, "crop_ratio": 0.887, "interpolation": "bilinear"}
    expected = slow_counts(model.state_dict(), eight_classes / "val", name="cspresnet50", **geometry)
    file = tmp_path / "result.json"
    words = ("--checkpoint", tmp_path / "plain.pth", "--model", "cspresnet50", "--data-path", eight_classes)
    assert validate(*words, "--img-size", 64, "--precision", "fp32", "--json", file) == 0
    check_result(json.loads(file.read_text()), expected)
    assert re.search(r" \* Acc@1 \d+\.\d{3} Acc@5 \d+\.\d{3}\n", capsys.readouterr().out)


def test_an_unreadable_picture_counts_as_wrong(
    checkpoint: Path, eight_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(eight_classes / "val", tmp_path / "data" / "val")).parent
    broken = next((data / "val" / "kind_0").iterdir())
    broken.write_bytes(broken.read_bytes()[:100])
    file = tmp_path / "result.json"
    assert validate("--checkpoint", checkpoint, "--data-path", data, "--json", file) == 0
    result = json.loads(file.read_text())
    assert (result["num_samples"], result["num_unreadable"]) == (10, 1)
    assert result["acc1"] == 10 * result["correct1"]
    assert broken.name in capsys.readouterr().err


# Folding and precision


def count_norms(name: str) -> int:
    return sum(isinstance(module, torch.nn.BatchNorm2d) for module in cspnet.create_model(name).modules())


def test_folding_is_the_default_and_can_be_left_out(
    checkpoint: Path, eight_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count, results = count_norms("cspdarknet_tiny"), []
    for flags, folded in (((), count), (("--fold-bn",), count), (("--no-fold-bn",), 0)):
        file = tmp_path / "result.json"
        assert validate("--checkpoint", checkpoint, "--data-path", eight_classes, "--json", file, *flags) == 0
        result = json.loads(file.read_text())
        assert (result["num_folded"], result["precision"]) == (folded, "float32")
        assert result["seconds"] > 0
        assert "fp32" not in result
        told = f"float32, BatchNorms folded: {folded}, left: 0\n" if folded else "float32, nothing folded\n"
        assert told in capsys.readouterr().out
        results.append(result)
    check_result(results[0], results[2])


@pytest.mark.parametrize("flags", [("--precision", "bf16"), ("--precision", "bf16", "--no-fold-bn"), ()])
def test_the_difference_to_float32_is_told(
    flags: tuple[str, ...], checkpoint: Path, eight_classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(checkpoint, weights_only=True)["state_dict_ema"]
    geometry = {"px": 40, "crop_ratio": 0.8, "interpolation": "bicubic"}
    expected = slow_counts(state, eight_classes / "train", name="cspdarknet_tiny", **geometry)
    file = tmp_path / "result.json"
    words = ("--checkpoint", checkpoint, "--data-path", eight_classes, "--val-split", "train", "--json", file)
    assert validate(*words, "--against-fp32", *flags) == 0
    result = json.loads(file.read_text())
    reference = result["fp32"]
    check_result(reference, expected)
    assert result["precision"] == ("bfloat16" if flags else "float32")
    assert result["correct1"] - reference["correct1"] == reference["wrong_to_right"] - reference["right_to_wrong"]
    assert reference["changed"] >= reference["wrong_to_right"] + reference["right_to_wrong"]
    if flags:
        assert result["loss"] != reference["loss"]
        assert result["loss"] == pytest.approx(reference["loss"], rel=0.05)
    else:
        assert (result["correct1"], result["correct5"], reference["changed"]) == (
            expected["correct1"],
            expected["correct5"],
            0,
        )
    out = capsys.readouterr().out
    by_top1 = result["correct1"] - reference["correct1"]
    assert f" Acc@1 {result['acc1'] - reference['acc1']:+.3f} ({by_top1:+d} pictures), " in out
    assert f"another first answer for {reference['changed']} of 48 pictures: " in out


def test_precision_is_not_that_of_the_training(checkpoint: Path, eight_classes: Path, tmp_path: Path) -> None:
    """Counts belong to the weights: a checkpoint of a run in bf16 is validated in float32."""
    saved = torch.load(checkpoint, weights_only=True)
    saved["recipe"]["train.precision"] = "fp16"  # which a CPU would refuse
    torch.save(saved, tmp_path / "half.pt")
    file = tmp_path / "result.json"
    assert validate("--checkpoint", tmp_path / "half.pt", "--data-path", eight_classes, "--json", file) == 0
    assert json.loads(file.read_text())["precision"] == "float32"


def test_a_network_that_cannot_be_folded_is_validated_as_it_is(
    checkpoint: Path,
    eight_classes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cspnet.models.folding.MOST_APART", -1.0)  # nothing is as near as that
    state = torch.load(checkpoint, weights_only=True)["state_dict_ema"]
    geometry = {"px": 40, "crop_ratio": 0.8, "interpolation": "bicubic"}
    expected = slow_counts(state, eight_classes / "val", name="cspdarknet_tiny", **geometry)
    file = tmp_path / "result.json"
    assert validate("--checkpoint", checkpoint, "--data-path", eight_classes, "--json", file) == 0
    result = json.loads(file.read_text())
    check_result(result, expected)
    assert result["num_folded"] == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "BatchNorms are not folded, which is slower: logits of the folded network are" in line


def test_processes_that_read_ahead_end_with_an_error(
    checkpoint: Path, eight_classes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are started before the network is built."""
    running = []

    def fail(*_: object) -> None:
        running.extend(multiprocessing.active_children())
        raise ModelError("no such luck")

    monkeypatch.setattr("cspnet.cli.build.build_model", fail)
    before = set(multiprocessing.active_children())
    words = ("--checkpoint", checkpoint, "--data-path", eight_classes, "--device", "cpu", "--workers", 2)
    assert main([str(word) for word in words]) == 2
    assert len(set(running) - before) == 2
    assert set(multiprocessing.active_children()) <= before
    assert capsys.readouterr().err == "validate.py: error: no such luck\n"


# What is refused

BAD: dict[str, tuple[Callable[[Path, Path, Path], list[object]], tuple[str, ...]]] = {
    "no data": (lambda ckpt, data, tmp: ["--checkpoint", ckpt], ("--data-path",)),
    "no checkpoint": (lambda ckpt, data, tmp: ["--data-path", data], ("--checkpoint",)),
    "missing file": (
        lambda ckpt, data, tmp: ["--checkpoint", tmp / "gone.pt", "--data-path", data],
        ("gone.pt", "no such file"),
    ),
    "truncated file": (
        lambda ckpt, data, tmp: ["--checkpoint", truncated(ckpt, tmp), "--data-path", data],
        ("short.pt", "damaged"),
    ),
    "damaged file with a checksum": (
        lambda ckpt, data, tmp: ["--checkpoint", flipped(ckpt, tmp), "--data-path", data],
        ("last.pt", "checksum"),
    ),
    "no model": (
        lambda ckpt, data, tmp: ["--checkpoint", plain(ckpt, tmp), "--data-path", data],
        ("plain.pt", "--model"),
    ),
    "another model": (
        lambda ckpt, data, tmp: ["--checkpoint", ckpt, "--data-path", data, "--model", "cspresnet50"],
        ("cspdarknet_tiny", "cspresnet50"),
    ),
    "another model for plain weights": (
        lambda ckpt, data, tmp: ["--checkpoint", plain(ckpt, tmp), "--data-path", data, "--model", "cspresnet_cifar"],
        ("plain.pt", "another model"),
    ),
    "unknown model": (
        lambda ckpt, data, tmp: ["--checkpoint", plain(ckpt, tmp), "--data-path", data, "--model", "cspdarknet_tini"],
        ("cspdarknet_tini", "cspdarknet_tiny"),
    ),
    "no average": (
        lambda ckpt, data, tmp: [
            *("--checkpoint", plain(ckpt, tmp), "--model", "cspdarknet_tiny", "--data-path", data, "--ema")
        ],
        ("plain.pt", "no moving average"),
    ),
    "another number of classes": (
        lambda ckpt, data, tmp: [
            *("--checkpoint", plain(ckpt, tmp), "--model", "cspdarknet_tiny"),
            *("--data-path", fewer_classes(data, tmp)),
        ],
        ("7 class folders", "8 classes"),
    ),
    "unknown class": (
        lambda ckpt, data, tmp: ["--checkpoint", ckpt, "--data-path", renamed_class(data, tmp)],
        ("kind_x",),
    ),
    "empty split": (
        lambda ckpt, data, tmp: ["--checkpoint", ckpt, "--data-path", empty_split(tmp)],
        ("val", "no class folders"),
    ),
    "no split": (
        lambda ckpt, data, tmp: ["--checkpoint", ckpt, "--data-path", tmp],
        ("no val or *val*.tar or val_list.txt there",),
    ),
    "no folder": (
        lambda ckpt, data, tmp: ["--checkpoint", ckpt, "--data-path", tmp / "nowhere"],
        ("nowhere", "no such folder"),
    ),
    "unknown flag": (
        lambda ckpt, data, tmp: ["--checkpoint", ckpt, "--data-path", data, "--img-sise", 32],
        ("--img-sise", "did you mean --img-size?"),
    ),
    "size as a word": (
        lambda ckpt, data, tmp: ["--checkpoint", ckpt, "--data-path", data, "--img-size", "big"],
        ("--img-size", "big"),
    ),
    "crop above 1": (
        lambda ckpt, data, tmp: ["--checkpoint", ckpt, "--data-path", data, "--crop-pct", 1.5],
        ("crop_ratio", "1.5"),
    ),
    "unknown interpolation": (
        lambda ckpt, data, tmp: ["--checkpoint", ckpt, "--data-path", data, "--interpolation", "linear"],
        ("val_interpolation", "'bilinear'"),
    ),
    "fp16 on the cpu": (
        lambda ckpt, data, tmp: ["--checkpoint", ckpt, "--data-path", data, "--precision", "fp16"],
        ("fp16", "GPU"),
    ),
    "unknown precision": (
        lambda ckpt, data, tmp: ["--checkpoint", ckpt, "--data-path", data, "--precision", "fp8"],
        ("precision", "fp8"),
    ),
    "compared with itself": (
        lambda ckpt, data, tmp: ["--checkpoint", ckpt, "--data-path", data, "--against-fp32", "--no-fold-bn"],
        ("--against-fp32", "--no-fold-bn"),
    ),
    "a flag misspelt": (
        lambda ckpt, data, tmp: ["--checkpoint", ckpt, "--data-path", data, "--no-fold-bm"],
        ("--no-fold-bm", "did you mean --no-fold-bn?"),
    ),
    "result into a missing folder": (
        lambda ckpt, data, tmp: ["--checkpoint", ckpt, "--data-path", data, "--json", tmp / "no" / "result.json"],
        ("result.json",),
    ),
}


def truncated(checkpoint: Path, tmp: Path) -> Path:
    content = checkpoint.read_bytes()
    (tmp / "short.pt").write_bytes(content[: len(content) // 2])
    return tmp / "short.pt"


def flipped(checkpoint: Path, tmp: Path) -> Path:
    """One bit in the middle of the weights, which no archive reader would notice by itself."""
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp / "last.pt").write_bytes(content)
    shutil.copy(checkpoint.with_name("last.pt.sha256"), tmp)
    return tmp / "last.pt"


def plain(checkpoint: Path, tmp: Path) -> Path:
    torch.save(torch.load(checkpoint, weights_only=True)["state_dict"], tmp / "plain.pt")
    return tmp / "plain.pt"


def fewer_classes(data: Path, tmp: Path) -> Path:
    shutil.copytree(data / "val", tmp / "fewer" / "val")
    shutil.rmtree(tmp / "fewer" / "val" / "kind_7")
    return tmp / "fewer"


def renamed_class(data: Path, tmp: Path) -> Path:
    shutil.copytree(data / "val" / "kind_1", tmp / "renamed" / "val" / "kind_x")
    return tmp / "renamed"


def empty_split(tmp: Path) -> Path:
    (tmp / "empty" / "val").mkdir(parents=True)
    return tmp / "empty"


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(
    case: str,
    checkpoint: Path,
    eight_classes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build, said = BAD[case]
    assert validate(*build(checkpoint, eight_classes, tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("validate.py: error: ")
    for part in said:
        assert part in line
