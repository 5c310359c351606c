"""Checkpoints: complete or absent, checked on the way in, the newest good one found by itself.

checkpoints/step-00005004.pt     the last few and the best few; each with its .sha256 beside it
checkpoints/last.pt, best.pt     links to the newest and to the best one (or copies, where links cannot be made)
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from cspnet.errors import CheckpointError, RunFolderError
from cspnet.runtime.files import replacing, write_atomically
from cspnet.training.state import Progress
from cspnet.weights.files import checksum_file, hash_file, is_plain, read_tensors

__all__ = [
    "FORMAT",
    "check_parts",
    "find_checkpoint",
    "forget_later",
    "holds_checkpoints",
    "newest_step",
    "read_checkpoint",
    "save_checkpoint",
]

FORMAT = 1
_PARTS = {
    **{"arch": str, "num_classes": int, "classes": list | tuple, "recipe": dict, "eval_cfg": dict},
    **{"global_batch_size": int, "data": dict, "state_dict": dict, "state_dict_ema": dict | None, "optimizer": dict},
    **{"scaler": dict, "progress": dict, "ranks": list},
}
"""What a checkpoint is made of."""
_PLAIN_PARTS = ("classes", "recipe", "eval_cfg", "data", "progress")
_STEP_NAME = re.compile(r"step-(\d{8,})\.pt")


def save_checkpoint(
    folder: Path,
    content: dict[str, Any],
    *,
    step: int,
    is_best: bool,
    keep: int | None,
    protected: Collection[int] = (),
) -> Path:
    """Write a checkpoint, point last.pt (and best.pt) at it, and remove the oldest beyond `keep`.

    Nothing older is removed before the new one is safely on the disk. Files of later steps are left alone: a run that
    goes on from an earlier step does so because they cannot be read.

    Args:
        keep: how many of the newest stay; None keeps all.
        protected: steps whose files stay as well.
    Raises:
        RunFolderError: the disk is full or cannot be written; the older checkpoints are still there.
    """
    path = folder / f"step-{step:08d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The checksum first: a checkpoint with its name in place always has one.
        with replacing(path) as temporary:
            with temporary.open("wb") as opened:  # torch's own would not say why it cannot be written
                torch.save(content, opened)
            digest = hash_file(temporary)
            _write_checksums(path, _known_checksums(path) | {digest})
        _write_checksums(path, {digest})
        for name in ("last.pt", "best.pt") if is_best else ("last.pt",):
            _publish(path, folder / name, digest)
        done = [(number, file) for number, file in _list_steps(folder) if number <= step]
        for number, file in done[keep:] if keep is not None else ():
            if number not in protected:
                file.unlink(missing_ok=True)
                checksum_file(file).unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        raise RunFolderError(
            f"{path}: cannot write the checkpoint: {_find_reason(error)}; the earlier ones are untouched"
        ) from error
    return path


def _find_reason(error: BaseException) -> str:
    """Why a file could not be written: torch raises an error of its own while it handles the system's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _publish(path: Path, link: Path, digest: str) -> None:
    """Make `link` another name of the checkpoint. At every moment the link is whole and its checksum is known."""
    _write_checksums(link, _known_checksums(link) | {digest})
    with replacing(link) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
    _write_checksums(link, {digest})


def _known_checksums(path: Path) -> set[str]:
    if not checksum_file(path).is_file():
        return set()
    try:
        return {line.split(" ")[0] for line in checksum_file(path).read_text().splitlines()}
    except (OSError, UnicodeDecodeError):
        return set()


def _write_checksums(path: Path, digests: set[str]) -> None:
    text = "".join(f"{digest}  {path.name}\n" for digest in sorted(digests))
    write_atomically(checksum_file(path), text.encode())


def _list_steps(folder: Path) -> list[tuple[int, Path]]:
    """[(step, file)], the newest first."""
    named = [(int(match[1]), path) for path in folder.glob("step-*.pt") if (match := _STEP_NAME.fullmatch(path.name))]
    return sorted(((step, path) for step, path in named if path.is_file()), reverse=True)


