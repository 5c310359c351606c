"""What only a GPU can show."""

from __future__ import annotations

import pytest
import torch

from cspnet.cli.build import build_model, build_normalizer, build_state
from cspnet.cli.measure_speed import Trial, measure_side_by_side
from cspnet.data.mixing import mirror, mix_batch, soft_targets
from cspnet.data.policies import Eraser
from cspnet.models.zoo import ZOO
from cspnet.recipe.load import recipe_from_values
from cspnet.runtime.distributed import World
from cspnet.runtime.random import generator_at
from cspnet.training.adversarial import perturb
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
