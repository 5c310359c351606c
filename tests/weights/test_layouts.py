"""Weights of timm, mmpretrain and DeepSpark, there and back; against networks written from their descriptions."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import cspnet
from cspnet.errors import CheckpointError
from cspnet.models.network import CspNet
from cspnet.models.rows import darknet_cfgs
from cspnet.models.zoo import ZOO
from cspnet.weights.files import read_tensors, write_safetensors
from cspnet.weights.layouts import LAYOUTS, export_state, find_graph, reorder_parts
from cspnet.weights.load import load_weights
from cspnet.weights.preprocessing import Preprocessing
from tests.weights.foreign_networks import MMPRETRAIN, CsDarkNet53, create_mmpretrain
from tests.weights.scrambled import (
    State,
    build_scrambled,
    check_equal,
    copy_state,
    create_blank,
    relative_difference,
    scramble,
    starting_at_zero,
)

TIMM = {
    "cspdarknet53": "cspdarknet53",
    "csdarknet53": "cspdarknet53",
    "cspresnet50": "cspresnet50",
    "cspresnet50d": "cspresnet50d",
    "cspresnet50w": "cspresnet50w",
    "cspresnext50": "cspresnext50",
    "darknet53": "darknet53",
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# Every network and every layout


def list_pairs() -> list[tuple[str, str]]:
    pairs = []
    for name in ZOO:
        with torch.device("meta"):
            model = cspnet.create_model(name, 3)
        pairs += [(name, layout) for layout in LAYOUTS if find_graph(model, LAYOUTS[layout].graphs)]
    return pairs


PAIRS = list_pairs()


def test_what_has_a_layout() -> None:
    dark = {"cspdarknet53", "cspdarknet53_mish", "csdarknet53", "csdarknet53_omega"}
    assert {name for name, layout in PAIRS if layout == "deepspark"} == dark
    assert {name for name, layout in PAIRS if layout == "mmpretrain"} == {*dark, "cspresnet50", "cspresnext50"}
    assert {name for name, layout in PAIRS if layout == "timm"} == {*dark, *TIMM}


@pytest.mark.parametrize(("name", "layout"), PAIRS)
def test_there_and_back_is_bit_equal(tmp_path: Path, name: str, layout: str) -> None:
    model = build_scrambled(name, 1, num_classes=3)
    theirs = export_state(model, LAYOUTS[layout], "out")
    torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")
    copy = create_blank(name, 3)
    report = load_weights(copy, tmp_path / "theirs.pth", layout)
    check_equal(copy_state(copy), copy_state(model))
    assert set(report.matched) == set(model.state_dict())
    check_equal(export_state(copy, LAYOUTS[layout], "out"), theirs)


NOBODYS = sorted(ZOO.keys() - {name for name, _ in PAIRS} - darknet_cfgs.ROWS.keys())


@pytest.mark.parametrize("name", NOBODYS)
def test_what_nobody_else_has_goes_through_our_own_file(tmp_path: Path, name: str) -> None:
    model = build_scrambled(name, 1, num_classes=3)
    write_safetensors(tmp_path / "own.safetensors", model.state_dict(), {})
    copy = create_blank(name, 3)
    assert load_weights(copy, tmp_path / "own.safetensors").layout == "cspnet"
    check_equal(copy_state(copy), copy_state(model))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_project_does_not_have_is_refused(tmp_path: Path, layout: str) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "theirs.pth")
    for name in ZOO.keys() - {name for name, theirs in PAIRS if theirs == layout}:
        with torch.device("meta"):
            model = cspnet.create_model(name, 3)
        with pytest.raises(CheckpointError, match="no network with this model's layers"):
            export_state(model, LAYOUTS[layout], "out")
        with pytest.raises(CheckpointError, match="no network with this model's layers"):
            load_weights(model, tmp_path / "theirs.pth", layout)


# timm's own networks


@pytest.mark.parametrize("name", TIMM)
def test_timms_networks(tmp_path: Path, name: str) -> None:
    """Also csdarknet53, which concatenates in the other order: the columns move, the logits stay."""
    with starting_at_zero():
        theirs = scramble(timm.create_model(TIMM[name], num_classes=3), 2)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = create_blank(name, 3, leaky_slope=0.01)
    report = load_weights(ours, tmp_path / "timm.pth", "timm")
    assert (report.layout, report.warnings) == ("timm", ())
    check_equal(export_state(ours, LAYOUTS["timm"], "out"), copy_state(theirs))
    assert relative_difference(ours, theirs) < 1e-9


@pytest.mark.parametrize("name", ["cspdarknet53", "cspresnet50", "cspresnext50"])
def test_timms_geometry_is_timms(tmp_path: Path, name: str) -> None:
    with starting_at_zero():
        theirs = timm.create_model(name, num_classes=3)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    report = load_weights(create_blank(name, 3), tmp_path / "timm.pth")
    cfg: Any = theirs.pretrained_cfg
    expected = (cfg["input_size"][1], cfg["crop_pct"], cfg["interpolation"], cfg["mean"], cfg["std"])
    assert report.preprocessing == Preprocessing(*expected)
    assert report.layout == "timm"
    assert "256 px, crop ratio 0.887, bilinear" in str(report)


DOUBTFUL = {"cspdarknet_tiny": False, "cspdarknet53_mish": True, "csdarknet53": True, "darknet53": True}


def test_plain_names_are_timms_only_for_timms_networks(tmp_path: Path) -> None:
    for name, doubtful in DOUBTFUL.items():
        model = create_blank(name, 3)
        torch.save(model.state_dict(), tmp_path / "plain.pth")
        report = load_weights(model, tmp_path / "plain.pth")
        assert (report.layout, report.preprocessing) == ("cspnet", None)
        assert any("timm" in warning for warning in report.warnings) is doubtful


# mmpretrain

MM_GEOMETRY = {"cspdarknet53": (256, 288), "cspresnet50": (256, 288), "cspresnext50": (224, 256)}


@pytest.mark.parametrize("name", MMPRETRAIN)
def test_mmpretrains_networks(tmp_path: Path, name: str) -> None:
    with starting_at_zero():
        theirs = scramble(create_mmpretrain(name, 3), 2)
    torch.save({"meta": {"epoch": 1}, "state_dict": theirs.state_dict()}, tmp_path / "mm.pth")
    ours = create_blank(name, 3)
    report = load_weights(ours, tmp_path / "mm.pth")
    assert (report.layout, report.warnings) == ("mmpretrain", ())
    check_equal(export_state(ours, LAYOUTS["mmpretrain"], "out"), copy_state(theirs))
    assert relative_difference(ours, theirs) < 1e-9
    size_px, resized_px = MM_GEOMETRY[name]
    assert report.preprocessing is not None
    assert int(size_px / report.preprocessing.crop_ratio) == resized_px
    assert report.preprocessing == Preprocessing(size_px, size_px / resized_px, "bicubic", *IMAGENET)


def test_the_older_spelling_of_the_down_convolution(tmp_path: Path) -> None:
    theirs = scramble(create_mmpretrain("cspresnet50", 3), 2).state_dict()
    older = {key.replace("downsample_conv", "downsamper_conv"): value for key, value in theirs.items()}
    assert older.keys() != theirs.keys()
    torch.save({"state_dict": older}, tmp_path / "old.pth")
    ours = create_blank("cspresnet50", 3)
    load_weights(ours, tmp_path / "old.pth")
    check_equal(export_state(ours, LAYOUTS["mmpretrain"], "out"), dict(theirs))


# DeepSpark


@pytest.fixture(scope="module")
def deepspark() -> nn.Module:
    return scramble(CsDarkNet53(3), 2)


def save_deepspark(model: nn.Module, file: Path) -> None:
    """As its train.py does."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    args = argparse.Namespace(data_path="/data", lr=0.1, dali=False, auto_augment=None, epochs=120)
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 119,
        "args": args,
    }
    torch.save(content, file)


