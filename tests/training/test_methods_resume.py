"""Every method of training, alone and with others: it changes the run, and a resumed run ends with the same bits."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cspnet.cli.build import build_model
from cspnet.cli.train import main
from cspnet.recipe.load import load_recipe
from tests.conftest import draw_tree
from tests.training.whole_runs import assert_same

BASE = (
    *("--model", "cspdarknet_tiny", "--img-size", "32", "--device", "cpu", "--precision", "fp32", "--workers", "0"),
    *("--batch-size", "8", "--lr", "0.02", "--steps", "5", "--print-freq", "1", "--val-split", "null"),
    *("--checkpoint.every_steps", "2", "--checkpoint.keep", "9", "--log.tensorboard", "false"),
)
DARKNET_VIEW = ("--data.train_crop", "darknet", "--darknet.min_crop_px", "24", "--darknet.max_crop_px", "60")
METHODS: dict[str, tuple[str, ...]] = {
    "darknet's view": DARKNET_VIEW,
    "darknet's mixup": ("--mix.darknet", "mixup"),
    "darknet's cutmix": ("--mix.darknet", "cutmix"),
    "darknet's mosaic": ("--mix.darknet", "mosaic"),
    "darknet's cutmix and mosaic": ("--mix.darknet", "cutmix_mosaic"),
    "darknet's blur": ("--mix.blur_px", "9"),
    "darknet's smoothing": ("--smoothing", "0.1", "--loss.smoothing_over", "others"),
    "darknet's schedule": ("--sched", "darknet_poly", "--warmup-steps", "3"),
    "self-adversarial": ("--adversarial.lr", "5"),
    "small batches": ("--batch-size", "4", "--accumulate", "2", "--model-kwargs", "{bn_momentum: 0.01}"),
    "alternating flip": ("--data.flip", "alternate"),
    "mirrored border": ("--data.train_crop", "random_pad", "--data.pad_with", "reflect"),
    "cutmix": ("--cutmix", "1"),
    "mixup": ("--mixup", "0.4"),
    "cutmix or mixup": ("--cutmix", "1", "--mixup", "0.4", "--mixup-switch-prob", "0.6", "--mixup-prob", "0.9"),
    "randaugment": ("--aa", "rand-m9-mstd0.5-inc1"),
    "trivialaugment": ("--aa", "trivial"),
    "3-augment and jitter": ("--aa", "3a", "--color-jitter", "0.3"),
    "random erasing": ("--reprob", "0.7", "--recount", "2"),
    "repeated augmentation": ("--aug-repeats", "2"),
    "progressive size": ("--data.start_px", "16", "--data.ramp_epochs", "[0, 1]"),
    "stochastic depth": ("--model-kwargs", "{drop_path_rate: 0.5}"),
    "bce": ("--bce-loss", "--bce-target-thresh", "0.2"),
    "multistep": ("--sched", "multistep", "--decay-milestones", "[0.4]"),
    "exponential": ("--sched", "exponential", "--decay-epochs", "1"),
    "rmsprop": ("--opt", "rmsprop_tf"),
    "adamw": ("--opt", "adamw"),
    "lamb": ("--opt", "lamb"),
    "freezing": ("--freeze", "2"),
    "layer-wise lr": ("--layer-decay", "0.5"),
}
METHODS["all of darknet's"] = (
    *METHODS["small batches"],
    *DARKNET_VIEW,
    *("--mix.darknet", "cutmix_mosaic", "--mix.blur_px", "1", "--adversarial.lr", "5"),
    *METHODS["darknet's smoothing"],
    *METHODS["darknet's schedule"],
    *("--warmup-steps", "1"),
)
METHODS["all the modern ones"] = (
    *METHODS["cutmix or mixup"],
    *("--aa", "rand-m9-mstd0.5-inc1", "--color-jitter", "0.3"),
    *METHODS["random erasing"],
    *METHODS["repeated augmentation"],
    *METHODS["progressive size"],
    *("--model-kwargs", "{drop_path_rate: 0.3, drop_rate: 0.2}", "--ema.decay", "0.9"),
    *METHODS["bce"],
    *METHODS["lamb"],
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training pictures: three steps of eight."""
    return draw_tree(tmp_path_factory.mktemp("methods"), classes=3, train=24, val=3)


def train(pictures: Path, folder: Path, *flags: str) -> dict[str, Any]:
    """The last checkpoint of a run, less what tells how it was made."""
    assert main([*BASE, *flags, "--data-path", str(pictures), "--output-dir", str(folder)]) == 0
    content = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    for key in ("recipe", "versions"):
        del content[key]
    return content


@pytest.fixture(scope="module")
def plain(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return train(pictures, tmp_path_factory.mktemp("plain") / "run")


def disturb_global_generators() -> None:
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_works_and_resumes_exactly(method: str, pictures: Path, plain: dict[str, Any], tmp_path: Path) -> None:
    flags = METHODS[method]
    whole = train(pictures, tmp_path / "whole", *flags)
    different = [key for key, value in plain["state_dict"].items() if not torch.equal(value, whole["state_dict"][key])]
    assert different, f"{method} changes nothing"
    disturb_global_generators()
    middle = tmp_path / "whole" / "checkpoints" / "step-00000002.pt"
    assert middle.is_file(), list(middle.parent.iterdir())
    resumed = train(pictures, tmp_path / "resumed", *flags, "--resume", str(middle))
    assert_same(resumed, whole)


@pytest.mark.parametrize("method", ["all of darknet's", "all the modern ones"])
def test_workers_change_nothing(method: str, pictures: Path, tmp_path: Path) -> None:
    flags = METHODS[method]
    alone = train(pictures, tmp_path / "alone", *flags)
    disturb_global_generators()
    assert_same(train(pictures, tmp_path / "helped", *flags, "--workers", "2"), alone)


def test_frozen_parts_stay_as_they_were(pictures: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.pt"
    recipe = load_recipe(None, {"model.name": "cspdarknet_tiny"}).recipe
    torch.save(build_model(recipe, 3, torch.device("cpu")).state_dict(), start)
    before = torch.load(start, weights_only=True)
    after = train(pictures, tmp_path / "run", "--freeze", "2", "--pretrained", str(start), "--ema.decay", "0.5")
    frozen = {key for key in before if key.startswith(("stem.", "stages.0."))}
    assert any("running_mean" in key for key in frozen)
    for state in (after["state_dict"], after["state_dict_ema"]):
        same = {key for key, value in before.items() if torch.equal(value, state[key])}
        assert same == frozen
