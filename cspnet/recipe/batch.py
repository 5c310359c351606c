"""How the pictures of a step are shared out: over processes, and over the forward passes of each."""

from __future__ import annotations

from cspnet.errors import RecipeError
from cspnet.recipe.schema import Recipe, TrainRecipe

__all__ = ["list_splits", "settle_batch", "settle_eval_batch", "settled_size", "split_share"]


def split_share(share: int, at_most: int) -> tuple[int, int]:
    """A process's pictures of a step as (pictures per forward pass, forward passes).

    As few passes of equal size as there can be, with at most `at_most` pictures each.
    """
    accumulate = next(n for n in range(-(-share // at_most), share + 1) if share % n == 0)
    return share // accumulate, accumulate


def list_splits(share: int, below: int) -> list[int]:
    """Pictures per forward pass that share out a process's pictures evenly, fewer than `below`, the largest first."""
    return [size for size in range(min(share, below - 1), 0, -1) if share % size == 0]


def settled_size(cfg: TrainRecipe) -> int:
    """train.batch_size, once auto has become a number."""
    assert cfg.batch_size != "auto"
    return cfg.batch_size


def settle_batch(cfg: TrainRecipe, processes: int) -> tuple[int, int]:
    """(pictures per forward pass, forward passes per step) of each process; with train.micro_batch auto, as without.

    Raises:
        RecipeError: train.global_batch cannot be shared out evenly.
    """
    most = settled_size(cfg)
    if cfg.global_batch is None:
        batch_size, accumulate = most, cfg.accumulate
    elif cfg.global_batch % processes:
        raise RecipeError(
            f"train.global_batch: {cfg.global_batch} pictures cannot be shared out over {processes} processes evenly"
        )
    else:
        batch_size, accumulate = split_share(cfg.global_batch // processes, most)
    if isinstance(cfg.micro_batch, int):
        return split_share(batch_size * accumulate, cfg.micro_batch)
    return batch_size, accumulate


def settle_eval_batch(recipe: Recipe, micro_batch: int) -> int:
    """Pictures of a validation batch, in each process: no more than fit where train.micro_batch bounds those."""
    return recipe.eval.batch_size or (settled_size(recipe.train) if recipe.train.micro_batch is None else micro_batch)
