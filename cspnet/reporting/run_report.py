"""All that a run writes about itself, behind one object."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cspnet.reporting.console import Console
from cspnet.reporting.metrics_file import MetricsFile, SummaryFile
from cspnet.reporting.tensorboard import TensorBoardFile

__all__ = ["BadImageLog", "RunReport"]


class BadImageLog:
    """Counts the pictures that could not be read, names each one once, and lists them in bad_images.jsonl.

    Those behind the checkpoint that a run goes on from are named and listed again.

    Every process has its own; they append whole lines to the same file.
    """

    def __init__(self, folder: Path | None, console: Console, seen: set[str] | None = None) -> None:
        """`seen`: paths that are noted already; those that come are added to it."""
        self.path = folder / "bad_images.jsonl" if folder else None
        self.console = console
        self.seen = set() if seen is None else seen

    def add(self, bad: Iterable[tuple[str, str]], consequence: str) -> None:
        """Take note of (path, reason) pairs; `consequence` says what was done about them."""
        for path, reason in bad:
            if path in self.seen:
                continue
            self.seen.add(path)
            printable = path.encode("utf-8", "replace").decode()  # a file name may be any bytes
            self.console.warn_own(f"{printable}: cannot be read: {reason}; {consequence}")
            if self.path and self.path.parent.is_dir():  # on another machine the run's folder may not exist
                # A full disk: the line above has told it.
                with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"path": path, "reason": reason, "consequence": consequence}) + "\n")


class RunReport:
    """The console and the files of a run's folder.

    Args:
        console: of this process.
        folder: the run's folder; None writes no files (a dry run, or not the first process).
        step: of the checkpoint the run goes on from, -1 for a new run.
        is_ended: whether an epoch that ends with that step has its record, too.
        epochs: epochs finished at that step.
        recipe: the resolved recipe as YAML.
        tensorboard: whether to write TensorBoard files.
    """

    def __init__(
        self,
        console: Console,
        folder: Path | None,
        *,
        step: int,
        is_ended: bool,
        epochs: int,
        recipe: str,
        tensorboard: bool,
    ) -> None:
        self.console = console
        self._failing: set[str] = set()
        self.metrics = MetricsFile(folder / "metrics.jsonl", step, is_ended) if folder else None
        self.summary = SummaryFile(folder / "summary.csv", epochs) if folder else None
        self.tensorboard = TensorBoardFile(folder / "tensorboard", step, recipe) if folder and tensorboard else None

    def write(self, record: dict[str, Any]) -> None:
        """A record, into every file."""
        if self.metrics:
            self._try("metrics.jsonl", self.metrics.write, record)
        self.draw(lambda board: board.write(record))

    def draw(self, draw: Callable[[TensorBoardFile], None]) -> None:
        """Into TensorBoard's files alone, if there are any."""
        if self.tensorboard:
            try:
                draw(self.tensorboard)
            except Exception as error:  # its thread has ended, and what it raised then comes out here
                self.console.warn(f"tensorboard: no more is written to it in this run: {_reason(error)}")
                self.tensorboard = None

    def write_epoch(self, row: dict[str, Any]) -> None:
        """A row of summary.csv."""
        if self.summary:
            self._try("summary.csv", self.summary.write, row)

    def _try(self, name: str, write: Callable[[dict[str, Any]], None], values: dict[str, Any]) -> None:
        """Write to a file; that it does not work is told once until it works again, and is no reason to stop."""
        try:
            write(values)
        except OSError as error:
            if name not in self._failing:
                self.console.warn(f"{name}: cannot be written: {_reason(error)}; what it lacks waits in memory")
            self._failing.add(name)
        else:
            self._failing.discard(name)

    def close(self) -> None:
        """Close every file."""
        for name, sink in (("metrics.jsonl", self.metrics), ("summary.csv", self.summary)):
            try:
                if sink:
                    sink.close()
            except OSError as error:
                self.console.warn(f"{name}: its last lines could not be written: {_reason(error)}")
        if self.tensorboard:
            with contextlib.suppress(Exception):  # of its thread; the run is over
                self.tensorboard.close()


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
