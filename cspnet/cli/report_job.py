"""scripts/report.py behind its command line: a run's folder, read and written as one page."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cspnet.cli import build
from cspnet.cli.outputs import check_place
from cspnet.cli.report_answers import Look, look
from cspnet.cli.report_records import (
    NOT_RECORDED,
    Records,
    find_best,
    judge_records,
    list_events,
    list_log_events,
    list_windows,
    read_bad_images,
    read_run,
    read_speed,
)
from cspnet.cli.run_folder import read_sources
from cspnet.errors import EXIT_DONE, CheckpointError, DataError, UserError
from cspnet.recipe.load import DEFAULT, inline, load_recipe, recipe_to_values
from cspnet.recipe.schema import Recipe
from cspnet.reporting.console import Console, format_duration
from cspnet.reporting.page import escape
from cspnet.reporting.run_page import GENERATOR, RunFacts, number, render_run
from cspnet.runtime.files import printable, write_atomically
from cspnet.training.checkpoint import check_parts, read_checkpoint

__all__ = ["ReportJob", "run_report_job"]

_HEAD_BYTES = 4000
"""Of a page: by these it is known for a report, and whose."""


@dataclass(frozen=True)
class ReportJob:
    """A parsed command line."""

    folder: Path
    out: Path | None = None
    """None: report.html in the folder."""
    data_root: Path | None = None
    """None: where the run had its pictures."""
    checkpoint: Path | None = None
    """None: the run's best."""
    with_pictures: bool = True
    force: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """{dotted key of the recipe: value} of what computes."""


def run_report_job(job: ReportJob) -> int:
    """Read, look at the pictures, write; the exit code.

    Raises:
        UserError: not a run's folder, nothing in it yet, damaged records, or the page cannot be written.
    """
    if not (job.folder / "recipe.yaml").is_file():
        reason = "there is no recipe.yaml in it" if job.folder.is_dir() else "no such folder"
        raise UserError(f"{job.folder}: not a run's folder: {reason}")
    records = read_run(job.folder)
    out = job.out or job.folder / "report.html"
    _check_out(out, job)
    recipe = load_recipe(job.folder / "recipe.yaml").recipe
    console = Console(0)
    file, checkpoint = _find_checkpoint(job, recipe, console.warn)
    looked, unseen = _look(job, recipe, file, console)
    facts = _gather(job, records, recipe, file, checkpoint, looked, unseen)
    try:
        write_atomically(out, render_run(facts).encode())
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    print(printable(str(out)))
    return EXIT_DONE


