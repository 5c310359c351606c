"""Everything that must survive a crash, in one place. What is not here is recomputed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cspnet.optim.ema import Ema
from cspnet.runtime.flat import group_by_kind, join, part

__all__ = ["KeptBuffers", "Progress", "Sums", "TrainState"]


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    """Updates done."""
    epoch: int = 0
    """Epochs finished."""
    samples_done: int = 0
    """Pictures of the current epoch's order that are used up, over all processes."""
    best_acc1: float | None = None
    """Best validated accuracy in percent; None before the first validation."""
    best_epoch: int | None = None
    ranking: list[list[Any]] = field(default_factory=list)
    """[step, accuracy] of the best validated steps, the best first; their checkpoints stay."""
    epoch_is_trained: bool = False
    """Behind the last step of an epoch, or of the run, and before its validation and record are done."""

    skipped: int = 0
    """Steps whose loss or gradient was not finite, and which changed nothing."""
    skipped_in_a_row: int = 0
    """The latest of them."""

    def rank(self, acc1: float, most: int) -> bool:
        """Take note of a validation behind the current step; whether it is the best yet.

        Args:
            acc1: accuracy in percent.
            most: how many are remembered.
        """
        is_best = self.best_acc1 is None or acc1 > self.best_acc1
        if is_best:
            self.best_acc1, self.best_epoch = acc1, self.epoch
        scores = {**dict(self.ranking), self.step: acc1}
        best = sorted(scores, key=lambda step: (-scores[step], step))[:most]  # of equals, the earlier one
        self.ranking = [[step, scores[step]] for step in best]
        return is_best

    def is_over(self, total_steps: int) -> bool:
        """Whether a run of so many steps has nothing left to do."""
        return self.step >= total_steps and not self.epoch_is_trained


class Sums:
    """Loss and hits summed on the device, without a host sync: (loss * n, correct1, correct5, n)."""

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(4, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)

    def add(self, other: Tensor) -> None:
        """Add the (4,) sums of a step."""
        self.values += other

    def reset(self) -> None:
        """Start again from zero."""
        self.values.zero_()


class KeptBuffers:
    """A module's buffers (BatchNorm's running statistics), which a step changes before it is known to be good."""

    def __init__(self, module: nn.Module) -> None:
        self._groups = group_by_kind(module.buffers())
        self._kept = [join(group) for group in self._groups]

    @torch.no_grad()
    def keep(self) -> None:
        """Take note of them as they are."""
        for group, kept in zip(self._groups, self._kept, strict=True):
            join(group, out=kept)

    @torch.no_grad()
    def put_back_if(self, condition: Tensor) -> None:
        """As they were noted, if a bool on their device is set; nothing waits for it."""
        for group, kept in zip(self._groups, self._kept, strict=True):
            part(torch.where(condition, kept, join(group)), group)


@dataclass
class TrainState:
    """The state of a run. Always the raw model: data parallelism and compilation are views of it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    scaler: torch.amp.GradScaler
    window: Sums
    """Since the last record."""
    epoch_sums: Sums
    """Since the start of the epoch."""
    progress: Progress = field(default_factory=Progress)
    bad_images: set[str] = field(default_factory=set)
    """Paths of the pictures that this process could not read."""
    frozen: Sequence[nn.Module] = ()
    """Parts of the model that are not trained."""
    buffers: KeptBuffers = field(init=False)

    def __post_init__(self) -> None:
        self.buffers = KeptBuffers(self.model)

    def set_training(self) -> None:
        """The model in training mode, its frozen parts in evaluation mode: their statistics stay as they are."""
        self.model.train()
        for module in self.frozen:
            module.eval()

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether all weights and buffers are, the moving average's too: a broken network is not worth saving."""
        values = [*self.model.state_dict().values(), *(self.ema.module.state_dict().values() if self.ema else ())]
        norm = nn.utils.get_total_norm([value for value in values if value.is_floating_point()])
        return bool(norm.isfinite())  # host sync

    def to_dict(self) -> dict[str, Any]:
        """Tensors and built-in types only. The sums and the random state are this process's own."""
        return {
            "state_dict": self.model.state_dict(),
            "state_dict_ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
        }

    def rank_to_dict(self) -> dict[str, Any]:
        """What each process has for itself: its sums, what it could not read, and its random state."""
        return {
            "window": self.window.values.tolist(),
            "epoch_sums": self.epoch_sums.values.tolist(),
            "bad_images": sorted(self.bad_images),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.window.values.is_cuda else None,
        }

    def load_rank_dicts(self, saved: Sequence[dict[str, Any]], rank: int, size: int) -> None:
        """The counterpart of `rank_to_dict`, from what all processes have saved, for one of `size` processes.

        What they have summed and noted is shared out, so that all together have all of it. The random state is that
        of the same rank; without one it stays as it is.
        """
        mine = saved[rank::size]
        for name, sums in (("window", self.window), ("epoch_sums", self.epoch_sums)):
            sums.values.copy_(torch.tensor([share[name] for share in mine], dtype=torch.float64).reshape(-1, 4).sum(0))
        self.bad_images.clear()
        self.bad_images.update(path for share in mine for path in share.get("bad_images", ()))
        if rank >= len(saved):
            return
        torch.set_rng_state(saved[rank]["torch_rng"])
        if saved[rank]["cuda_rng"] is not None and self.window.values.is_cuda:
            torch.cuda.set_rng_state(saved[rank]["cuda_rng"])