def test_deepsparks_network(tmp_path: Path, deepspark: nn.Module) -> None:
    save_deepspark(deepspark, tmp_path / "checkpoint.pth")
    for name in ("cspdarknet53_mish", "csdarknet53_omega"):
        ours = create_blank(name, 3)
        report = load_weights(ours, tmp_path / "checkpoint.pth")
        assert (report.layout, report.warnings) == ("deepspark", ())
        assert report.preprocessing == Preprocessing(224, 0.875, "bilinear", *IMAGENET)
        check_equal(export_state(ours, LAYOUTS["deepspark"], "out"), copy_state(deepspark))
        with starting_at_zero():
            copy = CsDarkNet53(3)
        copy.load_state_dict(deepspark.state_dict())
        assert relative_difference(ours, copy) < 1e-9


def test_another_activation_is_a_warning(tmp_path: Path, deepspark: nn.Module) -> None:
    save_deepspark(deepspark, tmp_path / "checkpoint.pth")
    report = load_weights(create_blank("cspdarknet53", 3), tmp_path / "checkpoint.pth")
    (warning,) = report.warnings
    assert "activation=mish" in warning
    assert "activation=mish" in str(report)


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_namespace_lets_nothing_else_through(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(lr=0.1)}, tmp_path / "plain.pth")
    assert read_tensors(tmp_path / "plain.pth")["args"].lr == 0.1
    torch.save({"args": argparse.Namespace(lr=Hostile(tmp_path / "executed"))}, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match=r"hostile\.pth: holds objects other than"):
        read_tensors(tmp_path / "hostile.pth")
    assert not (tmp_path / "executed").exists()
    with pytest.raises(Exception, match="Unsupported global"):  # the permission ends with the reading
        torch.load(tmp_path / "plain.pth", weights_only=True)


