"""How the pictures of a step are shared out: over processes, and over the forward passes of each."""

from __future__ import annotations

from cspnet.errors import RecipeError
from cspnet.recipe.schema import TrainRecipe

__all__ = ["settle_batch", "split_share"]


def split_share(share: int, at_most: int) -> tuple[int, int]:
    """A process's pictures of a step as (pictures per forward pass, forward passes).

    As few passes of equal size as there can be, with at most `at_most` pictures each.
    """
    accumulate = next(n for n in range(-(-share // at_most), share + 1) if share % n == 0)
    return share // accumulate, accumulate


def settle_batch(cfg: TrainRecipe, processes: int) -> tuple[int, int]:
    """(pictures per forward pass, forward passes per step) of each process.

    Raises:
        RecipeError: train.global_batch cannot be shared out evenly.
    """
    if cfg.global_batch is None:
        return cfg.batch_size, cfg.accumulate
    if cfg.global_batch % processes:
        raise RecipeError(
            f"train.global_batch: {cfg.global_batch} pictures cannot be shared out over {processes} processes evenly"
        )
    return split_share(cfg.global_batch // processes, cfg.batch_size)
