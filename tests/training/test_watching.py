"""What TensorBoard shows besides numbers, read back by its own reader; and that looking changes nothing."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cspnet.cli.compare_runs import read_records
from cspnet.cli.train import main
from cspnet.data.mixing import Normalizer
from cspnet.recipe.schema import LogRecipe
from cspnet.training.watching import Watch
from tests.conftest import draw_tree
from tests.training.whole_runs import assert_same

BASE = (
    *("--model", "cspdarknet_tiny", "--model-kwargs", "{drop_rate: 0.2}", "--img-size", "32", "--device", "cpu"),
    *("--precision", "fp32", "--workers", "0", "--batch-size", "6", "--lr", "0.02", "--epochs", "2", "--freeze", "1"),
    *("--cutmix", "1", "--ema.decay", "0.5", "--print-freq", "1"),
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = draw_tree(tmp_path_factory.mktemp("watched"), classes=3, train=24, val=9)
    next((folder / "val").rglob("*.jpg")).write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def watched(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "watched"
    flags = ("--log.pictures", "5", "--log.histograms", "--log.graph")
    assert main([*BASE, *flags, "--data-path", str(pictures), "--output-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def board(watched: Path) -> EventAccumulator:
    board = EventAccumulator(str(watched / "tensorboard"), size_guidance={"images": 0, "histograms": 0})
    board.Reload()
    return board


def test_the_first_batches_and_each_validation_are_shown(board: EventAccumulator) -> None:
    assert [event.step for event in board.Images("train/pictures")] == [0, 1, 2]
    assert [event.step for event in board.Images("val/pictures")] == [4, 8]


def test_a_sheet_has_the_pictures_in_their_colours(board: EventAccumulator, pictures: Path) -> None:
    """The middle of each validation picture fills a square of 160."""
    sheet = np.asarray(Image.open(io.BytesIO(board.Images("val/pictures")[0].encoded_image_string)))
    assert sheet.shape[1] == 5 * 168 + 8
    files = sorted((pictures / "val").rglob("*.jpg"))
    for column, number in enumerate(np.linspace(0, len(files) - 1, 5).round().astype(int)):
        shown = sheet[8:168, 8 + 168 * column :][:, :160].astype(float).mean((0, 1))
        try:
            whole = Image.open(files[number]).convert("RGB")
            middle = whole.resize([round(side * 36 / min(whole.size)) for side in whole.size])
            left, top = ((side - 32) / 2 for side in middle.size)
            expected = np.asarray(middle.crop((left, top, left + 32, top + 32))).astype(float)
        except OSError:
            expected = np.full((1, 1, 3), 211.0)  # Pillow's lightgrey
        np.testing.assert_allclose(shown, expected.mean((0, 1)), atol=3)


def test_histograms_and_the_graph_are_there_when_asked_for(board: EventAccumulator) -> None:
    names = board.Tags()["histograms"]
    assert {"stem.conv1.conv.weight", "stages.2.conv_transition.bn.running_var", "head.fc.bias"} <= set(names)
    assert [event.step for event in board.Histograms("head.fc.bias")] == [4, 8]
    assert any("head" in node.name for node in board.Graph().node)


def test_looking_changes_nothing(watched: Path, pictures: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    flags = ("--log.tensorboard", "false", "--data-path", str(pictures), "--output-dir", str(plain))
    assert main([*BASE, *flags]) == 0
    ends = [torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in (watched, plain)]
    for end in ends:
        del end["recipe"]
    assert_same(*ends)
    losses = [[record.get("train/loss") for record in read_records(run)] for run in (watched, plain)]
    assert losses[0] == losses[1]


def test_targets_are_named_with_their_shares() -> None:
    prepare = Normalizer((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), torch.device("cpu"))
    watch = Watch(LogRecipe(), prepare, torch.float32, ["cat", "dog", "owl", "bee"], None)
    assert watch._name(np.array([0.04, 0.3, 0.66, 0.0])) == "owl 0.66, dog 0.30"


@pytest.mark.parametrize("std", [(1.0, 1.0, 1.0), (0.229, 0.224, 0.225), (0.01, 0.5, 1.0)])
def test_every_byte_comes_back(std: tuple[float, float, float]) -> None:
    prepare = Normalizer((0.485, 0.456, 0.406), std, torch.device("cpu"))
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)
    assert (prepare.restore(prepare(pixels.clone())) == pixels.numpy()).all()
