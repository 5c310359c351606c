"""Darknet cfg files as networks: the authors' by number and layer, and what such a network offers."""

from __future__ import annotations

import math
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cspnet.errors import ModelError
from cspnet.models.darknet_cfg import DarknetCfgNet, create_cfg_model, parse_cfg, read_cfg_text
from cspnet.models.layers import Shortcut
from tests.models.darknet_cfgs import CFGS, resnet50
from tests.models.darknet_small import ALL_KINDS, NET, TAIL, build, build_meta, draw

# convolutions, convolution weights (M), learnable (M), BFLOPs, bytes of the .weights file where published or derived
SIZES = {
    "csdarknet53": (73, 27.606, 27.6422, 13.071, 110_710_068),
    "csdarknet53_omega": (73, 27.606, 27.6422, 13.071, 110_710_068),
    "csdarknet53_elastic": (119, 19.045, 19.0816, 7.745, 76_468_020),
    "csresnet50": (60, 21.567, 21.6078, 8.972, 86_592_180),
    "csresnet50_omega": (60, 21.567, 21.6078, 8.972, 86_592_180),
    "csresnet50_elastic": (99, 29.796, 29.8484, 9.367, 119_600_820),
    "csresnext50": (60, 20.499, 20.5575, 7.933, 82_459_316),
    "csresnext50_omega": (60, 20.499, 20.5575, 7.933, 82_459_316),
    "csresnext50_elastic": (99, 16.858, 16.9163, 5.452, 67_894_964),
    "csmobilenet_v2": (59, 2.513, 2.5414, 0.764, 10_273_812),
    "mobilenet_v2_darknet": (54, 3.471, 3.5060, 0.859, None),
    "enetb0": (83, 4.808, 4.8537, 0.915, None),
    "resnet10": (10, 5.240, 5.2450, 2.274, 20_995_764),
    "resnet50_darknet": (50, 22.734, 22.7805, 9.749, None),
    "resnext50_darknet": (50, 22.191, 22.2523, 10.119, None),
    "darknet": (8, 7.314, 7.3194, 0.967, None),
    "darknet53": (53, 41.573, 41.6099, 18.576, None),
}

