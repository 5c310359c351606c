"""The cross stage: the one idea of the paper.

Source: CSPNet, arXiv 1911.11929, section 3 and figure 3 (b); timm/models/cspnet.py CrossStage (graph and names).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cspnet.models.blocks import BLOCKS, ConvNormAct
from cspnet.models.spec import NetworkSpec, StageSpec

__all__ = ["CrossStage"]


class CrossStage(nn.Module):
    """Split the stage's input, send one part through the blocks, join, and mix.

        x = conv_down(x)                                     # 3x3, absent where stride is 1
        cross, block = split(conv_exp(x))                    # 1x1
        block = conv_transition_b(blocks(block))             # 1x1
        y = conv_transition(concatenate([cross, block]))     # 1x1

    One 1x1 convolution and a split is the same as the two 1x1 convolutions of the Darknet files.
    """

    def __init__(self, in_chs: int, stage: StageSpec, spec: NetworkSpec) -> None:
        super().__init__()
        self.part_chs = (stage.cross_chs, stage.block_chs)
        joined_chs = stage.cross_chs + stage.block_chs
        self.conv_down: nn.Module = nn.Identity()
        if stage.stride != 1:
            self.conv_down = ConvNormAct(in_chs, stage.down_chs, 3, spec, stride=stage.stride, groups=spec.groups)
        self.conv_exp = ConvNormAct(stage.down_chs, joined_chs, 1, spec, act=spec.split_act)
        block = BLOCKS[spec.block]
        self.blocks = nn.Sequential(*(block(stage.block_chs, stage.mid_chs, spec) for _ in range(stage.depth)))
        self.conv_transition_b = ConvNormAct(stage.block_chs, stage.block_chs, 1, spec)
        self.conv_transition = ConvNormAct(joined_chs, stage.out_chs, 1, spec)

    def forward(self, x: Tensor) -> Tensor:
        cross, block = self.conv_exp(self.conv_down(x)).split(self.part_chs, dim=1)
        block = self.conv_transition_b(self.blocks(block))
        return self.conv_transition(torch.cat([cross, block], dim=1))
