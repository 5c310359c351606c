"""train.compile: the run is the same, and goes on without a compiler that fails, early or late."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from cspnet.cli.train import main
from cspnet.training.checkpoint import read_checkpoint
from tests.conftest import ROOT

FLAGS = ("--model", "cspdarknet_tiny", "--img-size", "32", "--batch-size", "8", "--epochs", "1", "--workers", "0")
RUN = (
    *("--device", "cpu", "--precision", "fp32", "--accumulate", "2", "--ema.decay", "0.9"),
    *("--log.tensorboard", "false"),
)
Compiler = Callable[..., Any]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(suppress_errors=False):
        yield
    torch._dynamo.reset()


def train(pictures: Path, folder: Path, *flags: str) -> dict[str, Any]:
    """The last checkpoint of a run in this process."""
    assert main([*FLAGS, *RUN, "--data-path", str(pictures), "--output-dir", str(folder), *flags]) == 0
    return read_checkpoint(folder / "checkpoints" / "last.pt")


def use_compiler(monkeypatch: pytest.MonkeyPatch, backend: Compiler) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))


def fail(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    raise RuntimeError("no compiler here\nand more of it")


def as_it_is(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    return graph.forward


def test_a_compiled_run_is_saved_as_the_network_itself(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = train(picture_tree, tmp_path / "plain")
    modes: list[bool] = []

    def note(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        modes.append(torch.is_grad_enabled())
        return graph.forward

    use_compiler(monkeypatch, note)
    compiled = train(picture_tree, tmp_path / "compiled", "--compile", "true")
    assert modes and all(modes)  # steps are compiled, validations are not
    for part in ("state_dict", "state_dict_ema"):
        assert list(compiled[part]) == list(plain[part])
        assert all(torch.equal(compiled[part][name], tensor) for name, tensor in plain[part].items())
    assert compiled["computed_on"] == {**plain["computed_on"], "compiled": True}
    assert "cannot be compiled" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "mode"), [((), "default"), (("--torchcompile-mode", "max-autotune"), "max-autotune")]
)
def test_the_compiler_is_told_its_mode(
    flags: tuple[str, ...], mode: str, picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []

    def compile_as_it_is(model: torch.nn.Module, **how: object) -> torch.nn.Module:
        told.append(how.get("mode"))
        return model

    monkeypatch.setattr(torch, "compile", compile_as_it_is)
    train(picture_tree, tmp_path / "run", "--compile", "true", *flags)
    assert told == [mode, mode], "of the trial and of the run"


@pytest.mark.parametrize("compiles", ["true", "false"])
def test_a_compiler_without_a_folder_is_told(compiles: str, picture_tree: Path, tmp_path: Path) -> None:
    """PyTorch's optimizers load it as well."""
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache"
    words = (*FLAGS, *RUN, "--data-path", picture_tree, "--output-dir", tmp_path / "run", "--compile", compiles)
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    command = [sys.executable, "train.py", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"train.py: error: {cache}: Not a directory: PyTorch keeps what it compiles there")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("backend", [fail, aot_autograd(fw_compiler=as_it_is, bw_compiler=fail)], ids=["first", "late"])
def test_a_compiler_that_fails_is_told_and_left_out(
    backend: Compiler,
    picture_tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = train(picture_tree, tmp_path / "plain")
    capsys.readouterr()
    use_compiler(monkeypatch, backend)
    left = train(picture_tree, tmp_path / "left", "--compile", "true")
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "train.compile" in line)
    assert line == "warning: train.compile: it cannot be compiled, and runs as it is: RuntimeError: no compiler here"
    assert all(torch.equal(left["state_dict"][name], tensor) for name, tensor in plain["state_dict"].items())
    assert left["computed_on"] == plain["computed_on"]
