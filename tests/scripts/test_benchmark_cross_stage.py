"""Four ways to compute a cross stage: that they compute the same, and what the script says of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cspnet.cli.measure_cross_stage import WAYS, find_stages, run_stage


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["cspdarknet_tiny", "cspresnet50", "csresnet50"])
def test_all_ways_are_the_stage(name: str, way: str) -> None:
    """Outputs, gradients, and what BatchNorm keeps, in training; beside the stage's own forward in float64."""
    device = torch.device("cpu")
    stage, shape = find_stages(name, 64, device)[-1]
    stage.double().train()
    state = {key: value.clone() for key, value in stage.state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape[1:], generator=draw, dtype=torch.float64)
    stage.conv_down = stage.down_pool = torch.nn.Identity()
    found = []
    for work in (stage, lambda y: run_stage(stage, y, **WAYS[way])):
        stage.load_state_dict(state, strict=False)
        leaf = x.clone().requires_grad_()
        y = work(leaf)
        grads = torch.autograd.grad(y.square().sum(), [leaf, *stage.parameters()])
        found.append(
            [y, *grads, *(buffer.clone() for key, buffer in stage.named_buffers() if "num_batches" not in key)]
        )
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_table(fork_script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    small = ("--size", 32, "--batch-size", 2, "--repeats", 2, "--device", "cpu", "--precision", "fp32")
    done = fork_script("scripts/benchmark_cross_stage.py", "cspdarknet_tiny", *small, "--json", tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| cspdarknet_tiny")]
    assert len(rows) == len(WAYS)
    assert rows[0].endswith("1.000 (1.000 to 1.000) |")
    seconds = json.loads((tmp_path / "a.json").read_text())["seconds"]["cspdarknet_tiny"]
    assert all(len(taken) == 2 and min(taken) > 0 for taken in seconds.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("resnet50_darknet", "--device", "cpu"), "resnet50_darknet: has no cross stage"),
        (("cspresnet50", "--repeats", 0), "--repeats 0"),
        (("cspresnet50", "--precision", "half"), "--precision: invalid choice: 'half'"),
        (("cspresnet5", "--device", "cpu"), "did you mean cspresnet50?"),
    ],
)
def test_what_is_refused(
    words: tuple[object, ...], said: str, fork_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = fork_script("scripts/benchmark_cross_stage.py", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
