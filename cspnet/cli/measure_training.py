"""Training as the loop does it, held beside another one's: updates of one batch, whole epochs, and their memory."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import multiprocessing.resource_tracker
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from cspnet.cli import build
from cspnet.cli.build_run import Place, build_run
from cspnet.cli.measure_speed import LR, NUM_CLASSES, Contender, Subject, Trial
from cspnet.data.feed import Batch
from cspnet.data.loader import TrainLoader
from cspnet.data.mixing import soft_targets
from cspnet.data.sampler import BatchPlan
from cspnet.data.samples import SampleIndex, join_paths
from cspnet.errors import UserError
from cspnet.optim.losses import soft_cross_entropy
from cspnet.recipe.load import load_recipe
from cspnet.recipe.schema import Recipe
from cspnet.reporting.console import Console
from cspnet.runtime.distributed import World
from cspnet.runtime.heap import keep_freed_memory
from cspnet.runtime.memory import free_memory
from cspnet.runtime.processes import held_back_signals, leave_with_parent
from cspnet.runtime.signals import StopRequest
from cspnet.training.loop import fit
from cspnet.training.run import Run
from cspnet.training.skipped import LatestSteps
from cspnet.training.state import Progress
from cspnet.training.step import train_step

__all__ = ["Apart", "ApartError", "LoopOfOneBatch", "OurUpdates", "RunClock", "measure_peak", "open_run", "recipe_of"]
__all__ += ["Timed", "time_apart"]

_STATUS = Path("/proc/self/status")


def recipe_of(model: str, size_px: int, batch_size: int, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """train.py's defaults for a network, with what else is set, and the loss and optimizer of timm's train script.

    Label smoothing 0.1; SGD with Nesterov's momentum 0.9, and a decay of 2e-5 on weights of more than one dimension.
    """
    values = {
        "model.name": model,
        "data.train_px": size_px,
        "train.batch_size": batch_size,
        "loss.smoothing": 0.1,
        "optim.lr": LR,
        "optim.nesterov": True,
        "optim.weight_decay": 2e-5,
        "optim.decay_norm_and_bias": False,
    }
    return load_recipe(None, {**values, **(overrides or {})}).recipe


class OurUpdates(Subject):
    """Updates on one batch with what the loop does around them: soft targets, sums, and the look back a step later."""

    def __init__(self, recipe: Recipe, trial: Trial) -> None:
        super().__init__(recipe, trial)
        self.latest = LatestSteps()

    def update(self) -> Tensor:
        state, progress = self.state, self.state.progress
        targets = soft_targets(self.labels, NUM_CLASSES, self.recipe.loss.smoothing, self.recipe.loss.smoothing_over)
        result = train_step(
            state,
            self.network,
            [(self.images, targets)],
            lr=LR,
            accumulate=1,
            amp_dtype=self.trial.amp_dtype,
            clip_norm=self.recipe.optim.clip_norm,
        )
        state.window.add(result.totals)
        state.epoch_sums.add(result.totals)
        self.latest.note(progress, result)
        progress.step += 1
        self.latest.read(leave=1)
        return result.totals[0] / result.totals[3]

    def bare_update(self) -> None:
        """Forward, loss, backward, optimizer: the same network and optimizer, and nothing else."""
        scaler, optimizer = self.state.scaler, self.state.optimizer
        loss = soft_cross_entropy(self.forward(), self.targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)  # without a scaler: optimizer.step()
        scaler.update()
        optimizer.zero_grad(set_to_none=True)


@dataclass
class RunClock:
    """A run of our loop from its first step, again and again, and the clock that is held to it."""

    run: Run
    images: int
    """That a run takes."""

    def first_steps(self) -> list[float]:
        """Nothing: the first time warms up."""
        return []

    def time_training(self) -> float:
        """Images per second, from the call for the first batch until the device has done the last step."""
        self.run.state.progress = Progress()
        began = time.perf_counter()
        fit(self.run)  # its last record waits for the device
        return self.images / (time.perf_counter() - began)


class _OneBatch:
    """In the place of a loader: the same bytes again and again, already on the device."""

    def __init__(self, plan: BatchPlan, size_px: int, labels: Tensor) -> None:
        draw = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (plan.batch_size, size_px, size_px, 3), dtype=torch.uint8, generator=draw)
        flipped = torch.rand(plan.batch_size, generator=draw) < 0.5
        self.plan, self.workers = plan, 0
        self.batch = Batch(pixels.to(labels.device), labels, flipped.to(labels.device), [])

    def start_at(self, epoch: int, sample: int) -> Iterator[Batch]:
        """Batches without end."""
        while True:
            yield self.batch


class LoopOfOneBatch(RunClock):
    """The whole loop, `Trial.steps` long, with the network and optimizer of a `Subject`.

    It has pictures as bytes, so that flipping and normalising are in it; reading, saving and validating are not.
    """

    def __init__(self, subject: Subject) -> None:
        recipe, trial = subject.recipe, subject.trial
        plan = BatchPlan(trial.steps * trial.batch_size, trial.batch_size, 1, 1, recipe.train.seed)
        paths, ends = join_paths(["drawn"])
        index = SampleIndex("drawn", paths, ends, np.zeros(1, np.int32), (), "drawn")
        run = build_run(
            _with_steps(recipe, trial.steps),
            build.Splits(index, None, NUM_CLASSES),
            subject.state,
            cast(TrainLoader, _OneBatch(plan, recipe.data.train_px, subject.labels)),
            Place(World(), trial.device, trial.amp_dtype, Console(rank=1)),  # all but the first process keep quiet
            StopRequest(),
        )
        super().__init__(run, plan.num_samples)


def open_run(recipe: Recipe, trial: Trial, most_pictures: int | None) -> RunClock:
    """A run over real pictures, of one epoch or of so many pictures, with the heap that train.py has.

    Nothing is validated or written.

    Raises:
        DataError: no data set, or too small a one.
    """
    keep_freed_memory(trial.device)
    world = World()
    splits = build.open_splits(recipe, world)
    loader = build.build_train_loader(recipe, splits, world, trial.device)
    plan = loader.plan
    steps = min(plan.steps_per_epoch, (most_pictures or plan.num_samples) // plan.global_batch_size)
    if steps < 1:
        raise UserError(f"--epoch-pictures {most_pictures}: a step alone takes {plan.global_batch_size}")
    model = build.build_model(recipe, splits.num_classes, trial.device)
    state = build.build_state(recipe, model, world, trial.device, trial.amp_dtype)
    place = Place(world, trial.device, trial.amp_dtype, Console(rank=1))
    run = build_run(_with_steps(recipe, steps), splits, state, loader, place, StopRequest())
    return RunClock(run, steps * plan.global_batch_size)


def _with_steps(recipe: Recipe, steps: int) -> Recipe:
    """So long a run, with one record, at its end."""
    train, log = replace(recipe.train, steps=steps), replace(recipe.log, every_steps=steps)
    return replace(recipe, train=train, log=log)


# Processes of their own


class ApartError(RuntimeError):
    """What another process raised, in words."""


def _start_apart(
    work: Callable[[Callable[[], Any], Connection], None], make: Callable[[], Any]
) -> tuple[BaseProcess, Connection]:
    """A process of its own for `work`, and our end of its pipe; it leaves signals to this one, and ends with it."""
    context = multiprocessing.get_context("spawn")  # a forked one would have this one's memory already
    here, there = context.Pipe()
    process = context.Process(target=_run_apart, args=(work, make, there))  # no daemon: those may not have readers
    multiprocessing.resource_tracker.ensure_running()  # its own start would let signals through again
    with held_back_signals():
        process.start()
    there.close()
    return process, here


def _run_apart(
    work: Callable[[Callable[[], Any], Connection], None], make: Callable[[], Any], pipe: Connection
) -> None:
    leave_with_parent()
    work(make, pipe)


def _hear(process: BaseProcess, pipe: Connection) -> Any:
    """Its next answer.

    Raises:
        EOFError, OSError: it has died.
    """
    try:
        return pipe.recv()
    except KeyboardInterrupt:
        process.terminate()  # else its round would be waited for
        raise


class Timed(Protocol):
    """What a clock can be held to, as it is to a `Contender`."""

    def first_steps(self) -> list[float]:
        """The losses of the steps before, if there are some."""

    def time_training(self) -> float:
        """Images per second."""


class Apart:
    """A contender in a process of its own: its heap and its threads are nobody else's.

    Raises:
        UserError: what `make` raised; or the process has died.
        ApartError: anything else that its first updates raised.
    """

    def __init__(self, make: Callable[[], Timed]) -> None:
        self._process, self._pipe = _start_apart(_serve, make)
        self.first_losses: list[float] = self._receive()
        """See `Timed.first_steps`; those it has taken already."""

    def time_training(self) -> float:
        """See `Timed.time_training`."""
        with _told_death():
            self._pipe.send("time")
        return float(self._receive())

    def close(self) -> None:
        """End the process, if it has not ended yet."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)  # closing the pipe is no sign where other processes have its end as well
        self._process.join()
        self._pipe.close()

    def _receive(self) -> Any:
        with _told_death():
            answer = _hear(self._process, self._pipe)
        if isinstance(answer, Exception):
            self.close()  # it has nothing more to do
            raise answer
        return answer


