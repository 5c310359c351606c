"""A first convolution that is not learned: cosine patterns of brightness and colour.

The colours of neighbouring pixels are nearly equal, so a network's input is badly conditioned: its first convolution
learns slowly, and what stands behind it waits. Cosine patterns times brightness and two opponent colours are nearly the
principal components of small patches of photographs; with BatchNorm behind them, the input is whitened.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cspnet.errors import ModelError

__all__ = ["cosine_patterns", "fix_to_patterns"]

_COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))  # brightness, red - blue, red + blue - green
_COLOUR_RANK = 2.5  # colours carry less than brightness, by about as much as so many half waves


def cosine_patterns(count: int, kernel_px: int) -> Tensor:
    """The smoothest patterns first, brightness before colour: (count, 3, kernel_px, kernel_px) float32, orthonormal.

    Raises:
        ModelError: more patterns than values in a patch.
    Source: the cosine transform DCT-II; that whitening the patches makes training quicker: airbench, arXiv 2404.00498.
    """
    if count > 3 * kernel_px**2:
        raise ModelError(f"{count} patterns: patches of {kernel_px} x {kernel_px} px have {3 * kernel_px**2}")
    waves = torch.arange(kernel_px, dtype=torch.float64)
    basis = torch.cos(math.pi / kernel_px * waves[:, None] * (waves + 0.5))
    basis /= basis.norm(dim=1, keepdim=True)
    colours = torch.tensor(_COLOURS, dtype=torch.float64)
    colours /= colours.norm(dim=1, keepdim=True)
    indices = [(c, v, u) for c in range(3) for v in range(kernel_px) for u in range(kernel_px)]
    indices.sort(key=lambda i: (i[1] + i[2] + (_COLOUR_RANK if i[0] else 0), i[0], max(i[1:])))
    patterns = [torch.einsum("c,y,x->cyx", colours[c], basis[v], basis[u]) for c, v, u in indices[:count]]
    return torch.stack(patterns).float()


def fix_to_patterns(conv: nn.Conv2d) -> None:
    """Set an RGB convolution's weights to cosine patterns and, behind them, their negatives; no gradient reaches them.

    Raises:
        ModelError: an odd number of channels out.
    """
    if conv.out_channels % 2:
        raise ModelError(f"patterns and their negatives: an even number of channels, not {conv.out_channels}")
    patterns = cosine_patterns(conv.out_channels // 2, conv.kernel_size[0])
    with torch.no_grad():
        conv.weight.copy_(torch.cat([patterns, -patterns]))
    conv.weight.requires_grad_(False)
