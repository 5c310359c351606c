"""The folder of a run: which one, whether it is free, and from which checkpoint the run goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cspnet.errors import RunFolderError
from cspnet.recipe.load import recipe_to_yaml
from cspnet.recipe.schema import Recipe
from cspnet.reporting.metrics_file import has_epochs
from cspnet.runtime.files import write_atomically
from cspnet.runtime.folder_lock import FolderLock
from cspnet.training.checkpoint import check_parts, find_checkpoint, holds_checkpoints, newest_step, read_checkpoint

__all__ = ["CHECKPOINT_SOURCE", "SOURCES_FILE", "Start", "find_start", "prepare_folder", "read_sources"]
__all__ += ["refuse_among_pictures"]

SOURCES_FILE = "sources.json"
"""In a run's folder: {dotted key: where its value came from}."""
CHECKPOINT_SOURCE = "the recipe in "
"""How the source of a value begins that comes from a checkpoint's recipe."""

_RECORDS = ("metrics.jsonl", "summary.csv", "tensorboard")


@dataclass(frozen=True)
class Start:
    """Where a run starts: its folder, and the checkpoint it goes on from."""

    folder: Path | None
    checkpoint_file: Path | None
    was_unused: bool = False
    """There was no run in the folder yet. It is held only once something is written, and what comes before may take
    minutes, in which another run may begin there, and end."""


def find_start(
    folder: Path | None, resume: str | None, *, writes: bool, warn: Callable[[str], None], lock: FolderLock
) -> Start:
    """The run's folder and checkpoint. Nothing is written yet, but that a folder to go on in is held.

    Args:
        folder: --output-dir, or None.
        resume: None, auto, or a checkpoint file.
        writes: false for a job that has no folder (a dry run).
        warn: told of damaged checkpoints that are passed over.
        lock: holds the folder before its checkpoints are looked at: another run may be about to write one.
    Raises:
        RunFolderError, CheckpointError: the folder cannot be one, holds another run or is another process's, or there
            is nothing to resume from.
    """
    if folder is not None:
        _refuse_impossible(folder)
    if resume == "auto":
        if folder is None:
            raise RunFolderError(
                "--resume auto looks for checkpoints in the run's folder: name it with --output-dir DIR"
            )
        if writes:
            _hold(lock, folder)
        found = find_checkpoint(folder / "checkpoints", warn)
        return Start(folder if writes else None, found[0] if found else None, not _is_used(folder))
    if resume is not None:
        file = Path(resume)
        content = read_checkpoint(file)
        check_parts(file, content)
        step = content["progress"]["step"]
        own_folder = file.resolve().parent.parent if file.resolve().parent.name == "checkpoints" else None
        if writes and (target := folder or own_folder) is not None:
            _hold(lock, target)
        if writes and folder is None and own_folder is None:
            raise RunFolderError(
                f"--resume {file}: not in a run's checkpoints folder; say where to go on with --output-dir DIR"
            )
        if writes and folder is not None and folder.resolve() != own_folder:
            _refuse_used_folder(folder)
        elif writes and newest_step(file.resolve().parent) > step:
            raise RunFolderError(
                f"--resume {file}: its run has newer checkpoints; go on elsewhere with --output-dir DIR"
            )
        return Start((folder or own_folder) if writes else None, file, folder is not None and not _is_used(folder))
    if writes and folder is not None:
        _refuse_used_folder(folder)
    return Start(folder if writes else None, None, was_unused=True)


