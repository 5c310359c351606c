"""validate.py behind its command line."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cspnet.cli import build
from cspnet.cli.result_files import ResultFiles
from cspnet.cli.subject import Subject, build_folded, read_subject
from cspnet.data.feed import BadImage, Batch
from cspnet.data.index import find_split, open_index
from cspnet.data.samples import SampleIndex
from cspnet.errors import EXIT_DONE, DataError, UserError, shared_errors
from cspnet.evaluation.answers import Answers, Changes, compare_answers, gather_answers
from cspnet.evaluation.metrics import EvalResult
from cspnet.evaluation.tables import AnswerTable
from cspnet.models.folding import FoldedNetwork
from cspnet.recipe.schema import Recipe
from cspnet.reporting.console import Console
from cspnet.reporting.run_report import BadImageLog
from cspnet.runtime.device import choose_amp_dtype, choose_device
from cspnet.runtime.distributed import World, hurry, join_world, naming_the_missing, on_any_rank, on_main, read_world
from cspnet.runtime.memory import told_shortage
from cspnet.weights.load import load_state_dict

__all__ = ["ValidateJob", "ValidationPass", "run_pass", "run_validate_job"]


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
    files: ResultFiles = field(default_factory=ResultFiles)
    """To write."""
    fold_bn: bool = True
    """Whether BatchNorms are computed within the convolutions before them."""
    against_fp32: bool = False
    """Whether to validate once more, in float32 with nothing folded, and tell the difference."""


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
        world = read_world()
        console = Console(world.rank)
        device = choose_device(job.overrides["train.device"], world.local_rank)
    with join_world(world) as world:
        with shared_errors():
            subject = read_subject(
                job.checkpoint, job.overrides, source=job.source, num_classes=job.num_classes, ema=job.ema
            )
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
        if job.files.wants_answers:
            top, is_readable = gather_answers(found.answers, len(index), hurried)
            names = subject.classes or index.classes or subject.names()
            if world.is_main:
                job.files.write_answers(AnswerTable(top, index.labels, is_readable, names), index)
        if world.is_main:
            job.files.write_json(report)
            num_params = sum(p.numel() for p in model.parameters())
            job.files.append_timms(recipe.model.name, result, num_params, geometry)
    return EXIT_DONE


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


def _open_index(job: ValidateJob, subject: Subject, warn: Callable[[str], None]) -> SampleIndex:
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
