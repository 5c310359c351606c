"""Darknet's training pictures: pixels against loops, draws against their distributions."""

from __future__ import annotations

import colorsys
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from cspnet.data.darknet import View, draw_view, rand_scale, render_view
from cspnet.data.decode import WholePicture
from cspnet.recipe.schema import DarknetRecipe
from cspnet.runtime.random import generator_at
from tests.data.darknet_reference import hsv_to_rgb, render, rgb_to_hsv
from tests.data.distributions import (
    assert_follows,
    assert_integers,
    assert_share,
    assert_uniform,
    assert_unrelated,
)

ROUNDED = 0.51  # grey levels between a number and the whole one next to it, and a little for float32


def as_picture(pixels: np.ndarray) -> WholePicture:
    return WholePicture(Image.fromarray(pixels))


def picture_of(kind: str, width: int, height: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels = {
        "noise": lambda: noise,
        "grey": lambda: noise[:, :, :1].repeat(3, axis=2),
        "nearly grey": lambda: noise[:, :, :1] // 2 + noise % 3,
        "saturated": lambda: noise // 128 * 255,
        "two channels": lambda: noise * np.array([1, 1, 0], dtype=np.uint8),
        "black": lambda: np.zeros_like(noise),
        "white": lambda: np.full_like(noise, 255),
    }[kind]().astype(np.uint8)
    pixels.setflags(write=False)  # as the decoder may hand them over
    return pixels


KINDS = ("noise", "grey", "nearly grey", "saturated", "two channels", "black", "white")


def view_of(**changes: float) -> View:
    """The picture as it is, but for the changes."""
    plain = View(
        aspect=1.0, scale=1.0, angle_rad=0.0, dx=0.0, dy=0.0, flip=False, hue=0.0, saturation=1.0, exposure=1.0
    )
    return View(**{**asdict(plain), **changes})


def check(pixels: np.ndarray, view: View, size_px: int) -> np.ndarray:
    """Render, mirror if the view says so, compare with the loops and return the pixels."""
    out = render_view(as_picture(pixels), view, size_px)
    out = out[:, ::-1] if view.flip else out
    assert out.shape == (size_px, size_px, 3) and out.dtype == np.uint8
    expected = render(pixels, size_px, **asdict(view))
    assert np.abs(out - expected).max() <= ROUNDED, view
    return out


def test_the_reference_knows_colours() -> None:
    for red, green, blue in np.random.default_rng(0).integers(0, 5, (200, 3)) / 4:
        hsv = colorsys.rgb_to_hsv(red, green, blue)
        assert rgb_to_hsv(red, green, blue) == pytest.approx(hsv, abs=1e-12)
        assert hsv_to_rgb(*hsv) == pytest.approx((red, green, blue), abs=1e-12)


PARTS: dict[str, dict[str, float]] = {
    "nothing": {},
    "wider": {"aspect": 0.75},
    "higher": {"aspect": 1.3},
    "smaller": {"scale": 0.4},
    "larger": {"scale": 2.7},
    "turned": {"angle_rad": 0.12},
    "turned back": {"angle_rad": -0.12},
    "upside down": {"angle_rad": 3.0},
    "right": {"dx": 4.3},
    "left": {"dx": -7.0},
    "down": {"dy": 5.6},
    "up": {"dy": -3.0},
    "mirrored": {"flip": True},
    "hue up": {"hue": 0.1},
    "hue down": {"hue": -0.1},
    "hue half round": {"hue": 0.5},
    "paler": {"saturation": 0.3},
    "more colourful": {"saturation": 1.333},
    "darker": {"exposure": 0.75},
    "brighter": {"exposure": 1.8},
}


@pytest.mark.parametrize("changes", PARTS.values(), ids=PARTS)
def test_each_part_alone(changes: dict[str, float]) -> None:
    check(picture_of("noise", 31, 26), view_of(**changes), 25)


@pytest.mark.parametrize("kind", KINDS)
def test_colours_of_every_kind(kind: str) -> None:
    pixels = picture_of(kind, 17, 19)
    for hue, saturation, exposure in ((0.1, 0.75, 1.3), (-0.1, 1.33, 0.8), (0.5, 1.33, 1.33), (-0.5, 0.1, 1.0)):
        out = check(pixels, view_of(scale=1.2, hue=hue, saturation=saturation, exposure=exposure), 17)
        if kind in ("grey", "black", "white"):
            assert np.array_equal(out[:, :, 0], out[:, :, 1]) and np.array_equal(out[:, :, 0], out[:, :, 2])


def test_every_hue_can_be_turned_round() -> None:
    """Whole sixths of the circle, where one case of the formula gives way to the next."""
    corners = [(255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255)]
    pixels = np.array([corners] * 6, dtype=np.uint8)
    for sixths in range(-3, 4):
        out = check(pixels, view_of(hue=sixths / 6), 6)
        assert np.abs(out.astype(int) - np.roll(pixels, -sixths, axis=1)).max() <= 1


SIZES = ((40, 40), (57, 38), (23, 71), (71, 23), (9, 7), (30, 1), (1, 30), (1, 1))


@pytest.mark.parametrize("size", SIZES)
def test_any_size_of_picture(size: tuple[int, int]) -> None:
    pixels = picture_of("noise", *size)
    for changes in (
        {},
        {"scale": 0.3, "aspect": 0.8, "dx": 2.0},
        {"scale": 3.1, "aspect": 1.25, "angle_rad": -0.4, "dx": -9.5, "dy": 6.5, "flip": True, "saturation": 1.2},
    ):
        check(pixels, view_of(**changes), 24)


EXTREMES = {
    "Darknet's": DarknetRecipe(min_crop_px=12, max_crop_px=45),
    "wild": DarknetRecipe(
        min_crop_px=4, max_crop_px=120, angle_deg=180.0, aspect=0.2, hue=0.5, saturation=0.3, exposure=0.3
    ),
}


@pytest.mark.parametrize("cfg", EXTREMES.values(), ids=EXTREMES)
def test_drawn_views(cfg: DarknetRecipe) -> None:
    """As if sampled, mirrored, coloured and clipped in this order."""
    black = 0
    for i in range(14):
        rng = generator_at(1, "augment", i)
        width, height = (int(number) for number in rng.integers(12, 60, 2))
        view = draw_view(rng, width, height, 26, cfg, 0.5)
        out = check(picture_of(KINDS[i % 5], width, height, seed=i), view, 26)
        black += not out[0].any() or not out[:, 0].any()
    assert black > 0  # pictures smaller than the output are among them


def test_large_pictures_lose_no_precision() -> None:
    for i in range(4):
        rng = generator_at(6, "augment", i)
        view = draw_view(rng, 1600, 900, 24, DarknetRecipe(min_crop_px=24, max_crop_px=300), 0.5)
        check(picture_of("noise", 1600, 900), view, 24)


def test_a_square_picture_can_stay_as_it_is() -> None:
    for kind in KINDS:
        for size_px in (8, 33):
            pixels = picture_of(kind, size_px, size_px)
            assert np.array_equal(render_view(as_picture(pixels), view_of(), size_px), pixels)
            assert np.array_equal(render_view(as_picture(pixels), view_of(flip=True), size_px), pixels), (
                "the device's work"
            )


def test_what_lies_outside_is_black() -> None:
    size_px = 32
    shrunk = render_view(as_picture(picture_of("white", size_px, size_px)), view_of(scale=0.5), size_px)
    seen = np.flatnonzero(shrunk[:, :, 0].any(axis=0))
    assert abs(len(seen) - size_px / 2) <= 1
    assert abs(seen.mean() - size_px / 2) <= 1
    moved = render_view(as_picture(picture_of("white", size_px, size_px)), view_of(dx=5.0, dy=-3.0), size_px)
    expected = np.zeros_like(moved)
    expected[3:, :-5] = 255
    assert np.array_equal(moved, expected)


def test_the_picture_is_left_alone() -> None:
    pixels = picture_of("noise", 30, 20).copy()
    before = pixels.copy()
    render_view(as_picture(pixels), view_of(scale=0.7, flip=True, hue=0.1, saturation=1.3, exposure=1.3), 24)
    assert np.array_equal(pixels, before)


def two_sided(x: np.ndarray, s: float) -> np.ndarray:
    """Share of rand_scale's draws below x: half lie evenly from s to 1, half are the reciprocals of such."""
    return np.where(x < 1, (x - s) / (1 - s), 1 + (1 - 1 / x) / (1 - s)) / 2


@pytest.mark.parametrize("s", [0.3, 0.75, 0.95])
def test_rand_scale_is_even_on_one_side_and_reciprocal_on_the_other(s: float) -> None:
    rng = np.random.default_rng(0)
    draws = np.array([rand_scale(rng, s) for _ in range(40_000)])
    assert draws.min() >= s and draws.max() <= 1 / s
    assert_share(draws < 1, 0.5)
    assert_uniform(draws[draws < 1], s, 1)
    assert_uniform(1 / draws[draws > 1], s * (1 - 1e-12), 1)
    assert_follows(draws, lambda x: two_sided(x, s))


def test_rand_scale_can_be_off() -> None:
    assert {rand_scale(np.random.default_rng(seed), 1.0) for seed in range(20)} == {1.0}


def draw_views(
    draws: int, width: int, height: int, size_px: int, cfg: DarknetRecipe, flip_prob: float = 0.5
) -> dict[str, np.ndarray]:
    """The fields of many views, and of each: the shorter side's new size, and how far it could be shifted."""
    views = [draw_view(generator_at(2, "augment", 0, i), width, height, size_px, cfg, flip_prob) for i in range(draws)]
    fields = {name: np.array([getattr(view, name) for view in views]) for name in asdict(views[0])}
    scale, aspect = fields["scale"], fields["aspect"]
    fields["crop_px"] = scale * np.minimum(height, (width * aspect).astype(int))
    fields["dx_limit"] = np.maximum(0, (width * scale / aspect - size_px) / 2)
    fields["dy_limit"] = np.maximum(0, (height * scale - size_px) / 2)
    return fields


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (300, 300), (37, 1000), (1000, 37), (5, 3)])
@pytest.mark.parametrize(("min_crop_px", "max_crop_px", "size_px"), [(128, 448, 256), (20, 70, 48), (224, 224, 224)])
def test_every_view_keeps_to_its_bounds(
    width: int, height: int, min_crop_px: int, max_crop_px: int, size_px: int
) -> None:
    cfg = DarknetRecipe(
        min_crop_px=min_crop_px,
        max_crop_px=max_crop_px,
        angle_deg=20.0,
        aspect=0.6,
        hue=0.2,
        saturation=0.5,
        exposure=0.9,
    )
    views = draw_views(400, width, height, size_px, cfg)
    crop_px = views["crop_px"]
    np.testing.assert_allclose(crop_px, crop_px.round(), rtol=1e-9)
    assert crop_px.round().min() >= min_crop_px and crop_px.round().max() <= max_crop_px
    for axis in ("dx", "dy"):
        assert (np.abs(views[axis]) <= views[f"{axis}_limit"] * (1 + 1e-9) + 1e-9).all()
    assert np.abs(views["angle_rad"]).max() <= math.radians(20)
    assert np.abs(views["hue"]).max() <= 0.2
    for name, limit in (("aspect", 0.6), ("saturation", 0.5), ("exposure", 0.9)):
        assert views[name].min() >= limit and views[name].max() <= 1 / limit


