"""A step's pictures, shared out over processes and forward passes."""

from __future__ import annotations

import pytest

from cspnet.errors import RecipeError
from cspnet.recipe.batch import settle_batch, split_share
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
