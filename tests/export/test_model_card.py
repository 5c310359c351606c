"""The model card: what it says is in the file, and the code on it runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import cspnet
from cspnet.export.metadata import Contents
from cspnet.export.model_card import NAMES_OF_BOTH, Trained, load_with_timm, write_card
from cspnet.timm_models import SKIPPED
from cspnet.weights.files import write_safetensors
from cspnet.weights.preprocessing import Preprocessing

PICTURES = Preprocessing(64, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def card_of(model: torch.nn.Module, name: str, trained: Trained | None = None, **more: Any) -> str:
    names = more.pop("classes", ("cat", "dog", "bird"))
    contents = Contents(name, names, PICTURES, "apply", "float32", "logits", "1.2.3", "ab" * 32, None)
    more = {"file": "mine.safetensors", "source": "best.pt", "options": {}, "license": "", **more}
    return write_card(contents, trained or Trained({}, False), model, **more)


CARDS: dict[str, tuple[dict[str, Any], str]] = {
    "cspresnet50": ({}, "timm"),  # timm's own
    "cspdarknet53": ({"activation": "mish"}, ""),  # timm has the name, and another activation
    "cspdarknet_tiny": ({"activation": "mish"}, "cspnet"),  # ours alone
    "timm/test_resnet": ({}, "timm"),
}


@pytest.mark.parametrize("name", CARDS)
def test_its_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, timms = CARDS[name]
    torch.manual_seed(1)
    model = cspnet.create_model(name, 3, **options).eval()
    write_safetensors(tmp_path / "mine.safetensors", model.state_dict(), {})
    card = card_of(model, name, options=options)
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 1 + bool(timms)
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == ("timm" if timms == "timm" else "cspnet")
    assert ("import timm" in card, "import cspnet.timm_models" in card) == (bool(timms), timms == "cspnet")
    monkeypatch.chdir(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    for block in blocks:
        variables: dict[str, Any] = {}
        exec(block, variables)
        with torch.no_grad():
            assert torch.allclose(variables["model"](images), model(images), rtol=0, atol=1e-5)


def test_names_that_timm_has_too() -> None:
    assert set(NAMES_OF_BOTH) == set(SKIPPED)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "cfg/mine.cfg", "densenet121"])
def test_what_timm_cannot_load(name: str) -> None:
    model = torch.nn.Linear(1, 1)
    assert load_with_timm(name, model, file="f", num_classes=3, options={}) == []


def test_what_it_says() -> None:
    model = cspnet.create_model("cspdarknet_tiny", 3)
    recipe = {"optim.lr": 0.25, "optim.name": "sgd", "mix.cutmix_alpha": 0.0, "model.pretrained": "/home/me/old.pt"}
    trained = Trained(recipe, True, 1234, 5, 76.54321, "64 px")
    card = card_of(model, "cspdarknet_tiny", trained, classes=("a|b", "c\nd", "*e*"), license='"mine": no: #1')
    for line in (
        f"| parameters | {sum(p.numel() for p in model.parameters()):,} |",
        r"| classes | 3: a\|b, c d, \*e\* |",
        "| weights | moving average |",
        "| steps | 1,234 |",
        "| Acc@1 | 76.543 %, at 64 px |",
        "| `optim.lr` | 0.25 |",
        "| started from | old.pt |",
    ):
        assert line in card.splitlines()
    assert "cutmix" not in card
    assert "/home" not in card
    assert "resized to 73 px (bicubic, antialiased), 64 x 64 px" in card
    assert yaml.safe_load(card.split("---")[1])["license"] == '"mine": no: #1'


def test_what_nobody_has_said() -> None:
    card = card_of(cspnet.create_model("cspdarknet_tiny", 3), "cspdarknet_tiny", classes=[f"c{i}" for i in range(30)])
    assert "| Acc@1 | not in the source |" in card
    assert "The source does not say how the weights were trained." in card
    assert "license:" not in card
    assert "c19 … (all 30 are in the file)" in card
    assert "c20" not in card
