"""The networks whose graph timm has too, against timm's: same weights, same numbers, under the same names."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from cspnet import timm_models
from cspnet.models import create_model
from tests.models.comparing import draw_images, relative_error, scramble_norms

# The names timm has with the same graph, and the options that make ours start as theirs.
SAME: dict[str, dict[str, Any]] = {
    "cspdarknet53": {},
    "cspresnet50": {},
    "cspresnet50d": {},
    "cspresnet50w": {},
    "cspresnext50": {},
    "darknet53": {"leaky_slope": 0.01, "init": "timm", "zero_init_last": True},
}
PARAMS = {
    "cspdarknet53": 27_642_184,
    "cspresnet50": 21_616_168,
    "cspresnet50d": 21_635_400,
    "cspresnet50w": 28_118_216,
    "cspresnext50": 20_569_896,
    "darknet53": 41_609_928,
}
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "mish": nn.Mish}
Pair = tuple[nn.Module, nn.Module]


def create_like(weights: dict[str, torch.Tensor], name: str, **options: Any) -> nn.Module:
    """Our network with a copy of these weights; no time is lost on fresh ones."""
    with torch.device("meta"):
        ours = create_model(name, **SAME[name], **options)
    ours.load_state_dict(copy.deepcopy(weights), strict=True, assign=True)
    for p in ours.parameters():
        p.requires_grad_()
    return ours.eval()


def replace_activations(model: nn.Module, create: Any) -> nn.Module:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LeakyReLU):
                setattr(module, name, create())
    return model


@pytest.fixture(scope="module", params=SAME)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Our network and timm's with the same weights. Read only."""
    torch.manual_seed(0)
    theirs = timm.create_model(request.param)
    scramble_norms(theirs, seed=1)
    return create_like(theirs.state_dict(), request.param), theirs.eval()


@pytest.fixture(scope="module", params=SAME)
def fresh_pair(request: pytest.FixtureRequest) -> Pair:
    """Our network and timm's as they are initialised, from different seeds. Read only."""
    torch.manual_seed(2)
    ours = create_model(request.param, **SAME[request.param])
    torch.manual_seed(3)
    return ours, timm.create_model(request.param)


@torch.no_grad()
def test_same_weights_give_timms_logits(pair: Pair) -> None:
    ours, theirs = pair
    images = draw_images(2, 96)
    logits = theirs(images)
    assert (logits[0] - logits[1]).abs().max() > 0.01 * logits.abs().max()
    assert relative_error(ours(images), logits) <= 1e-5
    features = theirs.forward_features(images)
    assert relative_error(ours.forward_features(images), features) <= 1e-5
    pooled = theirs.forward_head(features, pre_logits=True)
    assert relative_error(ours.forward_head(features, pre_logits=True), pooled) <= 1e-5


def test_same_weights_give_timms_gradients_and_running_statistics(pair: Pair) -> None:
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


def test_state_dicts_load_in_both_directions(pair: Pair) -> None:
    ours, theirs = pair
    assert list(ours.state_dict()) == list(theirs.state_dict())
    name = theirs.pretrained_cfg["architecture"]
    for source, create in ((ours, timm.create_model), (theirs, create_model)):
        with torch.device("meta"):
            target = create(name)
        target = target.to_empty(device="cpu")
        target.load_state_dict(source.state_dict(), strict=True)
        loaded = target.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in source.state_dict().items())


@pytest.mark.parametrize(("name", "params"), PARAMS.items())
def test_parameter_counts_are_the_published_ones(name: str, params: int) -> None:
    with torch.device("meta"):
        for create in (create_model, timm.create_model):
            assert sum(p.numel() for p in create(name, num_classes=1000).parameters()) == params


