"""What the loop does when something goes wrong, and how steps are made up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cspnet.cli.train import main
from cspnet.optim.losses import soft_cross_entropy
from cspnet.training.step import train_step

FLAGS = ["--model", "cspdarknet_tiny", "--img-size", "32", "--workers", "0", "--device", "cpu", "--precision", "fp32"]
FLAGS += ["--log.tensorboard", "false", "--print-freq", "1"]


def run(pictures: Path, folder: Path, *flags: str) -> int:
    return main([*FLAGS, "--data-path", str(pictures), "--output-dir", str(folder), *flags])


def load(folder: Path, name: str = "last.pt") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)


@pytest.mark.parametrize("policy", ["replace", "raise"])
def test_broken_pictures(picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str) -> None:
    shutil.copytree(picture_tree, tmp_path / "data")
    broken = [
        *sorted((tmp_path / "data" / "train").glob("*/*.jpg"))[::20],
        next((tmp_path / "data" / "val").glob("*/*.jpg")),
    ]
    for file in broken:
        file.write_bytes(file.read_bytes()[:200])
    code = run(tmp_path / "data", tmp_path / "run", "--batch-size", "8", "--epochs", "2", "--data.bad_images", policy)
    errors = capsys.readouterr().err.splitlines()
    if policy == "raise":
        assert code == 2
        assert any(str(file) in errors[-1] for file in broken)
        return
    assert code == 0
    for file in broken:
        assert sum(str(file) in line for line in errors) == 1, "named once, though read in every epoch"
    listed = [json.loads(line) for line in (tmp_path / "run" / "bad_images.jsonl").read_text().splitlines()]
    assert sorted(entry["path"] for entry in listed) == sorted(map(str, broken))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["data/bad_images"] == len(broken)
    assert records[-1]["val/unreadable"] == 1


def test_accumulating_is_the_gradient_of_the_mean(picture_tree: Path, tmp_path: Path) -> None:
    """Without BatchNorm, two micro-batches of four update like one batch of eight."""
    weights = []
    for accumulate in (1, 2):
        folder = tmp_path / str(accumulate)
        flags = ["--batch-size", str(8 // accumulate), "--accumulate", str(accumulate), "--steps", "3"]
        flags += ["--model", "torchvision/squeezenet1_1", "--model-kwargs", "{dropout: 0.0}", "--lr", "0.01"]
        assert run(picture_tree, folder, *flags, "--clip-grad", "1.0", "--smoothing", "0.1") == 0
        weights.append(load(folder)["state_dict"])
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_soft_cross_entropy_is_the_sum_over_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    targets = torch.rand(5, 7, generator=generator, dtype=torch.float64).softmax(1).float()
    expected = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        log_sum = torch.tensor(row, dtype=torch.float64).exp().sum().log().item()
        expected += sum(p * (log_sum - z) for p, z in zip(target, row, strict=True)) / 5
    assert soft_cross_entropy(logits.float(), targets).item() == pytest.approx(expected, rel=1e-6)


def test_mixing_stops_after_the_epochs_it_is_told(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_mixed: dict[int, list[bool]] = {}

    def record(state: Any, network: Any, batches: Any, **others: Any) -> Any:
        given = list(batches)
        is_mixed.setdefault(state.progress.epoch, []).extend(bool((soft.max(1)[0] < 1).any()) for _, soft in given)
        return train_step(state, network, iter(given), **others)

    monkeypatch.setattr("cspnet.training.loop.train_step", record)
    flags = ("--batch-size", "8", "--epochs", "4", "--mixup", "1", "--mixup-off-epoch", "2", "--lr", "0.001")
    assert run(picture_tree, tmp_path / "run", *flags, "--val-split", "null") == 0
    assert {epoch: set(steps) for epoch, steps in is_mixed.items()} == {0: {True}, 1: {True}, 2: {False}, 3: {False}}


def test_half_of_the_micro_batches_behind_the_warm_up_are_attacked_and_ever_harder(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step of the change is adversarial.lr * iteration / all iterations, and the raw model is what is asked."""
    attacks: list[tuple[int, float]] = []
    seen: list[int] = []
    step_of_run = 0

    def count_steps(*args: Any, **kwargs: Any) -> Any:
        nonlocal step_of_run
        seen.append(step_of_run)
        step_of_run += 1
        return train_step(*args, **kwargs)

    def record(model: torch.nn.Module, images: torch.Tensor, *, step_size: float, **others: Any) -> torch.Tensor:
        assert model.training and not isinstance(model, torch.nn.parallel.DistributedDataParallel)
        assert set(others) == {"mean", "std", "amp_dtype"}
        attacks.append((seen[-1], step_size))
        return images

    monkeypatch.setattr("cspnet.training.loop.train_step", count_steps)
    monkeypatch.setattr("cspnet.training.batches.perturb", record)
    flags = ("--batch-size", "2", "--steps", "120", "--adversarial.lr", "3", "--warmup-steps", "20", "--lr", "0.001")
    assert run(picture_tree, tmp_path / "run", *flags, "--val-split", "null") == 0
    assert len(seen) == 120
    # Iteration i is step i - 1; the first behind the warm-up has the number 21.
    assert all(step >= 20 for step, _ in attacks)
    assert abs(len(attacks) - 50) <= 5 * (100 * 0.25) ** 0.5
    for step, size in attacks:
        assert size == pytest.approx(3 * (step + 1) / 120)
