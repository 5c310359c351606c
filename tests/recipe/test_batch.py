"""A step's pictures, shared out over processes and forward passes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cspnet.errors import RecipeError
from cspnet.recipe.batch import list_splits, settle_batch, settle_eval_batch, split_share
from cspnet.recipe.load import recipe_from_values
from cspnet.recipe.schema import TrainRecipe


@pytest.mark.parametrize("at_most", [1, 2, 7, 30, 64, 96, 1000])
@pytest.mark.parametrize("share", [1, 2, 12, 60, 64, 97, 128])
def test_a_share_is_split_into_the_fewest_equal_passes(share: int, at_most: int) -> None:
    batch_size, accumulate = split_share(share, at_most)
    assert batch_size == max(n for n in range(1, at_most + 1) if share % n == 0)
    assert batch_size * accumulate == share


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8, 16])
def test_the_global_batch_is_the_same_for_any_number_of_processes(processes: int) -> None:
    batch_size, accumulate = settle_batch(TrainRecipe(global_batch=96, batch_size=16), processes)
    assert batch_size * accumulate * processes == 96
    assert batch_size <= 16


def test_without_it_the_global_batch_grows_with_the_processes() -> None:
    assert settle_batch(TrainRecipe(batch_size=16, accumulate=3), 8) == (16, 3)


def test_a_global_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"train\.global_batch: 96 .* 5 processes"):
        settle_batch(TrainRecipe(global_batch=96), 5)


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 7, 16, 48, 96, 1000])
def test_a_micro_batch_leaves_the_step_as_it_is(micro_batch: int) -> None:
    for cfg in (TrainRecipe(batch_size=32, accumulate=3), TrainRecipe(global_batch=192, batch_size=64)):
        processes = 2 if cfg.global_batch else 1
        batch_size, accumulate = settle_batch(replace(cfg, micro_batch=micro_batch), processes)
        assert batch_size * accumulate == 96
        assert batch_size == max(size for size in range(1, micro_batch + 1) if 96 % size == 0)
        assert settle_batch(replace(cfg, micro_batch="auto"), processes) == settle_batch(cfg, processes)


def test_smaller_splits_come_largest_first() -> None:
    assert list_splits(12, 13) == [12, 6, 4, 3, 2, 1]
    assert list_splits(12, 6) == [4, 3, 2, 1]
    assert list_splits(12, 1) == []


@pytest.mark.parametrize(
    ("eval_batch", "micro_batch", "expected"), [(None, None, 64), (None, 16, 8), (None, "auto", 8), (40, "auto", 40)]
)
def test_a_validation_batch_fits_where_a_micro_batch_is_set(
    eval_batch: int | None, micro_batch: int | str | None, expected: int
) -> None:
    values = {"eval.batch_size": eval_batch, "train.micro_batch": micro_batch}
    assert settle_eval_batch(recipe_from_values(values, "test"), 8) == expected


@pytest.mark.parametrize("wrong", ["many", 0, 1.5, True])
def test_a_wrong_micro_batch(wrong: object) -> None:
    with pytest.raises(RecipeError, match=r"train\.micro_batch: expected .* or 'auto', got"):
        recipe_from_values({"train.micro_batch": wrong}, "test")
