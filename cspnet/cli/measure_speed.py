"""How fast networks are, side by side: forward passes and whole updates on random pictures, nothing read from disk."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from cspnet.cli.build import build_model, build_network, build_state
from cspnet.data.mixing import soft_targets
from cspnet.errors import DeviceError
from cspnet.recipe.schema import DataRecipe, ModelRecipe, Recipe, TrainRecipe
from cspnet.reporting.console import open_bar
from cspnet.reporting.model_table import Speed
from cspnet.runtime.determinism import deterministic_algorithms
from cspnet.runtime.device import choose_amp_dtype
from cspnet.runtime.distributed import World
from cspnet.runtime.heap import keep_freed_memory
from cspnet.runtime.memory import is_out_of_memory, told_shortage
from cspnet.training.state import TrainState
from cspnet.training.step import told_single_values, train_step

__all__ = ["LR", "NUM_CLASSES", "Contender", "Subject", "Trial", "draw_batch", "measure_deterministic"]
__all__ += ["measure_side_by_side", "take_turns"]

NUM_CLASSES = 1000
LR = 0.01
"""Of the updates; it changes no speed, as long as the numbers stay finite."""


@dataclass(frozen=True)
class Trial:
    """How to measure."""

    device: torch.device
    precision: str
    """auto, bf16, fp16 or fp32, as in a recipe."""
    batch_size: int
    steps: int
    """Batches between two looks at the clock."""
    repeats: int

    @property
    def amp_dtype(self) -> torch.dtype:
        """The dtype of autocast; float32 means none."""
        return choose_amp_dtype(self.precision, self.device)

    @property
    def size(self) -> str:
        """Where, and how much at a time."""
        is_cuda = self.device.type == "cuda"
        place = (
            torch.cuda.get_device_name(self.device) if is_cuda else f"{self.device}, {torch.get_num_threads()} threads"
        )
        return f"{place}, batch {self.batch_size}, {self.repeats} repeats of {self.steps} batches"

    def __str__(self) -> str:
        place, _, size = self.size.partition(", batch")
        dtype = str(self.amp_dtype).removeprefix("torch.")
        return f"{place}, PyTorch {torch.__version__}, {dtype}, channels_last, batch{size}"


class Contender(ABC):
    """Something that trains a network on one batch, and the clock that is held to it."""

    trial: Trial
    network: nn.Module

    @abstractmethod
    def update(self) -> Tensor:
        """A whole update; the mean loss of its batch, () on the device."""

    def first_steps(self) -> list[float]:
        """The losses of two updates, which no clock is held to."""
        self.network.train()
        with told_single_values():
            return [float(self.update()) for _ in range(2)]

    def time_training(self, update: Callable[[], object] | None = None) -> float:
        """Images per second of `steps` updates, or of so many other pieces of work on a batch."""
        self.network.train()
        began = time.perf_counter()
        for _ in range(self.trial.steps):
            (update or self.update)()
        next(self.network.parameters()).flatten()[0].item()  # host sync: a weight is there when the last one is done
        return self.trial.steps * self.trial.batch_size / (time.perf_counter() - began)

    def measure_peak(self) -> int | None:
        """Bytes in use at the height of an update; this network must be alone on the device. None: not on a GPU."""
        if self.trial.device.type != "cuda":
            return None
        self.network.train()
        for _ in range(2):
            self.update()  # momentum is there from now on, and cuDNN has tried its algorithms
        torch.cuda.reset_peak_memory_stats(self.trial.device)
        self.update()
        return torch.cuda.max_memory_allocated(self.trial.device)


class Subject(Contender):
    """A network with its optimizer and a batch, as train.py builds them for a recipe, and the heap that it has."""

    def __init__(self, recipe: Recipe, trial: Trial) -> None:
        keep_freed_memory(trial.device)
        self.trial, self.recipe = trial, recipe
        self.model = build_model(recipe, NUM_CLASSES, trial.device)
        mode = recipe.train.compile_mode if recipe.train.compile else None
        self.network = build_network(self.model, World(), trial.device, compile_mode=mode)
        self.state: TrainState = build_state(recipe, self.model, World(), trial.device, trial.amp_dtype)
        images, self.labels = draw_batch(trial, recipe.data.train_px)
        layout = torch.channels_last if recipe.train.channels_last else torch.contiguous_format
        self.images = images.to(memory_format=layout)
        self.targets = soft_targets(self.labels, NUM_CLASSES, recipe.loss.smoothing)

    def forward(self) -> Tensor:
        """Logits (N, K) of the batch."""
        dtype = self.trial.amp_dtype
        with torch.autocast(self.trial.device.type, dtype=dtype, enabled=dtype is not torch.float32):
            return self.model(self.images)

    def update(self) -> Tensor:
        result = train_step(
            self.state,
            self.network,
            [(self.images, self.targets)],
            lr=LR,
            accumulate=1,
            amp_dtype=self.trial.amp_dtype,
            clip_norm=None,
        )
        return result.totals[0] / result.totals[3]

    def time_forward(self) -> float:
        """Images per second."""
        self.model.eval()
        with torch.inference_mode():
            began = time.perf_counter()
            for _ in range(self.trial.steps):
                logits = self.forward()
            logits.cpu()  # host sync: the clock stops when the last batch is through
        return self.trial.steps * self.trial.batch_size / (time.perf_counter() - began)


def draw_batch(trial: Trial, size_px: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) float32, contiguous, and labels (N,) int64, on the device: the same for everybody."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(trial.batch_size, 3, size_px, size_px, generator=draw)
    labels = torch.randint(NUM_CLASSES, (trial.batch_size,), generator=draw)
    return images.to(trial.device), labels.to(trial.device)


def _create_subject(name: str, input_px: int, trial: Trial) -> Subject:
    """Channels_last, SGD with momentum, no EMA."""
    recipe = Recipe(
        model=ModelRecipe(name=name),
        data=DataRecipe(train_px=input_px),
        train=TrainRecipe(batch_size=trial.batch_size, channels_last=True),
    )
    return Subject(recipe, trial)


Name = TypeVar("Name", bound=Hashable)


def take_turns(
    work: Mapping[Name, Callable[[], float]], repeats: int, *, warm_up: bool = True, shows: bool = True
) -> dict[Name, list[float]]:
    """What each piece of work returns in each of `repeats` rounds; a round before them warms up. On a terminal a bar
    goes on between them.

    They take turns, so that whatever else the machine does meets all of them alike; every other round goes backwards,
    so that none is always the one behind the heaviest.
    """
    found: dict[Name, list[float]] = {name: [] for name in work}
    rounds = range(-1 if warm_up else 0, repeats)
    with open_bar(len(rounds) * len(work), "measured", "turn") if shows else nullcontext() as bar:
        for repeat in rounds:
            for name in list(work)[:: -1 if repeat % 2 else 1]:
                value = work[name]()
                if repeat >= 0:
                    found[name].append(value)
                if bar is not None:
                    bar.update()
    return found


def measure_side_by_side(sizes_px: Mapping[str, int], trial: Trial) -> dict[str, Speed]:
    """Measure networks in turn, `repeats` times over, so that whatever else the machine does meets them all alike.

    Args:
        sizes_px: {name: side of the picture} of networks that fit on the device together.
        trial: how.
    Raises:
        DeviceError: the batch does not fit into memory, or a size is not from 8 to 4096 px.
        ModelError: a network that cannot be trained on such a batch.
    """
    for name, input_px in sizes_px.items():
        if not 8 <= input_px <= 4096:
            raise DeviceError(f"{name}: pictures of {input_px} px cannot be measured; give --size 8 to 4096")
    try:
        peaks = {name: _create_subject(name, px, trial).measure_peak() for name, px in sizes_px.items()}
        subjects = {name: _create_subject(name, px, trial) for name, px in sizes_px.items()}
        work: dict[tuple[str, str], Callable[[], float]] = {}
        for name, subject in subjects.items():
            work[name, "forward"] = subject.time_forward
            work[name, "training"] = subject.time_training
        rates = take_turns(work, trial.repeats)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"--batch-size {trial.batch_size}: {', '.join(sizes_px)} do not fit on {trial.device} together; use less"
        ) from error
    return {
        name: Speed(tuple(rates[name, "forward"]), tuple(rates[name, "training"]), peaks[name], str(trial))
        for name in subjects
    }


def measure_deterministic(name: str, input_px: int, trial: Trial) -> list[tuple[float, float]]:
    """Training with and without train.deterministic, in turn: [(images per second with it, without it)], one a repeat.

    Raises:
        DeviceError: the batch does not fit into memory, or the network has an operation without a deterministic form.
    """
    with told_shortage(trial.device, f"with --batch-size {trial.batch_size}", "use less"):
        subject = _create_subject(name, input_px, trial)
        pairs = []
        for _ in range(1 + trial.repeats):
            with deterministic_algorithms(enabled=True):
                with_it = subject.time_training()
            pairs.append((with_it, subject.time_training()))
    return pairs[1:]  # the first round warms up
