"""Networks as backbones and under other heads: the calls that timm's users know, on every row of the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from cspnet.models import create_model
from cspnet.models.network import FeatureInfo
from cspnet.models.zoo import ZOO
from tests.models.comparing import draw_images

TINY = "cspdarknet_tiny"
# One row of each kind of graph: heads and stems of every sort, for the tests that need values.
SMALL = ["cspdarknet_tiny", "csppeleenet", "mobilenet_v2_darknet", "csmobilenet_v2", "resnet10", "cspresnet10"]


def create_on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **options)


@dataclass
class Row:
    """A row of the table as a classifier and as a backbone, without values."""

    name: str
    classifier: nn.Module
    backbone: nn.Module


@pytest.fixture(scope="module", params=ZOO)
def row(request: pytest.FixtureRequest) -> Row:
    name = request.param
    return Row(name, create_on_meta(name, num_classes=7).eval(), create_on_meta(name, features_only=True).eval())


@torch.no_grad()
def test_features_are_what_the_info_says(row: Row) -> None:
    """Widths, strides, and the modules they leave; all outputs, for pictures that are not square."""
    info = row.backbone.feature_info
    seen: dict[str, Tensor] = {}
    handles = [
        row.backbone.get_submodule(key).register_forward_hook(lambda m, args, y, key=key: seen.update({key: y}))
        for key in info.module_name()
    ]
    features = row.backbone(torch.empty(2, 3, 128, 192, device="meta"))
    for handle in handles:
        handle.remove()
    assert len(features) == len(ZOO[row.name].spec.stages) + 1
    every = zip(features, info.channels(), info.reduction(), info.module_name(), strict=True)
    for x, chs, reduction, module_name in every:
        assert x.shape == (2, chs, 128 // reduction, 192 // reduction)
        assert x is seen[module_name]
    assert row.classifier.feature_info == info
    last = row.classifier.conv_head(features[-1])
    assert last.shape == (2, row.classifier.num_features, *features[-1].shape[2:])


def check_out_indices(name: str, out_indices: tuple[int, ...], every: FeatureInfo) -> nn.Module:
    model = create_on_meta(name, features_only=True, out_indices=out_indices).eval()
    info, asked = model.feature_info, [i % len(every.channels()) for i in out_indices]
    assert info.channels() == [every.channels()[i] for i in asked]
    assert info.reduction() == [every.reduction()[i] for i in asked]
    assert info.module_name() == [every.module_name()[i] for i in asked]
    assert len(model.stages) == max(asked)
    return model


def test_out_indices_leave_out_the_stages_behind(row: Row) -> None:
    check_out_indices(row.name, (-2, 1), row.backbone.feature_info)


@pytest.mark.parametrize("out_indices", [(0,), (3,), (-1,), (-4,), (1, -1, 1), (3, 0)])
def test_out_indices_in_any_order(out_indices: tuple[int, ...]) -> None:
    model = check_out_indices(TINY, out_indices, create_on_meta(TINY, features_only=True).feature_info)
    info, shapes = model.feature_info, [x.shape for x in model(torch.empty(2, 3, 64, 64, device="meta"))]
    assert shapes == [(2, chs, 64 // r, 64 // r) for chs, r in zip(info.channels(), info.reduction(), strict=True)]


def test_a_classifiers_weights_load_into_its_backbone(row: Row) -> None:
    weights = row.classifier.state_dict()
    result = row.backbone.load_state_dict(weights, strict=False, assign=True)
    assert result.missing_keys == []
    head = [key for key in weights if key.startswith(("head.", "conv_head."))]
    assert result.unexpected_keys == head
    assert {"head.fc.bias", "head.fc.weight"} <= set(head)
    assert (len(head) > 2) == (ZOO[row.name].spec.head_chs > 0)


def test_classifiers_can_be_reset(row: Row) -> None:
    model = row.classifier
    keys = set(model.state_dict())
    for num_classes in (0, 11, 7):
        model.reset_classifier(num_classes)
        assert model.num_classes == num_classes
        features = torch.empty(2, model.num_features, 2, 2, device="meta")
        assert model.forward_head(features).shape == (2, num_classes or model.num_features)
        assert keys - set(model.state_dict()) == (set() if num_classes else {"head.fc.weight", "head.fc.bias"})
        assert model.get_classifier() is model.head.fc
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_input_channels_change_the_first_convolution_only(row: Row) -> None:
    rgb = row.classifier.state_dict()
    model = create_on_meta(row.name, num_classes=7, in_chans=5).eval()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert list(shapes) == list(rgb)
    assert {key for key, shape in shapes.items() if shape != rgb[key].shape} == {"stem.conv1.conv.weight"}
    assert shapes["stem.conv1.conv.weight"][1] == 5
    assert model.stem(torch.empty(2, 5, 64, 64, device="meta")).shape[1] == model.spec.stem.out_chs


@pytest.mark.parametrize("option", ["in_chans", "in_chs"])
def test_backbones_take_other_pictures_too(option: str) -> None:
    model = create_on_meta(TINY, features_only=True, **{option: 1})
    assert len(model(torch.empty(2, 1, 64, 64, device="meta"))) == 4


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_the_parts_make_the_whole(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=7).eval()
    images = draw_images(2, 64)
    logits = model(images)
    features = model.forward_features(images)
    assert torch.equal(model.forward_head(features), logits)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.flatten(2).sum(2) / features[0, 0].numel())
    fc = model.get_classifier()
    torch.testing.assert_close(logits, pooled @ fc.weight.T + fc.bias)
    assert logits.shape == (2, 7) and pooled.shape == (2, model.num_features)

    backbone = create_model(name, features_only=True, out_indices=(0, -2, -1)).eval()
    backbone.load_state_dict(model.state_dict(), strict=False)
    first, middle, last = backbone(images)
    assert torch.equal(model.conv_head(last), features)
    assert torch.equal(model.stages[-1](middle), last)
    stem = first
    for key, layer in model.stem.named_children():
        if key == "pool":
            stem = layer(first)
    assert torch.equal(model.stages(stem), last)


@torch.no_grad()
def test_without_classes_the_output_is_the_pooled_features() -> None:
    torch.manual_seed(0)
    model = create_model(TINY, num_classes=7).eval()
    bare = create_model(TINY, num_classes=0).eval()
    result = bare.load_state_dict(model.state_dict(), strict=False)
    assert result.missing_keys == [] and result.unexpected_keys == ["head.fc.weight", "head.fc.bias"]
    images = draw_images(2, 64)
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.equal(bare(images), pooled)
    model.reset_classifier(0)
    assert torch.equal(model(images), pooled)
    assert list(model.get_classifier().parameters()) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_fresh_classifier_stays_where_the_network_is(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = create_model(TINY, num_classes=7).to(dtype)
    body = {key: p.detach().clone() for key, p in model.named_parameters() if not key.startswith("head.")}
    model.reset_classifier(400)
    fc = model.get_classifier()
    assert fc.weight.dtype == fc.bias.dtype == dtype
    assert model(draw_images(2, 32).to(dtype)).shape == (2, 400)
    # Initialised as the network's first one: N(0, 0.01), no bias; the rest as it was.
    assert not fc.bias.any()
    assert fc.weight.float().std().item() == pytest.approx(0.01, rel=0.05)
    assert all(torch.equal(p, body[key]) for key, p in model.named_parameters() if key in body)


@pytest.mark.parametrize("name", [TINY, "cspresnet_cifar"])
def test_a_feature_pyramid_trains_on_the_features(name: str) -> None:
    torch.manual_seed(0)
    backbone = create_model(name, features_only=True, out_indices=(1, 2, 3), zero_init_last=False)
    pyramid = FeaturePyramidNetwork(backbone.feature_info.channels(), 16)
    model = nn.ModuleDict({"backbone": backbone, "pyramid": pyramid}).train()
    images, targets = (
        draw_images(4, 64),
        [torch.randn(4, 16, 64 // r, 64 // r) for r in backbone.feature_info.reduction()],
    )

    def compute_loss() -> Tensor:
        outputs = pyramid({str(i): x for i, x in enumerate(backbone(images))})
        return sum(
            (F.mse_loss(y, target) for y, target in zip(outputs.values(), targets, strict=True)), torch.zeros(())
        )

    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    loss = compute_loss()
    loss.backward()
    optimizer.step()
    for key, p in model.named_parameters():
        if key == "backbone.stem.conv1.conv.weight" and name == "cspresnet_cifar":
            assert p.grad is None and torch.equal(p, before[key]), "patterns are not learned"
            continue
        assert p.grad is not None, key
        assert p.grad.isfinite().all() and p.grad.abs().max() > 0, key
        assert not torch.equal(p, before[key]), key
    assert compute_loss() < loss
