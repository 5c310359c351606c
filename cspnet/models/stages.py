"""The stage: the one idea of the paper, and the plain stage it is compared with.

Source: CSPNet, arXiv 1911.11929, section 3 and figure 3; timm/models/cspnet.py CrossStage (graph and names).
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cspnet.models.blocks import BLOCKS
from cspnet.models.layers import ConvNormAct
from cspnet.models.spec import ConvSpec, NetworkSpec, StageSpec

__all__ = ["CrossStage"]


class _FrozenStatistics(AbstractContextManager[None]):
    """A context in which the BatchNorms of a module, in training mode, leave their running statistics alone."""

    def __init__(self, module: nn.Module) -> None:
        self._norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d | nn.SyncBatchNorm)]
        self._counters = [norm.num_batches_tracked for norm in self._norms if norm.num_batches_tracked is not None]

    def __enter__(self) -> None:
        self._saved = [norm.momentum for norm in self._norms], [counter.clone() for counter in self._counters]
        for norm in self._norms:  # not track_running_stats=False: this pass must save the same tensors as the first one
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        momentums, counts = self._saved
        for norm, momentum in zip(self._norms, momentums, strict=True):
            norm.momentum = momentum
        for counter, count in zip(self._counters, counts, strict=True):
            counter.copy_(count)


def _checkpoint_contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the first pass and the second: the same batch must not enter the running statistics twice."""
    return nullcontext(), _FrozenStatistics(block)


class CrossStage(nn.Module):
    """Split the stage's input, send one part through the blocks, join, and mix; see `StageSpec` for the variants.

        x = down_pool(conv_down(x))                          # 3x3
        cross, block = split(conv_exp(x))                    # 1x1
        block = conv_transition_b(blocks(block))             # 1x1
        y = conv_transition(concatenate([cross, block]))     # 1x1

    One 1x1 convolution and a split is the same as the two 1x1 convolutions of the Darknet files. What a stage does not
    have is the identity.
    """

    def __init__(self, in_chs: int, stage: StageSpec, spec: NetworkSpec) -> None:
        super().__init__()
        self.stage = stage
        self.grad_checkpointing = False
        self.conv_down: nn.Module = nn.Identity()
        if stage.down is not None:
            self.conv_down = ConvNormAct(in_chs, stage.down, spec)
            in_chs = stage.down.out_chs
        self.down_pool = nn.MaxPool2d(2, 2, ceil_mode=True) if stage.down_pool else nn.Identity()
        self.conv_exp: nn.Module = nn.Identity()
        if stage.split == "conv":
            split = ConvSpec(stage.cross_chs + stage.block_chs, 1, act=stage.split_act)
            self.conv_exp = ConvNormAct(in_chs, split, spec)
        self.conv_cross: nn.Module = nn.Identity()
        if stage.cross is not None:
            self.conv_cross = ConvNormAct(in_chs, stage.cross, spec)
        self.blocks = nn.Sequential()
        chs = stage.block_chs
        for block in stage.blocks:
            self.blocks.append(BLOCKS[block.kind](chs, block, spec))
            chs = block.out_chs
        self.conv_transition_b: nn.Module = nn.Identity()
        if stage.fusion in ("csp", "last"):
            self.conv_transition_b = ConvNormAct(chs, ConvSpec(stage.part_chs or chs, 1), spec)
        self.pool = nn.Identity() if stage.pool == "none" else nn.AvgPool2d(2, 2, ceil_mode=True)
        self.conv_transition: nn.Module = nn.Identity()
        if stage.fusion in ("csp", "first"):
            self.conv_transition = ConvNormAct(stage.joined_chs, ConvSpec(stage.transition_chs, 1), spec)

    def _split(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        if self.stage.split == "none":
            return None, x
        if self.stage.split == "share":
            return self.conv_cross(x), x
        cross, block = self.conv_exp(x).split((self.stage.cross_chs, self.stage.block_chs), dim=1)
        return cross, block

    def _run_blocks(self, x: Tensor) -> Tensor:
        if not (self.grad_checkpointing and self.training and torch.is_grad_enabled()):
            return self.blocks(x)
        for block in self.blocks:
            contexts = functools.partial(_checkpoint_contexts, block)
            x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chs, H, W) -> (N, out_chs, H / stride, W / stride)."""
        cross, block = self._split(self.down_pool(self.conv_down(x)))
        y = self.conv_transition_b(self._run_blocks(block))
        if cross is not None:
            y = torch.cat([y, cross] if self.stage.block_first else [cross, y], dim=1)
        if self.stage.pool == "before":
            return self.conv_transition(self.pool(y))
        return self.pool(self.conv_transition(y))
