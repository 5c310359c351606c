"""timm's side of scripts/benchmark_train.py: its networks and parts, driven as its train script does."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import NativeScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cspnet.cli.measure_speed import LR, NUM_CLASSES, Contender, Trial, draw_batch
from cspnet.errors import UserError
from cspnet.runtime.processes import leave_with_parent

__all__ = ["TimmEpochs", "TimmSettings", "TimmUpdates", "check_name", "open_epochs", "open_loader"]


@dataclass(frozen=True)
class TimmSettings:
    """Flags of timm's train script."""

    channels_last: bool = False
    amp: bool = False
    """In `Trial.amp_dtype`."""
    compile: bool = False


def check_name(name: str) -> str:
    """timm's name of a network of ours: the same one.

    Raises:
        UserError: timm does not have it.
    """
    bare_name = name.removeprefix("timm/")
    # cspnet.timm_models may have put ours there.
    if not timm.is_model(bare_name) or timm.models.model_entrypoint(bare_name).__module__.startswith("cspnet."):
        raise UserError(
            f"{name}: timm has no such network to compare with; use cspresnet50, cspresnext50, cspdarknet53"
        )
    return bare_name


class TimmUpdates(Contender):
    """A network of timm's with the optimizer and loss that its train script takes by default, and its loop."""

    def __init__(
        self,
        name: str,
        size_px: int,
        trial: Trial,
        settings: TimmSettings,
        weights: Mapping[str, Tensor] | None = None,
        num_classes: int = NUM_CLASSES,
    ) -> None:
        device = trial.device
        self.trial, self.settings = trial, settings
        model = timm.create_model(check_name(name), num_classes=num_classes)
        if weights is not None:
            try:
                model.load_state_dict(weights)
            except RuntimeError as error:
                raise UserError(f"{name}: timm's network of that name has other weights than ours") from error
        model = model.to(device)
        if settings.channels_last:
            model = model.to(memory_format=torch.channels_last)
        # `sgd` is its script's default, and Nesterov's.
        self.optimizer = create_optimizer_v2(model, opt="sgd", lr=LR, weight_decay=2e-5, momentum=0.9)
        self.autocast: Callable[[], Any] = contextlib.nullcontext
        self.scaler = None
        if settings.amp:
            self.autocast = functools.partial(torch.autocast, device_type=device.type, dtype=trial.amp_dtype)
            if trial.amp_dtype is torch.float16:
                self.scaler = NativeScaler(device=device.type)
        self.network = model
        if settings.compile:
            self.network = cast(nn.Module, torch.compile(model))
        self.loss_fn = LabelSmoothingCrossEntropy(0.1).to(device)
        self.images, self.labels = draw_batch(trial, size_px)
        self.optimizer.zero_grad()

    def step(self, images: Tensor, targets: Tensor) -> Tensor:
        """One update; the loss, ()."""
        if self.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            loss = self.loss_fn(self.network(images), targets)
        if self.scaler is not None:
            self.scaler(loss, self.optimizer)
        else:
            loss.backward()
            self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def update(self) -> Tensor:
        return self.step(self.images, self.labels)


def open_loader(
    root: Path, size_px: int, batch_size: int, workers: int, device: torch.device, our_views: bool
) -> tuple[Iterable[tuple[Tensor, Tensor]], int]:
    """timm's loader of the training pictures, as its script opens it by default, and their number of classes.

    Args:
        our_views: without the colour jitter of 0.4 and the random choice of the interpolation that its script has by
            default and ours has not: the crops and flips that both have.
    """
    dataset = create_dataset("", root=str(root), split="train", is_training=True, batch_size=batch_size)
    loader = create_loader(
        dataset,
        input_size=(3, size_px, size_px),
        batch_size=batch_size,
        is_training=True,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        color_jitter=0.0 if our_views else 0.4,
        interpolation="bilinear" if our_views else "random",
        num_workers=workers,
        persistent_workers=False,  # both start their processes within the clock
        device=device,
    )
    reading = cast("DataLoader[Any]", loader.loader)
    seed_worker = cast("Callable[[int], None]", reading.worker_init_fn)
    reading.worker_init_fn = functools.partial(_begin_to_read, seed_worker)
    return loader, len(dataset.reader.class_to_idx)


def _begin_to_read(seed_worker: Callable[[int], None], worker: int) -> None:
    """What timm's reading processes do at their start; and they end with the one that started them.

    PyTorch's own watch for that does not see one that ended before it began.
    """
    leave_with_parent()
    seed_worker(worker)


@dataclass
class TimmEpochs:
    """Epochs over timm's own loader."""

    training: TimmUpdates
    loader: Iterable[tuple[Tensor, Tensor]]
    steps: int

    def first_steps(self) -> list[float]:
        """Nothing: the first time warms up."""
        return []

    def time_training(self) -> float:
        """Images per second, from the call for the first batch until the device has done the last step."""
        self.training.network.train()
        num_images = 0
        began = time.perf_counter()
        batches = iter(self.loader)
        for _ in range(self.steps):
            images, targets = next(batches)
            self.training.step(images, targets)
            num_images += len(images)
        next(self.training.network.parameters()).flatten()[0].item()  # host sync: the last update is done
        taken_s = time.perf_counter() - began
        del batches  # its processes end before the next one's turn
        return num_images / taken_s


def open_epochs(
    name: str, root: Path, size_px: int, trial: Trial, workers: int, settings: TimmSettings, our_views: bool, steps: int
) -> TimmEpochs:
    """Epochs of so many steps over the pictures of a folder; see `open_loader` and `TimmUpdates`."""
    loader, num_classes = open_loader(root, size_px, trial.batch_size, workers, trial.device, our_views)
    return TimmEpochs(TimmUpdates(name, size_px, trial, settings, None, num_classes), loader, steps)
