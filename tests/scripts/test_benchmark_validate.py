"""The benchmark of validation, on a few drawn pictures: every row is there, and in float32 all answers are the same."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

import cspnet
from cspnet.cli.flags import run_door
from tests.conftest import ROOT, draw_tree
from tests.weights.scrambled import build_scrambled

NUM_PICTURES = 14
ROWS = [
    "timm, its defaults",
    "timm, channels_last, amp bfloat16",
    "ours, its defaults: float32, folded",
    "ours, float32, not folded",
    "ours, bfloat16, folded",
]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_validate", ROOT / "scripts" / "benchmark_validate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes, whose numbers depend on how names are sorted: timm by itself puts class_2 before class_10."""
    return draw_tree(tmp_path_factory.mktemp("validate"), classes=12, train=1, val=28)


@pytest.fixture
def call(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*flags: object) -> int:
        monkeypatch.setattr(sys, "argv", ["benchmark_validate.py", "--device", "cpu", *map(str, flags)])
        return run_door("benchmark_validate.py", script.main)

    return run


class Report(NamedTuple):
    printed: str
    figures: dict[str, Any]


def run_once(call: Callable[..., int], capsys: pytest.CaptureFixture[str], folder: Path, *flags: object) -> Report:
    small = ("--size", 32, "--limit", NUM_PICTURES, "--batch-size", 4, "--workers", 1)
    file, table = folder / "v.json", folder / "v.md"
    assert call(*flags, *small, "--json", file, "--markdown", table) == 0
    printed = capsys.readouterr().out
    assert table.read_text() == printed
    return Report(printed, json.loads(file.read_text()))


def slow_answers(model: torch.nn.Module, data: Path) -> tuple[int, int]:
    """Right first answers, and right ones among five, one picture at a time, as torchvision makes pictures."""
    model.eval()
    classes = sorted(path.name for path in (data / "val").iterdir())
    files = sorted((data / "val").rglob("*.jpg"), key=lambda path: (path.parent.name, path.name))
    correct1 = correct5 = 0
    for file in files[:: len(files) // NUM_PICTURES]:
        image = tv.resize(Image.open(file), [int(32 / 0.875)], tv.InterpolationMode.BICUBIC)
        pixels = tv.to_tensor(tv.center_crop(image, [32, 32]))
        with torch.no_grad():
            logits = model(tv.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None])[0]
        ranking = logits.argsort(descending=True).tolist()
        label = classes.index(file.parent.name)
        correct1 += ranking[0] == label
        correct5 += label in ranking[:5]
    return correct1, correct5


def test_given_weights(
    call: Callable[..., int], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_scrambled("cspdarknet_tiny", 2, num_classes=12)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    flags = (pictures, "--model", "cspdarknet_tiny", "--weights", tmp_path / "w.pt", "--repeats", 2)
    printed, figures = run_once(call, capsys, tmp_path, *flags)
    expected = slow_answers(model, pictures)
    assert 0 < expected[1] < NUM_PICTURES
    assert list(figures["images_per_s"]) == ROWS
    for name in ("timm, its defaults", "ours, its defaults: float32, folded", "ours, float32, not folded"):
        assert tuple(figures["correct"][name]) == expected, name
        assert figures["other_answers"][name] == 0
    assert figures["peer"] == "our cspdarknet_tiny"
    assert (figures["pictures"], figures["weights"], figures["repeats"]) == (NUM_PICTURES, "w.pt", 2)
    rates = figures["images_per_s"]
    for name in ROWS:
        assert len(rates[name]) == 2
        ratios = [own / base for own, base in zip(rates[name], rates[ROWS[0]], strict=True)]
        cells = [f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
                 for values, digits in ((rates[name], 1), (ratios, 2))]  # fmt: skip
        right = ", ".join(map(str, figures["correct"][name]))
        assert f"| {name} | {cells[0]} | {cells[1]} | {right} | {figures['other_answers'][name]} |\n" in printed


def test_random_weights_in_timms_own_network(
    call: Callable[..., int], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, figures = run_once(call, capsys, tmp_path, pictures, "--model", "timm/resnet18", "--repeats", 1)
    assert (figures["peer"], figures["weights"]) == ("timm's resnet18", "random")
    assert figures["other_answers"]["ours, its defaults: float32, folded"] == 0
    counts = figures["correct"]
    assert counts["timm, its defaults"] == counts["ours, its defaults: float32, folded"]


def test_the_peer_is_timms_where_its_network_is_ours(script: ModuleType) -> None:
    ours = cspnet.create_model("cspresnet50", 5)
    peer, whose = script.create_peer("cspresnet50", ours, 5)
    assert whose == "timm's cspresnet50"
    assert type(peer).__module__ == "timm.models.cspnet"
    state = peer.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    ours = cspnet.create_model("densenet121", 5)  # Darknet's, which is not timm's
    peer, whose = script.create_peer("densenet121", ours, 5)
    assert (type(peer), whose) == (type(ours), "our densenet121")
    assert peer is not ours


def test_wrong_things_end_in_one_line(
    call: Callable[..., int], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken" / "a").mkdir(parents=True)
    (tmp_path / "broken" / "a" / "x.jpg").write_bytes(b"\xff\xd8\xff")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "broken" / "a" / "w.jpg")
    tiny = ("--model", "cspdarknet_tiny", "--size", 32, "--workers", 1, "--repeats", 1)
    cases: list[tuple[tuple[object, ...], str]] = [
        ((tmp_path / "nowhere",), "nowhere: expected a folder"),
        ((tmp_path / "broken" / "a",), "no class folders"),
        ((pictures, "--repeats", 0), "--repeats 0: use a number from 1"),
        ((pictures, "--limit", 0), "--limit 0: use a number from 1"),
        ((pictures, "--batch-size", -3), "--batch-size -3: use a number"),
        ((pictures, "--size", "large"), "--size"),
        ((pictures, "--model", "nonesuch"), "nonesuch"),
        ((pictures, "--device", "abacus"), "abacus"),
        ((pictures, "--json", tmp_path / "no" / "x.json"), "name a file in a folder that is there"),
        ((pictures, *tiny, "--weights", tmp_path / "gone.pt"), "gone.pt"),
        ((tmp_path / "broken", *tiny), "x.jpg: cannot be read"),
        ((pictures, "--size", 32, "--limit", 1), "a batch of one picture"),
        ((pictures, "--size", 32, "--rounds", 2), "--rounds: unknown flag"),
    ]
    for flags, words in cases:
        assert call(*flags) == 2, flags
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
