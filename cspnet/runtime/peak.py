"""How fast a device could multiply at most: from its data sheet, or measured."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cspnet.runtime.device import synchronize

__all__ = ["Peak", "find_peak", "measure_rate"]


@dataclass(frozen=True)
class Peak:
    """The most that a device can do in a number format."""

    flops_per_s: float
    number_format: str
    """bf16, fp16, tf32 or fp32."""
    is_measured: bool
    """By a matrix product here; else it is from the data sheet."""

    def __str__(self) -> str:
        source = "measured" if self.is_measured else "data sheet"
        tera = self.flops_per_s / 1e12
        return f"{tera:.3g} TFLOP/s ({self.number_format}, {source})"


@dataclass(frozen=True)
class _Sheet:
    """Peaks in TFLOP/s without sparsity, of tensor cores where there are any; sums in float32. None: it has no such."""

    name: str
    """A pattern for the whole name, as the driver tells it: a part of a GPU (MIG) or a relative is another one."""
    fp16: float
    bf16: float | None
    tf32: float | None
    fp32: float


# Source: NVIDIA's data sheets of these products; for the GeForce cards, the white papers of GA102 and Ada (FP16 with
# FP32 accumulate). What is only given with sparsity is halved.
_SHEETS = (
    _Sheet(r"Tesla V100-SXM\d-\d+GB", 125, None, None, 15.7),
    _Sheet(r"Tesla V100-PCIE-\d+GB", 112, None, None, 14),
    _Sheet(r"Tesla T4", 65, None, None, 8.1),
    _Sheet(r"(NVIDIA )?A100[- ].*", 312, 312, 156, 19.5),
    _Sheet(r"(NVIDIA )?A30", 165, 165, 82, 10.3),
    _Sheet(r"(NVIDIA )?A10", 125, 125, 62.5, 31.2),
    _Sheet(r"(NVIDIA )?A40", 149.7, 149.7, 74.8, 37.4),
    _Sheet(r"NVIDIA H100 80GB HBM3", 989.4, 989.4, 494.7, 67),
    _Sheet(r"NVIDIA H100 PCIe", 756, 756, 378, 51),
    _Sheet(r"NVIDIA H200", 989.4, 989.4, 494.7, 67),
    _Sheet(r"NVIDIA L4", 121, 121, 60, 30.3),
    _Sheet(r"NVIDIA L40S", 362, 362, 183, 91.6),
    _Sheet(r"NVIDIA GeForce RTX 3090", 71, 71, 35.6, 35.6),
    _Sheet(r"NVIDIA GeForce RTX 4090", 165.2, 165.2, 82.6, 82.6),
)

_SMALLEST, _LARGEST = 256, 8192
"""Sides of the matrices that are multiplied."""
_LONG_ENOUGH_S = 0.005
"""A product of this length is little affected by what it takes to start it and to look at the clock."""
_REPEATS = 3


def find_peak(device: torch.device, dtype: torch.dtype, now: Callable[[], float] = time.perf_counter) -> Peak | None:
    """The peak of a device for the products of a run.

    Args:
        dtype: of autocast. float32 on a GPU means TF32 where cuDNN may take it (torch.backends.cudnn), its default.
        now: a clock, in seconds.
    Returns:
        From the data sheet if the GPU is known here; otherwise measured, which takes up to about 0.3 s. None for TF32
        on a GPU that is not known: matrix products need not use it when convolutions do, so none measures it.
    """
    number_format = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")
    if device.type == "cuda":
        if number_format == "fp32" and torch.backends.cudnn.conv.fp32_precision == "tf32":  # type: ignore[attr-defined]
            number_format = "tf32" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
        known = _look_up(torch.cuda.get_device_name(device), number_format)
        if known is not None:
            return Peak(1e12 * known, number_format, is_measured=False)
        if number_format == "tf32":
            return None
    return Peak(_measure(device, dtype, now), number_format, is_measured=True)


def _look_up(name: str, number_format: str) -> float | None:
    """TFLOP/s of a known GPU; None for others, parts of one (MIG), and formats that it computes otherwise."""
    if "MIG" in name.split():
        return None
    sheet = next((sheet for sheet in _SHEETS if re.fullmatch(sheet.name, name)), None)
    return None if sheet is None else getattr(sheet, number_format)


def _measure(device: torch.device, dtype: torch.dtype, now: Callable[[], float]) -> float:
    draw = torch.Generator(device).manual_seed(0)  # of its own: the run's generators stay where they are

    def create_product(side: int) -> Callable[[], None]:
        a, b = (torch.rand(side, side, generator=draw, device=device).sub_(0.5).to(dtype) for _ in range(2))
        out = torch.empty_like(a)

        def multiply() -> None:
            torch.mm(a, b, out=out)
            synchronize(device)

        return multiply

    return measure_rate(create_product, now)


def measure_rate(create_product: Callable[[int], Callable[[], None]], now: Callable[[], float]) -> float:
    """The best FLOP/s of square matrix products, 2 n^3 FLOPs each: larger ones until they take 5 ms.

    Args:
        create_product: a side -> what multiplies two matrices of that side once, and waits for it.
        now: a clock, in seconds.
    """
    best, side = 0.0, _SMALLEST
    while True:
        multiply = create_product(side)
        multiply()  # the first one of a size prepares it
        fastest_s = _time(multiply, now)
        is_enough = fastest_s >= _LONG_ENOUGH_S or side >= _LARGEST
        for _ in range(_REPEATS - 1 if is_enough else 0):
            fastest_s = min(fastest_s, _time(multiply, now))
        best = max(best, 2 * side**3 / max(fastest_s, 1e-9))
        if is_enough:
            return best
        side *= 2


def _time(work: Callable[[], None], now: Callable[[], float]) -> float:
    began_s = now()
    work()
    return now() - began_s
