"""Other libraries' augmentations, made functions of an address."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import (
    _RAND_3A,
    _RAND_INCREASING_TRANSFORMS,
    _RAND_TRANSFORMS,
    AugmentOp,
    auto_augment_transform,
    posterize,
    rand_augment_transform,
)
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import ColorJitter, InterpolationMode, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

from cspnet.data.policies import Eraser, _posterize, build_policy
from cspnet.recipe.schema import AugmentRecipe
from cspnet.runtime.random import generator_at

MEAN = (0.485, 0.456, 0.406)
HPARAMS = {"translate_const": 14, "img_mean": (124, 116, 104)}
THEIRS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "rand": ({"policy": "rand-m9-mstd0.5-inc1"}, lambda: rand_augment_transform("rand-m9-mstd0.5-inc1", dict(HPARAMS))),
    "3a": ({"policy": "3a"}, lambda: auto_augment_transform("3a", dict(HPARAMS))),
    "trivial": ({"policy": "trivial"}, TrivialAugmentWide),
    "jitter": ({"color_jitter": 0.4}, lambda: ColorJitter(0.4, 0.4, 0.4)),
}


def draw_pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(32, 32, 3), dtype=np.uint8)


def global_states() -> tuple[Any, ...]:
    return random.getstate(), *np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("name", THEIRS)
def test_a_policy_is_the_librarys_with_seeded_generators(name: str) -> None:
    settings, create = THEIRS[name]
    policy, theirs, pixels = build_policy(AugmentRecipe(**settings), MEAN, 32), create(), draw_pixels()
    results = []
    for position in range(30):
        before = global_states()
        ours = policy(pixels, generator_at(0, "augment", 0, position))
        assert global_states() == before
        seeds = generator_at(0, "augment", 0, position).integers(2**32, size=4).tolist()
        random.seed(seeds[0])
        np.random.seed(seeds[1])
        torch.manual_seed(seeds[2])
        assert np.array_equal(ours, np.asarray(theirs(Image.fromarray(pixels))))
        results.append(ours.tobytes())
    assert len(set(results)) > 10


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def timms_ops(name: str) -> list[Callable[[Image.Image], Image.Image]]:
    """An operation at the magnitudes 3 and 9, with draws that give both sides."""

    def seeded(op: AugmentOp, seed: int) -> Callable[[Image.Image], Image.Image]:
        def run(image: Image.Image) -> Image.Image:
            random.seed(seed)
            return op(image)

        return run

    hparams = {**HPARAMS, "interpolation": Image.Resampling.BILINEAR}
    ops = [AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams) for magnitude in (3, 9)]
    return [seeded(op, seed) for op in ops for seed in range(8)]


def torchvisions_ops(name: str) -> list[Callable[[Image.Image], Image.Image]]:
    """An operation of TrivialAugment at three of its magnitudes, to both sides."""
    values, is_signed = TrivialAugmentWide()._augmentation_space(31)[name]
    numbers = [float(value) for value in values[[3, 11, 20]]] if values.ndim else [0.0]
    numbers += [-number for number in numbers] if is_signed else []
    how = {"op_name": name, "interpolation": InterpolationMode.NEAREST, "fill": None}
    return [functools.partial(_apply_op, magnitude=number, **how) for number in numbers]


OPS = {
    **{
        f"timm {name}": (timms_ops, name)
        for name in sorted({*_RAND_TRANSFORMS, *_RAND_INCREASING_TRANSFORMS, *_RAND_3A})
    },
    **{f"torchvision {name}": (torchvisions_ops, name) for name in TrivialAugmentWide()._augmentation_space(31)},
}


@pytest.mark.parametrize("case", OPS)
def test_behind_the_policy_a_mirror_shows_what_it_would_have_made_of_the_mirrored_picture(case: str) -> None:
    """Drawn to the other side; all but ShearY, for which see below."""
    create, name = OPS[case]
    image = Image.fromarray(draw_pixels())
    behind = [np.asarray(mirrored(op(image))).astype(int) for op in create(name)]
    before = [np.asarray(op(mirrored(image))).astype(int) for op in create(name)]
    nearest = [min(np.abs(one - other).max() for other in before) for one in behind]
    assert (max(nearest) <= 1) == (name != "ShearY")


@pytest.mark.parametrize("create", [timms_ops, torchvisions_ops])
def test_shear_y_holds_the_left_edge_to_either_side(create: Callable[[str], Any]) -> None:
    """On a picture that gets lighter from top to bottom, the change of its middle row says how far that has moved."""
    pixels = np.arange(0, 192, 6, dtype=np.uint8)[:, None, None].repeat(32, axis=1).repeat(3, axis=2)
    for op in create("ShearY"):
        changes = np.abs(np.asarray(op(Image.fromarray(pixels))).astype(int) - pixels)[16].mean(axis=1)
        assert changes[0] < changes[-1] / 4


def test_the_strongest_posterization_is_black() -> None:
    """At magnitude 10 timm keeps 0 of 8 bits; Pillow 13 raises ValueError for that, and the run would end."""
    policy = build_policy(AugmentRecipe(policy="rand-m10-n1-inc1"), (0.5, 0.5, 0.5), 16)
    pixels = np.random.default_rng(0).integers(1, 256, (16, 16, 3), dtype=np.uint8)
    black = [not policy(pixels, generator_at(0, "augment", i)).any() for i in range(600)]
    assert 0 < sum(black) < 60  # one of 15 ways, and half of the times


@pytest.mark.parametrize("bits", range(1, 9))
def test_other_posterizations_are_timms(bits: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(_posterize(image, bits)), np.asarray(posterize(image, bits)))


def test_no_policy_touches_nothing() -> None:
    pixels = draw_pixels()
    assert build_policy(AugmentRecipe(), MEAN, 32)(pixels, generator_at(0, "augment", 0)) is pixels


def test_the_jitter_comes_after_the_policy() -> None:
    policy = build_policy(AugmentRecipe(policy="trivial", color_jitter=0.2), MEAN, 32)
    assert [type(part) for part in policy.parts] == [TrivialAugmentWide, ColorJitter]


def test_erasing_is_timms_and_follows_its_address() -> None:
    cfg = AugmentRecipe(erase_prob=0.5, erase_count=2)
    eraser, theirs = Eraser(cfg, torch.device("cpu")), RandomErasing(0.5, mode="pixel", max_count=2, device="cpu")
    images = torch.rand(8, 3, 32, 32)
    before = global_states()
    ours = [eraser(images.clone(), generator_at(0, "erase", step)) for step in (0, 1, 0)]
    assert global_states() == before
    assert torch.equal(ours[0], ours[2]) and not torch.equal(ours[0], ours[1])
    seeds = generator_at(0, "erase", 0).integers(2**32, size=4).tolist()
    random.seed(seeds[0])
    torch.manual_seed(seeds[2])
    assert torch.equal(ours[0], theirs(images.clone()))


def test_erasing_takes_the_share_of_pictures_it_is_told_to() -> None:
    eraser, images = Eraser(AugmentRecipe(erase_prob=0.3), torch.device("cpu")), torch.zeros(2000, 1, 8, 8)
    erased = eraser(images, generator_at(0, "erase", 0)).abs().amax((1, 2, 3)) > 0
    # A rectangle that does not fit in ten tries is left out: a few fewer than three in ten.
    assert erased.float().mean().item() == pytest.approx(0.3, abs=0.05)


def test_erasing_can_be_off() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert Eraser(AugmentRecipe(), torch.device("cpu"))(images, generator_at(0, "erase", 0)) is images
