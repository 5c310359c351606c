"""validate.py behind its command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cspnet.cli import build
from cspnet.data.index import SampleIndex, find_split, open_index
from cspnet.errors import EXIT_DONE, CheckpointError, DataError, UserError, shared_errors
from cspnet.models import create_model
from cspnet.recipe.load import load_recipe
from cspnet.recipe.schema import Recipe
from cspnet.reporting.console import Console
from cspnet.reporting.run_report import BadImageLog
from cspnet.runtime.device import choose_amp_dtype, choose_device
from cspnet.runtime.distributed import join_world, on_main, read_world
from cspnet.runtime.files import write_atomically
from cspnet.weights.files import read_tensors
from cspnet.weights.load import count_classes, extract_state_dict, load_state_dict

__all__ = ["ValidateJob", "run_validate_job"]


@dataclass(frozen=True)
class ValidateJob:
    """A parsed command line."""

    checkpoint: Path
    overrides: Mapping[str, Any]
    """{dotted key of the recipe: value} of what was given."""
    ema: bool | None
    """None takes the moving average if there is one."""
    json_file: Path | None


@dataclass(frozen=True)
class _Subject:
    """What a file says about itself: weights, recipe, class names."""

    recipe: Recipe
    state: Mapping[str, Tensor]
    is_average: bool
    num_classes: int
    classes: tuple[str, ...]


def run_validate_job(job: ValidateJob) -> int:
    """Validate, print, write JSON if asked; the exit code."""
    with shared_errors():
        if job.json_file and (job.json_file.is_dir() or not job.json_file.parent.is_dir()):
            raise UserError(f"--json {job.json_file}: name a file in a folder that exists")
        world = read_world()
        console = Console(world.rank)
        device = choose_device(job.overrides["train.device"], world.local_rank)
    with join_world(world):
        with shared_errors():
            subject = _read_subject(job, read_tensors(job.checkpoint))
            recipe = subject.recipe
            amp_dtype = choose_amp_dtype(recipe.train.precision, device)
            model = build.build_model(recipe, subject.num_classes, device)
            load_state_dict(model, subject.state, where=str(job.checkpoint))
        index = on_main(world, lambda: _open_index(job, subject))
        geometry = build.build_geometry(recipe.data)
        weights = "moving average" if subject.is_average else "raw weights"
        console.say(f"{recipe.model.name}, {weights}, {len(index):,} pictures at {geometry}, {device}")
        validate = build.build_validation(
            recipe,
            index,
            world=world,
            device=device,
            amp_dtype=amp_dtype,
            report_bad=lambda bad: BadImageLog(None, console).add(bad, "counted as wrong"),
        )
        result = validate(model)
        if result.num_unreadable:
            console.warn(
                f"{result.num_unreadable} of {result.num_samples} pictures cannot be read; they count as wrong"
            )
        console.say(str(result))
        if job.json_file and world.is_main:
            report = {
                **result.to_dict(),
                "model": recipe.model.name,
                "checkpoint": str(job.checkpoint),
                "weights": "ema" if subject.is_average else "raw",
                "eval_cfg": asdict(geometry),
                "precision": str(amp_dtype).removeprefix("torch."),
            }
            _write_json(job.json_file, report)
    return EXIT_DONE


def _read_subject(job: ValidateJob, content: Mapping[str, Any]) -> _Subject:
    """Weights and recipe of a file: a checkpoint of ours, or a plain weight file whose model --model names."""
    where = str(job.checkpoint)
    source = {None: "auto", True: "ema", False: "raw"}[job.ema]
    state = extract_state_dict(content, source=source, where=where)
    is_average = source != "raw" and content.get("state_dict_ema") is not None
    saved = content.get("recipe")
    if isinstance(saved, dict) and {"arch", "num_classes", "classes"} <= set(content):
        if job.overrides.get("model.name", content["arch"]) != content["arch"]:
            raise CheckpointError(
                f"{where}: holds {content['arch']}, not {job.overrides['model.name']}; leave --model out"
            )
        # Where the data lay in training says nothing about where it lies now.
        layer = {key: value for key, value in saved.items() if key not in ("data.workers", "train.device")}
        recipe = load_recipe(None, job.overrides, [(where, layer)]).recipe
        return _Subject(recipe, state, is_average, content["num_classes"], tuple(content["classes"]))
    if "model.name" not in job.overrides:
        raise CheckpointError(f"{where}: does not say which model it holds; name it with --model NAME")
    recipe = load_recipe(None, job.overrides).recipe
    with torch.device("meta"):
        num_classes = count_classes(create_model(recipe.model.name), state, where=where)
    return _Subject(recipe, state, is_average, num_classes, ())


def _open_index(job: ValidateJob, subject: _Subject) -> SampleIndex:
    cfg = subject.recipe.data
    path = find_split(str(cfg.root), "val", cfg.val or "auto", cfg.format)
    index = open_index(
        path, root=str(cfg.root), cache_dir=cfg.cache_dir, classes=subject.classes, num_classes=subject.num_classes
    )
    if index.classes and len(index.classes) != subject.num_classes:
        raise DataError(
            f"{path}: {len(index.classes)} class folders, but {job.checkpoint} has {subject.num_classes} classes"
        )
    return index


def _write_json(file: Path, report: dict[str, Any]) -> None:
    try:
        write_atomically(file, (json.dumps(report, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"{file}: cannot write the result: {error.strerror}") from error