def test_a_picture_smaller_than_the_output_stays_in_the_middle() -> None:
    views = draw_views(2000, 400, 300, 256, DarknetRecipe())
    for axis in ("dx", "dy"):
        shifted, movable = views[axis] != 0, views[f"{axis}_limit"] > 0
        assert np.array_equal(shifted, movable)
        assert 0 < movable.mean() < 1


def test_draws_have_darknets_distributions() -> None:
    cfg = DarknetRecipe(min_crop_px=200, max_crop_px=231, angle_deg=15.0, aspect=0.7, saturation=0.6, exposure=0.8)
    views = draw_views(16_000, 500, 400, 128, cfg)
    assert min(views["dx_limit"].min(), views["dy_limit"].min()) > 0
    crop_px = views["crop_px"].round().astype(int)
    right, down = views["dx"] / views["dx_limit"], views["dy"] / views["dy_limit"]
    assert_integers(crop_px, 200, 231)
    assert_uniform(right, -1 - 1e-12, 1 + 1e-12)
    assert_uniform(down, -1 - 1e-12, 1 + 1e-12)
    assert_uniform(views["angle_rad"], -math.radians(15), math.radians(15))
    assert_uniform(views["hue"], -cfg.hue, cfg.hue)
    for name, s in (("aspect", 0.7), ("saturation", 0.6), ("exposure", 0.8)):
        assert_share(views[name] < 1, 0.5)
        assert_follows(views[name], lambda x, s=s: two_sided(x, s))
    assert_share(views["flip"], 0.5)
    drawn = ("aspect", "angle_rad", "flip", "hue", "saturation", "exposure")
    assert_unrelated(crop_px, right, down, *(views[name] for name in drawn))


