"""validate.py behind its command line."""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cspnet.cli import build
from cspnet.data.feed import BadImage, Batch
from cspnet.data.index import find_split, open_index
from cspnet.data.samples import SampleIndex
from cspnet.errors import EXIT_DONE, CheckpointError, DataError, UserError, shared_errors
from cspnet.evaluation.answers import Answers, Changes, compare_answers
from cspnet.evaluation.metrics import EvalResult
from cspnet.models import create_model
from cspnet.models.folding import FoldedNetwork, fold_batch_norm
from cspnet.recipe.load import COMMAND_LINE, DEFAULT, load_recipe
from cspnet.recipe.schema import Recipe
from cspnet.reporting.console import Console
from cspnet.reporting.run_report import BadImageLog
from cspnet.runtime.device import choose_amp_dtype, choose_device
from cspnet.runtime.distributed import World, hurry, join_world, naming_the_missing, on_any_rank, on_main, read_world
from cspnet.runtime.files import write_atomically
from cspnet.runtime.memory import told_shortage
from cspnet.weights.darknet import DarknetFile
from cspnet.weights.load import count_classes, load_state_dict
from cspnet.weights.match import Weights, describes_itself, match_weights, read_weight_file

__all__ = ["ValidateJob", "ValidationPass", "build_folded", "run_pass", "run_validate_job"]

# Where the data lay in training, and on what machine, says nothing about where it lies now.
_MACHINE_KEYS = ("data.workers", "data.outside_root", "data.timeout_s", "train.timeout_s", "train.device")
_GEOMETRY_KEYS = ("data.val_px", "data.crop_ratio", "data.val_interpolation", "data.mean", "data.std")


@dataclass(frozen=True)
class ValidateJob:
    """A parsed command line."""

    checkpoint: Path
    overrides: Mapping[str, Any]
    """{dotted key of the recipe: value} of what was given."""
    source: str
    """Whose weight file it is; auto finds out."""
    num_classes: int | None
    """Classes of a Darknet file; None takes 1000."""
    ema: bool | None
    """None takes the moving average if there is one."""
    json_file: Path | None
    fold_bn: bool = True
    """Whether BatchNorms are computed within the convolutions before them."""
    against_fp32: bool = False
    """Whether to validate once more, in float32 with nothing folded, and tell the difference."""


@dataclass(frozen=True)
class _Subject:
    """What a file says about itself: weights, recipe, class names."""

    recipe: Recipe
    weights: Weights
    num_classes: int
    classes: tuple[str, ...]
    geometry_source: str
    """Where size, crop, interpolation and colours of the pictures come from."""


@dataclass(frozen=True)
class ValidationPass:
    """What came of one validation."""

    result: EvalResult
    seconds: float
    """From the first batch that was asked for to the counts."""
    answers: Answers


def run_validate_job(job: ValidateJob) -> int:
    """Validate, print, write JSON if asked; the exit code."""
    with shared_errors():
        if job.json_file and (job.json_file.is_dir() or not job.json_file.parent.is_dir()):
            raise UserError(f"--json {job.json_file}: name a file in a folder that exists")
        world = read_world()
        console = Console(world.rank)
        device = choose_device(job.overrides["train.device"], world.local_rank)
    with join_world(world) as world:
        with shared_errors():
            subject = _read_subject(job, read_weight_file(job.checkpoint, job.source))
            recipe, weights = subject.recipe, subject.weights
            amp_dtype = choose_amp_dtype(recipe.train.precision, device)
            if job.against_fp32 and amp_dtype is torch.float32 and not job.fold_bn:
                raise UserError("--against-fp32: float32 with nothing folded is what --no-fold-bn asks for already")
        index = on_main(world, lambda: _open_index(job, subject, console.warn))
        with shared_errors():
            loader = build.build_eval_loader(recipe, index, world, device)
            began = time.perf_counter()
            batches = iter(loader)  # the processes start here, and read ahead while the network is built
            model = build.build_model(recipe, subject.num_classes, device)
            load_state_dict(model, weights.state, where=str(job.checkpoint))
            folded = build_folded(recipe, model, device) if job.fold_bn else FoldedNetwork(model, 0, 0)
        geometry = build.build_geometry(recipe.data)
        kind = "moving average" if weights.is_average else "raw weights"
        console.say(f"{recipe.model.name}, {kind}, {len(index):,} pictures at {geometry}, {device}")
        console.say(f"geometry from {subject.geometry_source}")
        bn = f"BatchNorms folded: {folded.num_folded}, left: {folded.num_left}" if job.fold_bn else "nothing folded"
        console.say(f"{_name(amp_dtype)}, {bn}")
        if folded.refusal:
            console.warn(f"BatchNorms are not folded, which is slower: {folded.refusal}")
        if index.encoding:
            console.say(f"pictures encoded anew: {index.encoding}")
        for warning in weights.warnings:
            console.warn(f"{job.checkpoint}: {warning}")
        hurried = hurry(world, recipe.train.timeout_s)
        run = functools.partial(run_pass, recipe, index, hurried, device)
        log = BadImageLog(None, console)
        found = run(folded.model, amp_dtype, batches, lambda bad: log.add(bad, "counted as wrong"))
        result, seconds = found.result, time.perf_counter() - began
        if result.num_unreadable:
            console.warn(
                f"{result.num_unreadable} of {result.num_samples} pictures cannot be read; they count as wrong"
            )
        console.say(f"{seconds:.1f} s from the first reading on, {result.num_samples / seconds:,.1f} images/s")
        console.say(str(result))
        report = {
            **result.to_dict(),
            "model": recipe.model.name,
            "checkpoint": str(job.checkpoint),
            "weights": "ema" if weights.is_average else "raw",
            "layout": weights.layout,
            "eval_cfg": asdict(geometry),
            "precision": _name(amp_dtype),
            "num_folded": folded.num_folded,
            "seconds": seconds,
        }
        if job.against_fp32:
            reference = run(model, torch.float32, loader, lambda bad: None)
            changes = compare_answers(found.answers, reference.answers, hurried, device)
            console.say(f"float32, nothing folded: {str(reference.result).strip('* ')}")
            console.say(_describe_changes(result, reference.result, changes))
            report["fp32"] = {**reference.result.to_dict(), **asdict(changes)}
        if job.json_file and world.is_main:
            _write_json(job.json_file, report)
    return EXIT_DONE


