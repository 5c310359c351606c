"""A loss or a gradient that is not finite: the step changes nothing and is kept as evidence; too many: the way back."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import torch
from torch import Tensor

from cspnet.cli.train import main
from cspnet.models import create_model
from cspnet.optim.losses import soft_cross_entropy
from cspnet.optim.optimizers import build_optimizer
from cspnet.recipe.schema import OptimRecipe
from cspnet.training import loop
from cspnet.training.state import Sums, TrainState
from cspnet.training.step import StepResult, train_step
from tests.conftest import ROOT
from tests.forking import Forked
from tests.training.whole_runs import assert_same, assert_same_runs

LR = 0.05
Loss = Callable[[Tensor, Tensor], Tensor]

# One step


def make_state(cfg: OptimRecipe, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    model = create_model("cspdarknet_tiny", 4)
    cfg = replace(cfg, lr=LR)
    cpu = torch.device("cpu")
    return TrainState(
        model, build_optimizer(model, cfg), None, torch.amp.GradScaler("cpu", enabled=False), Sums(cpu), Sums(cpu)
    )


def draw_batch(seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, 32, 32, generator=draw), torch.rand(4, 4, generator=draw).softmax(1)


def broken_batch(seed: int) -> tuple[Tensor, Tensor]:
    images, targets = draw_batch(seed)
    images[1, 0, 5, 5] = math.inf  # BatchNorm's running statistics see it too
    return images, targets


def broken_backward(logits: Tensor, targets: Tensor) -> Tensor:
    """A loss that is finite, with a gradient that is not."""
    return soft_cross_entropy(logits, targets) + (0 * logits).abs().sqrt().sum()


def step(state: TrainState, *batches: tuple[Tensor, Tensor], loss: Loss = soft_cross_entropy) -> StepResult:
    how: dict[str, Any] = {"lr": LR, "amp_dtype": torch.float32, "clip_norm": 1.0, "loss_fn": loss}
    return train_step(state, state.model, batches, accumulate=len(batches), **how)


def snapshot(state: TrainState) -> dict[str, Any]:
    return copy.deepcopy({"model": dict(state.model.state_dict()), "optimizer": state.optimizer.state_dict()})


OPTIMIZERS = {
    "sgd": OptimRecipe(),
    "nesterov": OptimRecipe(nesterov=True),
    "sgd without momentum": OptimRecipe(momentum=0.0),
    "adamw": OptimRecipe(name="adamw"),
    "rmsprop_tf": OptimRecipe(name="rmsprop_tf"),
    "lamb": OptimRecipe(name="lamb"),
}


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_bad_step_leaves_weights_buffers_and_optimizer_as_they_were(name: str, at: int) -> None:
    """… to the bit, also as the first one; and what comes behind is as if it had never been."""
    state, twin = make_state(OPTIMIZERS[name]), make_state(OPTIMIZERS[name])
    for seed in range(4):
        if seed == at:
            before = snapshot(state)
            result = step(state, broken_batch(99))
            assert (result.is_skipped.item(), result.has_bad_loss.item()) == (True, True)
            assert result.totals.tolist() == [0, 0, 0, 0]
            if not before["optimizer"]["state"]:  # it is made in the first step
                del before["optimizer"]
            assert_same({part: snapshot(state)[part] for part in before}, before)
        result, expected = step(state, draw_batch(seed)), step(twin, draw_batch(seed))
        assert (result.is_skipped.item(), result.has_bad_loss.item()) == (False, False)
        assert result.totals.tolist() == expected.totals.tolist()
        assert result.totals[3] == 4
    assert_same(snapshot(state), snapshot(twin))


def test_a_bad_micro_batch_makes_the_whole_step_bad() -> None:
    for batches in ((broken_batch(1), draw_batch(2)), (draw_batch(1), broken_batch(2))):
        state = make_state(OptimRecipe())
        before = snapshot(state)
        result = step(state, *batches)
        assert (result.is_skipped.item(), result.has_bad_loss.item()) == (True, True)
        assert_same(snapshot(state), before)


def test_a_gradient_can_be_bad_where_the_loss_is_not() -> None:
    state = make_state(OptimRecipe())
    before = snapshot(state)
    result = step(state, draw_batch(1), loss=broken_backward)
    assert (result.is_skipped.item(), result.has_bad_loss.item()) == (True, False)
    assert_same(snapshot(state), before)


def test_a_loss_can_be_bad_where_its_gradient_is_not() -> None:
    """Then, too, the step is skipped: the other processes see it by the gradient."""
    state = make_state(OptimRecipe())
    before = snapshot(state)
    result = step(state, draw_batch(1), loss=lambda logits, targets: soft_cross_entropy(logits, targets) + math.inf)
    assert (result.is_skipped.item(), result.has_bad_loss.item()) == (True, True)
    assert_same(snapshot(state), before)


# Whole runs

FLAGS = ["--model", "cspdarknet_tiny", "--img-size", "32", "--workers", "0", "--device", "cpu", "--precision", "fp32"]
FLAGS += ["--log.tensorboard", "false", "--print-freq", "1", "--batch-size", "4", "--accumulate", "2", "--lr", "0.01"]
FLAGS += ["--epochs", "2", "--cutmix", "1.0", "--reprob", "0.5", "--smoothing", "0.1", "--ema.decay", "0.9"]
STEPS_PER_EPOCH = 6


def run(pictures: Path, folder: Path, *flags: str) -> int:
    return main([*FLAGS, "--data-path", str(pictures), "--output-dir", str(folder), *flags])


def load(folder: Path, name: str = "last.pt") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def read_records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON")) for line in lines]


def plant(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int], bool]) -> list[list[tuple[Tensor, Tensor]]]:
    """The losses of some steps of a run become nan, by their number in it; the micro-batches of each step it takes."""
    taken: list[list[tuple[Tensor, Tensor]]] = []

    def record(state: TrainState, network: Any, batches: Any, *, loss_fn: Loss, **others: Any) -> StepResult:
        given = [(images.clone(), targets.clone()) for images, targets in batches]
        taken.append(given)
        factor = math.nan if is_bad(len(taken) - 1) else 1.0
        return train_step(state, network, given, loss_fn=lambda *values: factor * loss_fn(*values), **others)

    monkeypatch.setattr("cspnet.training.loop.train_step", record)
    return taken


def test_one_bad_step_is_counted_told_and_kept(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 9, the third of the second epoch."""
    taken = plant(monkeypatch, lambda number: number == 8)
    folder = tmp_path / "run"
    assert run(picture_tree, folder, "--checkpoint.every_steps", "1", "--checkpoint.keep", "all") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "step 9 " in line or "skipped" in line]
    assert len(told) == 2  # the line, and where the pictures are
    assert "its loss is not finite (1 in a row, of at most 10; 1 in all)" in told[0]
    before, after = (load(folder, f"step-{number:08d}.pt") for number in (8, 9))
    for part in ("state_dict", "optimizer", "ranks"):
        if part != "ranks":
            assert_same(after[part], before[part])
    assert before["progress"]["skipped"] == 0
    assert (after["progress"]["skipped"], after["progress"]["skipped_in_a_row"]) == (1, 1)
    assert (load(folder)["progress"]["skipped"], load(folder)["progress"]["skipped_in_a_row"]) == (1, 0)
    assert [record["train/skipped"] for record in read_records(folder) if "train/skipped" in record] == [0, 1]
    (file,) = (folder / "skipped").iterdir()
    assert file.name == "step-00000009-rank-0.pt"
    kept = torch.load(file, weights_only=True)
    assert (kept["step"], kept["epoch"]) == (9, 1)
    inputs, soft = (torch.cat(column) for column in zip(*taken[8], strict=True))
    assert torch.equal(kept["inputs"], inputs)
    assert torch.equal(kept["soft_targets"], soft)
    assert len(kept["images"]) == len(kept["paths"]) == len(kept["positions"]) == 8
    assert kept["positions"].tolist() == list(range(16, 24))
    classes = sorted(path.name for path in (picture_tree / "train").iterdir())
    assert [Path(path).parent.name for path in kept["paths"]] == [classes[label] for label in kept["targets"].tolist()]


