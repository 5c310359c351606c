"""scripts/report.py behind its command line: a run's folder, read and written as one page."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cspnet.cli import build
from cspnet.cli.metering import SPEED_FILE
from cspnet.cli.report_answers import Look, look
from cspnet.cli.run_folder import read_sources
from cspnet.errors import EXIT_DONE, CheckpointError, DataError, UserError
from cspnet.recipe.load import DEFAULT, inline, load_recipe, recipe_to_values
from cspnet.recipe.schema import Recipe
from cspnet.reporting.console import Console, format_duration
from cspnet.reporting.page import escape
from cspnet.reporting.plots import read_records
from cspnet.reporting.run_page import GENERATOR, RunFacts, number, render_run
from cspnet.reporting.verdict import find_bound
from cspnet.runtime.files import printable, write_atomically
from cspnet.training.checkpoint import check_parts, read_checkpoint

__all__ = ["ReportJob", "run_report_job"]

_NOT_RECORDED = "not recorded"
_MOST = 1e100
_MOST_STEPS = 2**53
"""That a float can count."""
_HEAD_BYTES = 4000
"""Of a page: by these it is known for a report, and whose."""

_TOLD = ("warning: ", "error: ", "stopped ", "resumed ")
"""How a line of a log begins that a reader of the report may want to know of."""
_MOST_TOLD = 30

Records = Sequence[Mapping[str, Any]]


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
    records = _read_records(job.folder)
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


def _read_records(folder: Path) -> list[dict[str, Any]]:
    """The records, in their order; values that are no numbers are None.

    Raises:
        UserError: there are none, or they are damaged.
    """
    file = folder / "metrics.jsonl"
    if not file.exists():
        raise UserError(f"{folder}: there is nothing to report yet: no metrics.jsonl in it")
    records, before = [], (0, False)
    for record in read_records(folder):
        step, epoch = record["step"], record.get("epoch")
        if type(epoch) is not int or not 0 <= epoch <= _MOST_STEPS:
            raise UserError(f"{file}: the record of step {step} does not say its epoch")
        place = (step, "train/epoch_loss" in record)  # an epoch's record stands behind that of its last step
        if not before < place <= (_MOST_STEPS, True):
            raise UserError(f"{file}: damaged: the record of step {step} does not follow the one before")
        records.append({**{key: _number(value) for key, value in record.items()}, "step": step, "epoch": epoch})
        before = place
    return records


def _check_out(out: Path, job: ReportJob) -> None:
    """Whether the page may be written: in the place of nothing, or of an older report of the same run."""
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: name a file in a folder that is there and can be written")
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
    verdict, speed = _judge(_read_speed(job.folder), records, len(checkpoint.get("ranks", [0])))
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
        bad_images=(bad := _read_bad_images(job.folder)),
        events=[*_log_events(job.folder), *_events(job.folder, records, len(bad))],
        recipe=[(key, inline(value), sources.get(key, _NOT_RECORDED)) for key, value in values.items()],
        changed=frozenset(changed),
    )


def find_best(records: Records) -> tuple[Mapping[str, Any] | None, str]:
    """The record of the best validation, the first of equals, and what was validated: val or, if there is a moving
    average, val_ema, as a run itself decides."""
    best, best_kind, most = None, "val", -math.inf
    for record in records:
        kind = "val_ema" if "val_ema/acc1" in record else "val"
        acc1 = record.get(f"{kind}/acc1")
        if acc1 is not None and acc1 > most:
            best, best_kind, most = record, kind, acc1
    return best, best_kind


def _number(value: object) -> int | float | None:
    """A number within reason, or None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and -_MOST < value < _MOST
    return value if is_number else None  # type: ignore[return-value]


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
    facts.append(
        ("a step", f"{f'{batch:,} pictures' if batch else 'pictures: ' + _NOT_RECORDED}, {_optimizer(recipe)}")
    )
    windows = _windows(records)
    duration = format_duration(batch * sum(window.time for window in windows)) if batch and windows else ""
    text = f"{duration} in training steps, by the records; validation not counted" if duration else ""
    facts.append(("time", text or _NOT_RECORDED))
    if file is not None:
        facts.append(("checkpoint", f"{printable(str(file))}, of step {checkpoint['progress']['step']:,}"))
    return facts


def _optimizer(recipe: Recipe) -> str:
    return f"{recipe.optim.name}, lr {recipe.optim.lr:g}, {recipe.schedule.name}"


@dataclass(frozen=True)
class _Window:
    """The steps of a record."""

    steps: int
    images_per_s: float
    data_wait_ratio: float | None

    @property
    def time(self) -> float:
        """Theirs, in seconds for each picture of a step."""
        return self.steps / self.images_per_s


def _windows(records: Records) -> list[_Window]:
    """The records of steps, in their order; none if one of them does not say how fast it was."""
    found, done = [], 0
    for record in records:
        if "train/loss" in record:
            rate = record.get("train/images_per_s")
            if not rate or rate < 0:
                return []
            found.append(_Window(record["step"] - done, rate, record.get("train/data_wait_ratio")))
            done = record["step"]
    return found


