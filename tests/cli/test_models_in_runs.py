"""Networks in whole runs: a cfg file, the paper's ablations, and recomputing instead of keeping."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cspnet.cli.train import main as train
from cspnet.cli.validate import main as validate
from cspnet.recipe.load import load_recipe

CFG = """
[net]
height=32
width=32
channels=3
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[maxpool]
size=2
stride=2
[convolutional]
batch_normalize=1
filters=8
size=3
stride=1
pad=1
activation=mish
[shortcut]
from=-2
activation=linear
[avgpool]
[convolutional]
filters=1000
size=1
stride=1
pad=1
activation=linear
[softmax]
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def flags(data: Path, *more: object) -> list[str]:
    small = ["--img-size", 32, "--workers", 0, "--batch-size", 8, "--epochs", 1, "--precision", "fp32"]
    return [str(word) for word in ("--data-path", data, "--device", "cpu", *small, *more)]


def read_last(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["state_dict"]


def test_a_cfg_file_trains_resumes_and_validates_without_the_file(
    picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tmp_path / "small.cfg"
    cfg.write_text(CFG)
    name = f"cfg/{cfg}"
    run = tmp_path / "run"
    assert train(flags(picture_tree, "--model", name, "--output-dir", run)) == 0
    assert train(flags(picture_tree, "--model", name, "--output-dir", tmp_path / "whole", "--epochs", 2)) == 0
    cfg.write_text(CFG.replace("activation=mish", "activation=relu"))
    last = run / "checkpoints" / "last.pt"
    assert train(["--resume", str(last), "--epochs", "2"]) == 2
    (message,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "its network is another one than" in message
    cfg.unlink()
    assert load_recipe(run / "recipe.yaml").recipe.model.options["text"] == CFG
    assert train(["--resume", str(last), "--epochs", "2"]) == 0
    resumed, whole = read_last(run), read_last(tmp_path / "whole")
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    result = tmp_path / "result.json"
    assert validate(["--checkpoint", str(last), "--data-path", str(picture_tree), "--json", str(result)]) == 0
    assert json.loads(result.read_text())["model"] == name


def test_a_bad_cfg_file_is_one_line(picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = tmp_path / "bad.cfg"
    cfg.write_text(CFG.replace("[avgpool]", "[lstm]\noutput=3"))
    line = CFG[: CFG.index("[avgpool]")].count("\n") + 1
    assert train(flags(picture_tree, "--model", f"cfg/{cfg}", "--output-dir", tmp_path / "run")) == 2
    (message,) = capsys.readouterr().err.strip().splitlines()
    assert f"bad.cfg:{line}" in message and "[lstm]" in message
    assert not (tmp_path / "run").exists()


def test_fusion_and_gamma_are_options(picture_tree: Path, tmp_path: Path) -> None:
    options = ["--model", "csppeleenet", "--model-kwargs", "fusion=last", "gamma=0.25"]
    assert train(flags(picture_tree, *options, "--output-dir", tmp_path / "run")) == 0
    stage = {key: value.shape for key, value in read_last(tmp_path / "run").items() if key.startswith("stages.0.")}
    assert not [key for key in stage if "conv_transition." in key]
    assert stage["stages.0.blocks.0.branch1.0.conv.weight"][1] == 24  # of 32, 8 cross


def test_grad_checkpointing_changes_no_number(picture_tree: Path, tmp_path: Path) -> None:
    model = ["--model", "cspdarknet_tiny"]
    assert train(flags(picture_tree, *model, "--output-dir", tmp_path / "kept")) == 0
    recompute = ["--grad-checkpointing", "true", "--output-dir", tmp_path / "recomputed"]
    assert train(flags(picture_tree, *model, *recompute)) == 0
    kept, recomputed = read_last(tmp_path / "kept"), read_last(tmp_path / "recomputed")
    assert all(torch.equal(kept[key], value) for key, value in recomputed.items())


def test_grad_checkpointing_where_there_is_none(picture_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(flags(picture_tree, "--model", "torchvision/resnet18", "--grad-checkpointing", "true")) == 2
    assert "torchvision/resnet18 has no such mode" in capsys.readouterr().err
