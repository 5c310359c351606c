"""TensorBoard. The one door to it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard.writer import SummaryWriter

from cspnet.reporting.contact_sheet import Caption, lay_out

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

    def add_sheet(self, name: str, captions: Sequence[Caption], step: int) -> None:
        """Pictures with a line each."""
        self.writer.add_image(name, np.asarray(lay_out(captions)), step, dataformats="HWC")

    def add_histograms(self, model: nn.Module, step: int) -> None:
        """Of all weights and running statistics, by their names; those that are not finite have none."""
        for name, value in model.state_dict().items():
            if value.is_floating_point() and bool(value.isfinite().all()):  # host sync
                self.writer.add_histogram(name, value.float().cpu(), step)

    def add_graph(self, model: nn.Module, images: Tensor) -> None:
        """The network's operations, as a pass over images (N, 3, H, W) finds them."""
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a tracer that is no longer torch's newest
            self.writer.add_graph(model, images)

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