def _refuse_impossible(folder: Path) -> None:
    """Refuse, before anything is built, what cannot be a folder or be made one."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:  # TensorBoard could not write there
        raise RunFolderError(f"{os.fsencode(folder)!r}: its name is not UTF-8 text; choose another") from error
    place = folder
    while not _is_there(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise RunFolderError(f"{place}: is not a folder, nor a link to one; --output-dir needs a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RunFolderError(f"{folder}: cannot be written: you may not write in {place}")


def _is_there(place: Path) -> bool:
    """Whether something has this name. An OSError if nothing can have it."""
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _hold(lock: FolderLock, folder: Path, *, signs: bool = False) -> None:
    """Keep other runs out of a folder that there is."""
    try:
        holder = lock.take(folder, signs=signs) if folder.is_dir() else ""
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written: {error.strerror}") from error
    if holder:
        raise RunFolderError(f"{folder}: another run is at work in it ({holder}); wait for it, or stop it")


def _is_used(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("recipe.yaml", "metrics.jsonl")) or holds_checkpoints(
        folder / "checkpoints"
    )


def _refuse_used_folder(folder: Path) -> None:
    if _is_used(folder):
        raise RunFolderError(
            f"{folder}: already holds a run; go on with it by --resume auto, or choose another --output-dir"
        )


def refuse_among_pictures(folder: Path | None, pictures: Sequence[Path]) -> None:
    """Refuse a run's folder (None: one in runs/) inside a folder of pictures, where it would be taken for a class.

    Raises:
        RunFolderError: it lies in one.
    """
    for place in pictures:
        if (folder or Path("runs")).resolve().is_relative_to(place.resolve()):
            raise RunFolderError(f"{folder or 'runs'}: lies among the pictures of {place}; choose another --output-dir")


def prepare_folder(
    recipe_file: Path | None,
    recipe: Recipe,
    start: Start,
    *,
    sources: Mapping[str, str] | None = None,
    warn: Callable[[str], None],
    lock: FolderLock,
) -> Path:
    """Make the run's folder, hold it, and write its recipe. Records without a checkpoint are set aside.

    Args:
        sources: {dotted key of the recipe: where its value came from}, to be kept beside it.
    Raises:
        RunFolderError: it is another process's, or has become another run's meanwhile, or cannot be written.
    """
    folder = start.folder
    try:
        if folder is None:
            folder = _make_default_folder(recipe_file, recipe.model.name, time.strftime("%Y%m%d-%H%M%S"))
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        _hold(lock, folder)
        if start.was_unused:
            _refuse_used_folder(folder)  # again, now that nobody else can begin there
        _hold(lock, folder, signs=True)
        for place in (folder, folder / "checkpoints", folder / "skipped"):
            for leftover in place.glob(".*.tmp"):  # of a run that was killed while it wrote
                leftover.unlink()
        if start.checkpoint_file is None:
            _set_records_aside(folder, warn)
        kept = _trace_back(sources or {}, start.checkpoint_file)
        write_atomically(folder / "recipe.yaml", recipe_to_yaml(recipe).encode())
        write_atomically(folder / SOURCES_FILE, (json.dumps(kept, indent=1) + "\n").encode())
    except OSError as error:
        raise RunFolderError(f"{folder or 'runs'}: cannot be written: {error.strerror}") from error
    return folder


def _trace_back(sources: Mapping[str, str], checkpoint_file: Path | None) -> dict[str, str]:
    """The sources, and for what comes from a checkpoint's recipe where that run had it from, if it says so."""
    earlier = read_sources(checkpoint_file.resolve().parent.parent) if checkpoint_file else {}
    return {
        key: earlier.get(key, source) if source.startswith(CHECKPOINT_SOURCE) else source
        for key, source in sources.items()
    }


def read_sources(folder: Path) -> dict[str, str]:
    """{dotted key: where its value came from} of a run; empty where that was not recorded, or cannot be read."""
    try:
        content = json.loads((folder / SOURCES_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {key: source for key, source in entries if isinstance(source, str)}


def _set_records_aside(folder: Path, warn: Callable[[str], None]) -> None:
    """Give the records of whole epochs another name, where a run begins anew because its checkpoints are gone.

    What is of a first epoch that was cut short is written again as it was, and needs no keeping.
    """
    if not has_epochs(folder / "metrics.jsonl"):
        return
    number = 1
    while any(os.path.lexists(folder / f"{name}.{number}") for name in _RECORDS):
        number += 1
    for name in _RECORDS:
        if os.path.lexists(folder / name):
            (folder / name).rename(folder / f"{name}.{number}")
    warn(f"{folder}: records but no checkpoint: beginning anew; the records are kept as metrics.jsonl.{number}")


def _make_default_folder(recipe_file: Path | None, model_name: str, stamp: str) -> Path:
    """runs/<recipe>-<time>, with a number behind it if that is taken."""
    name = recipe_file.stem if recipe_file else model_name.replace("/", "_")
    folder, number = Path("runs") / f"{name}-{stamp}", 2
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # of a run that started in the same second
            folder, number = Path("runs") / f"{name}-{stamp}-{number}", number + 1
        else:
            return folder
