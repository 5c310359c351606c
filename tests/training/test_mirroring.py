"""The device mirrors pictures: what the network gets is what it would get if they were mirrored where they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cspnet.cli.train import main
from cspnet.data.darknet import draw_view, render_view
from cspnet.data.decode import open_picture
from cspnet.data.index import open_index
from cspnet.data.mixing import Normalizer, mix_batch, soft_targets
from cspnet.data.packing import pack_split, plan_packing
from cspnet.data.sampler import epoch_order
from cspnet.data.samples import SampleIndex
from cspnet.data.transforms import random_resized_box
from cspnet.recipe.schema import DarknetRecipe, DataRecipe, MixRecipe
from cspnet.runtime.random import generator_at
from cspnet.training.step import StepResult
from tests.data.test_gpu_decode import decode_by_pillow

SIDE, BATCH_SIZE, STEPS, SEED, PAD_PX = 32, 8, 5, 3, 4
DATA = DataRecipe()
FLAGS = ["--model", "cspdarknet_tiny", "--img-size", SIDE, "--batch-size", BATCH_SIZE, "--steps", STEPS, "--seed", SEED]
FLAGS += ["--device", "cpu", "--val-split", "null", "--data.pad_px", PAD_PX]
FLAGS += ["--log.tensorboard", "false", "--smoothing", 0.1]


@pytest.fixture(scope="module")
def shards(picture_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training pictures in shards of 10."""
    folder = tmp_path_factory.mktemp("shards")
    packing = plan_packing(open_loose(picture_tree), folder / "train", root=picture_tree, shard_size=10, encoding=None)
    pack_split(packing, workers=1, skip_bad=False, report_bad=print, report_done=lambda count: None)
    return folder


def open_loose(tree: Path) -> SampleIndex:
    return open_index(tree / "train", root=str(tree), cache_dir=None)


def take_batches(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: object
) -> list[tuple[Tensor, Tensor]]:
    """What a run hands to the network: (N, 3, H, W) images and (N, K) targets of each step."""
    given: list[tuple[Tensor, Tensor]] = []

    def record(state: Any, network: Any, batches: Any, **others: Any) -> StepResult:
        given.extend((images.clone(), soft.clone()) for images, soft in batches)
        good = torch.tensor(False)
        return StepResult(torch.ones_like(state.window.values), good, good)

    monkeypatch.setattr("cspnet.training.loop.train_step", record)
    words = [*FLAGS, "--data-path", data, "--output-dir", folder, *flags]
    assert main([str(word) for word in words]) == 0
    return given


def read_and_mirror(index: SampleIndex, crop: str, sample: int, position: int, shrink: bool) -> np.ndarray:
    """A picture of the first epoch, mirrored at once where the first of its draws (Darknet's sixth) says so."""
    picture = open_picture(Path(index.path(sample)).read_bytes())
    rng = generator_at(SEED, "augment", 0, position)
    if crop == "darknet":
        view = draw_view(rng, picture.width, picture.height, SIDE, DarknetRecipe(), DATA.flip_prob)
        is_flipped, pixels = view.flip, render_view(picture, view, SIDE)
    elif crop == "random_pad":
        is_flipped = rng.random() < DATA.flip_prob
        whole = np.asarray(picture.rgb().resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        top_left = rng.integers(2 * PAD_PX + 1, size=2)[::-1]
        bordered = np.pad(whole, ((PAD_PX, PAD_PX), (PAD_PX, PAD_PX), (0, 0)))
        pixels = bordered[top_left[0] : top_left[0] + SIDE, top_left[1] : top_left[1] + SIDE]
    else:
        is_flipped = rng.random() < DATA.flip_prob
        box = random_resized_box(rng, picture.width, picture.height, DATA.train_scale, DATA.train_aspect)
        pixels = picture.crop_resize(box, (SIDE, SIDE), "bilinear", shrink=shrink)
    return pixels[:, ::-1].copy() if is_flipped else pixels


def read_all(tree: Path, crop: str, shrink: bool = True) -> list[tuple[Tensor, Tensor]]:
    """The batches of a run that mirrors its pictures where they are read."""
    index, normalise = open_loose(tree), Normalizer(DATA.mean, DATA.std, torch.device("cpu"))
    order = epoch_order(SEED, 0, len(index)).tolist()
    pixels = [read_and_mirror(index, crop, sample, position, shrink) for position, sample in enumerate(order)]
    batches = []
    for start in range(0, STEPS * BATCH_SIZE, BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        labels = torch.from_numpy(index.labels[order[part]].astype(np.int64))
        batches.append((normalise(torch.from_numpy(np.stack(pixels[part]))), soft_targets(labels, 4, 0.1)))
    return batches


def assert_same(ours: list[tuple[Tensor, Tensor]], expected: list[tuple[Tensor, Tensor]]) -> None:
    assert len(ours) == len(expected) == STEPS
    for (images, targets), (others, their_targets) in zip(ours, expected, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(targets, their_targets)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", ["loose", "shards"])
@pytest.mark.parametrize("crop", ["random_resized", "random_pad", "darknet"])
def test_batches_are_those_of_pictures_mirrored_while_reading(
    picture_tree: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crop: str,
    source: str,
    workers: int,
) -> None:
    data = {"loose": picture_tree, "shards": shards}[source]
    flags = ("--data.train_crop", crop, "--workers", workers)
    assert_same(take_batches(data, tmp_path / "run", monkeypatch, *flags), read_all(picture_tree, crop))


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_decoded_on_the_gpu_too(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """With Pillow in the GPU's place; resized in float they are within one grey level."""
    monkeypatch.setattr("cspnet.cli.build.create_gpu_decoder", lambda device: decode_by_pillow)
    flags = ("--data.decoder", "gpu", "--data.shrink", "false", "--workers", workers)
    ours = take_batches(picture_tree, tmp_path / "run", monkeypatch, *flags)
    levels = 255 * torch.tensor(DATA.std).view(3, 1, 1)
    for (images, targets), (others, their_targets) in zip(ours, read_all(picture_tree, "", shrink=False), strict=True):
        assert ((images - others) * levels).abs().max() < 1.01
        assert torch.equal(targets, their_targets)


@pytest.mark.parametrize("flags", [("--cutmix", 1.0), ("--mix.darknet", "mosaic")], ids=["cutmix", "mosaic"])
def test_what_is_mixed_are_mirrored_pictures(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, Any]
) -> None:
    cfg = MixRecipe(cutmix_alpha=1.0) if flags[0] == "--cutmix" else MixRecipe(darknet="mosaic")
    expected = [
        mix_batch(images, soft, generator_at(SEED, "mix", step, 0), cfg)
        for step, (images, soft) in enumerate(read_all(picture_tree, ""))
    ]
    assert_same(take_batches(picture_tree, tmp_path / "run", monkeypatch, *flags, "--workers", 0), expected)