def forget_later(path: Path) -> None:
    """A run goes back to a checkpoint: those of later steps are of what it leaves behind, and must not be found again.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    step = next((number for number, file in _list_steps(path.parent) if file == path), None)
    if step is None:  # last.pt or best.pt, when nothing else can be read
        return
    try:
        _publish(path, path.with_name("last.pt"), hash_file(path))
        for number, file in _list_steps(path.parent):
            if number > step:
                file.unlink(missing_ok=True)
                checksum_file(file).unlink(missing_ok=True)
    except OSError as error:
        raise RunFolderError(f"{path.parent}: cannot be written: {error.strerror}") from error


def holds_checkpoints(folder: Path) -> bool:
    """Whether a run has saved something here."""
    return any(folder.glob("*.pt"))


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint, -1 if there is none."""
    return max((step for step, _ in _list_steps(folder)), default=-1)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """One of our checkpoints, checked.

    Raises:
        CheckpointError: missing, damaged, or not a checkpoint of a run of ours.
    """
    content = read_tensors(path)
    if not isinstance(content.get("format"), int) or content["format"] != FORMAT:
        what = (
            f"has format {content['format']}, this program reads {FORMAT}"
            if "format" in content
            else "holds weights only"
        )
        raise CheckpointError(
            f"{path}: {what}: a run cannot be resumed from it; to start from weights, use --pretrained"
        )
    lacking = [key for key in _PARTS if key not in content]
    if lacking:
        raise CheckpointError(f"{path}: not a whole checkpoint: it lacks {lacking[0]}")
    return content


def check_parts(path: Path, content: Mapping[str, Any]) -> None:
    """Pass a checkpoint whose parts are of the kind that a run goes on from, whoever wrote it.

    Raises:
        CheckpointError: one of them is something else.
    """
    if misfit := next(_find_misfits(content), ""):
        raise CheckpointError(f"{path}: not a checkpoint of ours: its {misfit} is something else")


def _find_misfits(content: Mapping[str, Any]) -> Iterator[str]:
    for key, kind in _PARTS.items():
        if not isinstance(content[key], kind) or (key in _PLAIN_PARTS and not is_plain(content[key])):
            yield key
    if not {"fingerprint", "num_samples"} <= content["data"].keys():
        yield "data"
    try:
        progress = Progress(**content["progress"])
    except TypeError:
        yield "progress"
        return
    numbers = (progress.step, progress.epoch, progress.samples_done)
    if not all(type(number) is int and number >= 0 for number in numbers):
        yield "progress"
    ranking = progress.ranking if isinstance(progress.ranking, list) else [None]
    if not all(isinstance(entry, list) and list(map(type, entry)) == [int, float] for entry in ranking):
        yield "progress"


def find_checkpoint(
    folder: Path, warn: Callable[[str], None], *, behind_good_step: bool = False
) -> tuple[Path, dict[str, Any]] | None:
    """The newest good checkpoint of a run, or None if it has saved none yet; damaged ones are named and passed over.

    Args:
        warn: told of each that is damaged.
        behind_good_step: pass over those that were saved while steps were skipped.
    Raises:
        CheckpointError: there are checkpoints, but none is good.
    """
    candidates: list[tuple[int | None, Path]] = [*_list_steps(folder)]
    candidates += [(None, path) for name in ("last.pt", "best.pt") if (path := folder / name).exists()]
    for step, path in candidates:
        try:
            content = read_checkpoint(path)
            progress = content["progress"] if isinstance(content["progress"], dict) else {}
            if step is not None and progress.get("step", step) != step:
                raise CheckpointError(f"{path}: not what its name says: it was saved behind step {progress['step']}")
            if not (behind_good_step and progress.get("skipped_in_a_row")):
                return path, content
        except CheckpointError as error:
            warn(f"{error}; trying the one before")
    if candidates and not behind_good_step:
        raise CheckpointError(f"{folder}: none of its {len(candidates)} checkpoints can be read; nothing was changed")
    return None
