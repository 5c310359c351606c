"""What a network says of several views of a picture, and of some of its classes alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["AveragedViews", "RestrictedClasses"]


class AveragedViews(nn.Module):
    """A network whose answer is the mean of its probabilities for several views of a picture.

    Args:
        model: (N, 3, size_px, size_px) -> (N, K) logits.
        size_px: side of a view. Of larger pictures the four corners and the centre are taken; of pictures of just
            that size, the whole.
        flips: whether each of them is seen mirrored as well.
    Source: the ten crops of AlexNet (Krizhevsky et al., 2012, section 4.1), from the square that a resized picture has
        in its middle.
    """

    def __init__(self, model: nn.Module, size_px: int, *, flips: bool) -> None:
        super().__init__()
        self.model, self.size_px, self.flips = model, size_px, flips

    def _corners(self, images: Tensor) -> list[tuple[int, int]]:
        """(top, left) of the views, in pixels."""
        room_y, room_x = images.shape[2] - self.size_px, images.shape[3] - self.size_px
        if not room_y and not room_x:
            return [(0, 0)]
        return [(0, 0), (0, room_x), (room_y, 0), (room_y, room_x), (round(room_y / 2), round(room_x / 2))]

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float, H and W of size_px or more -> (N, K) float32 logarithms of the mean probabilities."""
        logs = []  # of probabilities, which may be too small for a float32 themselves
        for top, left in self._corners(images):
            view = images[:, :, top : top + self.size_px, left : left + self.size_px]
            for seen in (view, view.flip(3)) if self.flips else (view,):
                logs.append(self.model(seen).float().log_softmax(1))
        return torch.logsumexp(torch.stack(logs), 0) - math.log(len(logs))


class RestrictedClasses(nn.Module):
    """A network that gives some of its classes only, as is usual for data sets without the others (ImageNet-A, -R).

    Args:
        model: (N, 3, H, W) -> (N, K) logits.
        allowed: (K,) bool.
    """

    def __init__(self, model: nn.Module, allowed: Tensor) -> None:
        super().__init__()
        self.model, self.forbidden = model, ~allowed

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float -> (N, K) logits, those of other classes minus infinity."""
        return self.model(images).masked_fill(self.forbidden, -torch.inf)
