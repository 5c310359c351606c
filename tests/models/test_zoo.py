"""The networks against timm's, which has the same graph under the same names."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from cspnet.errors import ModelError
from cspnet.models import create_model, list_models
from cspnet.models.zoo import ZOO

PARAMS = {"cspdarknet53": 27_642_184, "cspresnet50": 21_616_168, "cspresnext50": 20_569_896}
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "mish": nn.Mish}


@torch.no_grad()
def scramble_norms(model: nn.Module, seed: int) -> None:
    """Random scales and shifts, and running statistics near those of a batch: a fresh BatchNorm would hide mistakes."""
    torch.manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.weight.uniform_(0.5, 1.5)
        module.bias.normal_(0, 0.2)
        module.momentum = 1.0
    model.train()(draw_images(4, 64))
    model.eval()
    for module in norms:
        module.momentum = 0.1
        module.running_mean += torch.randn_like(module.running_mean) * 0.2 * module.running_var.sqrt()
        module.running_var *= torch.empty_like(module.running_var).uniform_(0.5, 1.5)


def replace_activations(model: nn.Module, create: Any) -> nn.Module:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LeakyReLU):
                setattr(module, name, create())
    return model


def draw_images(batch: int, side_px: int, chs: int = 3) -> torch.Tensor:
    return torch.randn(batch, chs, side_px, side_px, generator=torch.Generator().manual_seed(7))


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    assert value.shape == reference.shape
    return ((value - reference).abs().max() / reference.abs().max()).item()


@pytest.fixture(scope="module", params=PARAMS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """Our network and timm's with the same weights. Read only."""
    torch.manual_seed(0)
    theirs = timm.create_model(request.param)
    scramble_norms(theirs, seed=1)
    ours = create_model(request.param)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.eval(), theirs.eval()


@pytest.fixture(scope="module", params=PARAMS)
def fresh_pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """Our network and timm's as they are initialised, from different seeds. Read only."""
    torch.manual_seed(2)
    ours = create_model(request.param)
    torch.manual_seed(3)
    return ours, timm.create_model(request.param)