def _read_speed(folder: Path) -> dict[str, Any]:
    """What the run has said at its end; empty if it has not come to that, or cannot be read."""
    try:
        kept = json.loads((folder / SPEED_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) and isinstance(kept.get("verdict"), str) else {}


def _judge(kept: Mapping[str, Any], records: Records, processes: int) -> tuple[str, list[tuple[str, object]]]:
    """The verdict that the run ended with, or else what its records say; and what was measured.

    Args:
        kept: see `_read_speed`.
    """
    windows = _windows(records)
    waits = [(window.time, window.data_wait_ratio) for window in windows if window.data_wait_ratio is not None]
    rows: list[tuple[str, object]] = []
    if kept:
        verdict = kept["verdict"]
        about = f"{number(kept.get('steps'))} steps, without the first ones of a start, up to step"
        rows.append(("measured over", f"{about} {number(kept.get('step'))}"))
        rows.append(("images/s", number(_number(kept.get("train/images_per_s")), 0)))
        for name, key in (("waiting for data", "train/data_wait_ratio"), ("model FLOPs utilisation", "train/mfu")):
            if (share := _number(kept.get(key))) is not None:
                rows.append((name, f"{share:.1%}"))
    elif windows and len(waits) == len(windows):
        total = sum(time for time, _ in waits)
        share = sum(time * wait for time, wait in waits) / total
        bound = find_bound(share, 0.0)
        if bound == "compute-bound" and processes > 1:
            bound = "not input-bound"
        verdict = f"{bound}: {share:.0%} of a step is waiting for data, by the records"
        rows.append(("measured over", f"{len(windows):,} records; the run has left no verdict of its own"))
        rows.append(("images/s", number(sum(window.steps for window in windows) / total, 0)))
    else:
        verdict = _NOT_RECORDED
    peaks = [peak for record in records if (peak := record.get("train/peak_memory_bytes"))]
    rows.append(("peak memory", f"{max(peaks) / 2**30:.2f} GiB" if peaks else _NOT_RECORDED))
    return verdict, rows


def _environment(checkpoint: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Versions and what computed, from the checkpoint."""
    versions, place = (
        part if isinstance(part := checkpoint.get(name), dict) else {} for name in ("versions", "computed_on")
    )
    known = {**{name: versions.get(name) for name in ("cspnet", "torch", "python")}, "device": place.get("device")}
    known |= {name: value for name, value in place.items() if name not in known}
    known |= {"processes": len(checkpoint["ranks"]) if "ranks" in checkpoint else None}
    rows = [(name, _NOT_RECORDED if value is None else str(value)) for name, value in known.items()]
    return [*rows, ("processor and memory of the host", _NOT_RECORDED)]


def _read_bad_images(folder: Path) -> list[Mapping[str, Any]]:
    """The entries of bad_images.jsonl, each picture once; a line that was cut short is passed over."""
    try:
        lines = (folder / "bad_images.jsonl").read_bytes().splitlines()
    except OSError:
        return []
    found: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            found.setdefault(str(entry["path"]), entry)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return list(found.values())


def _log_events(folder: Path) -> list[str]:
    """What the run's log has of warnings and ways to end, the end first."""
    try:
        lines = (folder / "train.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    texts = [line[len("2026-01-01 00:00:00 ") :] for line in lines]
    events = []
    if texts and texts[-1].startswith("error: "):
        events.append(f"The run ended with an error: {texts[-1].removeprefix('error: ')}.")
    elif texts and texts[-1].startswith("stopped "):
        events.append(f"The run was {texts[-1]}; it has not gone on since.")
    told = [(line, text) for line, text in zip(lines, texts, strict=True) if text.startswith(_TOLD)]
    events += [f"{line[:19]}: {text}" for line, text in told[-_MOST_TOLD:]]
    return events


def _events(folder: Path, records: Records, num_bad: int) -> list[str]:
    """What a run should not meet, where it did."""
    events = []
    skipped = next((r["train/skipped"] for r in reversed(records) if "train/skipped" in r), None)
    if skipped:  # as the last epoch's end has it
        kept = len(list((folder / "skipped").glob("*.pt")))
        text = f"; the pictures of {kept} of them are kept in skipped/" if kept else ""
        events.append(f"{number(skipped)} steps were skipped, as their loss or gradient was not finite{text}.")
    if num_bad:
        events.append(f"{num_bad:,} pictures could not be read.")
    broken = max((record.get("val/unreadable") or 0 for record in records), default=0)
    if broken:
        events.append(f"{broken:,.0f} validation pictures could not be read, and counted as wrong.")
    if aside := sorted(path.name for path in folder.glob("metrics.jsonl.*")):
        events.append(f"Records without a checkpoint were set aside, and the run began anew: {', '.join(aside)}.")
    return events
