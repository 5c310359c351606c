"""Geometry against torchvision's on the same PIL pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from cspnet.data.darknet import DarknetView
from cspnet.data.decode import WholePicture
from cspnet.data.transforms import (
    EvalTransform,
    RandomPadView,
    RandomResizedView,
    SizeRamp,
    build_train_transform,
    random_resized_box,
)
from cspnet.recipe.schema import AugmentRecipe, DarknetRecipe, DataRecipe, Recipe
from cspnet.runtime.random import generator_at

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
SIZES = ((1, 1), (1, 9), (9, 1), (37, 100), (100, 37), (64, 64), (73, 73), (74, 75), (256, 255), (333, 500), (500, 333))
SCALE, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


def draw_image(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def train_transform(size_px: int = 32, **settings: Any) -> Callable[[Image.Image, np.random.Generator], np.ndarray]:
    """The transform of a recipe with these settings, at one size, its pictures mirrored where it says so."""
    transform = build_train_transform(Recipe(data=DataRecipe(**settings)))

    def show(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        pixels, flip = transform(WholePicture(image), rng, size_px)
        return pixels[:, ::-1] if flip else pixels

    return show


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("size_px", "crop_ratio"), [(64, 0.875), (33, 0.95), (50, 1.0), (20, 0.3)])
def test_eval_transform_is_resize_and_center_crop(size_px: int, crop_ratio: float, interpolation: str) -> None:
    reference = transforms.Compose(
        [
            transforms.Resize(math.floor(size_px / crop_ratio), InterpolationMode(interpolation)),
            transforms.CenterCrop(size_px),
        ]
    )
    transform = EvalTransform(size_px, crop_ratio, interpolation)
    for width, height in SIZES:
        image = draw_image(width, height)
        pixels = transform(WholePicture(image))
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, np.asarray(reference(image))), (width, height)


@pytest.mark.parametrize("crop_ratio", [0.875, 0.9, 0.95, 0.96, 1.0])
@pytest.mark.parametrize("size_px", [8, 96, 160, 176, 224, 288])
def test_eval_transform_takes_the_same_centre_for_every_aspect_ratio(size_px: int, crop_ratio: float) -> None:
    """The picture's pixels name their places, and nearest keeps them: rounding differs nowhere."""
    reference = transforms.Compose(
        [
            transforms.Resize(math.floor(size_px / crop_ratio), InterpolationMode.NEAREST),
            transforms.CenterCrop(size_px),
        ]
    )
    transform = EvalTransform(size_px, crop_ratio, "nearest")
    for width, height in ((251, 125), (125, 251), (199, 200), (200, 201), (120, 355)):
        y, x = np.mgrid[:height, :width]
        image = Image.fromarray(np.stack([y % 256, x % 256, y // 256 * 16 + x // 256], axis=-1).astype(np.uint8))
        assert np.array_equal(transform(WholePicture(image)), np.asarray(reference(image))), (width, height)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_crop_resize_is_resized_crop(interpolation: str) -> None:
    """Within one grey level, for what torch resizes; bicubic where it does not overshoot the bytes (see below)."""
    for seed, (width, height) in enumerate(SIZES):
        image = draw_image(width, height)
        if interpolation == "bicubic":
            image = image.point(lambda value: 80 + value * 96 // 256)
        rng = np.random.default_rng(seed)
        for _ in range(5):
            left, top, right, bottom = random_resized_box(rng, width, height, SCALE, ASPECT)
            pixels = WholePicture(image).crop_resize((left, top, right, bottom), (40, 24), interpolation)
            assert pixels.flags.c_contiguous  # torch took the kernel for interleaved colours, a third of the time
            reference = tvf.resized_crop(
                image, top, left, bottom - top, right - left, [24, 40], InterpolationMode(interpolation)
            )
            difference = np.abs(pixels.astype(int) - np.asarray(reference)).max()
            assert difference <= (interpolation in ("bilinear", "bicubic")), (width, height)


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two empirical distribution functions."""
    values = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


@pytest.mark.parametrize(
    ("width", "height", "scale", "aspect"),
    [
        (500, 375, SCALE, ASPECT),
        (300, 700, (0.25, 1.0), (0.5, 2.0)),
        (400, 100, (0.3, 1.0), ASPECT),
    ],
)
def test_boxes_are_distributed_as_torchvisions(
    width: int, height: int, scale: tuple[float, float], aspect: tuple[float, float]
) -> None:
    draws = 5000
    ours = np.array(
        [random_resized_box(generator_at(3, "augment", 0, i), width, height, scale, aspect) for i in range(draws)]
    )
    torch.manual_seed(4)
    image = Image.new("L", (width, height))
    params = [transforms.RandomResizedCrop.get_params(image, list(scale), list(aspect)) for _ in range(draws)]
    theirs = np.array([(left, top, left + w, top + h) for top, left, h, w in params])
    measures = {
        "area": lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / (width * height),
        "log aspect": lambda box: np.log((box[:, 2] - box[:, 0]) / (box[:, 3] - box[:, 1])),
        "left": lambda box: box[:, 0],
        "top": lambda box: box[:, 1],
        "right": lambda box: box[:, 2],
        "bottom": lambda box: box[:, 3],
    }
    for name, measure in measures.items():
        # Two samples of one distribution are further apart than this once in a hundred thousand times.
        assert ks_distance(measure(ours), measure(theirs)) < 2.47 * math.sqrt(2 / draws), name


@pytest.mark.parametrize("scale", [SCALE, (1e-6, 1e-5), (1.0, 1.0)])
@pytest.mark.parametrize("aspect", [ASPECT, (1.0, 1.0), (0.01, 100.0)])
def test_boxes_lie_inside_the_picture(scale: tuple[float, float], aspect: tuple[float, float]) -> None:
    sizes = ((1, 1), (1, 2), (2, 1), (1, 3000), (3000, 1), (2, 3), (3, 500), (5000, 7), (224, 224))
    for width, height in sizes:
        for i in range(60):
            box = random_resized_box(generator_at(1, "augment", i), width, height, scale, aspect)
            left, top, right, bottom = box
            assert all(type(value) is int for value in box)
            assert 0 <= left < right <= width, (width, height, box)
            assert 0 <= top < bottom <= height, (width, height, box)


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (999, 31), (31, 998), (64, 48), (7, 6)])
@pytest.mark.parametrize("aspect", [(1.0, 1.0), ASPECT, (2.0, 3.0)])
def test_when_nothing_fits_the_centre_is_torchvisions(size: tuple[int, int], aspect: tuple[float, float]) -> None:
    width, height = size
    scale = (4.0, 4.0)  # four times the picture never fits
    left, top, right, bottom = random_resized_box(np.random.default_rng(0), width, height, scale, aspect)
    reference = transforms.RandomResizedCrop.get_params(Image.new("L", size), list(scale), list(aspect))
    assert (top, left, bottom - top, right - left) == reference


@pytest.mark.parametrize(("border", "reference"), [("black", "constant"), ("reflect", "reflect")])
def test_random_pad_takes_every_window_of_the_padded_picture_alike(border: str, reference: str) -> None:
    size_px, pad_px = 8, 2
    image = draw_image(size_px, size_px)
    padded = np.asarray(tvf.pad(image, [pad_px], padding_mode=reference))
    windows = {}
    for top in range(2 * pad_px + 1):
        for left in range(2 * pad_px + 1):
            window = padded[top : top + size_px, left : left + size_px]
            windows[window.tobytes()] = (top, left, False)
            windows[window[:, ::-1].tobytes()] = (top, left, True)
    assert len(windows) == 2 * (2 * pad_px + 1) ** 2
    transform = train_transform(size_px, train_crop="random_pad", pad_px=pad_px, pad_with=border)
    counts = dict.fromkeys(windows.values(), 0)
    draws = 5000
    for i in range(draws):
        counts[windows[transform(image, generator_at(5, "augment", 0, i)).tobytes()]] += 1
    expected = draws / len(windows)
    assert max(abs(count - expected) for count in counts.values()) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(32, 32), (60, 41), (1, 5)])
def test_random_pad_resizes_first(size: tuple[int, int], interpolation: str) -> None:
    image = draw_image(*size)
    transform = train_transform(train_crop="random_pad", pad_px=0, flip_prob=0.0, train_interpolation=interpolation)
    reference = tvf.resize(image, [32, 32], InterpolationMode(interpolation))
    assert np.array_equal(transform(image, np.random.default_rng(0)), np.asarray(reference))


@pytest.mark.parametrize(("flip_prob", "tolerance"), [(0.0, 0.0), (0.2, 5.0), (0.5, 5.0), (1.0, 0.0)])
def test_flip_frequency(flip_prob: float, tolerance: float) -> None:
    image = draw_image(8, 8)
    pixels = np.asarray(image)
    transform = train_transform(8, train_crop="random_pad", pad_px=0, flip_prob=flip_prob)
    draws, flips = 4000, 0
    for i in range(draws):
        out = transform(image, generator_at(6, "augment", i))
        flipped = np.array_equal(out, pixels[:, ::-1])
        assert flipped or np.array_equal(out, pixels)
        flips += flipped
    assert abs(flips - draws * flip_prob) <= tolerance * math.sqrt(draws * flip_prob * (1 - flip_prob))


@pytest.mark.parametrize("crop", ["random_resized", "random_pad", "darknet"])
def test_a_policy_changes_the_view_and_not_the_draws_of_crop_and_flip(crop: str) -> None:
    """The same crop, not mirrored yet, is what the policy gets, and whether to mirror it stays as it was drawn."""
    picture, flips = WholePicture(draw_image(50, 40)), 0
    data = DataRecipe(train_crop=crop, pad_px=2)
    transform = build_train_transform(Recipe(data=data, augment=AugmentRecipe(policy="rand-m9-n2")))
    for i in range(20):
        rng, plain_rng = (generator_at(0, "augment", 0, i) for _ in range(2))
        pixels, flip = transform(picture, rng, 32)
        plain, is_flipped = build_train_transform(Recipe(data=data))(picture, plain_rng, 32)
        assert flip is is_flipped
        assert np.array_equal(pixels, transform.policy(plain, plain_rng))
        flips += flip
    assert 0 < flips < 20


@pytest.mark.parametrize("crop", ["random_resized", "random_pad"])
def test_train_transform_is_a_function_of_its_generator(crop: str) -> None:
    image, transform = draw_image(50, 40), train_transform(train_crop=crop)
    outs = [transform(image, generator_at(0, "augment", 0, i)) for i in (1, 2, 1)]
    assert all(out.shape == (32, 32, 3) and out.dtype == np.uint8 for out in outs)
    assert np.array_equal(outs[0], outs[2])
    assert not np.array_equal(outs[0], outs[1])


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (9, 9)])
@pytest.mark.parametrize("crop", ["random_resized", "random_pad"])
def test_train_transform_takes_pictures_of_any_size(crop: str, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 200, 90))
    out = train_transform(train_crop=crop, pad_px=0)(image, np.random.default_rng(0))
    assert np.array_equal(out, np.full((32, 32, 3), (10, 200, 90), dtype=np.uint8))


def test_the_recipe_reaches_the_transform() -> None:
    cfg = DataRecipe(
        train_px=48,
        train_crop="random_pad",
        train_scale=(0.2, 0.7),
        train_aspect=(0.5, 1.5),
        pad_px=3,
        pad_with="reflect",
        flip_prob=0.1,
        train_interpolation="bicubic",
        val_interpolation="nearest",
    )
    transform = build_train_transform(Recipe(data=cfg))
    assert transform.view == RandomPadView(3, "reflect", 0.1, "bicubic")
    assert transform.sizes == SizeRamp(48, 48)
    cfg = replace(cfg, train_crop="random_resized", shrink=False, start_px=16, ramp_epochs=(2, 5))
    transform = build_train_transform(Recipe(data=cfg))
    assert transform.view == RandomResizedView((0.2, 0.7), (0.5, 1.5), 0.1, "bicubic", False)
    assert transform.sizes == SizeRamp(16, 48, 2, 5)
    darknet = DarknetRecipe(min_crop_px=10)
    transform = build_train_transform(Recipe(data=replace(cfg, train_crop="darknet"), darknet=darknet))
    assert transform.view == DarknetView(darknet, 0.1)


def test_the_size_ramp_is_flat_then_straight_then_flat() -> None:
    sizes = [SizeRamp(96, 224, 2, 6).size_at(epoch) for epoch in range(10)]
    assert sizes == [96, 96, 96, 128, 160, 192, 224, 224, 224, 224]
    assert [SizeRamp(100, 190, 0, 3).size_at(epoch) for epoch in range(4)] == [100, 132, 164, 190]
    assert [SizeRamp(100, 224, 0, 20).size_at(epoch) for epoch in (0, 18, 19, 20)] == [100, 196, 224, 224]
    assert [SizeRamp(64, 128, 3, 3).size_at(epoch) for epoch in range(5)] == [64, 64, 64, 128, 128]
