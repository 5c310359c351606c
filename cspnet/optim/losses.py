"""The loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["soft_cross_entropy"]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with probabilities as targets, in float32, averaged over the batch.

    Args:
        logits: (N, K) of any float dtype.
        targets: (N, K) probabilities.
    """
    return F.cross_entropy(logits.float(), targets)
