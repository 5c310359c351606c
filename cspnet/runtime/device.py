"""Which device and which number format a run uses."""

from __future__ import annotations

from pathlib import Path

import torch

from cspnet.errors import DeviceError

__all__ = ["choose_amp_dtype", "choose_device", "is_bf16_faster", "load_compiler", "synchronize"]


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of this process.

    Args:
        name: auto (GPU, then Apple's MPS, then CPU), cpu, cuda (this process's own GPU), cuda:<n>, or mps.
        local_rank: number of this process on its machine.
    Raises:
        DeviceError: the name is unknown or the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"train.device: {name}: unknown device; use auto, cpu, cuda, cuda:<n> or mps") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(
                "train.device: cuda was asked for, but PyTorch sees no GPU here; use --device cpu or auto"
            )
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise DeviceError(f"train.device: GPU {index} was asked for, but there are {torch.cuda.device_count()}")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("train.device: mps was asked for, but it is not available here; use --device cpu or auto")
    elif device.type not in ("cpu", "mps"):
        raise DeviceError(f"train.device: {name}: unknown device; use auto, cpu, cuda, cuda:<n> or mps")
    return device


def is_bf16_faster(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices faster than float32 ones.

    On a CPU that takes matrix units (AMX), or AVX-512's bf16 product on an AMD core. On Intel's it gains nothing over
    float32, and the conversions cost: measured, docs/BENCHMARKS.md (Precision on a CPU).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    has_amx, has_avx512_bf16 = (
        getattr(torch.cpu, probe, bool)() for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    return has_amx or (has_avx512_bf16 and _read_cpu_vendor() == "AuthenticAMD")


def _read_cpu_vendor(file: Path = Path("/proc/cpuinfo")) -> str | None:
    """`vendor_id` of the first processor (proc(5)); None where the system does not tell."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), None)


def choose_amp_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast; float32 means no autocast.

    Args:
        precision: auto, bf16, fp16 or fp32.
        device: where the model runs.
    Raises:
        DeviceError: fp16 without a GPU (its gradients need a scaler that only GPUs have).
    """
    if precision == "fp16" and device.type != "cuda":
        raise DeviceError(f"precision fp16 needs a GPU, and the device is {device.type}; use bf16 or fp32")
    if precision == "auto":
        precision = "bf16" if is_bf16_faster(device) else "fp16" if device.type == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def load_compiler() -> None:
    """Import torch._dynamo, which takes a second, and makes the folder of its cache. PyTorch's optimizers do so, too.

    Raises:
        DeviceError: that folder cannot be made.
    """
    try:
        import torch._dynamo  # noqa: F401
    except OSError as error:
        raise DeviceError(
            f"{error.filename}: {error.strerror}: PyTorch keeps what it compiles there, and does not begin without; "
            "let TORCHINDUCTOR_CACHE_DIR name a folder that can be made"
        ) from error