def test_a_trouble_that_passes_costs_the_way_back_to_the_last_good_checkpoint_and_changes_nothing(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--train.max_skipped", "3", "--checkpoint.every_steps", "2")
    assert run(picture_tree, tmp_path / "untouched", *flags) == 0
    capsys.readouterr()
    plant(monkeypatch, lambda number: 7 <= number < 10)
    assert run(picture_tree, tmp_path / "run", *flags) == 0
    errors = capsys.readouterr().err.splitlines()
    (back,) = [line for line in errors if "going on from" in line]
    assert "step-00000006.pt" in back
    assert_same_runs(tmp_path / "run", tmp_path / "untouched")


def test_a_kill_behind_the_way_back_does_not_lead_to_what_was_left(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps are skipped from the eighth on; step-8 and step-10 are saved among them, and the way back is to step-6."""
    flags = ("--train.max_skipped", "4", "--checkpoint.every_steps", "2")
    assert run(picture_tree, tmp_path / "untouched", *flags) == 0
    with monkeypatch.context() as patch:
        taken = plant(patch, lambda number: number >= 7)

        def is_killed(state: TrainState, network: Any, batches: Any, **others: Any) -> StepResult:
            if "going on from" in capsys.readouterr().err:
                raise KeyboardInterrupt
            return planted(state, network, batches, **others)

        planted = loop.train_step
        patch.setattr("cspnet.training.loop.train_step", is_killed)
        assert run(picture_tree, tmp_path / "run", *flags) == 130
    assert len(taken) > 10
    assert run(picture_tree, tmp_path / "run", *flags, "--resume", "auto") == 0
    assert "step-00000006.pt" in capsys.readouterr().out
    assert_same_runs(tmp_path / "run", tmp_path / "untouched")


@pytest.mark.parametrize("every", [0, 1])
def test_a_trouble_that_stays_ends_the_run_and_the_good_checkpoints_are_there(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], every: int
) -> None:
    taken = plant(monkeypatch, lambda number: number >= 7)
    flags = ("--train.max_skipped", "4", "--checkpoint.every_steps", str(every), "--checkpoint.keep", "1")
    assert run(picture_tree, tmp_path / "run", *flags) == 1
    errors = capsys.readouterr().err.splitlines()
    assert sum("going on from" in line for line in errors) == 1
    assert "the last 4 steps had no finite loss or gradient, again" in errors[-1]
    # Seven good ones; four bad ones and one more until the fourth is noticed; and the same from the checkpoint on.
    assert len(taken) == 7 + 2 * (4 + 1)
    good = STEPS_PER_EPOCH if not every else 7
    content = load(tmp_path / "run", f"step-{good:08d}.pt")
    assert all(torch.isfinite(value).all() for value in content["state_dict"].values())
    assert len(list((tmp_path / "run" / "skipped").iterdir())) == 3


def test_weights_that_are_not_finite_are_never_saved(
    picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate that breaks the network in one step."""
    assert run(picture_tree, tmp_path / "run", "--epochs", "1") == 0
    before = load(tmp_path / "run")
    flags = (
        "--epochs",
        "4",
        "--lr",
        "1e30",
        "--resume",
        "auto",
        "--checkpoint.every_steps",
        "1",
        "--checkpoint.keep",
        "1",
    )
    assert run(picture_tree, tmp_path / "run", *flags, "--train.max_skipped", "3") == 1
    errors = capsys.readouterr().err.splitlines()
    assert "finite" in errors[-1] and "again" in errors[-1]
    for file in (tmp_path / "run" / "checkpoints").glob("*.pt"):
        content = load(tmp_path / "run", file.name)
        values = [*content["state_dict"].values(), *content["state_dict_ema"].values()]
        assert all(torch.isfinite(value).all() for value in values), file.name
    assert_same(load(tmp_path / "run", f"step-{STEPS_PER_EPOCH:08d}.pt"), before)
    read_records(tmp_path / "run")


def test_without_a_checkpoint_from_before_there_is_no_way_back(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, lambda number: True)
    assert run(picture_tree, tmp_path / "run", "--train.max_skipped", "2") == 1
    assert "there is no checkpoint from before" in capsys.readouterr().err.splitlines()[-1]


def test_a_scaler_looks_for_its_scale_down_to_one(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gradients that are never finite, with finite losses, as half precision may have them: a scaler, on a CPU."""
    real = train_step

    def record(state: TrainState, network: Any, batches: Any, *, loss_fn: Loss, **others: Any) -> StepResult:
        if not state.scaler.is_enabled():
            state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        return real(state, network, batches, loss_fn=broken_backward, **others)

    monkeypatch.setattr("cspnet.training.loop.train_step", record)
    assert run(picture_tree, tmp_path / "run", "--train.max_skipped", "3") == 1
    told = [line for line in capsys.readouterr().err.splitlines() if "was skipped" in line]
    # The scales are 8, 4, 2 and then 1, as they stand one step later.
    assert [line.split("step ")[1].split(" ")[0] for line in told] == ["2", "3", "4"]


# Two processes

DRIVER = """
import math, os, sys
from cspnet.training import loop
real = loop.train_step
def broken(state, network, batches, *, loss_fn, **others):
    bad = state.progress.step == 3 and os.environ["RANK"] == "1"
    return real(state, network, batches, loss_fn=lambda *v: (math.nan if bad else 1.0) * loss_fn(*v), **others)
loop.train_step = broken
from cspnet.cli.start import train
sys.exit(train())
"""


@pytest.mark.slow
def test_both_processes_skip_the_step_of_which_one_has_a_bad_loss(picture_tree: Path, tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(driver)]
    flags = ["--batch-size", "2", "--checkpoint.every_steps", "1", "--checkpoint.keep", "all", "--epochs", "1"]
    places = ["--data-path", str(picture_tree), "--output-dir", str(tmp_path / "run")]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    words = [*launcher, *FLAGS, *flags, *places]
    with Forked(words, env=environment, stdout=PIPE, stderr=PIPE, text=True) as process:
        _, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    assert told.count("step 4 was skipped") == 1
    assert [file.name for file in (tmp_path / "run" / "skipped").iterdir()] == ["step-00000004-rank-1.pt"]
    before, bad, after = (load(tmp_path / "run", f"step-{number:08d}.pt") for number in (3, 4, 5))
    assert_same(bad["state_dict"], before["state_dict"])
    assert_same(bad["optimizer"], before["optimizer"])
    assert any(not torch.equal(after["state_dict"][key], value) for key, value in bad["state_dict"].items())
