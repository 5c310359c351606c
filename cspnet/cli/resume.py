"""Going on from a checkpoint: does it belong to this run, and filling a fresh state from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cspnet.cli import build
from cspnet.cli.run_folder import Start
from cspnet.errors import CheckpointError, DataError, ModelError
from cspnet.models.darknet_cfg import CFG_PREFIX, read_cfg_text
from cspnet.recipe.load import list_differences
from cspnet.recipe.schema import Recipe
from cspnet.reporting.console import Console
from cspnet.runtime.distributed import World
from cspnet.runtime.random import integer_at
from cspnet.training.state import Progress, TrainState
from cspnet.weights.load import load_state_dict

__all__ = ["check_checkpoint", "check_same_run", "restore", "say_differences"]

# What may differ between a run and its continuation without making it another run: where and how it is computed.
_FREE_KEYS = ("data.root", "data.format", "data.train", "data.outside_root", "data.cache_dir", "data.workers",
              "data.prefetch", "data.timeout_s", "train.device", "train.batch_size", "train.accumulate",
              "train.global_batch", "train.micro_batch", "train.grad_checkpointing", "train.max_skipped",
              "train.timeout_s", "eval.batch_size", "log.every_steps", "log.tensorboard", "checkpoint.every_steps",
              "checkpoint.keep", "checkpoint.keep_best", "checkpoint.max_failures", "model.pretrained",
              "model.pretrained_source", "model.pretrained_classes", "model.num_classes")  # fmt: skip


_MISFITS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError)
"""What comes of a checkpoint's part that is not of the kind that is expected there."""


def say_differences(saved: Mapping[str, Any], recipe: Recipe, console: Console) -> None:
    """Name every setting that makes a continued run another one than was saved."""
    for key, old, new in list_differences(saved, recipe):
        if key not in _FREE_KEYS:
            console.warn(f"{key} was {old} when the run was saved and is {new} now: the run will not be the one it was")


def check_checkpoint(checkpoint: Mapping[str, Any], recipe: Recipe, splits: build.Splits, start: Start) -> None:
    """Refuse a checkpoint of another model, cfg file, number of classes or optimizer."""
    where = start.checkpoint_file
    _check_cfg_file(recipe, where)
    for what, saved, now in (
        ("model", checkpoint["arch"], recipe.model.name),
        ("number of classes", checkpoint["num_classes"], splits.num_classes),
        ("optimizer", checkpoint["recipe"].get("optim.name", recipe.optim.name), recipe.optim.name),
    ):
        if saved != now:
            raise CheckpointError(
                f"{where}: its {what} is {saved}, this run's is {now}; to start from its weights use --pretrained"
            )


def _check_cfg_file(recipe: Recipe, where: Path | None) -> None:
    """Refuse to go on when the cfg file was edited; without the file, the text in the checkpoint is the network."""
    name = recipe.model.name
    if not name.startswith(CFG_PREFIX):
        return
    try:
        text = read_cfg_text(name)
    except ModelError:
        return
    if text != recipe.model.options.get("text", text):
        raise CheckpointError(
            f"{where}: its network is another one than {name.removeprefix(CFG_PREFIX)} describes now; to go on with "
            "the saved one move the file away, to start from its weights use --pretrained"
        )


def _describe_difference(checkpoint: Mapping[str, Any], splits: build.Splits) -> str:
    """Between the pictures of a run and those that are there now, as far as its checkpoint tells."""
    number, now = checkpoint["data"]["num_samples"], len(splits.train)
    if number != now:
        return f"{number} of them, now {now}"
    classes = [set(checkpoint.get("classes") or ()), set(splits.train.classes)]
    if all(classes) and (gone := sorted(classes[0] - classes[1])):
        return f"{number} as now, but with the class {gone[0]}"
    return f"{number} as now, under other names or in other classes"


def check_same_run(
    checkpoint: Mapping[str, Any], recipe: Recipe, splits: build.Splits, global_batch_size: int, start: Start
) -> None:
    """Refuse what cannot go on from there: other pictures, another global batch, another seed."""
    where = start.checkpoint_file
    if checkpoint["data"]["fingerprint"] != splits.train.fingerprint:
        raise DataError(
            f"{where}: it was trained on another set of pictures ({_describe_difference(checkpoint, splits)}), so it "
            "cannot go on from the same sample; to start from its weights use --pretrained"
        )
    saved = checkpoint["global_batch_size"]
    if saved != global_batch_size:
        raise CheckpointError(
            f"{where}: its steps take {saved} pictures, this run's {global_batch_size}; "
            f"keep processes x --batch-size x --accumulate at {saved}, or give --global-batch {saved}"
        )
    seed = checkpoint["recipe"].get("train.seed", recipe.train.seed)
    if seed != recipe.train.seed:
        raise CheckpointError(f"{where}: its seed is {seed}, this run's is {recipe.train.seed}; keep --seed {seed}")


def _check_optimizer(optimizer: torch.optim.Optimizer, where: str) -> None:
    """Refuse a state whose tensors do not belong to their parameters; a step would fail over it."""
    for parameter, values in optimizer.state.items():
        if not isinstance(values, dict) or not isinstance(parameter, torch.Tensor):
            raise CheckpointError(f"{where}: damaged: the state of its optimizer is something else")
        for name, value in values.items():
            is_number = isinstance(value, int | float | None)
            if not is_number and (not isinstance(value, torch.Tensor) or value.shape not in ((), parameter.shape)):
                raise CheckpointError(f"{where}: damaged: {name} of its optimizer is something else")


def restore(
    state: TrainState, checkpoint: Mapping[str, Any], seed: int, world: World, start: Start, console: Console
) -> None:
    """Fill a fresh state from a checkpoint; `seed` is the run's."""
    where = str(start.checkpoint_file)
    load_state_dict(state.model, checkpoint["state_dict"], where=where)
    if state.ema is not None:
        average = checkpoint["state_dict_ema"]
        if average is None:
            console.warn(f"{where}: holds no moving average; it starts from the weights")
        load_state_dict(state.ema.module, average or checkpoint["state_dict"], where=where)
    settings = [
        {key: value for key, value in group.items() if key not in ("params", "lr")}
        for group in state.optimizer.param_groups
    ]
    try:
        state.optimizer.load_state_dict(checkpoint["optimizer"])
    except ValueError as error:
        raise CheckpointError(
            f"{where}: its optimizer has other parameter groups: keep model.freeze, optim.layer_decay and "
            "optim.decay_norm_and_bias"
        ) from error
    except _MISFITS as error:
        raise CheckpointError(f"{where}: damaged: its optimizer is something else") from error
    _check_optimizer(state.optimizer, where)
    for group, values in zip(state.optimizer.param_groups, settings, strict=True):
        group.update(values)  # torch takes the saved decay, momentum and so on; what the recipe says now counts
    state.progress = Progress(**checkpoint["progress"])
    ranks = checkpoint["ranks"]
    if len(ranks) != world.size:
        console.warn(
            f"saved by {len(ranks)} processes, resumed by {world.size}: the pictures and their crops are the same; "
            "dropout, BatchNorm's averages and, in forward passes of another size, mixing differ from here on"
        )
    torch.manual_seed(integer_at(seed, "torch", world.rank, state.progress.step))  # for a rank that saved none
    try:
        if checkpoint["scaler"] and state.scaler.is_enabled():
            state.scaler.load_state_dict(checkpoint["scaler"])
        state.load_rank_dicts(ranks, world.rank, world.size)
    except (*_MISFITS, ValueError) as error:
        raise CheckpointError(f"{where}: damaged: its scaler or random state is something else") from error
