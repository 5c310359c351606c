"""PyTorch's switches for equal bits: set in the block, as they were behind it, and refused where they cannot work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cspnet.errors import DeviceError
from cspnet.runtime.determinism import deterministic_algorithms, settle_cublas


def read_switches() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.benchmark,
        cudnn.deterministic,
    )


@pytest.fixture(params=[(False, False, True, False), (True, True, False, True)], ids=["as usual", "warning only"])
def before(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    enabled, warns, benchmark, deterministic = request.param
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    torch.use_deterministic_algorithms(enabled, warn_only=warns)
    yield request.param
    torch.use_deterministic_algorithms(False)


def test_switches_are_set_and_put_back(before: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    environment: dict[str, str] = {}
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), deterministic_algorithms(enabled=True, environment=environment):
        assert read_switches() == (True, False, False, True)
        assert environment == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == tf32
        raise KeyError
    assert read_switches() == before
    assert environment == {}


def test_switched_off_it_does_nothing(before: tuple[bool, ...]) -> None:
    with deterministic_algorithms(enabled=False, environment={"CUBLAS_WORKSPACE_CONFIG": "wrong"}):
        assert read_switches() == before


def test_what_has_no_such_form_is_named(before: tuple[bool, ...]) -> None:
    with (
        pytest.raises(DeviceError, match=r"--deterministic: put_ has no deterministic form in PyTorch .*--model"),
        deterministic_algorithms(enabled=True),
    ):
        torch.zeros(4).put_(torch.tensor([0]), torch.ones(1))
    assert read_switches() == before


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shape"), deterministic_algorithms(enabled=True):
        torch.zeros(2).view(3)


@pytest.mark.parametrize("value", [":4096:8", ":16:8"])
def test_a_fitting_workspace_is_kept(value: str) -> None:
    environment = {"CUBLAS_WORKSPACE_CONFIG": value}
    settle_cublas(environment, has_started=True)
    assert environment == {"CUBLAS_WORKSPACE_CONFIG": value}


def test_an_unfitting_workspace_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"CUBLAS_WORKSPACE_CONFIG is :0:0.* :4096:8"):
        settle_cublas({"CUBLAS_WORKSPACE_CONFIG": ":0:0"}, has_started=False)


def test_too_late_is_refused() -> None:
    with pytest.raises(DeviceError, match="CUDA has started without CUBLAS_WORKSPACE_CONFIG"):
        settle_cublas({}, has_started=True)
