"""How fast networks are, side by side: forward passes and whole updates on random pictures, nothing read from disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cspnet.cli.build import build_model, build_state
from cspnet.errors import DeviceError
from cspnet.recipe.schema import DataRecipe, ModelRecipe, Recipe, TrainRecipe
from cspnet.reporting.model_table import Speed
from cspnet.runtime.determinism import deterministic_algorithms
from cspnet.runtime.device import choose_amp_dtype
from cspnet.runtime.distributed import World
from cspnet.runtime.memory import is_out_of_memory, told_shortage
from cspnet.training.state import TrainState
from cspnet.training.step import train_step

__all__ = ["Trial", "measure_deterministic", "measure_side_by_side"]

NUM_CLASSES = 1000


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

    def __str__(self) -> str:
        is_cuda = self.device.type == "cuda"
        place = (
            torch.cuda.get_device_name(self.device) if is_cuda else f"{self.device}, {torch.get_num_threads()} threads"
        )
        return (
            f"{place}, PyTorch {torch.__version__}, {str(self.amp_dtype).removeprefix('torch.')}, channels_last, "
            f"batch {self.batch_size}, {self.repeats} repeats of {self.steps} batches"
        )


class _Subject:
    """A network with its optimizer and a batch, as train.py builds them: channels_last, SGD with momentum, no EMA."""

    def __init__(self, name: str, input_px: int, trial: Trial) -> None:
        recipe = Recipe(
            model=ModelRecipe(name=name),
            data=DataRecipe(train_px=input_px),
            train=TrainRecipe(batch_size=trial.batch_size, channels_last=True),
        )
        self.trial = trial
        self.model = build_model(recipe, NUM_CLASSES, trial.device)
        self.state: TrainState = build_state(recipe, self.model, World(), trial.device, trial.amp_dtype)
        draw = torch.Generator().manual_seed(0)
        images = torch.randn(trial.batch_size, 3, input_px, input_px, generator=draw)
        self.images = images.to(trial.device, memory_format=torch.channels_last)
        labels = torch.randint(NUM_CLASSES, (trial.batch_size,), generator=draw)
        self.targets = torch.nn.functional.one_hot(labels, NUM_CLASSES).float().to(trial.device)

    def forward(self) -> Tensor:
        dtype = self.trial.amp_dtype
        with torch.autocast(self.trial.device.type, dtype=dtype, enabled=dtype is not torch.float32):
            return self.model(self.images)

    def update(self) -> None:
        train_step(
            self.state,
            self.model,
            [(self.images, self.targets)],
            lr=0.01,
            accumulate=1,
            amp_dtype=self.trial.amp_dtype,
            clip_norm=None,
        )

    def time_forward(self) -> float:
        """Images per second."""
        self.model.eval()
        with torch.inference_mode():
            began = time.perf_counter()
            for _ in range(self.trial.steps):
                logits = self.forward()
            logits.cpu()  # host sync: the clock stops when the last batch is through
        return self.trial.steps * self.trial.batch_size / (time.perf_counter() - began)

    def time_training(self) -> float:
        """Images per second."""
        self.model.train()
        began = time.perf_counter()
        for _ in range(self.trial.steps):
            self.update()
        next(self.model.parameters()).flatten()[0].item()  # host sync: a weight is there when the last update is done
        return self.trial.steps * self.trial.batch_size / (time.perf_counter() - began)

    def measure_peak(self) -> int | None:
        """Bytes in use at the height of an update; this network must be alone on the device."""
        if self.trial.device.type != "cuda":
            return None
        self.model.train()
        for _ in range(2):
            self.update()  # momentum is there from now on, and cuDNN has tried its algorithms
        torch.cuda.reset_peak_memory_stats(self.trial.device)
        self.update()
        return torch.cuda.max_memory_allocated(self.trial.device)


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
        peaks = {name: _Subject(name, input_px, trial).measure_peak() for name, input_px in sizes_px.items()}
        subjects = {name: _Subject(name, input_px, trial) for name, input_px in sizes_px.items()}
        forward: dict[str, list[float]] = {name: [] for name in subjects}
        training: dict[str, list[float]] = {name: [] for name in subjects}
        for repeat in range(1 + trial.repeats):
            for name, subject in subjects.items():
                speeds = subject.time_forward(), subject.time_training()
                if repeat:  # the first round warms up
                    forward[name].append(speeds[0])
                    training[name].append(speeds[1])
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"--batch-size {trial.batch_size}: {', '.join(sizes_px)} do not fit on {trial.device} together; use less"
        ) from error
    return {name: Speed(tuple(forward[name]), tuple(training[name]), peaks[name], str(trial)) for name in subjects}


def measure_deterministic(name: str, input_px: int, trial: Trial) -> list[tuple[float, float]]:
    """Training with and without train.deterministic, in turn: [(images per second with it, without it)], one a repeat.

    Raises:
        DeviceError: the batch does not fit into memory, or the network has an operation without a deterministic form.
    """
    with told_shortage(trial.device, f"with --batch-size {trial.batch_size}", "use less"):
        subject = _Subject(name, input_px, trial)
        pairs = []
        for _ in range(1 + trial.repeats):
            with deterministic_algorithms(enabled=True):
                with_it = subject.time_training()
            pairs.append((with_it, subject.time_training()))
    return pairs[1:]  # the first round warms up
