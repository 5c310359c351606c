"""Normalisation, soft targets and CutMix against torchvision, torch and loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

from cspnet.data.mixing import (
    Normalizer,
    _mirror_by_choice,
    _mirror_in_place,
    cutmix,
    cutmix_box,
    mirror,
    mix_batch,
    mixup,
    soft_targets,
)
from cspnet.recipe.schema import MixRecipe
from cspnet.runtime.random import generator_at

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")


def draw_pictures(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.0,) * 3, (1.0,) * 3)])
def test_normalizer_is_to_tensor_and_normalize(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    images = draw_pictures(4, 16, 24)
    images[0, :, :, :] = torch.arange(256).view(16, 16, 1).repeat(1, 2, 1)[:, :24].to(torch.uint8)
    untouched = images.clone()
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    expected = torch.stack([reference(Image.fromarray(image.numpy())) for image in images])
    out = Normalizer(mean, std, CPU)(images)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    assert torch.equal(images, untouched)


def test_normalizer_chooses_the_memory_order() -> None:
    images = draw_pictures(4, 16, 24)
    nhwc, nchw = (Normalizer(MEAN, STD, CPU, channels_last)(images) for channels_last in (True, False))
    assert nhwc.is_contiguous(memory_format=torch.channels_last) and not nhwc.is_contiguous()
    assert nchw.is_contiguous()
    assert torch.equal(nhwc, nchw)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 1), (16, 24), (7, 33)])
@pytest.mark.parametrize("flipped", ["none", "all", "some"])
@pytest.mark.parametrize("how", [mirror, _mirror_in_place, _mirror_by_choice])
def test_mirror_exchanges_left_and_right_of_those_it_is_told(
    height: int, width: int, flipped: str, how: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> None:
    """On the host, and as it is done on a GPU."""
    images = draw_pictures(9, height, width)
    flags = {"none": [False] * 9, "all": [True] * 9, "some": [True, True, False, False, True, False, True, True, False]}
    expected = images.numpy().copy()
    for i, flag in enumerate(flags[flipped]):
        if flag:
            expected[i] = np.fliplr(expected[i])
    out = how(images, torch.tensor(flags[flipped]))
    assert out.dtype == torch.uint8
    assert np.array_equal(out.numpy(), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("num_classes", [2, 7, 1000])
def test_soft_targets_are_torchs_label_smoothing(smoothing: float, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, num_classes, generator=generator)
    targets = torch.randint(num_classes, (16,), generator=generator)
    soft = soft_targets(targets, num_classes, smoothing)
    assert soft.shape == (16, num_classes)
    assert soft.dtype == torch.float32
    torch.testing.assert_close(soft.sum(1), torch.ones(16))
    assert torch.equal(soft.argmax(1), targets)
    for reduction in ("mean", "none"):
        expected = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction=reduction)
        torch.testing.assert_close(F.cross_entropy(logits, soft, reduction=reduction), expected)


def numbered_pixels(batch: int, height: int, width: int) -> torch.Tensor:
    """Pictures in which every value occurs once in the whole batch."""
    return torch.arange(batch * 3 * height * width, dtype=torch.float32).view(batch, 3, height, width)


@pytest.mark.parametrize(("batch", "height", "width"), [(2, 12, 12), (5, 9, 14), (3, 16, 7)])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_cutmix_pastes_one_box_of_the_neighbour_and_weighs_it_by_its_pixels(
    batch: int, height: int, width: int, alpha: float
) -> None:
    original, targets = numbered_pixels(batch, height, width), torch.eye(batch)
    mixed_batches = 0
    for step in range(40):
        images, soft = cutmix(original.clone(), targets.clone(), generator_at(0, "mix", step), alpha)
        places = []
        for n in range(batch):
            neighbour = (n - 1) % batch
            pasted = []
            for y in range(height):
                for x in range(width):
                    if torch.equal(images[n, :, y, x], original[n, :, y, x]):
                        continue
                    assert torch.equal(images[n, :, y, x], original[neighbour, :, y, x])
                    pasted.append((y, x))
            expected = torch.zeros(batch)
            expected[n] += 1 - len(pasted) / (height * width)
            expected[neighbour] += len(pasted) / (height * width)
            torch.testing.assert_close(soft[n], expected, rtol=0, atol=1e-6)
            places.append(pasted)
        assert all(place == places[0] for place in places)
        if places[0]:
            mixed_batches += 1
            rows, columns = (sorted(set(axis)) for axis in zip(*places[0], strict=True))
            assert rows == list(range(rows[0], rows[-1] + 1))
            assert columns == list(range(columns[0], columns[-1] + 1))
            assert len(places[0]) == len(rows) * len(columns)
    assert mixed_batches > 10


def test_cutmix_follows_the_generator_alone() -> None:
    def mix(step: int) -> torch.Tensor:
        return cutmix(numbered_pixels(4, 32, 32), torch.eye(4), generator_at(1, "mix", step), 1.0)[0]

    torch.manual_seed(0)
    first = [mix(step) for step in range(5)]
    torch.manual_seed(1)
    again = [mix(step) for step in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(("alpha", "prob"), [(0.0, 1.0), (1.0, 0.0)])
def test_mixing_can_be_off(alpha: float, prob: float) -> None:
    original, targets = numbered_pixels(4, 8, 8), soft_targets(torch.arange(4), 4, 0.1)
    for step in range(50):
        rng, cfg = generator_at(0, "mix", step), MixRecipe(cutmix_alpha=alpha, mixup_alpha=alpha, prob=prob)
        images, soft = mix_batch(original.clone(), targets.clone(), rng, cfg)
        assert torch.equal(images, original)
        assert torch.equal(soft, targets)


def test_cutmix_mixes_the_share_of_batches_it_is_told_to() -> None:
    draws, prob, mixed = 3000, 0.3, 0
    original = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 64, 64)
    for step in range(draws):
        cfg = MixRecipe(cutmix_alpha=1.0, prob=prob)
        images, _ = mix_batch(original.clone(), torch.eye(2), generator_at(2, "mix", step), cfg)
        mixed += not torch.equal(images, original)
    # A box may be empty, with alpha 1 and 64 px in about one batch of a thousand.
    assert abs(mixed - draws * prob) < 5 * math.sqrt(draws * prob * (1 - prob))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cutmix_keeps_targets_probabilities(smoothing: float) -> None:
    targets = soft_targets(torch.randint(10, (8,), generator=torch.Generator().manual_seed(0)), 10, smoothing)
    for step in range(50):
        _, soft = cutmix(torch.rand(8, 3, 16, 16), targets.clone(), generator_at(3, "mix", step), 1.0)
        assert soft.min() >= 0
        torch.testing.assert_close(soft.sum(1), torch.ones(8), rtol=0, atol=1e-6)
        torch.testing.assert_close(soft.sum(0), targets.sum(0))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_cutmix_boxes_are_those_of_the_paper(alpha: float) -> None:
    """Algorithm A1 of arXiv 1905.04899, in real numbers, draws boxes of the same distribution."""
    height, width, draws = 200, 300, 4000
    rng = np.random.default_rng(5)
    ours, theirs = [], []
    for i in range(draws):
        top, bottom, left, right = cutmix_box(generator_at(4, "mix", i), height, width, alpha)
        assert 0 <= top <= bottom <= height
        assert 0 <= left <= right <= width
        ours.append(((bottom - top) * (right - left) / (height * width), (top + bottom) / 2, (left + right) / 2))
        cut = math.sqrt(1 - rng.beta(alpha, alpha))
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        y1, y2 = np.clip([y - height * cut / 2, y + height * cut / 2], 0, height)
        x1, x2 = np.clip([x - width * cut / 2, x + width * cut / 2], 0, width)
        theirs.append(((y2 - y1) * (x2 - x1) / (height * width), (y1 + y2) / 2, (x1 + x2) / 2))
    # Whole pixels against real numbers: compare the shares below thresholds that lie far apart.
    for i, (size, rounding) in enumerate(((1, 0.01), (height, 0.005), (width, 0.005))):
        for threshold in np.linspace(0.05, 0.95, 19) * size:
            a, b = (np.mean([draw[i] < threshold for draw in draws_of]) for draws_of in (ours, theirs))
            assert abs(a - b) < 2.47 * math.sqrt(2 / draws) + rounding, (i, threshold)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_blends_with_the_neighbour_as_the_targets_say(alpha: float) -> None:
    original, targets = torch.rand(5, 3, 6, 7), soft_targets(torch.arange(5), 5, 0.1)
    shares = []
    for step in range(200):
        images, soft = mixup(original.clone(), targets.clone(), generator_at(0, "mix", step), alpha)
        neighbours = [(n - 1) % 5 for n in range(5)]
        share = ((soft[0, 0] - targets[4, 0]) / (targets[0, 0] - targets[4, 0])).item()
        shares.append(share)
        torch.testing.assert_close(images, share * original + (1 - share) * original[neighbours], rtol=0, atol=1e-5)
        torch.testing.assert_close(soft, share * targets + (1 - share) * targets[neighbours], rtol=0, atol=1e-6)
    # The variance of Beta(a, a) is 1 / (4 (2 a + 1)).
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.25)


def test_a_batch_gets_cutmix_or_mixup() -> None:
    """Mixup changes every pixel of these pictures, CutMix those of a box."""
    original, counts = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16), {"cutmix": 0, "mixup": 0}
    cfg = MixRecipe(cutmix_alpha=1.0, mixup_alpha=1.0, switch_prob=0.3)
    for step in range(3000):
        images, _ = mix_batch(original.clone(), torch.eye(4), generator_at(5, "mix", step), cfg)
        counts["mixup" if images.frac().ne(0).any() else "cutmix"] += 1
    assert counts["cutmix"] / 3000 == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 3000))


@pytest.mark.parametrize("cfg", [MixRecipe(cutmix_alpha=1.0, blur_px=9), MixRecipe(mixup_alpha=0.4, blur_px=9)])
def test_a_quarter_is_blurred_behind_cutmix_and_mixup_too(cfg: MixRecipe) -> None:
    unblurred = MixRecipe(cutmix_alpha=cfg.cutmix_alpha, mixup_alpha=cfg.mixup_alpha)
    original, targets = torch.randn(16, 3, 24, 24, generator=torch.Generator().manual_seed(0)), torch.eye(16)
    blurred = []
    for step in range(200):
        images, soft = mix_batch(original.clone(), targets.clone(), generator_at(0, "mix", step), cfg)
        sharp, same_soft = mix_batch(original.clone(), targets.clone(), generator_at(0, "mix", step), unblurred)
        assert torch.equal(soft, same_soft)
        for image, other in zip(images, sharp, strict=True):
            blurred.append(not torch.equal(image, other))
            assert image.std() < 0.5 * other.std() if blurred[-1] else True
    assert np.mean(blurred) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("num_classes", [2, 7, 1000])
def test_smoothing_over_the_others_is_darknets(smoothing: float, num_classes: int) -> None:
    """1 - e and e / (K - 1), where torch has 1 - e + e / K and e / K: the same as torch's with e' = e K / (K - 1)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, num_classes, generator=generator)
    targets = torch.randint(num_classes, (16,), generator=generator)
    soft = soft_targets(targets, num_classes, smoothing, over="others")
    assert soft.dtype == torch.float32
    for n, target in enumerate(targets.tolist()):
        label = [1 - smoothing if k == target else smoothing / (num_classes - 1) for k in range(num_classes)]
        torch.testing.assert_close(soft[n], torch.tensor(label), rtol=1e-5, atol=1e-7)
    for reduction in ("mean", "none"):
        expected = F.cross_entropy(
            logits, targets, label_smoothing=smoothing * num_classes / (num_classes - 1), reduction=reduction
        )
        torch.testing.assert_close(F.cross_entropy(logits, soft, reduction=reduction), expected)
    if smoothing:
        assert soft.max() < soft_targets(targets, num_classes, smoothing).max()


def test_a_single_class_has_no_others() -> None:
    assert torch.equal(soft_targets(torch.zeros(3, dtype=torch.int64), 1, 0.1, over="others"), torch.ones(3, 1))