# Our own, of another network


@pytest.mark.parametrize("names", [("csdarknet53", "cspdarknet53"), ("cspdarknet53", "csdarknet53")])
def test_our_checkpoint_in_the_other_order_of_concatenation(tmp_path: Path, names: tuple[str, str]) -> None:
    saved, wanted = names
    theirs = build_scrambled(saved, 3, num_classes=3)
    about = {"arch": saved, "num_classes": 3, "classes": ["a", "b", "c"], "recipe": {"model.options": {}}}
    torch.save({**about, "state_dict": theirs.state_dict()}, tmp_path / "own.pt")
    ours = create_blank(wanted, 3)
    (warning,) = load_weights(ours, tmp_path / "own.pt").warnings
    slope = ZOO[saved].spec.leaky_slope
    assert f"leaky_slope={slope:g}" in warning
    ours = create_blank(wanted, 3, leaky_slope=slope)
    assert load_weights(ours, tmp_path / "own.pt").warnings == ()
    assert relative_difference(ours, theirs) < 1e-9


def test_uneven_parts_move_by_the_crossing_width() -> None:
    """The networks that are published in both orders have even parts, which hide the direction."""
    crossing_first = build_scrambled("cspdarknet_tiny", 3, num_classes=3, gamma=0.25)
    spec = crossing_first.spec
    other = replace(spec, stages=tuple(replace(stage, block_first=True) for stage in spec.stages))
    blocks_first, back = CspNet(other, 3), CspNet(spec, 3)
    state = reorder_parts(crossing_first.state_dict(), other, file_block_first=False, reading=True)
    blocks_first.load_state_dict(state)
    back.load_state_dict(reorder_parts(state, spec, file_block_first=True, reading=True))
    check_equal(copy_state(back), copy_state(crossing_first))
    written = reorder_parts(crossing_first.state_dict(), spec, file_block_first=True, reading=False)
    check_equal(written, state)
    assert relative_difference(blocks_first, crossing_first) < 1e-9


# What is refused

Damage = Callable[[State], State]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (lambda state: {k: v for k, v in state.items() if "stage4.split1" not in k}, "lacks stage4.split1"),
    "left over": (lambda state: {**state, "stage7.conv": torch.zeros(1)}, "stage7.conv"),
    "a part of another shape": (
        lambda state: {**state, "stage4.split1.layers.0.weight": torch.zeros(64, 256, 1, 1)},
        "stage4.split1.layers.0.weight is [64, 256, 1, 1], expected [128, 256, 1, 1]",
    ),
    "a transition of another shape": (lambda state: {**state, "conv.layers.0.weight": torch.zeros(2)}, "is [2]"),
    "without a head": (lambda state: {k: v for k, v in state.items() if not k.startswith("fc")}, "lacks fc.weight"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_files_are_refused_and_the_model_is_untouched(tmp_path: Path, deepspark: nn.Module, case: str) -> None:
    damage, said = DAMAGES[case]
    torch.save({"model": damage(dict(deepspark.state_dict()))}, tmp_path / "bad.pth")
    model = cspnet.create_model("cspdarknet53_mish", 3)
    before = copy_state(model)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "bad.pth")
    assert len(str(caught.value).splitlines()) == 1
    assert "bad.pth" in str(caught.value)
    assert said in str(caught.value)
    check_equal(copy_state(model), before)


def test_another_number_of_classes_replaces_the_head(tmp_path: Path, deepspark: nn.Module) -> None:
    save_deepspark(deepspark, tmp_path / "checkpoint.pth")
    model = cspnet.create_model("cspdarknet53_mish", 5)
    before = copy_state(model)
    report = load_weights(model, tmp_path / "checkpoint.pth")
    assert set(report.new_head) == {"head.fc.weight", "head.fc.bias"}
    assert report.leftover["head.fc.weight"] == "3 classes, the model has 5"
    for key in report.new_head:
        assert torch.equal(model.state_dict()[key], before[key])


def test_a_head_of_another_width_is_refused(tmp_path: Path) -> None:
    model = cspnet.create_model("cspdarknet_tiny", 5)
    state = copy_state(model)
    torch.save({**state, "head.fc.weight": torch.zeros(3, 7), "head.fc.bias": torch.zeros(3)}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"head\.fc\.weight is \[3, 7\]"):
        load_weights(model, tmp_path / "bad.pth")
    check_equal(copy_state(model), state)
