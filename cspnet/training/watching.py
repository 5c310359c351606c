"""What TensorBoard shows besides numbers: pictures as the network gets them, and what it takes them for.

The run is the same with it and without: nothing is drawn from its generators, and its tensors are only read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from cspnet.data.mixing import Normalizer
from cspnet.models.modes import evaluating
from cspnet.recipe.schema import LogRecipe
from cspnet.reporting.contact_sheet import Caption, fit_picture
from cspnet.reporting.run_report import RunReport
from cspnet.training.state import TrainState

__all__ = ["Watch"]

_FIRST_STEPS = 3
_LEAST_SHARE = 0.05
"""Of a target or a probability that is named."""


@dataclass
class Watch:
    """What of a run is looked at: on the first process, if that writes for TensorBoard."""

    cfg: LogRecipe
    prepare: Normalizer
    amp_dtype: torch.dtype
    """Of autocast; float32 means none."""
    classes: Sequence[str]
    """Their names; numbers where they have none."""
    take_sample: Callable[[int], tuple[np.ndarray, np.ndarray]] | None
    """Of so many validation pictures, (N, S, S, 3) uint8 and (N,) int64 labels, -1 where one cannot be read; None
    where there is no validation."""
    _sample: tuple[np.ndarray, np.ndarray] | None = field(init=False, default=None)

    def note_batch(self, report: RunReport, state: TrainState, images: Tensor, targets: Tensor) -> None:
        """Show some of the first batches: images (N, 3, H, W) as they are trained on, targets (N, K)."""
        step = state.progress.step
        if step >= _FIRST_STEPS or report.tensorboard is None:
            return
        if self.cfg.pictures:
            pictures = self.prepare.restore(images[: self.cfg.pictures])  # host sync: in the first steps alone
            shares = targets[: self.cfg.pictures].float().cpu().numpy()
            captions = [Caption(fit_picture(p), self._name(s)) for p, s in zip(pictures, shares, strict=True)]
            report.draw(lambda board: board.add_sheet("train/pictures", captions, step))
        if self.cfg.graph and step == 0:
            with evaluating(state.model):
                report.draw(lambda board: board.add_graph(state.model, images[:1]))

    def note_epoch(self, report: RunReport, state: TrainState) -> None:
        """Show how the weights are distributed."""
        if self.cfg.histograms and report.tensorboard is not None:
            report.draw(lambda board: board.add_histograms(state.model, state.progress.step))

    def note_validation(self, report: RunReport, step: int, model: nn.Module) -> None:
        """Show what a network takes the sample for: the same pictures each time, from all over the split."""
        if not self.cfg.pictures or self.take_sample is None or report.tensorboard is None:
            return
        if self._sample is None:
            self._sample = self.take_sample(self.cfg.pictures)
        pictures, labels = self._sample
        shares = self._answer(model, torch.from_numpy(pictures))
        captions = [
            Caption(None, "cannot be read")
            if label < 0
            else Caption(fit_picture(picture), self._name(share), f"is {self.classes[label]}")
            for picture, label, share in zip(pictures, labels, shares, strict=True)
        ]
        report.draw(lambda board: board.add_sheet("val/pictures", captions, step))

    @torch.inference_mode()
    def _answer(self, model: nn.Module, pictures: Tensor) -> np.ndarray:
        """(N, K) probabilities."""
        device, enabled = self.prepare.device.type, self.amp_dtype is not torch.float32
        with evaluating(model), torch.autocast(device, dtype=self.amp_dtype, enabled=enabled):
            logits = model(self.prepare(pictures))
        return logits.float().softmax(1).cpu().numpy()

    def _name(self, shares: np.ndarray) -> str:
        """`cat 0.63, dog 0.31` of (K,) probabilities."""
        best = shares.argsort()[::-1][:3]
        return ", ".join(f"{self.classes[c]} {shares[c]:.2f}" for c in best if shares[c] >= _LEAST_SHARE)