@torch.no_grad()
def test_same_weights_give_timms_logits(pair: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = pair
    images = draw_images(2, 96)
    logits = theirs(images)
    assert (logits[0] - logits[1]).abs().max() > 0.01 * logits.abs().max()
    assert relative_error(ours(images), logits) <= 1e-5
    assert relative_error(ours.forward_features(images), theirs.forward_features(images)) <= 1e-5


def test_same_weights_give_timms_gradients_and_running_statistics(pair: tuple[nn.Module, nn.Module]) -> None:
    images, targets = draw_images(2, 64).double(), torch.tensor([3, 700])
    models = [copy.deepcopy(model).double().train() for model in pair]
    for model in models:
        F.cross_entropy(model(images), targets).backward()
    ours, theirs = ({name: p.grad for name, p in model.named_parameters()} for model in models)
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        assert grad.norm() > 0, name
        assert (ours[name] - grad).norm() <= 1e-8 * grad.norm(), name
    before = dict(pair[1].named_buffers())
    buffers = dict(models[0].named_buffers())
    for name, reference in models[1].named_buffers():
        assert not torch.equal(reference, before[name].to(reference.dtype)), name
        torch.testing.assert_close(buffers[name], reference, rtol=1e-9, atol=1e-12)


def test_state_dicts_load_in_both_directions(pair: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = pair
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for source, name in ((ours, "timm"), (theirs, "cspnet")):
        key = next(name for name, entry in ZOO.items() if entry.spec == ours.spec)
        target = timm.create_model(key) if name == "timm" else create_model(key)
        target.load_state_dict(source.state_dict(), strict=True)
        assert all(torch.equal(target.state_dict()[k], v) for k, v in source.state_dict().items())


@pytest.mark.parametrize(("name", "params"), PARAMS.items())
def test_parameter_counts_are_the_published_ones(name: str, params: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in create_model(name, num_classes=1000).parameters()) == params


@pytest.mark.parametrize("name", ZOO)
def test_every_row_states_its_parameter_count(name: str) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in create_model(name).parameters()) == ZOO[name].params


@pytest.mark.parametrize("name", ZOO)
def test_every_network_trains_a_step(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, zero_init_last=False).train()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    logits = model(draw_images(2, 64))
    assert logits.shape == (2, 5)
    loss = F.cross_entropy(logits, torch.tensor([1, 4]))
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert loss.isfinite()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all() and p.grad.abs().max() > 0, key
        assert not torch.equal(p, before[key]), key


@torch.no_grad()
@pytest.mark.parametrize("name", PARAMS)
def test_features_are_timms(name: str) -> None:
    theirs = timm.create_model(name, features_only=True).eval()
    scramble_norms(theirs, seed=4)
    weights = {
        key.replace("stem_", "stem.", 1).replace("stages_", "stages.", 1): value
        for key, value in theirs.state_dict().items()
    }
    ours = create_model(name, features_only=True).eval()
    ours.load_state_dict(weights, strict=True)
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()
    assert ours.feature_info.module_name() == theirs.feature_info.module_name()
    images = draw_images(2, 64)
    references = theirs(images)
    features = ours(images)
    assert len(features) == len(references)
    for value, reference, reduction in zip(features, references, ours.feature_info.reduction(), strict=True):
        assert relative_error(value, reference) <= 1e-5
        assert value.shape[2:] == (64 // reduction, 64 // reduction)


@torch.no_grad()
@pytest.mark.parametrize("out_indices", [(0,), (1, 3), (0, 2, 4), [4]])
def test_out_indices_choose_features_as_timms_do(out_indices: tuple[int, ...]) -> None:
    theirs = timm.create_model("cspresnet50", features_only=True, out_indices=out_indices)
    ours = create_model("cspresnet50", features_only=True, out_indices=out_indices).eval()
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()
    every = create_model("cspresnet50", features_only=True).eval()
    every.load_state_dict(ours.state_dict())
    images = draw_images(1, 32)
    chosen = ours(images)
    features = every(images)
    assert [x.shape for x in chosen] == [x.shape for x in theirs.eval()(images)]
    assert all(torch.equal(x, features[i]) for x, i in zip(chosen, out_indices, strict=True))


def test_a_classifiers_weights_load_into_its_backbone() -> None:
    classifier = create_model("cspdarknet_tiny")
    backbone = create_model("cspdarknet_tiny", features_only=True)
    result = backbone.load_state_dict(classifier.state_dict(), strict=False)
    assert result.missing_keys == []
    assert sorted(result.unexpected_keys) == ["head.fc.bias", "head.fc.weight"]


def test_initialisation_has_timms_distribution(fresh_pair: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = (dict(model.named_parameters()) for model in fresh_pair)
    for name, timms in theirs.items():
        value, reference = ours[name].detach(), timms.detach()
        if value.ndim == 1:
            assert torch.equal(value, reference), name
            continue
        assert not torch.equal(value, reference), name
        # A standard deviation of n normal values has a relative error of 1 / sqrt(2 n): six times that of both.
        n = value.numel()
        assert abs(math.log(value.std() / reference.std())) < 6 / math.sqrt(n), name
        assert abs(value.mean()) < 6 * value.std() / math.sqrt(n), name
        if n > 10_000:  # a uniform distribution ends at sqrt(3) standard deviations
            assert value.abs().max() > 3 * value.std(), name


def test_the_scales_timm_zeroes_are_zero(fresh_pair: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = (
        {name for name, p in model.named_parameters() if name.endswith("bn.weight") and not p.any()}
        for model in fresh_pair
    )
    assert ours
    assert ours == theirs


def test_zero_init_last_can_be_turned_off() -> None:
    model = create_model("cspdarknet53", zero_init_last=False)
    assert all(torch.all(m.weight == 1) for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "overrides", "create"),
    [
        *(("cspdarknet53", {"activation": key}, value) for key, value in ACTIVATIONS.items()),
        ("cspdarknet53", {"leaky_slope": 0.1}, lambda: nn.LeakyReLU(0.1)),
        ("cspresnet50", {"activation": "mish"}, nn.Mish),
    ],
)
def test_activation_overrides(name: str, overrides: dict[str, Any], create: Any) -> None:
    theirs = timm.create_model(name).eval()
    scramble_norms(theirs, seed=5)
    ours = create_model(name, **overrides).eval()
    ours.load_state_dict(theirs.state_dict())
    images = draw_images(2, 64)
    plain = theirs(images)
    expected = replace_activations(theirs, create)(images)
    assert relative_error(plain, expected) > 1e-2
    assert relative_error(ours(images), expected) <= 1e-5


@torch.no_grad()
def test_in_chs_override() -> None:
    theirs = timm.create_model("cspdarknet53", in_chans=1).eval()
    ours = create_model("cspdarknet53", in_chs=1).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = draw_images(2, 64, chs=1)
    assert relative_error(ours(images), theirs(images)) <= 1e-5


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


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cspdarknet35", {}, "unknown model cspdarknet35; did you mean cspdarknet53?"),
        ("cspresnet5", {}, "did you mean cspresnet50?"),
        ("zzz", {}, "known: .*cspdarknet53"),
        ("cspdarknet_tiny", {"activaton": "mish"}, "unknown option activaton; did you mean activation?"),
        ("cspdarknet_tiny", {"stem": None}, "unknown option stem"),
        ("cspdarknet_tiny", {"activation": "gelu"}, "activation=gelu: use .*mish"),
        ("cspdarknet_tiny", {"drop_rate": 1.0}, "drop_rate=1.0"),
        ("cspdarknet_tiny", {"drop_rate": -0.1}, "drop_rate=-0.1"),
        ("cspdarknet_tiny", {"drop_rate": float("nan")}, "drop_rate=nan"),
        ("cspdarknet_tiny", {"drop_rate": "0.5"}, "drop_rate='0.5': expected float"),
        ("cspdarknet_tiny", {"zero_init_last": 1}, "zero_init_last=1: expected bool"),
        ("cspdarknet_tiny", {"in_chs": 3.0}, "in_chs=3.0: expected int"),
        ("cspdarknet_tiny", {"in_chs": True}, "in_chs=True: expected int"),
        ("cspdarknet_tiny", {"in_chs": 0}, "in_chs"),
        ("cspdarknet_tiny", {"groups": 7}, "groups"),
        ("cspdarknet_tiny", {"num_classes": 0}, "num_classes"),
        ("cspdarknet_tiny", {"features_only": True, "out_indices": (9,)}, "out_indices"),
        ("cspdarknet_tiny", {"features_only": True, "out_indices": ()}, "out_indices"),
        ("timm/no_such_network", {}, "timm/no_such_network"),
        ("timm/resnet18", {"no_such_option": 1}, "no_such_option"),
        ("timm/resnet18", {"features_only": True, "out_indices": (9,)}, "timm/resnet18"),
        ("torchvision/no_such_network", {}, "torchvision/no_such_network"),
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


def test_list_models_is_the_zoo_by_pattern() -> None:
    assert list_models() == sorted(ZOO)
    assert set(list_models("cspres*")) == {name for name in ZOO if name.startswith("cspres")} != set()
    assert list_models("nothing*") == []
