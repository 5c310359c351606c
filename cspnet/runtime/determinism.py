"""Equal bits on demand: PyTorch's switches for it, and one line where something has no such form.

Nothing here changes what is computed: TF32, autocast and the like stay as they are chosen.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, MutableMapping

import torch

from cspnet.errors import DeviceError

__all__ = ["deterministic_algorithms", "has_no_deterministic_form", "settle_cublas"]

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_VALUES = (":4096:8", ":16:8")  # Source: cuBLAS documentation, "Results reproducibility"
_SIGN = " does not have a deterministic implementation"


def settle_cublas(environment: MutableMapping[str, str], *, has_started: bool) -> None:
    """Set the variable that cuBLAS reads when it starts, unless it is set already.

    Raises:
        DeviceError: it is set to something else, or CUDA has started without it.
    """
    value = environment.get(_CUBLAS)
    if value is None and has_started:
        raise DeviceError(
            f"--deterministic: CUDA has started without {_CUBLAS}; set it to {_CUBLAS_VALUES[0]} before that"
        )
    if value not in (None, *_CUBLAS_VALUES):
        raise DeviceError(
            f"--deterministic: {_CUBLAS} is {value}, with which cuBLAS gives other bits from time to time; "
            f"unset it, or set it to {_CUBLAS_VALUES[0]}"
        )
    environment.setdefault(_CUBLAS, _CUBLAS_VALUES[0])


def has_no_deterministic_form(error: BaseException) -> bool:
    """Whether PyTorch says so."""
    return _SIGN in str(error)


@contextlib.contextmanager
def deterministic_algorithms(*, enabled: bool, environment: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """In this block everything is computed in a way that gives equal bits every time; afterwards as before.

    Args:
        enabled: false leaves everything as it is.
    Raises:
        DeviceError: something was asked for that PyTorch cannot compute so, or cuBLAS cannot be told.
    """
    if not enabled:
        yield
        return
    cudnn, cublas = torch.backends.cudnn, environment.get(_CUBLAS)
    before = (cudnn.benchmark, cudnn.deterministic)
    mode, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        if torch.cuda.is_available():
            settle_cublas(environment, has_started=torch.cuda.is_initialized())
        torch.use_deterministic_algorithms(True)
        # Which of several deterministic algorithms is the fastest comes out differently from time to time.
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    except RuntimeError as error:
        if not has_no_deterministic_form(error):
            raise
        raise DeviceError(
            f"--deterministic: {str(error).split(_SIGN)[0]} has no deterministic form in PyTorch {torch.__version__}; "
            "it is part of the network: choose another --model or option of it, or leave --deterministic out"
        ) from error
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warns)
        cudnn.benchmark, cudnn.deterministic = before
        if cublas is None and not torch.cuda.is_initialized():  # cuBLAS, where it runs, has taken it for good
            environment.pop(_CUBLAS, None)
