"""How fast a run is: what its records say of it, and what its last lines go by.

Model FLOPs utilisation (MFU) is the share of the device's peak that the network itself makes use of: 3 x the FLOPs of
the forward pass (the backward pass computes two products for each of the forward one), 2 FLOPs a multiply-add of
convolutions and linear layers, x pictures per second of this process, / peak FLOP/s in the run's precision. What is
computed again (train.grad_checkpointing) or besides (adversarial.lr, BatchNorm, optimizer) does not count.
Source: Chowdhery et al., "PaLM", arXiv 2204.02311, appendix B.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from cspnet.data.feed import Batch
from cspnet.data.sampler import BatchPlan
from cspnet.runtime.distributed import World, gather_objects
from cspnet.runtime.exchange import time_exchange
from cspnet.runtime.memory import peak_bytes, peak_host_bytes
from cspnet.runtime.peak import Peak
from cspnet.training.clock import Clock, Spent, build_clock
from cspnet.training.trace import StepTrace

__all__ = ["MEASURED_KEYS", "WARM_UP_STEPS", "Meter"]

MEASURED_KEYS = (
    "train/images_per_s",
    "train/compute_images_per_s",
    "train/data_wait_ratio",
    "train/peak_memory_bytes",
    "train/mfu",
)
"""What a record says of the machine: the only values in which two equal runs differ."""

WARM_UP_STEPS = 3
"""The first steps of each start, in which reading processes come up, libraries choose and compilers compile: counted
only in records that have no others."""


class Meter:
    """What is measured of a run on this process; `take` is for all processes together.

    Args:
        macs: {side of the picture in px: multiply-adds of a forward pass for one}; sizes without one have no MFU.
        peak: of the device; None has no MFU.
        trace: records some steps; None records none.
        clock: of the training steps.
    """

    def __init__(
        self,
        world: World,
        device: torch.device,
        plan: BatchPlan,
        macs: Mapping[int, int] | None = None,
        peak: Peak | None = None,
        trace: StepTrace | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.world, self.device, self.plan = world, device, plan
        self.macs, self.peak, self.trace = macs or {}, peak, trace
        self.clock = clock or build_clock(device)
        self.total = Spent()
        """Of this start, without its first steps."""
        self.epoch = Spent()
        """Of the current epoch, as far as this start has trained it; its first steps only if there are no others."""
        self.exchange_s: float | None = None
        """How long it takes to exchange the gradients of a step; None where nothing is exchanged."""
        self._taken = self._warm_up = Spent()
        self._flops_per_step = 0.0

    def prepare(self, num_values: int) -> None:
        """Before the first step, on all processes together: measure what has to be measured alone.

        Args:
            num_values: trainable parameters of the network.
        """
        self.exchange_s = time_exchange(self.world, num_values, self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    @contextlib.contextmanager
    def timing(self, batches: Iterator[Batch], size_px: int) -> Iterator[Iterator[Batch]]:
        """The steps of an epoch, or its rest: the same batches, and while they are trained the clock runs.

        Args:
            size_px: side of the pictures.
        """
        self._flops_per_step = 3 * 2.0 * self.macs.get(size_px, 0) * self.plan.batch_size * self.plan.accumulate
        self.epoch = Spent()
        if self.trace:
            self.trace.start()
        with self.clock.running():
            yield self.clock.timing(batches)

    def advance(self) -> None:
        """A step is done, or queued."""
        self.clock.advance(self.plan.global_batch_size, self._flops_per_step)
        if self._warm_up.steps < WARM_UP_STEPS:
            self._warm_up = self.clock.read()
        if self.trace:
            with self.clock.paused():
                self.trace.advance()

    def take(self) -> Spent:
        """What was spent since the last call, but for the first steps of this start, unless there are no others; for
        the sums too. All processes call it together, behind a host sync.

        Of several processes, one that waits for data holds up the others: the longest wait is everybody's.
        """
        now = self.clock.read()
        before = self._taken if self._taken.steps >= self._warm_up.steps else self._warm_up
        is_counted = now.steps > before.steps
        window = now - (before if is_counted else self._taken)
        window = replace(window, data_s=max(gather_objects(self.world, window.data_s)))
        self._taken = now
        # An epoch that began with uncounted steps goes on without them, as the total does.
        self.epoch = window if is_counted and self.epoch.steps and not self.total.steps else self.epoch + window
        if is_counted:
            self.total += window
        return window

    def figures(self, spent: Spent) -> dict[str, Any]:
        """The values of a record, under `MEASURED_KEYS`; without the last one where there is no MFU."""
        mfu = self.mfu(spent)
        values = (spent.images_per_s, spent.compute_images_per_s, spent.data_wait_ratio, self.peak_memory_bytes(), mfu)
        record = dict(zip(MEASURED_KEYS, values, strict=True))
        return record if mfu is not None else {key: value for key, value in record.items() if key != "train/mfu"}

    def mfu(self, spent: Spent) -> float | None:
        """Model FLOPs utilisation, as a share of 1; None where the FLOPs or the peak are not known."""
        if self.peak is None or not spent.flops or spent.elapsed_s <= 0:
            return None
        return spent.flops / spent.elapsed_s / self.peak.flops_per_s

    def peak_memory_bytes(self) -> int:
        """The most that this process has had in use: of a GPU's memory since the first step, else of the host's."""
        return peak_bytes(self.device) or peak_host_bytes()

    def describe(self, spent: Spent) -> str:
        """`1,234 img/s (compute alone 1,300), data 5%, peak memory 8.1 GiB, MFU 41%`."""
        alone, mfu = spent.compute_images_per_s, self.mfu(spent)
        parts = [f"{spent.images_per_s:,.0f} img/s" + (f" (compute alone {alone:,.0f})" if alone is not None else "")]
        parts += [f"data {spent.data_wait_ratio:.0%}", f"peak memory {self.peak_memory_bytes() / 2**30:.1f} GiB"]
        return ", ".join(parts + ([f"MFU {mfu:.0%}"] if mfu is not None else []))

    def finish(self) -> None:
        """The run ends early, and in good order: what is recorded by now is written."""
        if self.trace:
            self.trace.finish()
