"""A throw-away copy of what a run trains, and steps on drawn pictures: what a step takes, without touching the run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cspnet.cli import build
from cspnet.cli.build_run import Place
from cspnet.data.feed import Batch
from cspnet.data.mixing import mirror, mix_batch, soft_targets
from cspnet.data.policies import Eraser
from cspnet.data.transforms import build_sizes
from cspnet.evaluation.evaluate import evaluate
from cspnet.optim.losses import build_loss
from cspnet.recipe.schema import Recipe
from cspnet.runtime.distributed import World
from cspnet.runtime.random import generator_at
from cspnet.training.adversarial import perturb
from cspnet.training.step import train_step

__all__ = ["Trial"]


class Trial:
    """Network, optimizer and average of a recipe, fresh, on the device. No other process hears of it.

    Build it before the run's own state (`build_state`), which seeds torch's generators anew.
    """

    def __init__(self, recipe: Recipe, num_classes: int, place: Place, *, compiled: bool = False) -> None:
        device = place.device
        model = build.build_model(recipe, num_classes, device)
        state = build.build_state(recipe, model, place.world, device, place.amp_dtype)
        # A scaler passes over the first steps, and the optimizer's memory would come later than the trial.
        self.state = replace(state, scaler=torch.amp.GradScaler(device.type, enabled=False))
        mode = recipe.train.compile_mode if compiled else None
        self.network = build.build_network(model, World(), device, compile_mode=mode)
        self.recipe, self.num_classes, self.place = recipe, num_classes, place
        self._warm: set[int] = set()
        self.prepare = build.build_normalizer(recipe, device)
        self.erase = Eraser(recipe.augment, device)
        self.loss_fn = build_loss(recipe.loss)
        # Data parallelism keeps room for all gradients; its view itself would wait for the other processes.
        exchanged = sum(p.numel() * p.element_size() for p in model.parameters()) if place.world.size > 1 else 0
        self.buckets = torch.empty(exchanged, dtype=torch.uint8, device=device)

    def train(self, batch_size: int, passes: int, steps: int = 2, lr: float = 0.0) -> None:
        """Training steps on pictures of the run's largest size, with all that the recipe does to them.

        The second step has the optimizer's state beside it, and the second of several passes the gradients.
        """
        self.state.set_training()
        self.state.model.zero_grad(set_to_none=True)
        pictures = self._draw(batch_size, build_sizes(self.recipe.data).sizes()[-1])
        for step in range(steps):
            self._step(pictures, step, min(2, passes), lr)

    def time_step(self, batch_size: int, least_s: float = 0.1) -> float:
        """Seconds of the fastest of as many such steps of one pass as `least_s` takes: one at least, on a GPU two."""
        self.state.set_training()
        self.state.model.zero_grad(set_to_none=True)
        pictures = self._draw(batch_size, build_sizes(self.recipe.data).sizes()[-1])
        taken: list[float] = []
        at_least = 2 if self.place.device.type == "cuda" else 1
        for step in itertools.count(int(batch_size in self._warm)):
            began = time.perf_counter()
            self._step(pictures, step, 1, 0.0)
            if self.place.device.type == "cuda":
                torch.cuda.synchronize(self.place.device)
            if step:  # the first one makes the optimizer's state, and cuDNN looks for its algorithms
                taken.append(time.perf_counter() - began)
            if len(taken) >= at_least and sum(taken) >= least_s:
                break
        self._warm.add(batch_size)
        return min(taken)

    def _step(self, pictures: list[Batch], step: int, passes: int, lr: float) -> None:
        train_step(
            self.state,
            self.network,
            self._micro_batches(pictures, step, passes),
            lr=lr,
            accumulate=passes,
            amp_dtype=self.place.amp_dtype,
            clip_norm=self.recipe.optim.clip_norm,
            loss_fn=self.loss_fn,
        )

    def validate(self, batch_size: int) -> None:
        """A validation batch."""
        pictures = self._draw(batch_size, build.build_geometry(self.recipe.data).size_px)
        evaluate(
            self.state.model,
            batches=pictures[:1],
            common_batches=1,
            num_samples=batch_size,
            prepare=self.prepare,
            device=self.place.device,
            amp_dtype=self.place.amp_dtype,
            world=World(),
            report_bad=lambda bad: None,
        )

    def _draw(self, batch_size: int, side_px: int) -> list[Batch]:
        """Two batches on the device, as many as `cspnet.data.feed` keeps there."""
        rng = generator_at(self.recipe.train.seed, "trial")
        pixels = torch.from_numpy(rng.integers(0, 256, (batch_size, side_px, side_px, 3), dtype=np.uint8))
        labels = torch.from_numpy(rng.integers(0, self.num_classes, batch_size))
        flipped = torch.from_numpy(rng.random(batch_size) < 0.5)
        device = self.place.device
        return [Batch(pixels.to(device, copy=True), labels.to(device), flipped.to(device), []) for _ in range(2)]

    def _micro_batches(self, pictures: list[Batch], step: int, passes: int) -> Iterator[tuple[Tensor, Tensor]]:
        cfg, place = self.recipe, self.place
        for micro in range(passes):
            images = self.prepare(mirror(pictures[micro].images, pictures[micro].flipped))
            smoothing = cfg.loss.smoothing, cfg.loss.smoothing_over
            soft = soft_targets(pictures[micro].targets, self.num_classes, *smoothing)
            address = (step, micro * place.world.size + place.world.rank)
            images = self.erase(images, generator_at(cfg.train.seed, "erase", *address))
            images, soft = mix_batch(images, soft, generator_at(cfg.train.seed, "mix", *address), cfg.mix)
            if cfg.adversarial.lr:
                images = perturb(
                    self.state.model,
                    images,
                    step_size=cfg.adversarial.lr,
                    mean=self.prepare.mean,
                    std=self.prepare.std,
                    amp_dtype=place.amp_dtype,
                )
            yield images, soft
