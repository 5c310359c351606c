"""Our networks in timm's table: what timm's own calls make of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_model_data_config
from torch import nn

import cspnet
from cspnet import timm_models
from cspnet.errors import ModelError
from cspnet.models.zoo import ZOO
from tests.models.comparing import draw_images

NAME = "csresnext50_omega"


def create_on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **options)


def run_python(code: str) -> str:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_does_not_import_timm() -> None:
    code = "import sys, cspnet; cspnet.create_model; cspnet.load_weights; print('timm' in sys.modules)"
    assert run_python(code).strip() == "False"


def test_timms_own_names_stay_timms() -> None:
    """Which names were timm's is asked before ours are there; no name is registered over another."""
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import timm; before = {n: timm.models.model_entrypoint(n) for n in timm.list_models()}\n"
        "import cspnet.timm_models as ours\n"
        "assert all(timm.models.model_entrypoint(n) is f for n, f in before.items())\n"
        "from cspnet.models.zoo import ZOO\n"
        "assert set(ours.SKIPPED) == set(ZOO) & set(before)\n"
        "assert set(timm.list_models()) - set(before) == set(ours.REGISTERED) == set(ZOO) - set(before)\n"
        "from cspnet.timm_models import *\n"
        "print(csresnext50_omega.__name__)"
    )
    assert run_python(code).strip() == NAME
    assert {"cspdarknet53", "darknet53", "densenet121"} <= set(timm_models.SKIPPED)
    assert type(create_on_meta("cspdarknet53")).__module__.startswith("timm.")


def test_list_models_has_ours() -> None:
    ours = {name for name in timm_models.REGISTERED if name.startswith("cs")}
    assert NAME in ours and ours <= set(timm.list_models("cs*"))
    assert set(timm.list_models(module="timm_models")) == set(timm_models.REGISTERED)
    assert not ours & set(timm.list_models(pretrained=True))


@pytest.mark.parametrize("name", timm_models.REGISTERED)
def test_every_row_is_described_to_timm(name: str) -> None:
    model, entry = create_on_meta(name), ZOO[name]
    assert sum(p.numel() for p in model.parameters()) == entry.params
    described = model.pretrained_cfg
    assert model.default_cfg is described
    assert described["architecture"] == name
    assert described["num_classes"] == model.num_classes == 1000
    assert isinstance(model.get_submodule(described["classifier"]), nn.Linear)
    first = model.get_submodule(described["first_conv"])
    assert isinstance(first, nn.Conv2d) and first.in_channels == 3
    assert first is next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    data = resolve_model_data_config(model)
    side = 224 if name == "cspdarknet53_mish" else entry.input_px
    assert data["input_size"] == (3, side, side)
    if entry.spec.init == "darknet":
        assert (data["mean"], data["std"], data["crop_pct"]) == ((0, 0, 0), (1, 1, 1), 1.0)
    elif name == "cspdarknet53_mish":
        assert (data["crop_pct"], data["interpolation"]) == (0.875, "bilinear")
    else:
        assert (data["mean"], data["std"]) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def test_both_kinds_of_pictures_are_there() -> None:
    darknets = {name for name in timm_models.REGISTERED if ZOO[name].spec.init == "darknet"}
    assert NAME in darknets and "cspdarknet_tiny" not in darknets


def test_options_reach_the_network() -> None:
    model = create_on_meta(NAME, num_classes=10, in_chans=1, drop_rate=0.1, bn_momentum=0.02)
    assert model.num_classes == model.head.fc.out_features == 10
    assert model.stem.conv1.conv.in_channels == 1
    assert model.head.drop.p == 0.1
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.02}
    bare = create_on_meta(NAME, num_classes=0)
    assert bare(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, bare.num_features)
    with pytest.raises(ModelError, match="unknown option drop_rat; did you mean drop_rate"):
        create_on_meta(NAME, drop_rat=0.1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["cspdarknet_tiny", "csppeleenet", "csmobilenet_v2", "cspresnet10"])
@pytest.mark.parametrize("out_indices", [None, (2, 3), (-1, 1)])
def test_backbones_give_our_features(name: str, out_indices: tuple[int, ...] | None) -> None:
    torch.manual_seed(0)
    ours = cspnet.create_model(name, features_only=True).eval()
    options = {} if out_indices is None else {"out_indices": out_indices}
    theirs = timm.create_model(name, features_only=True, **options).eval()
    weights = {
        key.replace("stem.", "stem_", 1).replace("stages.", "stages_", 1): value
        for key, value in ours.state_dict().items()
    }
    assert theirs.load_state_dict(weights, strict=False).missing_keys == []
    count = len(ours.feature_info.channels())
    asked = [i % count for i in (range(count) if out_indices is None else out_indices)]
    assert theirs.feature_info.channels() == [ours.feature_info.channels()[i] for i in asked]
    assert theirs.feature_info.reduction() == [ours.feature_info.reduction()[i] for i in asked]
    images = draw_images(2, 64)
    features, expected = theirs(images), ours(images)
    assert len(features) == len(asked)
    assert all(torch.equal(x, expected[i]) for x, i in zip(features, sorted(asked), strict=True))


def test_backbones_take_the_other_options() -> None:
    model = create_on_meta(NAME, num_classes=10, in_chans=1, features_only=True, out_indices=(2, 3, 4), drop_rate=0.1)
    features = model(torch.empty(2, 1, 64, 64, device="meta"))
    assert [x.shape[1] for x in features] == model.feature_info.channels()
    assert [64 // x.shape[2] for x in features] == model.feature_info.reduction() == [8, 16, 32]
    assert resolve_model_data_config(model)["mean"] == (0, 0, 0)


def test_there_is_nothing_to_download() -> None:
    with pytest.raises(ModelError, match=r"csresnext50_omega: no published weights .*cspnet\.load_weights"):
        create_on_meta(NAME, pretrained=True)


def test_weights_from_a_file_load_through_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("cspdarknet_tiny")
    torch.save(source.state_dict(), tmp_path / "tiny.pth")
    overlay = {"file": str(tmp_path / "tiny.pth")}
    model = timm.create_model("cspdarknet_tiny", pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())
    other = timm.create_model("cspdarknet_tiny", pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay)
    body = {key: value for key, value in other.state_dict().items() if not key.startswith("head.")}
    assert body and all(torch.equal(value, source.state_dict()[key]) for key, value in body.items())
    assert other.head.fc.out_features == 3


@torch.no_grad()
def test_the_network_is_cspnets_own() -> None:
    torch.manual_seed(1)
    ours = cspnet.create_model("cspdarknet_tiny", num_classes=4).eval()
    torch.manual_seed(1)
    theirs = timm.create_model("cspdarknet_tiny", num_classes=4).eval()
    assert torch.equal(ours(draw_images(2, 64)), theirs(draw_images(2, 64)))
    theirs.reset_classifier(9)
    assert theirs.get_classifier().out_features == 9
