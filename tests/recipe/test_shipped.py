"""The recipes in recipes/."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cspnet
from cspnet.recipe.load import load_recipe
from cspnet.recipe.schema import Recipe
from tests.conftest import ROOT

RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "base")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_model_is_built(path: Path) -> None:
    cfg = load_recipe(path).recipe.model
    with torch.device("meta"):
        cspnet.create_model(cfg.name, 7, **cfg.options)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_header_says_source_claim_cost_and_command(path: Path) -> None:
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Source:", "Claim:", "Cost:", "Command:"):
        assert any(line.startswith(f"# {word}") for line in comments), word


def test_the_default_is_a_recipe_too() -> None:
    assert load_recipe(ROOT / "recipes" / "cspdarknet53.yaml").recipe == Recipe()


def test_the_network_for_small_pictures_is_small() -> None:
    model = cspnet.create_model(load_recipe(ROOT / "recipes" / "cifar10.yaml").recipe.model.name, 10)
    assert sum(p.numel() for p in model.parameters()) <= 3_000_000
