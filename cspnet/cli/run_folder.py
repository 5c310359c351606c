"""The folder of a run: which one, whether it is free, and from which checkpoint the run goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cspnet.errors import RunFolderError
from cspnet.recipe.load import recipe_to_yaml
from cspnet.recipe.schema import Recipe
from cspnet.runtime.files import write_atomically
from cspnet.training.checkpoint import check_parts, find_checkpoint, holds_checkpoints, newest_step, read_checkpoint

__all__ = ["Start", "find_start", "prepare_folder"]


@dataclass(frozen=True)
class Start:
    """Where a run starts: its folder, and the checkpoint it goes on from."""

    folder: Path | None
    checkpoint_file: Path | None


def find_start(folder: Path | None, resume: str | None, *, writes: bool, warn: Callable[[str], None]) -> Start:
    """The run's folder and checkpoint. Nothing is written yet.

    Args:
        folder: --output-dir, or None.
        resume: None, auto, or a checkpoint file.
        writes: false for a job that has no folder (a dry run).
        warn: told of damaged checkpoints that are passed over.
    Raises:
        RunFolderError, CheckpointError: the folder holds another run, or there is nothing to resume from.
    """
    if resume == "auto":
        if folder is None:
            raise RunFolderError(
                "--resume auto looks for checkpoints in the run's folder: name it with --output-dir DIR"
            )
        found = find_checkpoint(folder / "checkpoints", warn)
        return Start(folder if writes else None, found[0] if found else None)
    if resume is not None:
        file = Path(resume)
        content = read_checkpoint(file)
        check_parts(file, content)
        step = content["progress"]["step"]
        own_folder = file.resolve().parent.parent if file.resolve().parent.name == "checkpoints" else None
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
        return Start((folder or own_folder) if writes else None, file)
    if writes and folder is not None:
        _refuse_used_folder(folder)
    return Start(folder if writes else None, None)


def _refuse_used_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder}: is a file; --output-dir needs a folder")
    used = [name for name in ("recipe.yaml", "metrics.jsonl") if (folder / name).exists()]
    if used or holds_checkpoints(folder / "checkpoints"):
        raise RunFolderError(
            f"{folder}: already holds a run; go on with it by --resume auto, or choose another --output-dir"
        )


def prepare_folder(recipe_file: Path | None, recipe: Recipe, start: Start) -> Path:
    """Make the run's folder and write its recipe."""
    folder = start.folder
    if folder is None:
        folder = _default_folder(recipe_file, recipe.model.name, time.strftime("%Y%m%d-%H%M%S"))
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for place in (folder, folder / "checkpoints", folder / "skipped"):
            for leftover in place.glob(".*.tmp"):  # of a run that was killed while it wrote
                leftover.unlink()
        write_atomically(folder / "recipe.yaml", recipe_to_yaml(recipe).encode())
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written: {error.strerror}") from error
    return folder


def _default_folder(recipe_file: Path | None, model_name: str, stamp: str) -> Path:
    """runs/<recipe>-<time>, with a number behind it if that is taken."""
    name = recipe_file.stem if recipe_file else model_name.replace("/", "_")
    folder, number = Path("runs") / f"{name}-{stamp}", 2
    while os.path.lexists(folder):
        folder, number = Path("runs") / f"{name}-{stamp}-{number}", number + 1
    return folder
