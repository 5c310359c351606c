"""TensorBoard. The one door to it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

__all__ = ["TensorBoardFile"]


class TensorBoardFile:
    """Scalars under the names of metrics.jsonl.

    Args:
        folder: for the event files.
        step: of the checkpoint a run goes on from; later scalars of the killed run are taken out. -1 for a new run.
        recipe: the resolved recipe as YAML, shown as text.
    """

    def __init__(self, folder: Path, step: int, recipe: str) -> None:
        self._hook = threading.excepthook
        threading.excepthook = self._hear
        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step >= 0 else None)
        if step < 0:
            self.writer.add_text("recipe", f"```yaml\n{recipe}```")

    def write(self, record: dict[str, Any]) -> None:
        """The numbers of a record."""
        for name, value in record.items():
            if "/" in name and isinstance(value, (int, float)):
                self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write out and close."""
        try:
            self.writer.close()
        finally:
            threading.excepthook = self._hook

    def _hear(self, failed: threading.ExceptHookArgs) -> None:
        """Keep quiet about an error in TensorBoard's own thread: the next `write` raises it again."""
        trace = failed.exc_traceback
        while trace is not None:
            if trace.tb_frame.f_globals.get("__name__", "").startswith("tensorboard."):
                return
            trace = trace.tb_next
        self._hook(failed)
