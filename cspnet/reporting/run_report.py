"""All that a run writes about itself, behind one object."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cspnet.reporting.console import Console
from cspnet.reporting.metrics_file import MetricsFile, SummaryFile
from cspnet.reporting.tensorboard import TensorBoardFile

__all__ = ["BadImageLog", "RunReport"]


class BadImageLog:
    """Counts the pictures that could not be read, names each one once, and lists them in bad_images.jsonl.

    Every process has its own; they append whole lines to the same file.
    """

    def __init__(self, folder: Path | None, console: Console) -> None:
        self.path = folder / "bad_images.jsonl" if folder else None
        self.console = console
        self.seen: set[str] = set()

    def add(self, bad: Iterable[tuple[str, str]], consequence: str) -> None:
        """Take note of (path, reason) pairs; `consequence` says what was done about them."""
        for path, reason in bad:
            if path in self.seen:
                continue
            self.seen.add(path)
            printable = path.encode("utf-8", "replace").decode()  # a file name may be any bytes
            self.console.warn_own(f"{printable}: cannot be read: {reason}; {consequence}")
            if self.path and self.path.parent.is_dir():  # on another machine the run's folder may not exist
                with self.path.open("a", encoding="utf-8") as file:
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
        self.metrics = MetricsFile(folder / "metrics.jsonl", step, is_ended) if folder else None
        self.summary = SummaryFile(folder / "summary.csv", epochs) if folder else None
        self.tensorboard = TensorBoardFile(folder / "tensorboard", step, recipe) if folder and tensorboard else None

    def write(self, record: dict[str, Any]) -> None:
        """A record, into every file."""
        for sink in (self.metrics, self.tensorboard):
            if sink:
                sink.write(record)

    def write_epoch(self, row: dict[str, Any]) -> None:
        """A row of summary.csv."""
        if self.summary:
            self.summary.write(row)

    def close(self) -> None:
        """Close every file."""
        for sink in (self.metrics, self.tensorboard):
            if sink:
                sink.close()
