"""Other libraries' augmentations, made functions of an address."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import auto_augment_transform, posterize, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import ColorJitter, TrivialAugmentWide

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
