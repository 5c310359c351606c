"""The losses. All take probabilities as targets, so that smoothed and mixed labels go through each of them."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from cspnet.recipe.schema import LossRecipe

__all__ = ["build_loss", "soft_binary_cross_entropy", "soft_cross_entropy"]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with probabilities as targets, in float32, averaged over the batch.

    Args:
        logits: (N, K) of any float dtype.
        targets: (N, K) probabilities.
    """
    return F.cross_entropy(logits.float(), targets)


def soft_binary_cross_entropy(logits: Tensor, targets: Tensor, threshold: float | None = None) -> Tensor:
    """Binary cross entropy of each class on its own, in float32, averaged over batch and classes.

    Args:
        logits: (N, K) of any float dtype.
        targets: (N, K) probabilities.
        threshold: a class counts as present, with target 1, if its probability is above this; None takes the
            probabilities as they are.
    Source: ResNet strikes back, arXiv 2110.00476, section 2.2; timm loss/binary_cross_entropy.py.
    """
    targets = targets if threshold is None else targets.gt(threshold).to(targets.dtype)
    return F.binary_cross_entropy_with_logits(logits.float(), targets)


def build_loss(cfg: LossRecipe) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a recipe: (N, K) logits and (N, K) probabilities -> a scalar."""
    if cfg.name == "cross_entropy":
        return soft_cross_entropy
    return lambda logits, targets: soft_binary_cross_entropy(logits, targets, cfg.bce_threshold)
