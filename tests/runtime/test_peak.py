"""A device's peak: known by its whole name, or measured by a clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cspnet.runtime import peak
from cspnet.runtime.peak import Peak, find_peak, measure_rate

CUDA = torch.device("cuda", 0)
# Names as nvidia-smi lists them; TFLOP/s as the data sheets give them, without sparsity.
KNOWN = {
    ("Tesla V100-SXM2-16GB", torch.float16): 125,
    ("Tesla V100-SXM2-32GB", torch.float32): 15.7,
    ("Tesla T4", torch.float16): 65,
    ("A100-SXM4-40GB", torch.bfloat16): 312,
    ("NVIDIA A100-SXM4-80GB", torch.bfloat16): 312,
    ("NVIDIA A100 80GB PCIe", torch.float32): 156,
    ("NVIDIA A10", torch.bfloat16): 125,
    ("NVIDIA H100 80GB HBM3", torch.bfloat16): 989.4,
    ("NVIDIA H100 80GB HBM3", torch.float32): 494.7,
    ("NVIDIA H100 PCIe", torch.float16): 756,
    ("NVIDIA H200", torch.bfloat16): 989.4,
    ("NVIDIA L4", torch.bfloat16): 121,
    ("NVIDIA L40S", torch.bfloat16): 362,
    ("NVIDIA GeForce RTX 3090", torch.bfloat16): 71,
    ("NVIDIA GeForce RTX 4090", torch.float16): 165.2,
}
OTHERS = [
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", torch.bfloat16),
    ("NVIDIA A10G", torch.bfloat16),
    ("NVIDIA H100 NVL", torch.bfloat16),
    ("NVIDIA GeForce RTX 3090 Ti", torch.float16),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", torch.bfloat16),
    ("Tesla V100-SXM2-16GB", torch.bfloat16),  # it computes with it, but has no such tensor cores
]


def pretend(monkeypatch: pytest.MonkeyPatch, name: str) -> list[torch.dtype]:
    """A GPU of this name; the formats that are measured."""
    measured: list[torch.dtype] = []
    is_old = name.startswith("Tesla")

    def measure(device: torch.device, dtype: torch.dtype, now: Callable[[], float]) -> float:
        measured.append(dtype)
        return 1e12

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0) if is_old else (8, 0))
    monkeypatch.setattr(peak, "_measure", measure)
    return measured


@pytest.mark.parametrize(("name", "dtype"), KNOWN)
def test_a_known_gpu(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype) -> None:
    measured = pretend(monkeypatch, name)
    found = find_peak(CUDA, dtype)
    assert found is not None
    assert found.flops_per_s == pytest.approx(1e12 * KNOWN[name, dtype])
    assert not found.is_measured
    assert not measured
    assert "data sheet" in str(found)


@pytest.mark.parametrize(("name", "dtype"), OTHERS)
def test_a_relative_of_a_known_gpu_is_measured(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype) -> None:
    measured = pretend(monkeypatch, name)
    found = find_peak(CUDA, dtype)
    assert found is not None
    assert found.is_measured
    assert "measured" in str(found)
    assert measured == [dtype]


def test_tf32_of_an_unknown_gpu_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix product would not use it where convolutions do."""
    measured = pretend(monkeypatch, "NVIDIA Something")
    assert find_peak(CUDA, torch.float32) is None
    assert not measured


class Device:
    """A clock that goes on by what products take on a device of a given rate: start-up, work, and a first time."""

    def __init__(self, flops_per_s: float, start_up_s: float) -> None:
        self.flops_per_s, self.start_up_s = flops_per_s, start_up_s
        self.time_s = 100.0

    def create_product(self, side: int) -> Callable[[], None]:
        first = [True]

        def multiply() -> None:
            work_s = self.start_up_s + 2 * side**3 / self.flops_per_s
            self.time_s += 3 * work_s if first else work_s
            first.clear()

        return multiply


@pytest.mark.parametrize("flops_per_s", [1e10, 1e11, 5e12, 1e14, 1e15])
@pytest.mark.parametrize("start_up_s", [1e-6, 3e-5])
def test_the_rate_is_found_in_a_short_time(flops_per_s: float, start_up_s: float) -> None:
    device = Device(flops_per_s, start_up_s)
    rate = measure_rate(device.create_product, lambda: device.time_s)
    assert 0.96 * flops_per_s < rate <= flops_per_s * (1 + 1e-9)
    assert device.time_s - 100 < 0.35


def test_the_cpu_is_measured_and_no_generator_moves() -> None:
    before = torch.get_rng_state()
    found = find_peak(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert found is not None
    assert found == Peak(found.flops_per_s, "fp32", is_measured=True)
    assert found.flops_per_s > 0
