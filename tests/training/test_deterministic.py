"""--deterministic: two runs have the same bits, and that is checked; a run that goes on elsewhere says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from cspnet.cli.compare_runs import compare_runs
from cspnet.cli.train import main as train
from cspnet.models.network import CspNet


def flags(pictures: Path, folder: Path, *more: object) -> list[str]:
    """A run of three steps in which all that remembers or draws is on."""
    words = (
        *("--model", "cspdarknet_tiny", "--model-kwargs", "{drop_rate: 0.2, drop_path_rate: 0.3}", "--img-size", 32),
        *("--device", "cpu", "--precision", "fp32", "--workers", 0, "--batch-size", 4, "--accumulate", 2, "--steps", 3),
        *("--lr", 0.05, "--cutmix", 1, "--ema.decay", 0.9, "--reprob", 0.3, "--adversarial.lr", 2, "--clip-grad", 5),
        *("--print-freq", 1, "--log.tensorboard", "false"),
    )
    return [str(word) for word in (*words, "--data-path", pictures, "--output-dir", folder, *more)]


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_two_runs_are_equal_bit_for_bit(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And equal to one without it: on a CPU the algorithms are the same, and the check leaves no trace."""
    modes = []
    forward = CspNet.forward

    def watching(network: CspNet, images: torch.Tensor) -> Any:
        modes.append(torch.are_deterministic_algorithms_enabled())
        return forward(network, images)

    monkeypatch.setattr(CspNet, "forward", watching)
    for name in ("first", "second"):
        torch.rand(3)  # the generator stands elsewhere
        assert train(flags(picture_tree, tmp_path / name, "--deterministic")) == 0
        assert "deterministic: two equal steps gave equal bits" in capsys.readouterr().out
    assert all(modes)
    assert not torch.are_deterministic_algorithms_enabled()
    assert train(flags(picture_tree, tmp_path / "without")) == 0
    assert not modes[-1]
    assert compare_runs(tmp_path / "second", tmp_path / "first") is None
    assert compare_runs(tmp_path / "without", tmp_path / "first") is None


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_operation_without_such_a_form_is_one_line(
    where: str, picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`put_` has none on a CPU; a dry run shows it as well, and nothing has been written."""
    forward = CspNet.forward

    def with_put(network: CspNet, images: torch.Tensor) -> Any:
        logits = forward(network, images)
        if where == "backward" and logits.requires_grad:
            logits.register_hook(put)
        return put(logits) if where == "forward" else logits

    def put(values: torch.Tensor) -> torch.Tensor:
        torch.zeros(4).put_(torch.tensor([0]), torch.ones(1))
        return values

    monkeypatch.setattr(CspNet, "forward", with_put)
    for more in ((), ("--dry-run",)):
        assert train(flags(picture_tree, tmp_path / "run", "--deterministic", *more)) == 2
        assert "train.py: error: --deterministic: put_ has no deterministic form" in last_line(capsys)
        assert not (tmp_path / "run").exists()
    assert train(flags(picture_tree, tmp_path / "run", "--dry-run")) == 0


def test_bits_that_differ_are_found(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An operation whose gradient varies in its last bits, of which PyTorch does not know."""
    forward = CspNet.forward
    steps = iter(range(1000))

    def varying(network: CspNet, images: torch.Tensor) -> Any:
        logits = forward(network, images)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * (1 + torch.finfo(torch.float32).eps * next(steps)))
        return logits

    monkeypatch.setattr(CspNet, "forward", varying)
    assert train(flags(picture_tree, tmp_path / "run", "--adversarial.lr", 0, "--deterministic")) == 2
    assert "--deterministic: two equal steps on cpu gave different bits in " in last_line(capsys)
    assert not (tmp_path / "run").exists()


def test_another_machine_is_told(picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert train(flags(picture_tree, folder)) == 0
    last = folder / "checkpoints" / "last.pt"
    content = torch.load(last, weights_only=True)
    threads = torch.get_num_threads()
    here = {
        "device": "cpu",
        "precision": "float32",
        "threads": threads,
        "pictures a forward pass": 4,
        "compiled": False,
    }
    assert content["computed_on"] == here
    capsys.readouterr()
    dry = flags(picture_tree, tmp_path / "other", "--steps", 4, "--dry-run", "--resume")
    assert train([*dry, str(last)]) == 0
    assert "saved with" not in capsys.readouterr().err
    elsewhere = {"device": "NVIDIA A100", "precision": "bfloat16", "threads": 77, "pictures a forward pass": 8}
    content["computed_on"] = elsewhere
    content["versions"]["torch"] = "2.0"
    torch.save(content, tmp_path / "elsewhere.pt")
    assert train([*dry, str(tmp_path / "elsewhere.pt")]) == 0
    warning = capsys.readouterr().err
    for change in (
        "device NVIDIA A100, now cpu",
        "precision bfloat16, now float32",
        "pictures a forward pass 8, now 4",
        f"threads 77, now {torch.get_num_threads()}",
        f"torch 2.0, now {torch.__version__}",
    ):
        assert change in warning
    del content["computed_on"]  # of an older program
    torch.save(content, tmp_path / "older.pt")
    assert train([*dry, str(tmp_path / "older.pt")]) == 0
    assert "saved with" not in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("model", ["cspdarknet_tiny", "cspresnet50", "csresnext50_omega"])
def test_two_runs_on_a_gpu_are_equal_bit_for_bit(
    model: str, picture_tree: Path, tmp_path: Path, run_script: Callable[..., CompletedProcess[str]]
) -> None:
    """In processes of their own: cuBLAS is told how to work before CUDA starts."""
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    how = ("--device", "cuda", "--precision", "auto", "--model", model, "--img-size", 64, "--model-kwargs", "{}")
    for name in ("first", "second"):
        done = run_script("train.py", *flags(picture_tree, tmp_path / name, *how, "--deterministic"))
        assert done.returncode == 0, done.stderr
    assert compare_runs(tmp_path / "second", tmp_path / "first") is None
