"""Counts against loops, and a pass over pictures whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cspnet.errors import DataError
from cspnet.evaluation.evaluate import evaluate
from cspnet.evaluation.metrics import EvalResult, count_correct
from cspnet.runtime.distributed import World


def count_slowly(logits: np.ndarray, targets: list[int]) -> tuple[int, int]:
    """A target is right at rank k if fewer than k classes have a higher logit."""
    correct1 = correct5 = 0
    for row, target in zip(logits.tolist(), targets, strict=True):
        if target < 0:
            continue
        higher = sum(value > row[target] for value in row)
        correct1 += higher < 1
        correct5 += higher < 5
    return correct1, correct5


@pytest.mark.parametrize("num_classes", [1, 2, 4, 5, 6, 30])
@pytest.mark.parametrize("unreadable", [0, 20])
def test_count_correct(num_classes: int, unreadable: int) -> None:
    rng = np.random.default_rng(num_classes)
    logits = rng.normal(size=(200, num_classes)).astype(np.float32)
    targets = rng.integers(num_classes, size=200)
    targets[rng.permutation(200)[:unreadable]] = -1
    counts = count_correct(torch.from_numpy(logits), torch.from_numpy(targets))
    assert counts.dtype == torch.int64
    assert tuple(counts.tolist()) == count_slowly(logits, targets.tolist())


def test_count_correct_of_nothing() -> None:
    assert count_correct(torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64)).tolist() == [0, 0]


class Echo(nn.Module):
    """Takes the first row of a picture's first channel for its logits; in training it would say something else."""

    def forward(self, x: Tensor) -> Tensor:
        logits = x[:, 0, 0, :]
        return -logits if self.training else logits


def prepare(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float() / 32


def draw_split(num_samples: int, num_classes: int, unreadable: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures that name distinct logits, and targets."""
    rng = np.random.default_rng(1)
    rows = np.stack([rng.permutation(256)[:num_classes] for _ in range(num_samples)])
    images = np.repeat(rows[:, None, :, None], 3, axis=3).astype(np.uint8)
    targets = rng.integers(num_classes, size=num_samples)
    targets[:unreadable] = -1
    return torch.from_numpy(images), torch.from_numpy(targets)


def batches_of(images: Tensor, targets: Tensor, size: int = 7) -> Iterator[tuple[Tensor, Tensor, Tensor, list[str]]]:
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        bad = [f"picture {start + i}" for i, target in enumerate(targets[part].tolist()) if target < 0]
        yield images[part], targets[part], torch.zeros(len(images[part]), dtype=torch.bool), bad


def run(model: nn.Module, batches: Any, num_samples: int, reports: list[Any] | None = None) -> EvalResult:
    return evaluate(
        model,
        batches=batches,
        common_batches=0,
        num_samples=num_samples,
        prepare=prepare,
        device=torch.device("cpu"),
        amp_dtype=torch.float32,
        world=World(),
        report_bad=[].append if reports is None else reports.append,
    )


@pytest.mark.parametrize("num_classes", [3, 12])
@pytest.mark.parametrize("unreadable", [0, 4])
@pytest.mark.parametrize("training", [True, False])
def test_evaluate_counts_known_answers(num_classes: int, unreadable: int, training: bool) -> None:
    images, targets = draw_split(40, num_classes, unreadable)
    logits = images[:, 0, :, 0].numpy().astype(np.float64) / 32
    model, reports = Echo().train(training), []
    result = run(model, batches_of(images, targets), 40, reports)
    assert (result.correct1, result.correct5) == count_slowly(logits, targets.tolist())
    assert (result.num_samples, result.num_unreadable) == (40, unreadable)
    losses = [
        math.log(sum(math.exp(value) for value in row)) - row[target]
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True)
        if target >= 0
    ]
    assert len(losses) == 40 - unreadable
    assert result.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert result.acc1 == pytest.approx(100 * result.correct1 / 40)
    assert result.acc5 == pytest.approx(100 * result.correct5 / 40)
    assert reports == ([[f"picture {i}" for i in range(unreadable)]] if unreadable else [])
    assert model.training is training


def test_the_size_of_batches_does_not_matter() -> None:
    images, targets = draw_split(40, 12, 3)
    results = [run(Echo(), batches_of(images, targets, size), 40) for size in (1, 7, 40)]
    for result in results[1:]:
        assert (result.correct1, result.correct5) == (results[0].correct1, results[0].correct5)
        assert result.loss == pytest.approx(results[0].loss, rel=1e-6)


@pytest.mark.parametrize("claimed", [39, 41, 80])
def test_another_number_of_pictures_than_the_split_has(claimed: int) -> None:
    images, targets = draw_split(40, 12)
    with pytest.raises(DataError, match=f"validated 40 pictures, but the split has {claimed}"):
        run(Echo(), batches_of(images, targets), claimed)


def test_evaluation_records_no_gradients() -> None:
    recorded: list[bool] = []

    class Watch(Echo):
        def forward(self, x: Tensor) -> Tensor:
            recorded.append(torch.is_grad_enabled())
            return super().forward(x)

    images, targets = draw_split(8, 4)
    run(Watch(), batches_of(images, targets), 8)
    assert recorded == [False, False]


def test_a_result_prints_its_accuracies() -> None:
    result = EvalResult(correct1=1, correct5=2, num_samples=3, num_unreadable=1, loss=0.5)
    assert str(result).split() == ["*", "Acc@1", f"{100 / 3:.3f}", "Acc@5", f"{200 / 3:.3f}"]
    expected = {"correct1": 1, "correct5": 2, "num_samples": 3, "num_unreadable": 1, "loss": 0.5}
    assert result.to_dict() == {**expected, "acc1": pytest.approx(100 / 3), "acc5": pytest.approx(200 / 3)}
