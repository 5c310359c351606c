"""The table of networks: its rows, their counts, and the options with their errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from cspnet.errors import ModelError
from cspnet.models import create_model, list_models
from cspnet.models.blocks import DarkBlock, ElasticDarkBlock, InvertedBlock
from cspnet.models.zoo import ZOO
from tests.models.comparing import draw_images

# Learnable parameters and convolution weights of the authors' cfg files, counted from the files themselves.
CFG_COUNTS = {
    "darknet53": (41.6099, 41.573),
    "csdarknet53": (27.6422, 27.606),
    "csdarknet53_omega": (27.6422, 27.606),
    "csdarknet53_elastic": (19.0816, 19.045),
    "resnet50_darknet": (22.7805, 22.734),
    "csresnet50": (21.6078, 21.567),
    "csresnet50_omega": (21.6078, 21.567),
    "csresnet50_elastic": (29.8484, 29.796),
    "resnext50_darknet": (22.2523, 22.191),
    "csresnext50": (20.5575, 20.499),
    "csresnext50_omega": (20.5575, 20.499),
    "csresnext50_elastic": (16.9163, 16.858),
    "mobilenet_v2_darknet": (3.5060, 3.471),
    "csmobilenet_v2": (2.5414, 2.513),
    "resnet10": (5.2450, 5.240),
}


def create_on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **options)


@pytest.mark.parametrize("name", ZOO)
def test_every_row_states_its_parameter_count(name: str) -> None:
    assert sum(p.numel() for p in create_on_meta(name).parameters()) == ZOO[name].params


@pytest.mark.parametrize("name", CFG_COUNTS)
def test_cfg_rows_have_the_counts_of_the_files(name: str) -> None:
    model = create_on_meta(name)
    learnable_m, conv_weights_m = CFG_COUNTS[name]
    # The classifier is a convolution in the files: its weights count.
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(learnable_m, abs=0.5e-4)
    assert weights / 1e6 == pytest.approx(conv_weights_m, abs=0.5e-3)
    published = ZOO[name].published
    assert published is not None
    if published.conv_weights_m is not None:
        assert weights / 1e6 == pytest.approx(published.conv_weights_m, abs=0.5e-2)


def test_every_row_says_where_it_is_from() -> None:
    assert {name for name, entry in ZOO.items() if "cfg of the authors" in entry.source} == set(CFG_COUNTS)
    for name, entry in ZOO.items():
        assert entry.source, name
        assert entry.baseline is None or entry.baseline in ZOO, name
        if entry.status == "reconstruction" and entry.published:
            assert "not a claim" in entry.published.source, name
        if entry.status == "ours":
            assert entry.published is None, name


def test_list_models_is_the_zoo_by_pattern() -> None:
    assert list_models() == sorted(ZOO)
    assert set(list_models("cspres*")) == {name for name in ZOO if name.startswith("cspres")} != set()
    assert list_models("nothing*") == []


def test_zero_init_last_can_be_turned_off() -> None:
    model = create_model("cspdarknet53", zero_init_last=False)
    assert all(torch.all(m.weight == 1) for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("name", "kind", "count_in_block"),
    [("cspdarknet_tiny", DarkBlock, 1), ("csdarknet53_elastic", ElasticDarkBlock, 2), ("csmobilenet_v2", None, 1)],
)
def test_zero_init_last_makes_every_residual_block_the_identity(name: str, kind: Any, count_in_block: int) -> None:
    model = create_model(name, zero_init_last=True).eval()
    zeroed = sum(not m.weight.any() for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    residual = [
        m for m in model.modules() if isinstance(m, kind or InvertedBlock) and getattr(m, "shortcut", None) is not None
    ]
    assert len(residual) > 0
    assert zeroed == count_in_block * len(residual)
    for block in residual:
        first = next(m for m in block.modules() if isinstance(m, nn.Conv2d))
        x = draw_images(1, 4, first.in_channels * count_in_block)
        torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("name", ["csdarknet53", "csresnext50", "csmobilenet_v2"])
def test_darknets_initialisation_is_uniform_in_its_bounds(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name)
    assert ZOO[name].spec.init == "darknet"
    for key, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.all(module.weight == 1) and not module.bias.any(), key
        if isinstance(module, nn.Conv2d | nn.Linear):
            # size * size * channels / groups, as convolutional_layer.c has it
            inputs = module.kernel_size[0] ** 2 * module.in_channels // module.groups if key != "head.fc" else None
            bound = math.sqrt(2 / (inputs or module.in_features))
            weight, n = module.weight.detach(), module.weight.numel()
            assert weight.abs().max() <= bound * (1 + 1e-6), key
            assert abs(weight.mean()) < 6 * weight.std() / math.sqrt(n), key
            # A uniform distribution's second moment has a relative error of sqrt(0.8 / n).
            assert abs(weight.square().mean() / (bound**2 / 3) - 1) < 6 * math.sqrt(0.8 / n), key
            assert weight.abs().max() > bound * (1 - 20 / n), key
    assert not model.head.fc.bias.any()


def test_init_is_an_option() -> None:
    torch.manual_seed(0)
    darknet = create_model("cspdarknet_tiny", init="darknet").head.fc.weight
    timms = create_model("cspdarknet_tiny", init="timm").head.fc.weight
    assert darknet.abs().max() <= math.sqrt(2 / 128)
    assert darknet.std() > 5 * timms.std()


def test_bn_momentum_override() -> None:
    model = create_model("cspdarknet_tiny", bn_momentum=0.25).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    seen: list[torch.Tensor] = []
    norms[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    model(draw_images(4, 32))
    assert {m.momentum for m in norms} == {0.25}
    torch.testing.assert_close(norms[0].running_mean, 0.25 * seen[0].mean((0, 2, 3)))


def test_drop_rate_drops_in_training_only() -> None:
    model = create_model("cspdarknet_tiny", num_classes=128, drop_rate=0.5)
    with torch.no_grad():
        model.head.fc.weight.copy_(torch.eye(128))  # the logits are the dropped features
    x = torch.ones(64, 128, 2, 2)
    dropped = model.train().head(x)
    assert 0.45 < (dropped == 0).float().mean() < 0.55
    torch.testing.assert_close(dropped[dropped != 0], torch.full_like(dropped[dropped != 0], 2.0))
    torch.testing.assert_close(model.eval().head(x), torch.ones(64, 128))


TINY = "cspdarknet_tiny"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cspdarknet35", {}, "unknown model cspdarknet35; did you mean cspdarknet53?"),
        ("cspresnet5", {}, "did you mean cspresnet50?"),
        ("zzz", {}, "known: .*cspdarknet53"),
        (TINY, {"activaton": "mish"}, "unknown option activaton; did you mean activation?"),
        (TINY, {"stem": None}, "unknown option stem"),
        (TINY, {"head_chs": 64}, "unknown option head_chs"),
        (TINY, {"groups": 7}, "unknown option groups"),
        (TINY, {"activation": "gelu"}, "activation=gelu: use .*mish"),
        (TINY, {"init": "xavier"}, "init=xavier: use timm, darknet"),
        (TINY, {"drop_rate": 1.0}, "drop_rate=1.0"),
        (TINY, {"drop_rate": -0.1}, "drop_rate=-0.1"),
        (TINY, {"drop_rate": float("nan")}, "drop_rate=nan"),
        (TINY, {"drop_rate": "0.5"}, "drop_rate='0.5': expected float"),
        (TINY, {"bn_momentum": 0.0}, "bn_momentum=0.0"),
        (TINY, {"leaky_slope": float("inf")}, "leaky_slope=inf"),
        (TINY, {"zero_init_last": 1}, "zero_init_last=1: expected bool"),
        (TINY, {"in_chs": 3.0}, "in_chs=3.0: expected int"),
        (TINY, {"in_chs": True}, "in_chs=True: expected int"),
        (TINY, {"in_chs": 0}, "in_chs=0"),
        (TINY, {"in_chans": 0}, "in_chs=0"),
        (TINY, {"in_chans": 1, "in_chs": 1}, "in_chans and in_chs"),
        (TINY, {"num_classes": -1}, "num_classes=-1"),
        (TINY, {"out_indices": (1,)}, "out_indices needs features_only"),
        (TINY, {"features_only": True, "out_indices": (9,)}, "out_indices"),
        (TINY, {"features_only": True, "out_indices": (4,)}, "out_indices.*from -4 to 3"),
        (TINY, {"features_only": True, "out_indices": (-5,)}, "out_indices"),
        (TINY, {"features_only": True, "out_indices": ()}, "out_indices"),
        (TINY, {"fusion": "middle"}, "fusion=middle: use csp, first, last"),
        (TINY, {"fusion": "none"}, "fusion=none"),
        (TINY, {"gamma": 0.0}, "gamma=0.0"),
        (TINY, {"gamma": 1.0}, "gamma=1.0"),
        (TINY, {"gamma": float("nan")}, "gamma=nan"),
        (TINY, {"gamma": "0.5"}, "gamma='0.5': expected float"),
        (TINY, {"gamma": 0.3}, "gamma=0.3: the widths of stage 1 do not come out whole"),
        (TINY, {"gamma": 0.001}, "gamma=0.001: the widths"),
        ("csppeleenet", {"gamma": 0.3}, "gamma=0.3: the widths of stage 1 do not come out whole"),
        ("csresnext50", {"gamma": 0.25}, "csresnext50: gamma is for even stages; .*stage 1"),
        ("resnet10", {"gamma": 0.25}, "resnet10: fusion and gamma"),
        ("darknet53", {"fusion": "last"}, "darknet53: fusion and gamma"),
        ("peleenet", {"fusion": "csp"}, "peleenet: fusion and gamma"),
        ("csmobilenet_v2", {"fusion": "first"}, "csmobilenet_v2: fusion and gamma"),
        ("timm/no_such_network", {}, "timm/no_such_network"),
        ("timm/resnet18", {"no_such_option": 1}, "no_such_option"),
        ("timm/resnet18", {"features_only": True, "out_indices": (9,)}, "timm/resnet18"),
        ("torchvision/fasterrcnn_resnet50_fpn", {}, "no such classifier"),
        ("cspdarknet_tiny", {"num_classes": "10"}, "num_classes='10': use a whole number"),
        ("cspdarknet_tiny", {"num_classes": 2.5}, "num_classes=2.5"),
        ("cspdarknet_tiny", {"num_classes": True}, "num_classes=True"),
        ("cspdarknet_tiny", {"num_classes": 10**12}, "num_classes=1000000000000"),
        ("cspdarknet_tiny", {"in_chs": 10**15}, "in_chs=1000000000000000"),
        ("cspdarknet_tiny", {"features_only": True, "out_indices": 3}, "out_indices=3: use a list"),
        ("cspdarknet_tiny", {"features_only": True, "out_indices": ("a",)}, "out_indices="),
        ("CSPDarkNet53", {}, "did you mean cspdarknet53?"),
        ("torchvision/no_such_network", {}, "torchvision/no_such_network"),
        (
            "torchvision/resnet18",
            {"weights": "DEFAULT"},
            "weights is not an option here; load weights with --pretrained",
        ),
        ("timm/resnet18", {"checkpoint_path": "evil.pth"}, "checkpoint_path is not an option here"),
        ("timm/resnet18", {"pretrained_cfg": {"file": "evil.pth"}}, "pretrained_cfg is not an option here"),
        ("timm/hf-hub:someone/evil", {}, "networks of a hub or a folder are not built"),
        ("timm/local-dir:.", {}, "networks of a hub or a folder are not built"),
        ("torchvision/resnet18", {"no_such_option": 1}, "no_such_option"),
        ("torchvision/resnet18", {"features_only": True}, "features_only"),
    ],
)
def test_impossible_wishes_are_model_errors(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words.replace("?", r"\?")) as caught:
        create_model(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "create"),
    [
        ("timm/resnet10t", lambda: timm.create_model("resnet10t", num_classes=7)),
        ("torchvision/resnet18", lambda: torchvision.models.resnet18(num_classes=7)),
    ],
)
def test_foreign_models_are_the_libraries_own(name: str, create: Any) -> None:
    torch.manual_seed(11)
    ours = create_model(name, num_classes=7).state_dict()
    torch.manual_seed(11)
    theirs = create().state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@torch.no_grad()
def test_foreign_backbone() -> None:
    model = create_model("timm/resnet10t", features_only=True, out_indices=(1, 3)).eval()
    features = model(draw_images(1, 64))
    assert [x.shape[1] for x in features] == model.feature_info.channels()
    assert [64 // x.shape[2] for x in features] == model.feature_info.reduction()
