"""Many small tensors handled as one: a few kernels, or one exchange, however many layers a network has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["group_by_kind", "join", "part"]


def group_by_kind(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Tensors that can be joined: those of the same dtype on the same device, in their order."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(kinds.values())


def join(tensors: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """The numbers of tensors of one kind, one behind the other: (their number,)."""
    return torch.cat([tensor.flatten() for tensor in tensors], out=out)


def part(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy joined numbers into tensors of the same sizes."""
    pieces = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [piece.view_as(to) for piece, to in zip(pieces, tensors, strict=True)])