def _check_out(out: Path, job: ReportJob) -> None:
    """Whether the page may be written: in the place of nothing, or of an older report of the same run."""
    check_place(out, f"--out {out}")
    if job.force or not os.path.lexists(out):
        return
    try:
        with out.open("rb") as file:
            head = file.read(_HEAD_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise UserError(f"--out {out}: is there already, and cannot be read: {error.strerror}") from error
    is_ours = f'content="{escape(GENERATOR)}"' in head
    is_same = out.resolve().parent == job.folder.resolve() or f'content="{escape(_about(job))}"' in head
    if not (is_ours and is_same):
        raise UserError(f"{out}: is there already and is not a report of this run; --force overwrites it")


def _about(job: ReportJob) -> str:
    return printable(str(job.folder.resolve()))


def _check_same(job: ReportJob, recipe: Recipe, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run: the page would be of two."""
    saved, own = checkpoint["recipe"], recipe_to_values(recipe)
    for key, value in own.items():
        is_telling = key.startswith(("model.", "mix.", "augment.", "loss.")) or key == "train.seed"
        if is_telling and key in saved and saved[key] != value:
            raise CheckpointError(f"{job.checkpoint}: is of another run than {job.folder}: {key} differs")


def _find_checkpoint(
    job: ReportJob, recipe: Recipe, warn: Callable[[str], None]
) -> tuple[Path | None, Mapping[str, Any]]:
    """The file that was asked for; or the best, the last or the newest that can be read, and what it holds."""
    if job.checkpoint is not None:
        content = read_checkpoint(job.checkpoint)
        check_parts(job.checkpoint, content)
        _check_same(job, recipe, content)
        return job.checkpoint, content
    folder = job.folder / "checkpoints"
    named = [folder / "best.pt", folder / "last.pt", *sorted(folder.glob("step-*.pt"), reverse=True)]
    for file in filter(Path.is_file, named):
        try:
            content = read_checkpoint(file)
            check_parts(file, content)
        except CheckpointError as error:
            warn(str(error))
        else:
            return file, content
    return None, {}


def _look(job: ReportJob, recipe: Recipe, file: Path | None, console: Console) -> tuple[Look | None, str]:
    """What the network says to its pictures; or None, and why."""
    if not job.with_pictures:
        return None, "Left out: made with --without-pictures."
    if recipe.data.val is None:
        return None, "The run has no validation pictures (data.val is null)."
    if file is None:
        console.warn(f"{job.folder}: no checkpoint that can be read: the page is without classes and pictures")
        return None, "The run has no checkpoint that can be read."
    overrides: dict[str, Any] = {"train.precision": "fp32", "data.outside_root": recipe.data.outside_root}
    if job.data_root is not None:
        overrides = {"train.precision": "fp32", "data.root": str(job.data_root)}
    try:
        return look(file, {**overrides, **job.overrides}, console), ""
    except DataError as error:
        if job.data_root is not None:
            raise
        console.warn(f"{error}; --data-path names another place. The page is without classes and pictures")
        return None, f"The validation pictures could not be read: {error}."


def _gather(
    job: ReportJob,
    records: Records,
    recipe: Recipe,
    file: Path | None,
    checkpoint: Mapping[str, Any],
    looked: Look | None,
    unseen: str,
) -> RunFacts:
    best, kind = find_best(records)
    root = printable(str(job.data_root or recipe.data.root))
    command: list[str] = []
    if file is not None and recipe.data.val is not None:
        flags = (("--checkpoint", printable(str(file))), ("--data-path", root))
        command = ["python3 validate.py \\", *(f"  {shlex.join(flag)} \\" for flag in flags[:-1])]
        command.append(f"  {shlex.join(flags[-1])}")
    sources, values = read_sources(job.folder), recipe_to_values(recipe)
    defaults = recipe_to_values(Recipe())
    changed = {key for key in values if values[key] != defaults[key] or sources.get(key, DEFAULT) != DEFAULT}
    verdict, speed = judge_records(read_speed(job.folder), records, len(checkpoint.get("ranks", [0])))
    return RunFacts(
        name=printable(job.folder.resolve().name),
        folder=_about(job),
        best=best,
        best_kind=kind,
        facts=_facts(records, recipe, root, file, checkpoint, looked, best, kind),
        command=command,
        records=records,
        seen=looked.seen if looked else None,
        unseen=unseen,
        verdict=verdict,
        speed=speed,
        environment=_environment(checkpoint),
        bad_images=(bad := read_bad_images(job.folder)),
        events=[*list_log_events(job.folder), *list_events(job.folder, records, len(bad))],
        recipe=[(key, inline(value), sources.get(key, NOT_RECORDED)) for key, value in values.items()],
        changed=frozenset(changed),
    )


def _facts(
    records: Records,
    recipe: Recipe,
    root: str,
    file: Path | None,
    checkpoint: Mapping[str, Any],
    looked: Look | None,
    best: Mapping[str, Any] | None,
    kind: str,
) -> list[tuple[str, object]]:
    """What one always looks for first."""
    params = f", {looked.num_params:,} parameters" if looked else ""
    data = [root]
    if checkpoint:
        data += [f"{checkpoint['data']['num_samples']:,} pictures to train", f"{checkpoint['num_classes']:,} classes"]
    if looked:
        data.append(f"{looked.num_pictures:,} to validate")
    facts: list[tuple[str, object]] = [("model", recipe.model.name + params), ("data", ", ".join(data))]
    if best is not None:
        weights = "moving average" if kind == "val_ema" else "raw weights"
        loss = number(best.get(f"{kind}/loss"), 4)
        where = f"{weights}, epoch {best['epoch'] + 1}, step {best['step']:,}, loss {loss}"
        facts.append(("best result", f"Acc@1 {number(best[f'{kind}/acc1'])} %, {where}"))
    facts.append(("validated at", str(build.build_geometry(recipe.data))))
    ends = sum("train/epoch_loss" in record for record in records)
    aim = f"{recipe.train.steps:,} steps" if recipe.train.steps else f"{recipe.train.epochs:,} epochs"
    facts.append(("length", f"{records[-1]['step']:,} steps and {ends:,} epochs done, of {aim}"))
    batch = checkpoint.get("global_batch_size")
    facts.append(("a step", f"{f'{batch:,} pictures' if batch else 'pictures: ' + NOT_RECORDED}, {_optimizer(recipe)}"))
    windows = list_windows(records)
    duration = format_duration(batch * sum(window.time for window in windows)) if batch and windows else ""
    text = f"{duration} in training steps, by the records; validation not counted" if duration else ""
    facts.append(("time", text or NOT_RECORDED))
    if file is not None:
        facts.append(("checkpoint", f"{printable(str(file))}, of step {checkpoint['progress']['step']:,}"))
    return facts


def _optimizer(recipe: Recipe) -> str:
    return f"{recipe.optim.name}, lr {recipe.optim.lr:g}, {recipe.schedule.name}"


def _environment(checkpoint: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Versions and what computed, from the checkpoint."""
    versions, place = (
        part if isinstance(part := checkpoint.get(name), dict) else {} for name in ("versions", "computed_on")
    )
    known = {**{name: versions.get(name) for name in ("cspnet", "torch", "python")}, "device": place.get("device")}
    known |= {name: value for name, value in place.items() if name not in known}
    known |= {"processes": len(checkpoint["ranks"]) if "ranks" in checkpoint else None}
    rows = [(name, NOT_RECORDED if value is None else str(value)) for name, value in known.items()]
    return [*rows, ("processor and memory of the host", NOT_RECORDED)]
