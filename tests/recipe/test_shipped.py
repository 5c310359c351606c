"""The recipes in recipes/: each loads, builds its network, and trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cspnet
from cspnet.cli import build
from cspnet.cli.build_run import Place, build_run
from cspnet.recipe.load import load_recipe
from cspnet.recipe.schema import Recipe
from cspnet.reporting.console import Console
from cspnet.runtime.distributed import World
from cspnet.runtime.signals import StopRequest
from cspnet.training.loop import fit
from tests.conftest import ROOT

RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "base")
CPU = torch.device("cpu")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "recipes").as_posix()


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_its_model_is_built(path: Path) -> None:
    cfg = load_recipe(path).recipe.model
    with torch.device("meta"):
        cspnet.create_model(cfg.name, 1000, **cfg.options)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_it_trains_two_steps(path: Path, picture_tree: Path) -> None:
    """As it is, but for the size of pictures and batches: methods, optimizer, loss, and a schedule of two steps."""
    recipe = load_recipe(path).recipe
    overrides = {"data.root": str(picture_tree), "data.train": "train", "data.val": None, "data.format": "folder"}
    overrides |= {"data.train_px": 64, "data.val_px": 64, "data.workers": 0, "train.precision": "fp32"}
    overrides |= {"train.batch_size": 2 * recipe.augment.repeats, "train.accumulate": min(2, recipe.train.accumulate)}
    overrides |= {"train.steps": 2, "schedule.warmup_steps": 0, "schedule.warmup_epochs": 0.0}
    if recipe.data.start_px is not None:
        overrides |= {"data.start_px": 64}
    if recipe.schedule.min_lr:
        overrides |= {"schedule.min_lr": 0.0}
    recipe = load_recipe(path, overrides).recipe
    world, console = World(), Console(1)  # a console that is silent, as on every process but the first
    splits = build.open_splits(recipe, world)
    model = build.build_model(recipe, splits.num_classes, CPU)
    state = build.build_state(recipe, model, world, CPU, torch.float32)
    loader = build.build_train_loader(recipe, splits, world, CPU)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fit(build_run(recipe, splits, state, loader, Place(world, CPU, torch.float32, console), StopRequest()))
    assert state.progress.step == 2
    after = model.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    # In a block that starts at zero, two small steps may change less than a float32 shows; both ends have to move.
    first, *_, last = [key for key, p in model.named_parameters() if p.ndim > 1 and p.requires_grad]
    assert not torch.equal(after[first], before[first])
    assert not torch.equal(after[last], before[last])
    trained = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}


def test_the_default_is_a_recipe_too() -> None:
    assert load_recipe(ROOT / "recipes" / "cspdarknet53.yaml").recipe == Recipe()


def test_the_network_for_small_pictures_is_small() -> None:
    model = cspnet.create_model(load_recipe(ROOT / "recipes" / "cifar10.yaml").recipe.model.name, 10)
    assert sum(p.numel() for p in model.parameters()) <= 3_000_000
