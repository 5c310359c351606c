"""Small Darknet networks for the tests, and values under which no part of one is neutral."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cspnet.models.darknet_cfg import DarknetCfgNet, parse_cfg

NET = "[net]\nheight=8\nwidth=8\nchannels=4\n"  # four lines
TAIL = "[avgpool]\n[convolutional]\nfilters=3\nactivation=linear\n[softmax]\n"

# Every kind of section in one small network of 32 px; the numbers are the layers'.
ALL_KINDS = """
[net]
height=32
width=32
channels=3
[convolutional]     # 0: 16 px
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[maxpool]           # 1: 8 px
size=2
stride=2
[convolutional]     # 2
batch_normalize=1
filters=12
activation=mish
[route]             # 3
layers=1
[convolutional]     # 4
batch_normalize=1
filters=8
size=3
pad=1
groups=2
activation=swish
[convolutional]     # 5
batch_normalize=1
filters=12
activation=linear
[shortcut]          # 6: 12 channels and 8
from=-3
activation=leaky
[route]             # 7: the second 6 of 12
layers=-1
groups=2
group_id=1
[maxpool]           # 8: 4 px
size=2
stride=2
[upsample]          # 9: 8 px
stride=2
[route]             # 10: 6 + 12
layers=-1, 2
[avgpool]           # 11
[convolutional]     # 12
filters=5
activation=relu
[convolutional]     # 13
filters=18
activation=logistic
[scale_channels]    # 14
from=-4
[convolutional]     # 15: 4 px
batch_normalize=1
filters=20
size=3
stride=2
padding=1
activation=relu6
[convolutional]     # 16
batch_normalize=1
filters=20
activation=linear
[shortcut]          # 17: 20 channels at 4 px and 18 at 8 px
from=14
activation=linear
[dropout]           # 18
probability=.5
[avgpool]           # 19
[convolutional]     # 20
filters=7
activation=linear
[softmax]           # 21
groups=1
[cost]              # 22
type=sse
"""


def build(text: str, num_classes: int = 1000) -> DarknetCfgNet:
    return DarknetCfgNet(parse_cfg(text, "x.cfg"), num_classes)


def build_meta(text: str, num_classes: int = 1000) -> DarknetCfgNet:
    with torch.device("meta"):
        return build(text, num_classes)


def first_layer(body: str, chs: int = 4, side_px: int = 8) -> nn.Module:
    net = f"[net]\nheight={side_px}\nwidth={side_px}\nchannels={chs}\n"
    return build(net + body + TAIL, 3).layers[0]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape)


@torch.no_grad()
def scramble(net: DarknetCfgNet) -> DarknetCfgNet:
    """Values under which no BatchNorm, bias or scale is neutral."""
    for conv, bn in net.darknet_convs():
        if conv.bias is not None:
            conv.bias.normal_(0, 0.5)
        if bn is not None:
            bn.weight.uniform_(0.5, 1.5)
            bn.bias.normal_(0, 0.5)
            bn.running_mean.normal_(0, 0.5)  # type: ignore[union-attr]
            bn.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    net.darknet_convs()[-1][0].weight.normal_(0, 0.5)
    return net
