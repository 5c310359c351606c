"""Every picture counts exactly once, for any number of processes and any size of the data set."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cspnet
from cspnet.cli.build import build_model
from cspnet.recipe.load import recipe_from_values
from tests.conftest import draw_tree
from tests.evaluation.sizes import SIZES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sizes")
    return [draw_tree(folder / str(size), classes=3, train=3, val=size, seed=size) for size in SIZES]


def count_slowly(root: Path) -> tuple[int, int, float]:
    """Right answers and mean loss, one picture at a time, from the description alone."""
    recipe = recipe_from_values({"model.name": "cspdarknet_tiny", "train.channels_last": False}, "test")
    model = build_model(recipe, 3, torch.device("cpu")).eval()
    correct, losses = 0, []
    for file in sorted((root / "val").glob("*/*.jpg")):
        label = int(file.parent.name.removeprefix("class_"))
        with Image.open(file) as image:
            shorter, scale = min(image.size), int(32 / 0.875)
            size = tuple(scale if side == shorter else int(scale * side / shorter) for side in image.size)
            pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), dtype=np.float64) / 255
        top, left = round((pixels.shape[0] - 32) / 2), round((pixels.shape[1] - 32) / 2)
        pixels = (pixels[top : top + 32, left : left + 32] - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        with torch.no_grad():
            logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())[0].double()
        correct += int(logits.argmax()) == label
        losses.append(float(torch.logsumexp(logits, 0) - logits[label]))
    return correct, len(losses), float(np.mean(losses))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_counts_are_exact(
    processes: int,
    data_sets: list[Path],
    tmp_path: Path,
    fork_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    output = tmp_path / "counts.json"
    done = fork_script("-m", "tests.evaluation.count_all_sizes", output, *data_sets, processes=processes)
    assert done.returncode == 0, done.stderr
    for root, result in zip(data_sets, json.loads(output.read_text()), strict=True):
        correct, count, loss = count_slowly(root)
        assert result["num_samples"] == count == int(root.name)
        assert result["correct1"] == correct
        assert result["correct5"] == count  # all of three classes are among the five highest
        assert result["loss"] == pytest.approx(loss, rel=1e-5)


def test_validate_door_under_torchrun(
    data_sets: list[Path], tmp_path: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """validate.py on three processes says what it says on one. As a person starts it."""
    torch.manual_seed(3)
    torch.save(cspnet.create_model("cspdarknet_tiny", 3).state_dict(), tmp_path / "weights.pt")
    flags = ["--model", "cspdarknet_tiny", "--checkpoint", tmp_path / "weights.pt", "--data-path", data_sets[-1]]
    flags += ["--img-size", 32, "--batch-size", 2, "--workers", 1, "--device", "cpu", "--precision", "fp32"]
    outputs = []
    for processes in (0, 3):
        done = run_script("validate.py", *flags, "--json", tmp_path / "result.json", processes=processes)
        assert done.returncode == 0, done.stderr
        outputs.append((done.stdout.splitlines()[-1], json.loads((tmp_path / "result.json").read_text())["correct1"]))
    assert outputs[0] == outputs[1]
    assert outputs[0][0].startswith(" * Acc@1 ")