@torch.no_grad()
def test_features_are_timms(pair: Pair) -> None:
    name = pair[1].pretrained_cfg["architecture"]
    with torch.device("meta"):
        ours = create_model(name, features_only=True, **SAME[name])
        theirs = timm.create_model(name, features_only=True)
    weights = {key: value for key, value in pair[1].state_dict().items() if not key.startswith("head.")}
    ours.load_state_dict(weights, strict=True, assign=True)
    timms_keys = {
        key.replace("stem.", "stem_", 1).replace("stages.", "stages_", 1): value for key, value in weights.items()
    }
    theirs.load_state_dict(timms_keys, strict=True, assign=True)
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()
    assert ours.feature_info.module_name() == theirs.feature_info.module_name()
    images = draw_images(2, 64)
    references = theirs.eval()(images)
    features = ours.eval()(images)
    assert len(features) == len(references)
    for value, reference, reduction in zip(features, references, ours.feature_info.reduction(), strict=True):
        assert relative_error(value, reference) <= 1e-5
        assert value.shape[2:] == (64 // reduction, 64 // reduction)


@torch.no_grad()
@pytest.mark.parametrize("out_indices", [(0,), (1, 3), (0, 2, 4), [4], (-2,), (-4, -1)])
def test_out_indices_choose_features_as_timms_do(out_indices: tuple[int, ...]) -> None:
    with torch.device("meta"):
        theirs = timm.create_model("cspresnet50", features_only=True, out_indices=out_indices)
    ours = create_model("cspresnet50", features_only=True, out_indices=out_indices).eval()
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()
    assert ours.feature_info.module_name() == theirs.feature_info.module_name()
    every = create_model("cspresnet50", features_only=True).eval()
    result = every.load_state_dict(ours.state_dict(), strict=False)
    last = max(i % 5 for i in out_indices)  # what is behind it, and only that, is not there
    assert result.unexpected_keys == []
    behind = tuple(f"stages.{i}." for i in range(last, 4))
    # BatchNorm does not ask for its counter in a dictionary without its version.
    expected = [key for key in every.state_dict() if key.startswith(behind) and "num_batches_tracked" not in key]
    assert [key for key in result.missing_keys if "num_batches_tracked" not in key] == expected
    images = draw_images(1, 32)
    chosen = ours(images)
    features = every(images)
    assert [x.shape for x in chosen] == [x.shape for x in theirs.eval()(images.to("meta"))]
    assert all(torch.equal(x, features[i]) for x, i in zip(chosen, out_indices, strict=True))


def test_initialisation_has_timms_distribution(fresh_pair: Pair) -> None:
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


def test_the_scales_timm_zeroes_are_zero(fresh_pair: Pair) -> None:
    ours, theirs = (
        {name for name, p in model.named_parameters() if name.endswith("bn.weight") and not p.any()}
        for model in fresh_pair
    )
    assert ours
    assert ours == theirs


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
    ours = create_like(theirs.state_dict(), name, **overrides)
    images = draw_images(2, 64)
    plain = theirs(images)
    expected = replace_activations(theirs, create)(images)
    assert relative_error(plain, expected) > 1e-2
    assert relative_error(ours(images), expected) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("option", ["in_chs", "in_chans"])
def test_input_channels_override(option: str) -> None:
    theirs = timm.create_model("cspdarknet53", in_chans=1).eval()
    ours = create_like(theirs.state_dict(), "cspdarknet53", **{option: 1})
    images = draw_images(2, 64, chs=1)
    assert relative_error(ours(images), theirs(images)) <= 1e-5


def test_every_name_that_timm_has_is_compared() -> None:
    """All but DenseNet's: ours activate last, as Darknet does, so timm's of the same name are other networks."""
    assert set(timm_models.SKIPPED) - {"densenet121", "densenet169", "densenet201"} == set(SAME)
    assert set(SAME) == set(PARAMS)
    for name in ("densenet121", "densenet169", "densenet201"):
        ours, theirs = (create(name).state_dict() for create in (create_model, timm.create_model))
        assert ours.keys() != theirs.keys()
