"""Darknet's mixing: pixels and labels against loops, draws against their distributions."""

from __future__ import annotations

import functools
from dataclasses import asdict

import numpy as np
import pytest
import torch

from cspnet.data.darknet_mixing import MixPlan, draw_mix, mix
from cspnet.data.mixing import soft_targets
from cspnet.runtime.random import generator_at
from tests.data import darknet_reference as reference
from tests.data.distributions import assert_integers, assert_share, assert_uniform, assert_unrelated

KINDS_OF = {
    "none": {"none"},
    "mixup": {"none", "mixup"},
    "cutmix": {"none", "cutmix"},
    "mosaic": {"none", "mosaic"},
    "cutmix_mosaic": {"none", "cutmix", "mosaic"},
}
USED = {"none": 1, "mixup": 2, "cutmix": 2, "mosaic": 4}
SHAPES = [(8, 12, 12), (10, 10, 17), (5, 21, 11), (1, 12, 12)]


def numbered_pixels(batch: int, height: int, width: int) -> torch.Tensor:
    """Pictures in which every value occurs once in the whole batch."""
    return torch.arange(batch * 3 * height * width, dtype=torch.float32).view(batch, 3, height, width)


def noise(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def expected_picture(pictures: np.ndarray, plan: MixPlan, n: int) -> np.ndarray:
    kind, box = plan.kinds[n], [int(number) for number in plan.boxes[n]]
    used = [pictures[i] for i in plan.sources[n]]
    if kind == "cutmix":
        return reference.cutmix(used[0], used[1], *box)
    if kind == "mosaic":
        return reference.mosaic(used, *box[:2])
    return reference.mixup(used[0], used[1]) if kind == "mixup" else used[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("method", KINDS_OF)
@pytest.mark.parametrize(("batch", "height", "width"), SHAPES)
def test_pixels_and_labels_are_those_of_loops(
    batch: int, height: int, width: int, method: str, smoothing: float
) -> None:
    original, num_classes = numbered_pixels(batch, height, width), 9
    classes = torch.arange(batch).remainder(num_classes)
    targets = soft_targets(classes, num_classes, smoothing, "others")
    single = np.stack([reference.smooth_label(int(c), num_classes, smoothing) for c in classes])
    seen = set()
    for step in range(12):
        plan = draw_mix(generator_at(0, "mix", step), batch, height, width, method, False)
        images, soft = mix(original.clone(), targets.clone(), plan, 0)
        assert images.shape == original.shape and images.dtype == torch.float32
        assert soft.shape == targets.shape and soft.dtype == torch.float32
        for n in range(batch):
            expected = expected_picture(original.numpy(), plan, n)
            np.testing.assert_allclose(images[n].numpy(), expected, rtol=1e-6 if plan.kinds[n] == "mixup" else 0)
            box = tuple(int(number) for number in plan.boxes[n])
            weights = reference.label_weights(plan.kinds[n], box, height, width)
            label = sum(weight * single[i] for weight, i in zip(weights, plan.sources[n], strict=True))
            np.testing.assert_allclose(soft[n].numpy(), label, rtol=0, atol=1e-6)
        np.testing.assert_allclose(soft.sum(1).numpy(), 1, rtol=0, atol=1e-5)
        assert soft.min() >= smoothing / (num_classes - 1) - 1e-6
        seen |= set(plan.kinds)
    assert seen == KINDS_OF[method]


def own_plan(blurred: bool = False) -> MixPlan:
    """One of each kind, with boxes up to the edges, and with label weights that follow from no area."""
    return MixPlan(
        kinds=("cutmix", "mosaic", "mixup", "none", "cutmix", "mosaic"),
        sources=np.array([[0, 1, 0, 0], [1, 2, 3, 4], [2, 0, 0, 0], [3, 0, 0, 0], [4, 0, 0, 0], [5, 5, 0, 1]]),
        boxes=np.array([[0, 7, 3, 16], [6, 9, 0, 0], [0] * 4, [0] * 4, [11, 18, 0, 2], [1, 15, 0, 0]]),
        weights=np.array(
            [[0.9, 0.1, 0, 0], [0.1, 0.2, 0.3, 0.4], [0.75, 0.25, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0]],
            dtype=np.float32,
        ),
        blurred=np.array([True, True, True, False, False, True]) & blurred,
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_plan_says_all(channels_last: bool) -> None:
    """Pictures come from the batch as it was, also where the picture they come from is mixed itself."""
    plan, original, targets = own_plan(), numbered_pixels(6, 18, 16), torch.eye(6)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images, soft = mix(original.clone(memory_format=layout), targets.clone(), plan, 0)
    for n, kind in enumerate(plan.kinds):
        expected = expected_picture(original.numpy(), plan, n)
        np.testing.assert_allclose(images[n].numpy(), expected, rtol=1e-6 if kind == "mixup" else 0)
        label = np.zeros(6)
        for weight, i in zip(plan.weights[n], plan.sources[n], strict=True):
            label[i] += weight
        np.testing.assert_allclose(soft[n].numpy(), label, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("blur_px", "kernel_px"), [(1, 15), (15, 15), (5, 5), (9, 9)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_pictures_are_blurred_after_they_are_mixed(blur_px: int, kernel_px: int, channels_last: bool) -> None:
    plan, original = own_plan(blurred=True), noise(6, 18, 16)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images, soft = mix(original.clone(memory_format=layout), torch.eye(6), plan, blur_px)
    assert torch.equal(soft, mix(original.clone(), torch.eye(6), own_plan(), 0)[1])
    for n, blurred in enumerate(plan.blurred):
        expected = expected_picture(original.numpy(), plan, n)
        if blurred:
            expected = reference.gaussian_blur(expected, kernel_px)
        np.testing.assert_allclose(images[n].numpy(), expected, rtol=0, atol=1e-5 if blurred else 1e-6)


def test_a_blur_keeps_what_is_even() -> None:
    images = torch.full((6, 3, 18, 16), -1.5)
    blurred, _ = mix(images.clone(), torch.eye(6), own_plan(blurred=True), 1)
    torch.testing.assert_close(blurred, images)


BATCH, HEIGHT, WIDTH, BATCHES = 1000, 20, 30, 24


@functools.cache
def draw_plans(method: str, blur: bool = False) -> dict[str, np.ndarray]:
    """The fields of many plans, picture by picture."""
    plans = [draw_mix(generator_at(1, "mix", i), BATCH, HEIGHT, WIDTH, method, blur) for i in range(BATCHES)]
    fields = {name: np.concatenate([getattr(plan, name) for plan in plans]) for name in asdict(plans[0])}
    assert all(len(values) == BATCH * BATCHES for values in fields.values())
    return fields


@pytest.mark.parametrize("method", ["mixup", "cutmix", "mosaic", "cutmix_mosaic"])
def test_half_of_the_groups_of_four_are_mixed(method: str) -> None:
    kinds = draw_plans(method)["kinds"]
    assert set(kinds) == KINDS_OF[method]
    mixed = (kinds != "none").reshape(-1, 4)
    assert np.array_equal(mixed.all(axis=1), mixed.any(axis=1))
    groups = mixed[:, 0]
    assert_share(groups, 0.5)
    assert_unrelated(groups[:-1], groups[1:])


def test_a_group_is_mixed_picture_by_picture() -> None:
    """CutMix or Mosaic, each with 1/2: two quarters of all pictures, and any number of the four of a group."""
    kinds = draw_plans("cutmix_mosaic")["kinds"].reshape(-1, 4)
    mixed = kinds[kinds[:, 0] != "none"] == "cutmix"
    assert_share(mixed.ravel(), 1 / 2)
    for number, ways in enumerate((1, 4, 6, 4, 1)):
        assert_share(mixed.sum(axis=1) == number, ways / 16)
    assert_unrelated(*mixed.T)


@pytest.mark.parametrize("batch", [1, 2, 6, 7, 13])
@pytest.mark.parametrize("method", ["mixup", "cutmix", "mosaic", "cutmix_mosaic"])
def test_what_is_left_over_is_a_group_too(batch: int, method: str) -> None:
    last = []
    for step in range(300):
        mixed = [kind != "none" for kind in draw_mix(generator_at(2, "mix", step), batch, 16, 16, method, False).kinds]
        assert len(mixed) == batch
        groups = [set(mixed[i : i + 4]) for i in range(0, batch, 4)]
        assert all(len(group) == 1 for group in groups)
        last.append(mixed[-1])
    assert_share(np.array(last), 0.5)


@pytest.mark.parametrize("method", KINDS_OF)
def test_only_what_a_kind_uses_counts(method: str) -> None:
    plans = draw_plans(method)
    assert plans["sources"].dtype == plans["boxes"].dtype == np.int64
    assert plans["weights"].dtype == np.float32
    assert plans["sources"].min() >= 0 and plans["sources"].max() < BATCH
    assert np.array_equal(plans["sources"][:, 0], np.tile(np.arange(BATCH), BATCHES))
    np.testing.assert_allclose(plans["weights"].sum(axis=1), 1, rtol=0, atol=1e-6)
    for kind in KINDS_OF[method]:
        rows = plans["kinds"] == kind
        assert not plans["weights"][rows, USED[kind] :].any()
        assert not plans["boxes"][rows, {"cutmix": 4, "mosaic": 2}.get(kind, 0) :].any()
        assert (plans["weights"][rows, : USED[kind]] > 0).all()


@pytest.mark.parametrize("method", ["cutmix", "cutmix_mosaic"])
def test_cutmix_boxes(method: str) -> None:
    """Sides of 3/10 to 8/10 of the picture's, at any place inside but the last row and column."""
    plans = draw_plans(method)
    rows = plans["kinds"] == "cutmix"
    top, bottom, left, right = plans["boxes"][rows].T
    heights, widths = bottom - top, right - left
    assert_integers(heights, 6, 16)
    assert_integers(widths, 9, 24)
    assert top.min() >= 0 and bottom.max() <= HEIGHT - 1
    assert left.min() >= 0 and right.max() <= WIDTH - 1
    for start, side, size in ((top, heights, HEIGHT), (left, widths, WIDTH)):
        for length in np.unique(side):
            assert_integers(start[side == length], 0, size - length - 1)
    assert_unrelated(heights, widths, top / (HEIGHT - heights - 1), left / (WIDTH - widths - 1))
    share = heights * widths / (HEIGHT * WIDTH)
    np.testing.assert_allclose(plans["weights"][rows, 0], 1 - share, rtol=0, atol=1e-6)
    np.testing.assert_allclose(plans["weights"][rows, 1], share, rtol=0, atol=1e-6)
    assert 0.09 <= share.min() < 0.12 and 0.55 < share.max() <= 0.64


@pytest.mark.parametrize("method", ["mosaic", "cutmix_mosaic"])
def test_mosaic_cuts(method: str) -> None:
    plans = draw_plans(method)
    rows = plans["kinds"] == "mosaic"
    cut_y, cut_x = plans["boxes"][rows, :2].T
    assert_integers(cut_y, 4, 16)
    assert_integers(cut_x, 6, 24)
    assert_unrelated(cut_y, cut_x)
    y, x = cut_y / HEIGHT, cut_x / WIDTH
    shares = np.stack([y * x, y * (1 - x), (1 - y) * x, (1 - y) * (1 - x)], axis=1)
    np.testing.assert_allclose(plans["weights"][rows], shares, rtol=0, atol=1e-6)


def test_fractions_of_a_size_are_rounded_down() -> None:
    """77 px: sides from 23.1 to 61.6, cuts from 15.4 to 61.6."""
    cutmix, mosaic = (
        [draw_mix(generator_at(3, "mix", i), 1000, 77, 77, method, False) for i in range(5)]
        for method in ("cutmix", "mosaic")
    )
    sides = np.concatenate([plan.boxes[np.array(plan.kinds) == "cutmix"] for plan in cutmix])
    cuts = np.concatenate([plan.boxes[np.array(plan.kinds) == "mosaic"] for plan in mosaic])
    assert_integers(sides[:, 1] - sides[:, 0], int(77 * 0.3), int(77 * 0.8))
    assert_integers(sides[:, 3] - sides[:, 2], int(77 * 0.3), int(77 * 0.8))
    assert_integers(cuts[:, 0], int(77 * 0.2), int(77 * 0.8))
    assert_integers(cuts[:, 1], int(77 * 0.2), int(77 * 0.8))


@pytest.mark.parametrize("method", ["mixup", "cutmix", "mosaic", "cutmix_mosaic"])
def test_partners_are_any_pictures_of_the_batch(method: str) -> None:
    """Never the picture itself, each other one alike, and each place of a mosaic for itself."""
    places = {"mixup": (1,), "cutmix": (1,), "mosaic": (1, 2, 3), "cutmix_mosaic": (1, 2, 3)}[method]
    batch, partners = 16, []
    for step in range(1500):
        plan = draw_mix(generator_at(4, "mix", step), batch, 16, 16, method, False)
        used = plan.weights > 0
        partners.append(np.where(used, (plan.sources - np.arange(batch)[:, None]) % batch, -1))
    distance = np.concatenate(partners)
    for place in places:
        ahead = distance[:, place][distance[:, place] >= 0]
        assert len(ahead) > 5000
        assert_integers(ahead, 1, batch - 1)
        assert_unrelated(ahead[:-1], ahead[1:])
    if len(places) > 1:
        four = distance[distance.min(axis=1) >= 0]
        for a, b in ((1, 2), (1, 3), (2, 3)):
            assert (four[:, a] == four[:, b]).mean() < 0.1


@pytest.mark.parametrize("method", ["none", "cutmix_mosaic"])
def test_a_quarter_is_blurred_mixed_or_not(method: str) -> None:
    plans = draw_plans(method, blur=True)
    assert plans["blurred"].dtype == np.bool_
    for kind in KINDS_OF[method]:
        assert_share(plans["blurred"][plans["kinds"] == kind], 1 / 4)
    assert_unrelated(*plans["blurred"].reshape(-1, 4).T)
    assert not draw_plans(method, blur=False)["blurred"].any()


def test_areas_are_spread_as_the_product_of_two_sides() -> None:
    """At 100 px the shares are those of the formula, 9 to 64 %, and lie along the product's distribution."""
    plans = [draw_mix(generator_at(5, "mix", i), 2000, 100, 100, "cutmix", False) for i in range(10)]
    share = np.concatenate([plan.weights[np.array(plan.kinds) == "cutmix", 1] for plan in plans])
    assert share.min() >= np.float32(0.09) and share.max() <= np.float32(0.64)
    sides = np.arange(30, 81) / 100
    areas = np.sort(np.outer(sides, sides).ravel())
    # An area's rank among all of them, made continuous by a draw between its neighbours.
    low, high = (np.searchsorted(areas, share + nudge, side="left") for nudge in (-1e-5, 1e-5))
    assert (low < high).all()
    rank = (low + (high - low) * np.random.default_rng(0).random(len(share))) / len(areas)
    assert_uniform(rank, 0, 1)


def test_a_plan_is_a_function_of_its_address() -> None:
    def draw(step: int) -> MixPlan:
        return draw_mix(generator_at(6, "mix", step), 16, 32, 32, "cutmix_mosaic", True)

    def equal(a: MixPlan, b: MixPlan) -> bool:
        return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in asdict(a))

    torch.manual_seed(0)
    np.random.seed(0)
    first = [draw(step) for step in range(5)]
    torch.manual_seed(1)
    np.random.seed(1)
    assert all(equal(plan, draw(step)) for step, plan in enumerate(first))
    assert not any(equal(a, b) for i, a in enumerate(first) for b in first[:i])
