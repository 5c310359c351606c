"""Networks as parts, from the picture to the classifier, and freezing the first ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cspnet.errors import ModelError
from cspnet.models import create_model, list_models
from cspnet.models.depth import find_depths, freeze, list_parts

PARTS = {
    "cspresnet50": ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"],
    "cspdarknet53": ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "stages.4", "head"],
    "torchvision/resnet18": ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"],
    "timm/resnet18": ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"],
    "timm/convnext_atto": ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"],
    "timm/vit_tiny_patch16_224": ["patch_embed", *(f"blocks.{i}" for i in range(12)), "norm", "head"],
}


def classifier_of(model: nn.Module) -> nn.Module:
    if name := getattr(model, "classifier_name", None):
        return model.get_submodule(name)
    return model.get_classifier() if hasattr(model, "get_classifier") else model.fc


@pytest.mark.parametrize("name", PARTS)
def test_parts(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=3)
    assert [part for part, _ in list_parts(model)] == PARTS[name]


@pytest.mark.parametrize("name", [*list_models(), "timm/mobilenetv3_small_050", "torchvision/mobilenet_v2"])
def test_the_last_part_holds_the_classifier_and_every_parameter_has_a_depth(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=3)
    parts, depths = list_parts(model), find_depths(model)
    last = parts[-1][1]
    linear = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    assert linear in set(last.modules())
    assert set(depths) == set(model.parameters())
    assert set(depths.values()) == set(range(len(parts)))
    for depth, (_, part) in enumerate(parts):
        assert {depths[p] for p in part.parameters()} == {depth}


def test_what_is_frozen_gets_no_gradient() -> None:
    model = create_model("cspdarknet_tiny", num_classes=3)
    frozen = freeze(model, 2)
    assert frozen == [model.stem, model.stages[0]]
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(("stem.", "stages.0.")), name


def test_a_position_embedding_belongs_to_the_first_part() -> None:
    model = create_model("timm/vit_tiny_patch16_224", num_classes=3)
    freeze(model, 1)
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert still == {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_the_backbone_is_all_but_the_last_part() -> None:
    model = create_model("cspresnet50", num_classes=3)
    assert len(freeze(model, "backbone")) == 5
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.fc.weight", "head.fc.bias"}


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model.freeze: 6: the parts before the classifier are 5: stem, stages.0"):
        freeze(create_model("cspresnet50", num_classes=3), 6)
