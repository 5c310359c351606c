"""A run: everything that the loop works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cspnet.data.loader import TrainLoader
from cspnet.data.mixing import Normalizer
from cspnet.data.policies import Eraser
from cspnet.data.sampler import BatchPlan
from cspnet.evaluation.metrics import EvalResult
from cspnet.recipe.schema import Recipe
from cspnet.reporting.run_report import BadImageLog, RunReport
from cspnet.runtime.distributed import World
from cspnet.runtime.signals import StopRequest
from cspnet.training.meter import Meter
from cspnet.training.saving import Saver
from cspnet.training.skipped import LatestSteps
from cspnet.training.state import TrainState
from cspnet.training.watching import Watch

__all__ = ["Run"]


@dataclass
class Run:
    """What the loop works with; `state` alone changes."""

    state: TrainState
    network: nn.Module
    """The raw model, or its data-parallel view."""
    recipe: Recipe
    num_classes: int
    loader: TrainLoader
    prepare: Normalizer
    erase: Eraser
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    lr_at: Callable[[int], float]
    total_steps: int
    validate: Callable[..., EvalResult] | None
    """Of a model, and of what is called between batches; None when there is no validation split."""
    world: World
    device: torch.device
    amp_dtype: torch.dtype
    report: RunReport
    meter: Meter
    bad_images: BadImageLog
    folder: Path | None
    """The run's; None writes nothing (a dry run)."""
    saver: Saver | None
    """None saves nothing; the first process's is the one that writes."""
    roll_back: Callable[[Run], Path | None]
    """Puts the state, and the records, back to the last checkpoint behind a good step, which it returns."""
    stop: StopRequest
    watch: Watch
    checkpoint_header: dict[str, Any]
    """What a checkpoint holds besides the state: recipe, geometry, class names, versions."""
    latest: LatestSteps = field(default_factory=LatestSteps)
    num_evidence: int = 0
    """Skipped steps whose batches this process has kept."""
    was_rolled_back: bool = False

    @property
    def plan(self) -> BatchPlan:
        """How the pictures are shared out."""
        return self.loader.plan

    @property
    def epochs(self) -> int:
        """Epochs of the whole run; the last one may be cut short by train.steps."""
        return -(-self.total_steps // self.plan.steps_per_epoch)
