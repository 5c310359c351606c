"""What only a GPU can show."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
import torch

from cspnet.cli.build import build_model, build_normalizer, build_state
from cspnet.cli.measure_speed import Trial, measure_side_by_side
from cspnet.cli.train import main
from cspnet.data.mixing import mirror, mix_batch, soft_targets
from cspnet.data.policies import Eraser
from cspnet.models.zoo import ZOO
from cspnet.recipe.load import recipe_from_values
from cspnet.runtime.distributed import World
from cspnet.runtime.peak import find_peak
from cspnet.runtime.random import generator_at
from cspnet.training.adversarial import perturb
from cspnet.training.clock import GpuWaits
from cspnet.training.step import train_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


METHODS = {
    "plain": {},
    "cutmix and mixup": {"mix.cutmix_alpha": 1.0, "mix.mixup_alpha": 0.2},
    "darknet's mixing and blur": {"mix.darknet": "cutmix_mosaic", "mix.blur_px": 9},
    "erasing": {"augment.erase_prob": 0.5},
    "self-adversarial": {"adversarial.lr": 0.01},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("amp_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_a_step_learns_and_never_waits_for_the_host(amp_dtype: torch.dtype, method: str) -> None:
    """Twenty steps on one batch lower the loss; after the first ones, none synchronises host and device."""
    device = torch.device("cuda")
    recipe = recipe_from_values(
        {
            "model.name": "cspdarknet_tiny",
            "ema.decay": 0.9,
            "optim.lr": 0.05,
            "optim.clip_norm": 5.0,
            **METHODS[method],
        },
        "test",
    )
    model = build_model(recipe, 10, device)
    state = build_state(recipe, model, World(), device, amp_dtype)
    prepare, erase = build_normalizer(recipe, device), Eraser(recipe.augment, device)
    pictures = torch.randint(0, 256, (32, 64, 64, 3), dtype=torch.uint8).pin_memory()
    classes = torch.arange(32).remainder(10).pin_memory()
    flipped = (torch.arange(32) < 16).pin_memory()
    losses = []
    try:
        for step in range(20):
            torch.cuda.set_sync_debug_mode("error" if step >= 2 else "default")
            images, flags = (tensor.to(device, non_blocking=True) for tensor in (pictures, flipped))
            images = prepare(mirror(images, flags))
            targets = soft_targets(classes.to(device, non_blocking=True), 10, 0.1)
            images = erase(images, generator_at(0, "erase", step))
            images, targets = mix_batch(images, targets, generator_at(0, "mix", step), recipe.mix)
            if recipe.adversarial.lr:
                mean, std, lr = prepare.mean, prepare.std, recipe.adversarial.lr
                images = perturb(state.model, images, step_size=lr, mean=mean, std=std, amp_dtype=amp_dtype)
            totals, *_ = train_step(
                state, model, [(images, targets)], lr=0.05, accumulate=1, amp_dtype=amp_dtype, clip_norm=5.0
            )
            losses.append(totals[0] / totals[3])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(torch.stack(losses)).all()
    if method == "plain":
        assert losses[-1] < losses[0] / 2
    assert {p.device.type for p in state.model.parameters()} == {"cuda"}


def test_peak_memory_is_that_of_an_update() -> None:
    """At least weights, gradients and momentum; twice the batch takes more, and less than twice as much."""
    peaks = []
    for batch_size in (16, 32):
        trial = Trial(torch.device("cuda"), "fp32", batch_size, steps=1, repeats=1)
        speeds = measure_side_by_side({"cspdarknet_tiny": 64, "resnet10": 64}, trial)
        peaks.append(speeds["resnet10"].peak_bytes)
        assert speeds["cspdarknet_tiny"].peak_bytes < speeds["resnet10"].peak_bytes
    smallest = 3 * 4 * ZOO["resnet10"].params
    assert smallest < peaks[0] < peaks[1] < 2 * peaks[0]


def test_a_gpu_that_is_busy_does_not_wait_for_data() -> None:
    """The process waits twice for 0.2 s: while the GPU has work for much longer, and while it has none."""
    torch.cuda.synchronize()
    waits = GpuWaits()
    try:
        torch.cuda.set_sync_debug_mode("error")
        torch.cuda._sleep(4_000_000_000)  # cycles: two seconds at 2 GHz
        waits.begin()
        time.sleep(0.2)
        waits.end()
        assert waits.read_s() == 0
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert waits.read_s() < 0.1
    waits.begin()
    time.sleep(0.2)
    waits.end()
    torch.cuda.synchronize()
    assert 0.2 <= waits.read_s() < 0.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_peak_is_above_what_a_product_does(dtype: torch.dtype) -> None:
    peak = find_peak(torch.device("cuda", 0), dtype)
    if peak is None:
        pytest.skip("TF32 of a GPU without a data sheet here")
    a = torch.randn(4096, 4096, device="cuda").to(dtype)
    a @ a
    torch.cuda.synchronize()
    began_s = time.perf_counter()
    a @ a
    torch.cuda.synchronize()
    assert 2 * 4096**3 / (time.perf_counter() - began_s) < 1.05 * peak.flops_per_s


def test_a_profile_has_the_gpus_kernels(picture_tree: Path, tmp_path: Path) -> None:
    words = ["--model", "cspdarknet_tiny", "--img-size", "64", "--batch-size", "8", "--epochs", "1", "--workers", "1"]
    words += ["--data-path", str(picture_tree), "--output-dir", str(tmp_path / "run"), "--device", "cuda"]
    assert main([*words, "--profile", "2", "--print-freq", "2"]) == 0
    with gzip.open(tmp_path / "run" / "profile" / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert any(event.get("cat") == "kernel" for event in events)
    assert "Self CUDA" in (tmp_path / "run" / "profile" / "operations.txt").read_text()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for record in records[:3]:
        assert 0 <= record["train/data_wait_ratio"] < 1
        assert record["train/compute_images_per_s"] >= record["train/images_per_s"]
        assert 0 < record["train/peak_memory_bytes"] <= torch.cuda.max_memory_allocated()
        assert 0 < record["train/mfu"] < 1


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_a_compiled_run_is_the_run(
    mode: str, picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with CUDA graphs, which are recorded and played: two micro-batches a step, over the end of an epoch."""

    def losses(name: str, *flags: str) -> list[float]:
        words = ["--model", "cspdarknet_tiny", "--data-path", str(picture_tree), "--output-dir", str(tmp_path / name)]
        words += ["--img-size", "32", "--batch-size", "8", "--accumulate", "2", "--epochs", "3", "--print-freq", "1"]
        assert main([*words, "--device", "cuda", "--precision", "fp32", "--seed", "1", *flags]) == 0
        records = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [record["train/loss"] for record in records if "train/loss" in record]

    plain, compiled = losses("plain"), losses("compiled", "--compile", "true", "--torchcompile-mode", mode)
    assert "cannot be compiled" not in capsys.readouterr().err
    assert len(plain) >= 9
    assert compiled == pytest.approx(plain, rel=0.02)