@contextlib.contextmanager
def _told_death() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError):  # a pipe that broke, too, which would be taken for an output that nobody reads
        raise UserError("a process that measured has died: is the memory full? Use a smaller --batch-size") from None


def time_apart(make: Callable[[], Timed]) -> float:
    """Images per second of a contender in a process of its own that begins and ends here; its first steps warm up.

    Raises:
        UserError, ApartError: see `Apart`.
    """
    with contextlib.closing(Apart(make)) as apart:
        apart.time_training()
        return apart.time_training()


def _serve(make: Callable[[], Timed], pipe: Connection) -> None:
    try:
        contender = make()
        pipe.send(contender.first_steps())
        while pipe.recv():
            pipe.send(contender.time_training())
    except EOFError:
        return
    except UserError as error:
        pipe.send(error)
    except Exception as error:  # in words: not all of them can be sent
        pipe.send(ApartError(f"{type(error).__name__}: {error}"))


# Memory


def measure_peak(make: Callable[[], Contender], device: torch.device) -> int | None:
    """Bytes in use at the height of an update: those that were not in use before the network was made.

    On a GPU: allocated there, with nothing else on it. On a CPU: resident memory of a process of its own, over three
    updates. None: this system does not tell.

    Raises:
        UserError: what `make` raised; or the process has died.
    """
    if device.type == "cuda":
        free_memory(device)
        before = torch.cuda.memory_allocated(device)
        peak = make().measure_peak()
        free_memory(device)
        return None if peak is None else peak - before
    if not _STATUS.exists():
        return None
    process, pipe = _start_apart(_tell_peak, make)
    with _told_death():
        answer = _hear(process, pipe)
    process.join()
    if isinstance(answer, UserError):
        raise answer
    return int(answer)


def _tell_peak(make: Callable[[], Contender], answers: Connection) -> None:
    try:
        gc.collect()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak from here on; proc(5)
        before = _read_status("VmRSS")
        contender = make()
        contender.network.train()
        for _ in range(3):
            contender.update()
        answers.send(_read_status("VmHWM") - before)
    except UserError as error:
        answers.send(error)


def _read_status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