# Each layer's channels x side; ~ where it has an activation and it is linear; < and the layers it reads, where they
# are not the one before; * and how often. Written from the authors' files.
PROGRAMS = {
    "csmobilenet_v2": """
        32x112 16x112 32x112<0 32x112*2 16x112~ 32x112<5,1 48x112 48x56 48x112<7 96x56 24x56~ 72x56 144x56 24x56~
        24x56~<11 72x56<15,8 72x56 72x28 72x56<17 144x28 32x28~ 96x28 192x28 32x28~ 32x28~<21 96x28 192x28 32x28~
        32x28~<25 96x28 192x28 64x28~ 192x28 384x28 64x28~ 64x28~<32 192x28 384x28 64x28~ 64x28~<36 192x28 384x28
        64x28~ 64x28~<40 136x28<44,18 192x28 192x14 192x28<46 384x14 96x14~ 288x14 576x14 96x14~ 96x14~<50 288x14
        576x14 96x14~ 96x14~<54 288x14<58,47 288x14 288x7 288x14<60 576x7 160x7~ 480x7 960x7 160x7~ 160x7~<64 480x7
        960x7 160x7~ 160x7~<68 480x7 960x7 320x7~ 608x7<75,61 640x7 640x1 1000x1~ 1000x1
    """,
    "csresnet50": """
        64x128 64x64 128x64 64x64<1 64x64*3 128x64~ 128x64<4 64x64*2 128x64~ 128x64<8 64x64*2 128x64~ 128x64<12
        128x64 256x64<17,2 128x64 128x32 256x32~ 128x32<20 256x32~ 128x32*2 256x32~ 256x32<23 128x32*2 256x32~
        256x32<27 128x32*2 256x32~ 256x32<31 256x32 512x32<36,21 256x32 256x16 512x16~ 256x16<39 512x16~ 256x16*2
        512x16~ 512x16<42 256x16*2 512x16~ 512x16<46 256x16*2 512x16~ 512x16<50 256x16*2 512x16~ 512x16<54 256x16*2
        512x16~ 512x16<58 512x16 1024x16<63,40 512x16 512x8 1024x8 512x8<66 1024x8 512x8*2 1024x8~ 1024x8<69 512x8*2
        1024x8~ 1024x8<73 1024x8 2048x8<78,67 1024x8 1024x1 1000x1~ 1000x1
    """,
    "csresnext50": """
        64x128 64x64 128x64 64x64<1 64x64 128x64*2 128x64~ 128x64<4 128x64*2 128x64~ 128x64<8 128x64*2 128x64~
        128x64<12 128x64 256x64<17,2 256x64 256x32 256x32~ 256x32<20 256x32~ 256x32*2 256x32~ 256x32<23 256x32*2
        256x32~ 256x32<27 256x32*2 256x32~ 256x32<31 256x32 512x32<36,21 512x32 512x16 512x16~ 512x16<39 512x16~
        512x16*2 512x16~ 512x16<42 512x16*2 512x16~ 512x16<46 512x16*2 512x16~ 512x16<50 512x16*2 512x16~ 512x16<54
        512x16*2 512x16~ 512x16<58 512x16 1024x16<63,40 1024x16 1024x8*2 1024x8<66 1024x8*3 1024x8~ 1024x8<69
        1024x8*2 1024x8~ 1024x8<73 1024x8 2048x8<78,67 2048x8 2048x1 1000x1~ 1000x1
    """,
    "resnet10": """
        64x128 64x64*2 64x64~ 64x64<1 128x32 128x32~ 128x32<4 256x16 256x16~ 256x16<7 512x8 512x8~ 512x8<10 512x1
        1000x1~ 1000x1
    """,
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def count_bflops(net: DarknetCfgNet) -> float:
    """As Darknet prints them: 2 per weight and position, size² per pooled value, 1 per added value; in 10⁹."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            counts.append(2 * module.weight.numel() * output[0, 0].numel())
        elif isinstance(module, nn.MaxPool2d):
            counts.append(module.kernel_size**2 * output[0].numel())
        elif isinstance(module, Shortcut):
            counts.append(output[0].numel())

    hooks = [module.register_forward_hook(count) for module in net.modules()]
    net.eval()(torch.empty(1, net.in_chs, net.input_px, net.input_px, device="meta"))
    for hook in hooks:
        hook.remove()
    return sum(counts) / 1e9


@pytest.mark.parametrize("name", CFGS)
def test_the_authors_networks_have_their_size(name: str) -> None:
    num_convs, weights, params, bflops, file_bytes = SIZES[name]
    net = build_meta(CFGS[name]())
    convs = net.darknet_convs()
    assert len(convs) == num_convs
    assert round(sum(conv.weight.numel() for conv, _ in convs) / 1e6, 3) == weights
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 4) == params
    assert round(count_bflops(net), 3) == bflops
    if file_bytes is not None:  # header, then for each: weights and one bias, or shift, scale, mean and variance
        numbers = sum(conv.weight.numel() + conv.out_channels * (1 if bn is None else 4) for conv, bn in convs)
        assert 20 + 4 * numbers == file_bytes


def test_a_classifier_before_the_pool_costs_more_and_weighs_the_same() -> None:
    before, behind = (build_meta(resnet50(pool_first=pool_first)) for pool_first in (False, True))
    assert sum(p.numel() for p in before.parameters()) == sum(p.numel() for p in behind.parameters())
    assert (round(count_bflops(before), 3), round(count_bflops(behind), 3)) == (10.007, 9.749)


@pytest.mark.parametrize("name", PROGRAMS)
def test_layer_by_layer(name: str) -> None:
    text = CFGS[name]()
    net = build_meta(text)
    sizes: list[str] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert output.shape[2] == output.shape[3]
        sizes.append(f"{output.shape[1]}x{output.shape[2]}")

    for layer in net.layers:
        layer.register_forward_hook(note)
    net.eval()(torch.empty(1, 3, net.input_px, net.input_px, device="meta"))
    program = []
    for section, layer, size, sources in zip(parse_cfg(text, name)[1:], net.layers, sizes, net.sources, strict=True):
        named = sources if section.name == "route" else sources[1:]
        linear = "~" if isinstance(getattr(layer, "act", None), nn.Identity) else ""
        program.append(size + linear + ("<" + ",".join(map(str, named)) if named else ""))
    expected: list[str] = []
    for token in PROGRAMS[name].split():
        line, _, times = token.partition("*")
        expected += [line] * int(times or 1)
    assert program == expected


@pytest.mark.parametrize(("name", "num_activations"), [("csdarknet53", 72), ("csresnet50", 55), ("csresnext50", 55)])
def test_omega_is_the_same_network_with_mish_everywhere(name: str, num_activations: int) -> None:
    plain, omega = (build_meta(CFGS[key]()) for key in (name, f"{name}_omega"))
    slopes = [module.negative_slope for module in plain.modules() if isinstance(module, nn.LeakyReLU)]
    assert slopes == [0.1] * num_activations
    assert sum(isinstance(module, nn.Mish) for module in omega.modules()) == num_activations
    assert not any(isinstance(module, nn.LeakyReLU) for module in omega.modules())
    assert [(k, v.shape) for k, v in plain.state_dict().items()] == [
        (k, v.shape) for k, v in omega.state_dict().items()
    ]
    assert plain.sources == omega.sources


@torch.no_grad()
@pytest.mark.parametrize("name", ["csdarknet53_elastic", "csresnext50_elastic"])
def test_elastic_networks_run_on_multiples_of_64_px(name: str) -> None:
    net = build(CFGS[name](), 5).eval()
    logits = net(draw(2, 3, 64, 128))
    assert logits.shape == (2, 5)
    assert not torch.allclose(logits[0], logits[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "text",
    [ALL_KINDS, *(CFGS[name]() for name in ("csresnext50_omega", "csdarknet53_elastic", "csmobilenet_v2", "enetb0"))],
    ids=["all kinds", "csresnext50_omega", "csdarknet53_elastic", "csmobilenet_v2", "enetb0"],
)
def test_gradients_reach_every_parameter(text: str) -> None:
    net = build(text, 10).train()
    F.cross_entropy(net(draw(4, 3, 64, 64)), torch.tensor([1, 2, 3, 4])).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("order", ["pool first", "classifier first"])
def test_num_classes_replaces_the_last_convolutions_filters(order: str) -> None:
    net = build_meta(resnet50(pool_first=order == "pool first"), 10)
    shape = net.get_submodule(net.classifier_name).weight.shape
    assert tuple(shape) == (10, 2048, 1, 1)
    assert (net.num_classes, net.num_features, net.in_chs, net.input_px) == (10, 2048, 3, 256)
    assert net(torch.empty(2, 3, 96, 64, device="meta")).shape == (2, 10)


@torch.no_grad()
def test_the_order_of_pool_and_classifier_does_not_change_the_logits() -> None:
    conv, pool = "[convolutional]\nfilters=5\nactivation=linear\n", "[avgpool]\n"
    entry = NET + "[convolutional]\nfilters=6\nsize=3\npad=1\nbatch_normalize=1\nactivation=leaky\n"
    first, last = build(entry + pool + conv, 5), build(entry + conv + pool, 5)
    last.load_state_dict({key.replace("layers.2", "layers.1"): value for key, value in first.state_dict().items()})
    x = draw(2, 4, 8, 8)
    torch.testing.assert_close(last.eval()(x), first.eval()(x))


def test_convolutions_in_the_files_order_under_darknets_numbers() -> None:
    net = build_meta(ALL_KINDS, 7)
    modules = dict(net.named_modules())
    numbers = [0, 2, 4, 5, 12, 13, 15, 16, 20]
    assert [(id(conv), id(bn)) for conv, bn in net.darknet_convs()] == [
        (id(modules[f"layers.{i}.conv"]), id(modules.get(f"layers.{i}.bn"))) for i in numbers
    ]
    assert net.classifier_name == "layers.20.conv"
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {f"layers.{i}.conv.weight" for i in numbers} | {f"layers.{i}.conv.bias" for i in (12, 13, 20)}
    keys |= {f"layers.{i}.bn.{part}" for i in numbers if i not in (12, 13, 20) for part in parts}
    assert set(net.state_dict()) == keys
    assert {bn.eps for _, bn in net.darknet_convs() if bn} == {1e-5}


def check_darknets_uniform(conv: nn.Conv2d) -> None:
    """Uniform in ±sqrt(2 / (k * k * c / groups)). Source: darknet, convolutional_layer.c, make_convolutional_layer."""
    bound = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.in_channels / conv.groups))
    assert 0.98 * bound < conv.weight.abs().max().item() <= bound
    assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_initial_weights() -> None:
    net = build(CFGS["resnet10"](), 1000)
    *convs, (classifier, no_bn) = net.darknet_convs()
    for conv, bn in convs:
        check_darknets_uniform(conv)
        assert bn is not None and (bn.weight == 1).all() and (bn.bias == 0).all()
    assert no_bn is None and classifier.bias is not None and not classifier.bias.any()
    check_darknets_uniform(classifier)
    assert not build(ALL_KINDS).layers[13].conv.bias.any()


@torch.no_grad()
def test_outputs_are_freed_as_soon_as_nobody_reads_them() -> None:
    conv = "[convolutional]\nfilters=4\nactivation=leaky\n"
    # 0 to 3; 4 adds 0; nobody reads 5; 6 reads 4 twice; 7 pools; 8 classifies
    net = build(f"{NET}{conv * 4}[shortcut]\nfrom=0\n{conv}[route]\nlayers=-2,-2\n[avgpool]\n{conv}", 4).eval()
    refs: list[weakref.ref[Tensor]] = []
    alive: list[set[int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        refs.append(weakref.ref(output))
        alive.append({i for i, ref in enumerate(refs) if ref() is not None})

    for layer in net.layers:
        layer.register_forward_hook(note)
    net(draw(1, 4, 8, 8))
    assert alive == [{0}, {0, 1}, {0, 1, 2}, {0, 2, 3}, {0, 3, 4}, {4, 5}, {4, 6}, {6, 7}, {7, 8}]


def test_from_a_file_by_relative_and_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "nets" / "small.cfg"
    path.parent.mkdir()
    path.write_text(NET + TAIL, encoding="utf-8-sig")  # with the mark that some editors put in front
    for name in ("cfg/nets/small.cfg", f"cfg/{path}"):
        assert read_cfg_text(name) == NET + TAIL
        assert create_cfg_model(name, 6, {})(draw(2, 4, 8, 8)).shape == (2, 6)


def test_text_takes_the_files_place() -> None:
    net = create_cfg_model("cfg/gone.cfg", 3, {"text": ALL_KINDS, "bn_momentum": 0.01})
    assert {bn.momentum for _, bn in net.darknet_convs() if bn} == {0.01}
    assert net.num_classes == 3
    with pytest.raises(ModelError, match=r"^nets/a\.cfg:1: \[maxpool\]: expected \[net\] as the first section$"):
        create_cfg_model("cfg/nets/a.cfg", 3, {"text": "[maxpool]"})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.weights").write_bytes(bytes(range(256)))
    for path, problem in (
        (tmp_path / "gone.cfg", f"cannot read {tmp_path}/gone.cfg: No such file or directory"),
        (tmp_path, f"cannot read {tmp_path}: Is a directory"),
        (tmp_path / "x.weights", f"{tmp_path}/x.weights is not a text file; expected a Darknet cfg file"),
    ):
        with pytest.raises(ModelError) as caught:
            create_cfg_model(f"cfg/{path}", 10, {})
        assert str(caught.value) == f"model cfg/{path}: {problem}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "mish"}, "unknown option activation; it has bn_momentum, the rest is in the file"),
        ({"bn_momentum": 0}, "bn_momentum=0: use a number above 0, up to 1"),
        ({"bn_momentum": True}, "bn_momentum=True: use a number above 0, up to 1"),
        ({"bn_momentum": "0.1"}, "bn_momentum='0.1': use a number above 0, up to 1"),
        ({"text": b"[net]"}, "option text: expected the text of a cfg file, not bytes"),
    ],
)
def test_options_of_a_model(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        create_cfg_model("cfg/x.cfg", 10, {"text": ALL_KINDS, **options})
    assert str(caught.value) == f"model cfg/x.cfg: {message}"
