"""Saving beside the training: a step waits for the copy to the host, a thread does the rest.

A save is waited for at the next one, before a validation (whose reading processes are forked: no thread should hold
anything then), and at the end. What happens when one fails is a rule: it is told at once and the run goes on, because
the state it holds is worth more than what is on the disk; after checkpoint.max_failures failures in a row, or if the
last save of a run fails, the run ends. The earlier checkpoints are untouched in any case.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cspnet.errors import RunFolderError
from cspnet.training.checkpoint import save_checkpoint

__all__ = ["HostCopies", "Saver"]

_MEND = "once it can be written again, go on with --resume auto"


def _find_tensors(content: Any) -> Iterator[Tensor]:
    """The tensors in nested dictionaries, lists and tuples, in their order."""
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _find_tensors(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _find_tensors(value)


class HostCopies:
    """Copies of a state in host memory, which is pinned for what lies on a GPU, and used again for the next copy."""

    def __init__(self) -> None:
        self._rooms: list[Tensor] = []

    def take(self, content: dict[str, Any]) -> dict[str, Any]:
        """`content` with all its tensors copied, strides and all; what was taken before is overwritten."""
        copies: dict[int, Any] = {}
        # All of them are held until the end: the state dictionaries' tensors are made for whoever asks.
        tensors = list(_find_tensors(content))
        for i, tensor in enumerate(tensors):
            copies[id(tensor)] = self._room(i, tensor).copy_(tensor.detach(), non_blocking=True)
        for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return copy.deepcopy(content, copies)  # whatever is in its memo is taken for the copy

    def _room(self, i: int, tensor: Tensor) -> Tensor:
        room = self._rooms[i] if i < len(self._rooms) else None
        if room is None or (room.shape, room.dtype, room.stride()) != (tensor.shape, tensor.dtype, tensor.stride()):
            room = torch.empty_like(tensor, device="cpu", requires_grad=False, pin_memory=tensor.is_cuda)
            self._rooms[i:] = [room]
        return room


class Saver:
    """Writes the checkpoints of a run, one after the other, in a thread.

    Args:
        folder: where to.
        keep: how many of the newest stay; None keeps all.
        max_failures: saves in a row that may fail.
        warn: told of each that does, from the thread.
    """

    def __init__(self, folder: Path, *, keep: int | None, max_failures: int, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self.keep = keep
        self.max_failures = max_failures
        self.warn = warn
        self._copies = HostCopies()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        """Of the last save, if it failed."""
        self._failures = 0
        """In a row."""

    def save(
        self,
        content: dict[str, Any],
        *,
        step: int,
        is_best: bool,
        protected: Collection[int] = (),
        prunes: bool = True,
    ) -> None:
        """Begin to write a checkpoint, once the one before is written. See `save_checkpoint`; without `prunes`, none
        is removed for it."""
        self.wait()
        taken = self._copies.take(content)
        keep = self.keep if prunes else None
        how = {"step": step, "is_best": is_best, "keep": keep, "protected": tuple(protected)}
        self._thread = threading.Thread(target=self._write, args=(taken, how), name="saver", daemon=False)
        self._thread.start()

    def _write(self, content: dict[str, Any], how: dict[str, Any]) -> None:
        try:
            save_checkpoint(self.folder, content, **how)
        except RunFolderError as error:
            self._failures += 1
            self._error = error
            ends = "going on" if self._failures <= self.max_failures else "the run ends at its next save"
            self.warn(f"{error}; {ends} ({self._failures} failures in a row, of at most {self.max_failures})")
        except Exception as error:  # ours; raised where somebody waits for it
            self._error = error
            self._failures = self.max_failures + 1
        else:
            self._failures, self._error = 0, None

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def find_failure(self, *, is_last: bool = False) -> Exception | None:
        """What ends the run, once what was begun is written: too many failures in a row, or that of the last save."""
        self.wait()
        if self._error is None or (self._failures <= self.max_failures and not is_last):
            return None
        if isinstance(self._error, RunFolderError):
            return RunFolderError(f"{self._error}: {_MEND}")
        return self._error
