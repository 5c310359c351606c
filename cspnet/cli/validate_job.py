"""validate.py behind its command line."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from cspnet.cli import build
from cspnet.cli.result_files import ResultFiles
from cspnet.cli.subject import Subject, build_folded, open_val_index, read_subject
from cspnet.cli.weight_flags import AskedWeights
from cspnet.data.feed import BadImage, Batch
from cspnet.data.samples import SampleIndex
from cspnet.errors import EXIT_DONE, UserError, shared_errors
from cspnet.evaluation.answers import Answers, Changes, compare_answers, gather_answers
from cspnet.evaluation.metrics import EvalResult
from cspnet.evaluation.paired import describe_pair, pair
from cspnet.evaluation.real_labels import count_real, find_real_labels, read_real_labels
from cspnet.evaluation.tables import AnswerTable
from cspnet.evaluation.views import AveragedViews, RestrictedClasses
from cspnet.models.folding import FoldedNetwork
from cspnet.recipe.schema import Recipe
from cspnet.reporting.console import Console
from cspnet.reporting.run_report import BadImageLog
from cspnet.runtime.device import choose_amp_dtype, choose_device
from cspnet.runtime.distributed import World, hurry, join_world, naming_the_missing, on_any_rank, on_main, read_world
from cspnet.runtime.heap import keep_freed_memory
from cspnet.runtime.memory import told_shortage
from cspnet.weights.load import load_state_dict

__all__ = ["ValidateJob", "ValidationPass", "run_pass", "run_validate_job"]


@dataclass(frozen=True)
class ValidateJob:
    """A parsed command line."""

    weights: tuple[AskedWeights, ...]
    """One for each file, with the same overrides."""
    files: ResultFiles = field(default_factory=ResultFiles)
    """To write."""
    fold_bn: bool = True
    """Whether BatchNorms are computed within the convolutions before them."""
    against_fp32: bool = False
    """Whether to validate once more, in float32 with nothing folded, and tell the difference."""
    flips: bool = False
    """Whether to validate once more with the mean over each picture and its mirror image."""
    crops: Literal[1, 5] = 1
    """5: that mean is over the corners and the centre of each picture."""
    restrict: bool = False
    """Whether only classes that the split has count as answers."""
    real_labels: Path | None = None
    """ImageNet-ReaL's."""
    compare: bool = False
    """Whether to test if the others differ from the first by more than chance."""


@dataclass(frozen=True)
class ValidationPass:
    """What came of one validation."""

    result: EvalResult
    seconds: float
    """From the first batch that was asked for to the counts."""
    answers: Answers


@dataclass(frozen=True)
class _Validated:
    """What came of one file."""

    report: dict[str, Any]
    is_right: np.ndarray | None
    """(N,) bool, whether the first answer to each picture is; None where nobody asked."""


@dataclass(frozen=True)
class _Place:
    """Where it is computed, and who tells it."""

    world: World
    device: torch.device
    console: Console


@dataclass(frozen=True)
class _Plan:
    """What is to be validated, found out before anything is."""

    subject: Subject
    index: SampleIndex
    amp_dtype: torch.dtype
    wider: Recipe
    """With the pictures that views are cut from."""
    real_labels: Sequence[Sequence[int]] | None
    """Of each picture, where they are asked for."""


def run_validate_job(job: ValidateJob) -> int:
    """Validate, print, write files if asked; the exit code."""
    with shared_errors():
        world = read_world()
        console = Console(world.rank)
        device = choose_device(job.weights[0].overrides["train.device"], world.local_rank)
        keep_freed_memory(device)
        real_labels = read_real_labels(job.real_labels) if job.real_labels else None
    with join_world(world) as world:
        place = _Place(world, device, console)
        plan = functools.partial(_plan, job, real_labels=real_labels, place=place)
        if len(job.weights) > 1:
            _check_all(job, plan)
        found = [_validate(job, asked.file, plan(asked), place) for asked in job.weights]
        reports = [each.report for each in found]
        if len(found) > 1:
            for line in _tabulate(reports):
                console.say(line)
        if job.compare:
            _compare(found, console)
        if world.is_main:
            job.files.write_json(reports[0] if len(reports) == 1 else reports)
    return EXIT_DONE


def _check_all(job: ValidateJob, plan: Callable[[AskedWeights], _Plan]) -> None:
    """Find out what is wrong with the last file before the first is validated. Their weights are not kept.

    Raises:
        UserError: one cannot be validated; or they are to be compared, and their pictures are not the same.
    """
    fingerprints = [plan(asked).index.fingerprint for asked in job.weights]
    for asked, fingerprint in zip(job.weights, fingerprints, strict=True):
        if job.compare and fingerprint != fingerprints[0]:
            with shared_errors():
                raise UserError(f"--compare: {asked.file} is not of the pictures and labels of {job.weights[0].file}")


