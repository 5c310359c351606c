"""Whole files into a part of the network: a backbone, or the network without its classifier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import cspnet
from cspnet.errors import CheckpointError
from cspnet.weights.darknet import darknet_bytes
from cspnet.weights.load import load_weights
from tests.weights.foreign_networks import CsDarkNet53, create_mmpretrain
from tests.weights.scrambled import (
    build_scrambled,
    check_equal,
    copy_state,
    create_blank,
    relative_difference,
    scramble,
    starting_at_zero,
)


def save_timm(folder: Path) -> Path:
    with starting_at_zero():
        theirs = scramble(timm.create_model("cspdarknet53", num_classes=3), 2)
    torch.save(theirs.state_dict(), folder / "timm.pth")
    return folder / "timm.pth"


def save_mmpretrain(folder: Path) -> Path:
    with starting_at_zero():
        theirs = scramble(create_mmpretrain("cspdarknet53", 3), 2)
    torch.save({"state_dict": theirs.state_dict()}, folder / "mm.pth")
    return folder / "mm.pth"


def save_deepspark(folder: Path) -> Path:
    with starting_at_zero():
        theirs = scramble(CsDarkNet53(3), 2)
    torch.save({"model": theirs.state_dict()}, folder / "ds.pth")
    return folder / "ds.pth"


def save_darknet(folder: Path) -> Path:
    (folder / "dark.weights").write_bytes(darknet_bytes(build_scrambled("csdarknet53", 2), "dark.weights"))
    return folder / "dark.weights"


def save_own(folder: Path) -> Path:
    about = {"arch": "cspdarknet53", "num_classes": 3, "classes": ["a", "b", "c"], "recipe": {"model.options": {}}}
    torch.save({**about, "state_dict": build_scrambled("cspdarknet53", 2, 3).state_dict()}, folder / "own.pt")
    return folder / "own.pt"


FILES: dict[str, Callable[[Path], Path]] = {
    "timm": save_timm,
    "mmpretrain": save_mmpretrain,
    "deepspark": save_deepspark,
    "darknet": save_darknet,
    "cspnet": save_own,
}
PARTS: dict[str, dict[str, Any]] = {
    "backbone": {"features_only": True},
    "first stages": {"features_only": True, "out_indices": (1, 3)},
    "without a classifier": {"num_classes": 0},
}


@pytest.fixture(scope="module", params=FILES)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A layout and a file in it. Read only."""
    return request.param, FILES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("name", ["cspdarknet53", "csdarknet53"])
def test_a_part_gets_what_the_whole_network_gets(file: tuple[str, Path], name: str) -> None:
    """The whole is held against the file's author elsewhere; csdarknet53 concatenates in the other order."""
    layout, path = file
    whole = create_blank(name, 1000 if layout == "darknet" else 3)
    expected = load_weights(whole, path, layout)
    weights = copy_state(whole)
    for options in PARTS.values():
        part = create_blank(name, **options)
        report = load_weights(part, path, layout)
        # Only the file's own counters are missing in Darknet's: a fresh one is 0 in both.
        check_equal(copy_state(part), {key: weights[key] for key in part.state_dict()})
        assert report.preprocessing == expected.preprocessing
        assert report.warnings == expected.warnings
        assert set(report.leftover) == set(expected.matched) - set(report.matched) >= {"head.fc.weight"}


def test_timms_file_needs_no_name(tmp_path: Path) -> None:
    path = save_timm(tmp_path)
    for options in PARTS.values():
        report = load_weights(create_blank("cspdarknet53", **options), path)
        assert report.layout == "timm" and report.preprocessing is not None


def test_a_backbones_own_file_has_no_classifier(tmp_path: Path) -> None:
    for saved, wanted in (("cspdarknet53", "cspdarknet53"), ("csdarknet53", "csdarknet53")):
        theirs = cspnet.create_model(saved, features_only=True)
        torch.save(theirs.state_dict(), tmp_path / "part.pth")
        ours = cspnet.create_model(wanted, features_only=True)
        report = load_weights(ours, tmp_path / "part.pth")
        assert not report.leftover
        check_equal(copy_state(ours), copy_state(theirs))


@pytest.mark.parametrize("layout", ["cspnet", "timm"])
def test_what_belongs_to_no_layer_is_an_error_for_a_backbone_too(tmp_path: Path, layout: str) -> None:
    state = create_blank("cspdarknet53", 3).state_dict()
    torch.save({**state, "neck.conv.weight": torch.zeros(2)}, tmp_path / "odd.pth")
    for options in PARTS.values():
        model = create_blank("cspdarknet53", **options)
        with pytest.raises(CheckpointError, match=r"it has, and the model does not, neck\.conv\.weight"):
            load_weights(model, tmp_path / "odd.pth", layout)


def test_a_file_that_lacks_a_stage_is_an_error(tmp_path: Path) -> None:
    state = cspnet.create_model("cspdarknet53", 3).state_dict()
    del state["stages.2.conv_down.conv.weight"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match=r"it lacks stages\.2\.conv_down\.conv\.weight"):
        load_weights(cspnet.create_model("cspdarknet53", features_only=True), tmp_path / "short.pth")
    early = cspnet.create_model("cspdarknet53", features_only=True, out_indices=(1, 2))
    load_weights(early, tmp_path / "short.pth")
    assert torch.equal(early.state_dict()["stages.1.conv_down.conv.weight"], state["stages.1.conv_down.conv.weight"])


def test_options_of_the_saved_network_count_for_its_order(tmp_path: Path) -> None:
    """A checkpoint with another share of crossing channels than the row of its name."""
    options = {"gamma": 0.25, "leaky_slope": 0.1}
    theirs = build_scrambled("csdarknet53", 3, num_classes=3, **options)
    about = {"arch": "csdarknet53", "num_classes": 3, "classes": ["a", "b", "c"], "recipe": {"model.options": options}}
    torch.save({**about, "state_dict": theirs.state_dict()}, tmp_path / "own.pt")
    ours = create_blank("cspdarknet53", 3, **options)
    load_weights(ours, tmp_path / "own.pt")
    assert relative_difference(ours, theirs) < 1e-9
