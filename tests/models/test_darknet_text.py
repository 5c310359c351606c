"""The text of a cfg file: what is read, and what is refused in which words."""

from __future__ import annotations

import pytest
import torch

from cspnet.errors import ModelError
from cspnet.models.darknet_cfg import parse_cfg
from tests.models.darknet_small import NET, TAIL, build


def test_comments_spaces_line_ends_and_repeated_keys() -> None:
    text = "; a comment\r\n\r\n[ net ]\r\n  height = 8 # px\r\n\theight=9\r\n[route] ; two\r\nlayers = -1, -4\r\n"
    net, route = parse_cfg(text, "x.cfg")
    assert (net.name, net.line, net.options) == ("net", 3, {"height": "8"})  # the first counts, as in Darknet
    assert (route.name, route.line, route.options) == ("route", 6, {"layers": "-1,-4"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.cfg: no [section] in it; expected a Darknet cfg file"),
        ("# only this\n", "x.cfg: no [section] in it; expected a Darknet cfg file"),
        ("\nfilters=3\n", "x.cfg:2: 'filters=3': expected a [section] first"),
        ("[net]\nheight\n", "x.cfg:2: 'height': expected key=value or [section]"),
        ("[net]\n[maxpool\n", "x.cfg:2: '[maxpool': expected key=value or [section]"),
        ("[net]\n=3\n", "x.cfg:2: '=3': expected key=value or [section]"),
        ("[maxpool]\n", "x.cfg:1: [maxpool]: expected [net] as the first section"),
        ("[net]\nwidth=8\n", "x.cfg:1: [net]: height is missing"),
        ("[net]\nheight=8\nwidth=8\n", "x.cfg:1: [net]: channels is missing"),
        (
            "[net]\nheight=8\nwidth=8\nchannels=300000000\n",
            "x.cfg:4: [net]: channels=300000000: expected a number from 1 to 65536",
        ),
        (
            "[net]\nheight=9999999999\n",
            "x.cfg:2: [net]: height=9999999999: expected a number from 1 to 4096",
        ),
        ("[net]\nheight=8\nwidth=9\n", "x.cfg:3: [net]: width=9: expected a square input, height=8"),
        ("[net]\nheight=0\n", "x.cfg:2: [net]: height=0: expected a number from 1 to 4096"),
        (NET, "x.cfg:1: [net]: the file has no layers"),
        (
            NET + "[avgpool]\n",
            "x.cfg:5: [avgpool]: the file ends without a [convolutional] section, which would be the classifier",
        ),
        (
            NET + "[convolutional]\nfilters=3\n",
            "x.cfg:5: [convolutional]: 8 x 8 px are left at the end: expected an [avgpool] before it",
        ),
        (
            NET + "[convolutional]\nbatch_normalize=1\nfilters=3\n[avgpool]\n",
            "x.cfg:6: [convolutional]: batch_normalize=1: the last convolution is the classifier: expected none",
        ),
        (
            NET + "[convolutional]\nfilters=many\n[avgpool]\n",
            "x.cfg:6: [convolutional]: filters=many: expected a whole number",
        ),
        (
            NET + "[convolutional]\nfilters=3\n[avgpool]\n[route]\nlayers=-1\n",
            "x.cfg:8: [route]: expected only avgpool, dropout, softmax, cost behind the last convolution",
        ),
        (
            NET + "[convolutional]\nfilters=3\n[softmax]\n[avgpool]\n",
            "x.cfg:8: [avgpool]: expected nothing behind softmax and cost",
        ),
    ],
)
def test_a_file_that_is_no_classification_network(text: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(text)
    assert str(caught.value) == message


CONV_KEYS = "filters, size, stride, pad, padding, groups, batch_normalize, activation"
ACTIVATIONS = "linear, leaky, relu, relu6, mish, swish, logistic"
NO_NUMBER = "expected a whole number"


@pytest.mark.parametrize(
    ("body", "message"),
    [  # the body's first line is line 5
        (
            "[lstm]\noutput=3",
            "5: [lstm]: sections of this kind are not supported (supported: convolutional, maxpool, avgpool, route, "
            "shortcut, scale_channels, upsample, dropout, softmax, cost)",
        ),
        ("[convolutional]\nsize=3", "5: [convolutional]: filters is missing"),
        ("[convolutional]\nfilters=4.0", f"6: [convolutional]: filters=4.0: {NO_NUMBER}"),
        ("[convolutional]\nfilters=", f"6: [convolutional]: filters=: {NO_NUMBER}"),
        ("[convolutional]\nfilters=1_0", f"6: [convolutional]: filters=1_0: {NO_NUMBER}"),
        ("[convolutional]\nfilters=4\nsize=0", "7: [convolutional]: size=0: expected a number from 1 to 256"),
        ("[convolutional]\nfilters=70000", "6: [convolutional]: filters=70000: expected a number from 1 to 65536"),
        ("[convolutional]\nfilters=4\nsize=99999", "7: [convolutional]: size=99999: expected a number from 1 to 256"),
        ("[upsample]\nstride=1000000", "6: [upsample]: stride=1000000: expected a number from 1 to 512"),
        ("[convolutional]\nfilters=4\nstride=-2", "7: [convolutional]: stride=-2: expected a number from 1 to 256"),
        ("[convolutional]\nfilters=4\npadding=-1", "7: [convolutional]: padding=-1: expected a number from 0 to 256"),
        (
            "[convolutional]\nfilters=4\nbatch_normalize=2",
            "7: [convolutional]: batch_normalize=2: expected a number from 0 to 1",
        ),
        (
            "[convolutional]\nfilters=6\ngroups=4",
            "7: [convolutional]: groups=4: does not divide the 4 channels before and the 6 behind",
        ),
        (
            "[convolutional]\nfilters=4\nsize=9",
            "5: [convolutional]: a window of 9 px does not fit the 8 x 8 px that reach it",
        ),
        (
            "[convolutional]\nfilters=4\nactivation=elu",
            f"7: [convolutional]: activation=elu: not supported (supported: {ACTIVATIONS})",
        ),
        *(
            (
                f"[convolutional]\nfilters=4\n{option}",
                f"7: [convolutional]: {option}: not supported (supported: {CONV_KEYS})",
            )
            for option in ("dilation=2", "antialiasing=1", "binary=1", "xnor=1", "share_index=0", "flipped=1", "Size=3")
        ),
        (
            "[maxpool]\nmaxpool_depth=1",
            "6: [maxpool]: maxpool_depth=1: not supported (supported: size, stride, padding)",
        ),
        ("[maxpool]\nsize=2\npadding=2", "7: [maxpool]: padding=2: expected a number from 0 to 1"),
        ("[avgpool]\nsize=2", "6: [avgpool]: size=2: not supported (supported: no options)"),
        ("[route]", "5: [route]: layers is missing"),
        ("[route]\nlayers=-1", "6: [route]: layers=-1: there is no layer -1 before this one, which is layer 0"),
        (
            "[avgpool]\n[route]\nlayers=-1,1",
            "7: [route]: layers=-1,1: there is no layer 1 before this one, which is layer 1",
        ),
        ("[avgpool]\n[route]\nlayers=a", "7: [route]: layers=a: expected the whole numbers of layers"),
        ("[avgpool]\n[route]\nlayers=-1,", "7: [route]: layers=-1,: expected the whole numbers of layers"),
        (
            "[dropout]\nprobability=0\n[avgpool]\n[route]\nlayers=0,1",
            "9: [route]: layers=0,1: layers of different sizes (1 x 1, 8 x 8 px) cannot be joined",
        ),
        ("[avgpool]\n[route]\nlayers=0\ngroups=3", "8: [route]: groups=3: does not divide the 4 channels"),
        (
            "[avgpool]\n[route]\nlayers=0\ngroups=2\ngroup_id=2",
            "9: [route]: group_id=2: expected a number from 0 to 1",
        ),
        ("[shortcut]\nfrom=-2", "6: [shortcut]: from=-2: there is no layer -2 before this one, which is layer 0"),
        ("[avgpool]\n[shortcut]", "6: [shortcut]: from is missing"),
        ("[avgpool]\n[shortcut]\nfrom=0,0", "7: [shortcut]: from=0,0: expected one layer"),
        (
            "[avgpool]\n[shortcut]\nfrom=0\nweights_type=per_feature",
            "8: [shortcut]: weights_type=per_feature: not supported (supported: from, activation)",
        ),
        (
            "[avgpool]\n[upsample]\n[shortcut]\nfrom=0",
            "8: [shortcut]: from=0: cannot add 1 x 1 px to 2 x 2 px: expected the same size or a multiple",
        ),
        (
            "[avgpool]\n[scale_channels]\nfrom=0\nscale_wh=1",
            "8: [scale_channels]: scale_wh=1: not supported (supported: from, activation)",
        ),
        (
            "[upsample]\n[scale_channels]\nfrom=0",
            "7: [scale_channels]: from=0: expected 4 x 1 x 1 in front, as that layer has 4 channels, not 4 x 16 x 16",
        ),
        ("[upsample]\nscale=2", "6: [upsample]: scale=2: not supported (supported: stride)"),
        ("[dropout]", "5: [dropout]: probability is missing"),
        *(
            (
                f"[dropout]\nprobability={value}",
                f"6: [dropout]: probability={value}: expected a number from 0 up to, not with, 1",
            )
            for value in ("1", "-0.1", "nan", "half")
        ),
        ("[softmax]\ngroups=2", "6: [softmax]: groups=2: expected a number from 1 to 1"),
        ("[softmax]\ntree=a.tree", "6: [softmax]: tree=a.tree: not supported (supported: groups)"),
    ],
)
def test_refusals_name_file_line_and_section(body: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(f"{NET}{body}\n{TAIL}", 3)
    assert str(caught.value) == f"x.cfg:{message}"


def test_options_that_change_nothing_are_accepted() -> None:
    body = "[convolutional]\nfilters=4\ndilation=1\nxnor=0\n[shortcut]\nfrom=-1\nweights_type=none\n"
    assert len(build(NET + body + TAIL, 3).layers) == 5


def conv(filters: int, size: int = 1) -> str:
    return f"[convolutional]\nfilters={filters}\nsize={size}\npad=1\nactivation=linear\n"


# Found by scripts/fuzz.py: each number is one that a network could have, and together they are terabytes.
TOO_LARGE = {
    "one layer": (conv(65536, 255), "weights"),
    "the sum of layers": (conv(16384) * 4, "weights"),
    "channels that double": ("[route]\nlayers=-1,-1\n" * 60, "channels of"),
    "channels by the line": ("[route]\nlayers=" + ",".join(["-1"] * 100_000) + "\n", "channels of"),
    "pixels": ("[upsample]\nstride=100\n" + conv(4096), "channels of"),
    "layers": ("[dropout]\nprobability=0.1\n" * 5000, "more than 4,096 layers"),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_a_network_that_fits_no_memory(case: str) -> None:
    body, said = TOO_LARGE[case]
    with pytest.raises(ModelError, match=rf"^x\.cfg:\d+: \[\w+\]: .*{said}"):
        build(f"{NET}{conv(4)}{body}{TAIL}", 3)


def test_an_input_of_a_billion_pixels() -> None:
    text = f"{NET}{TAIL}".replace("height=8", "height=999999999").replace("width=8", "width=999999999")
    with pytest.raises(ModelError, match=r"height=999999999: expected a number from 1 to 4096"):
        build(text, 3)


def test_the_largest_that_is_taken() -> None:
    with torch.device("meta"):
        net = build(f"{NET}{conv(16384)}{conv(16384)}{conv(8192)}{TAIL}", 3)
    assert 2**28 < sum(parameter.numel() for parameter in net.parameters()) < 2**29
