"""The losses against timm's and torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

from cspnet.data.mixing import soft_targets
from cspnet.optim.losses import build_loss
from cspnet.recipe.schema import LossRecipe


def draw(num_classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and mixed, smoothed targets."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(16, num_classes, generator=generator)
    soft = soft_targets(torch.randint(num_classes, (16,), generator=generator), num_classes, 0.1)
    return logits.requires_grad_(), 0.7 * soft + 0.3 * soft.roll(1, 0)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.2, 0.5])
def test_bce_is_timms(threshold: float | None) -> None:
    logits, targets = draw()
    ours = build_loss(LossRecipe(name="bce", bce_threshold=threshold))(logits, targets)
    theirs = BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold)(logits, targets)
    torch.testing.assert_close(ours, theirs)
    (ours_grad,), (theirs_grad,) = torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(ours_grad, theirs_grad)


def test_cross_entropy_is_timms_for_soft_targets() -> None:
    logits, targets = draw()
    torch.testing.assert_close(build_loss(LossRecipe())(logits, targets), SoftTargetCrossEntropy()(logits, targets))


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
def test_low_precision_logits_are_taken_up_to_float32(name: str) -> None:
    logits, targets = draw()
    low = logits.detach().bfloat16()
    loss = build_loss(LossRecipe(name=name))(low, targets)
    assert loss.dtype == torch.float32
    reference = F.cross_entropy if name == "cross_entropy" else F.binary_cross_entropy_with_logits
    torch.testing.assert_close(loss, reference(low.float(), targets))