def _plan(job: ValidateJob, asked: AskedWeights, real_labels: Mapping[str, list[int]] | None, place: _Place) -> _Plan:
    """Read a file, and look at its pictures."""
    with shared_errors():
        subject = read_subject(asked)
        amp_dtype = choose_amp_dtype(subject.recipe.train.precision, place.device)
        if job.against_fp32 and amp_dtype is torch.float32 and not job.fold_bn:
            raise UserError("--against-fp32: float32 with nothing folded is what --no-fold-bn asks for already")
        wider = _widen(subject.recipe) if job.crops > 1 else subject.recipe
    index = on_main(place.world, lambda: open_val_index(subject, asked.file, place.console.warn))
    with shared_errors():
        paths = [index.path(i) for i in range(len(index))] if real_labels is not None else []
        labels = find_real_labels(paths, real_labels) if real_labels is not None else None
    return _Plan(subject, index, amp_dtype, wider, labels)


@dataclass(frozen=True)
class _Network:
    """A file's network, ready for any number of passes over the pictures of its plan."""

    plan: _Plan
    world: World
    """Hurried: no exchange waits longer than the recipe says."""
    device: torch.device
    plain: nn.Module
    folded: FoldedNetwork
    limit: Callable[[nn.Module], nn.Module]
    """What restricts a network to the classes of the split, if that is asked for."""

    def run(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        amp_dtype: torch.dtype | None = None,
        report_bad: Callable[[list[BadImage]], None] = lambda bad: None,
    ) -> ValidationPass:
        """Validate it, or what was made of it; in the precision of the plan, unless another one is given."""
        plan = self.plan
        amp_dtype = plan.amp_dtype if amp_dtype is None else amp_dtype
        return run_pass(plan.subject.recipe, plan.index, self.world, self.device, model, amp_dtype, batches, report_bad)


def _validate(job: ValidateJob, file: Path, plan: _Plan, place: _Place) -> _Validated:
    """Validate one file, on all processes."""
    console, subject, index = place.console, plan.subject, plan.index
    with shared_errors():
        loader = build.build_eval_loader(subject.recipe, index, place.world, place.device)
        began = time.perf_counter()
        batches = iter(loader)  # the processes start here, and read ahead while the network is built
        network = _build_network(job, file, plan, place)
    log = BadImageLog(None, console)
    fast = network.limit(network.folded.model)
    found = network.run(fast, batches, report_bad=lambda bad: log.add(bad, "counted as wrong"))
    result, seconds = found.result, time.perf_counter() - began
    if result.num_unreadable:
        console.warn(f"{result.num_unreadable} of {result.num_samples} pictures cannot be read; they count as wrong")
    console.say(f"{seconds:.1f} s from the first reading on, {result.num_samples / seconds:,.1f} images/s")
    console.say(str(result))
    geometry = build.build_geometry(subject.recipe.data)
    report = {
        **result.to_dict(),
        "model": subject.recipe.model.name,
        "checkpoint": str(file),
        "weights": "ema" if subject.weights.is_average else "raw",
        "layout": subject.weights.layout,
        "eval_cfg": asdict(geometry),
        "precision": _name(plan.amp_dtype),
        "num_folded": network.folded.num_folded,
        "seconds": seconds,
    }
    if job.flips or job.crops > 1:
        report["views"] = _validate_views(job, network, place)
    if job.against_fp32:
        report["fp32"] = _validate_in_fp32(found, network, loader, console)
    is_right = None
    if job.files.wants_answers or plan.real_labels is not None or job.compare:
        is_right = _look_at_answers(job, found, network, report, place)
    if place.world.is_main:
        num_params = sum(p.numel() for p in network.plain.parameters())
        job.files.append_timms(subject.recipe.model.name, result, num_params, geometry)
    return _Validated(report, is_right)


def _build_network(job: ValidateJob, file: Path, plan: _Plan, place: _Place) -> _Network:
    """A file's network with its weights, told on the console."""
    world, device, console = place.world, place.device, place.console
    subject, index = plan.subject, plan.index
    recipe, weights = subject.recipe, subject.weights
    model = build.build_model(recipe, subject.num_classes, device)
    load_state_dict(model, weights.state, where=str(file))
    folded = build_folded(recipe, model, device) if job.fold_bn else FoldedNetwork(model, 0, 0)
    kind = "moving average" if weights.is_average else "raw weights"
    geometry = build.build_geometry(recipe.data)
    console.say(f"{recipe.model.name}, {kind}, {len(index):,} pictures at {geometry}, {device}")
    console.say(f"geometry from {subject.geometry_source}")
    bn = f"BatchNorms folded: {folded.num_folded}, left: {folded.num_left}" if job.fold_bn else "nothing folded"
    console.say(f"{_name(plan.amp_dtype)}, {bn}")
    if folded.refusal:
        console.warn(f"BatchNorms are not folded, which is slower: {folded.refusal}")
    if index.encoding:
        console.say(f"pictures encoded anew: {index.encoding}")
    for warning in weights.warnings:
        console.warn(f"{file}: {warning}")
    limit = _restriction(index, subject, device, console) if job.restrict else lambda network: network
    return _Network(plan, hurry(world, recipe.train.timeout_s), device, model, folded, limit)