def build_folded(recipe: Recipe, model: nn.Module, device: torch.device) -> FoldedNetwork:
    """A copy of the network with BatchNorms folded, tried at the size of the validation pictures."""
    side_px = build.build_geometry(recipe.data).size_px
    noise = torch.randn(1, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    return fold_batch_norm(model, noise.to(device))


def run_pass(
    recipe: Recipe,
    index: SampleIndex,
    world: World,
    device: torch.device,
    model: nn.Module,
    amp_dtype: torch.dtype,
    batches: Iterable[Batch],
    report_bad: Callable[[list[BadImage]], None],
) -> ValidationPass:
    """Validate on all processes."""
    validate = build.build_validation(
        recipe, index, world=world, device=device, amp_dtype=amp_dtype, report_bad=report_bad
    )
    answers = Answers()
    began = time.perf_counter()
    with (
        told_shortage(device, "in the validation", "use a smaller --batch-size"),
        naming_the_missing(world, lambda: "the validation"),
    ):
        # All processes are asked whether to stop, so that all are at the same batch.
        result = validate(model, lambda: on_any_rank(world, False), batches=batches, note=answers.note)
    return ValidationPass(result, time.perf_counter() - began, answers)


def _name(dtype: torch.dtype) -> str:
    """As --precision has it, but in full."""
    return str(dtype).removeprefix("torch.")


def _describe_changes(result: EvalResult, reference: EvalResult, changes: Changes) -> str:
    """What the fast way costs: one line."""
    by_top1, by_top5 = result.correct1 - reference.correct1, result.correct5 - reference.correct5
    return (
        f"against that: Acc@1 {result.acc1 - reference.acc1:+.3f} ({by_top1:+d} pictures), "
        f"Acc@5 {result.acc5 - reference.acc5:+.3f} ({by_top5:+d}), loss {result.loss - reference.loss:+.2g}; "
        f"another first answer for {changes.changed} of {result.num_samples:,} pictures: "
        f"{changes.right_to_wrong} right to wrong, {changes.wrong_to_right} wrong to right"
    )


def _read_subject(job: ValidateJob, content: Mapping[str, Any] | DarknetFile) -> _Subject:
    """Weights and recipe of a file: a checkpoint of ours, or a plain weight file whose model --model names."""
    where = str(job.checkpoint)
    which = {None: "auto", True: "ema", False: "raw"}[job.ema]
    about = content if describes_itself(content) else None
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if about is not None:
        if job.overrides.get("model.name", about["arch"]) != about["arch"]:
            raise CheckpointError(
                f"{where}: holds {about['arch']}, not {job.overrides['model.name']}; leave --model out"
            )
        saved = {key: value for key, value in about["recipe"].items() if key not in _MACHINE_KEYS}
        layers.append((where, saved))
    elif "model.name" not in job.overrides:
        raise CheckpointError(f"{where}: does not say which model it holds; name it with --model NAME")
    model = load_recipe(None, job.overrides, layers).recipe.model
    with torch.device("meta"):
        template = create_model(model.name, **model.options)
    weights = match_weights(content, template, source=job.source, which=which, num_classes=job.num_classes, where=where)
    if about is None and weights.preprocessing is not None:
        layers.append((f"{where} ({weights.layout})", build.geometry_values(weights.preprocessing)))
    resolved = load_recipe(None, job.overrides, layers)
    return _Subject(
        recipe=resolved.recipe,
        weights=weights,
        num_classes=about["num_classes"] if about else count_classes(template, weights.state, where=where),
        classes=tuple(about["classes"]) if about else (),
        geometry_source=_describe_sources({key: resolved.sources[key] for key in _GEOMETRY_KEYS}),
    )


def _describe_sources(sources: Mapping[str, str]) -> str:
    """`FILE; val_px from the command line`: the source of most keys first, then the others by name."""
    names = {COMMAND_LINE: "the command line", DEFAULT: "the default recipe, as the file does not say"}
    (most, _), *others = Counter(sources.values()).most_common()
    text = names.get(most, most)
    for source, _ in others:
        keys = ", ".join(key.removeprefix("data.") for key in sources if sources[key] == source)
        text += f"; {keys} from {names.get(source, source)}"
    return text


def _open_index(job: ValidateJob, subject: _Subject, warn: Callable[[str], None]) -> SampleIndex:
    cfg = subject.recipe.data
    path = find_split(str(cfg.root), "val", cfg.val or "auto", cfg.format)
    index = open_index(
        path,
        root=str(cfg.root),
        outside_root=cfg.outside_root,
        cache_dir=cfg.cache_dir,
        classes=subject.classes,
        num_classes=subject.num_classes,
        warn=warn,
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