@pytest.mark.parametrize("flip_prob", [0.0, 0.2, 1.0])
def test_flips_have_their_share(flip_prob: float) -> None:
    flips = draw_views(10_000, 50, 40, 32, DarknetRecipe(), flip_prob)["flip"]
    if flip_prob in (0, 1):
        assert set(flips) == {bool(flip_prob)}
    else:
        assert_share(flips, flip_prob)


def test_every_part_can_be_off() -> None:
    cfg = DarknetRecipe(
        min_crop_px=32, max_crop_px=32, angle_deg=0.0, aspect=1.0, hue=0.0, saturation=1.0, exposure=1.0
    )
    for i in range(20):
        assert draw_view(generator_at(3, "augment", 0, i), 64, 64, 32, cfg, 0.0) == view_of(scale=0.5)


def test_a_view_is_a_function_of_its_address() -> None:
    torch.manual_seed(0)
    first = [draw_view(generator_at(4, "augment", 1, i), 60, 50, 32, DarknetRecipe(), 0.5) for i in range(20)]
    torch.manual_seed(1)
    again = [draw_view(generator_at(4, "augment", 1, i), 60, 50, 32, DarknetRecipe(), 0.5) for i in range(20)]
    assert first == again
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_the_thinnest_pictures_have_views(size: tuple[int, int]) -> None:
    """Darknet would divide by zero where width * aspect is below one pixel."""
    for i in range(20):
        view = draw_view(generator_at(5, "augment", 0, i), *size, 16, DarknetRecipe(angle_deg=0.0), 0.5)
        assert all(math.isfinite(number) for number in asdict(view).values())
        assert render_view(as_picture(picture_of("white", *size)), view, 16).any()