def _validate_views(job: ValidateJob, network: _Network, place: _Place) -> dict[str, Any]:
    """Validate once more, with the mean over views of each picture; what to report of it."""
    plan = network.plan
    size_px = build.build_geometry(plan.subject.recipe.data).size_px
    views = AveragedViews(network.limit(network.folded.model), size_px, flips=job.flips)
    loader = build.build_eval_loader(plan.wider, plan.index, place.world, place.device)
    averaged = network.run(views, loader).result
    text = " and ".join(["the corners and the centre"] * (job.crops > 1) + ["mirror images"] * job.flips)
    count = job.crops * (1 + job.flips)
    place.console.say(f"mean over {count} views of a picture ({text}): {str(averaged).strip('* ')}")
    return {**averaged.to_dict(), "crops": job.crops, "flips": job.flips}


def _validate_in_fp32(
    found: ValidationPass, network: _Network, batches: Iterable[Batch], console: Console
) -> dict[str, Any]:
    """Validate once more in float32 with nothing folded, and tell the difference; what to report of it."""
    reference = network.run(network.limit(network.plain), batches, torch.float32)
    changes = compare_answers(found.answers, reference.answers, network.world, network.device)
    console.say(f"float32, nothing folded: {str(reference.result).strip('* ')}")
    console.say(_describe_changes(found.result, reference.result, changes))
    return {**reference.result.to_dict(), **asdict(changes)}


def _look_at_answers(
    job: ValidateJob, found: ValidationPass, network: _Network, report: dict[str, Any], place: _Place
) -> np.ndarray:
    """Hold the answers against ReaL's labels, into the report, and write them, where that is asked for.

    Returns:
        (N,) bool, whether the first answer to each picture is right.
    """
    plan, index = network.plan, network.plan.index
    top, is_readable = gather_answers(found.answers, len(index), network.world)
    if plan.real_labels is not None:
        real = count_real(top[:, 0], is_readable, plan.real_labels)
        place.console.say(f"ReaL: Acc@1 {real.acc1:.3f} of the {real.num_labelled:,} pictures that have labels")
        report["real"] = {**asdict(real), "acc1": real.acc1}
    if place.world.is_main:
        names = plan.subject.classes or index.classes or plan.subject.names()
        job.files.write_answers(AnswerTable(top, index.labels, is_readable, names), index)
    return (top[:, 0] == index.labels) & is_readable


def _widen(recipe: Recipe) -> Recipe:
    """The recipe with the square in the middle of the resized picture in place of the one that is cut out of it.

    Raises:
        UserError: they are the same.
    """
    geometry = build.build_geometry(recipe.data)
    side_px = math.floor(geometry.size_px / geometry.crop_ratio)
    if side_px <= geometry.size_px:
        raise UserError(
            f"--crops: all of a picture's middle is seen already, at a crop ratio of {geometry.crop_ratio:g}; "
            "give a smaller one with --crop-pct"
        )
    return replace(recipe, data=replace(recipe.data, val_px=side_px, crop_ratio=1.0))


def _restriction(
    index: SampleIndex, subject: Subject, device: torch.device, console: Console
) -> Callable[[nn.Module], nn.Module]:
    """What makes a network give the classes of a split only."""
    allowed = torch.zeros(subject.num_classes, dtype=torch.bool)
    allowed[torch.from_numpy(np.unique(index.labels))] = True
    console.say(f"answers: the {int(allowed.sum()):,} classes of the split, of {subject.num_classes:,}")
    return lambda network: RestrictedClasses(network, allowed.to(device))


def _tabulate(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a file, the best first."""
    ranked = sorted(reports, key=lambda report: -report["acc1"])
    return [
        f"{report['acc1']:7.3f} {report['acc5']:7.3f}  {report['model']} ({report['weights']})  {report['checkpoint']}"
        for report in ranked
    ]


def _compare(found: Sequence[_Validated], console: Console) -> None:
    """Test each other file against the first one, into its report too."""
    first = found[0]
    for other in found[1:]:
        assert first.is_right is not None and other.is_right is not None  # as they are to be compared
        test = pair(dict(enumerate(first.is_right.tolist())), dict(enumerate(other.is_right.tolist())))
        console.say(f"{other.report['checkpoint']} against {first.report['checkpoint']}: {describe_pair(test)}")
        other.report["against_first"] = {**asdict(test), "difference": test.difference, "p_value": test.p_value}


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
