"""docs/COMING_FROM.md and docs/TROUBLESHOOTING.md: the flags and scripts that they name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cspnet.cli.flags import read_overrides
from cspnet.cli.train import create_parser as create_train_parser
from cspnet.cli.validate import create_parser as create_validate_parser
from cspnet.recipe.load import load_recipe
from cspnet.recipe.schema import MixRecipe
from cspnet.weights.layouts import LAYOUTS

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "COMING_FROM.md").read_text()
FLAG = re.compile(r"(?<![\w.-])--?[a-zA-Z][\w.-]*")
OPTIONS = {option for action in create_train_parser()._actions for option in action.option_strings}


def spans(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


def test_flags_taken_as_they_are() -> None:
    paragraph = PAGE[PAGE.index("taken as they are:") : PAGE.index("What has another name")]
    flags = spans(paragraph)
    assert len(flags) > 60
    assert [flag for flag in flags if flag not in OPTIONS] == []


def test_the_other_side_of_the_table() -> None:
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 20
    here = [flag for row in rows for span in spans(row[2]) for flag in FLAG.findall(span) if flag != "--a.b"]
    assert len(here) > 30
    assert [flag for flag in here if flag not in OPTIONS] == []


def test_commands() -> None:
    (block,) = (block for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) if "validate.py" in block)
    known = {
        "train.py": OPTIONS,
        "validate.py": {option for action in create_validate_parser()._actions for option in action.option_strings},
        "scripts/convert_weights.py": {"--to"},
    }
    for line in block.splitlines():
        words = line.split()
        assert [flag for flag in FLAG.findall(line) if flag not in known[words[1]]] == []


def test_values_that_it_names() -> None:
    parser = create_train_parser()
    for words in (
        ["--precision", "bf16"],
        ["--precision", "fp16"],
        ["--sched", "darknet_poly", "--warmup-steps", "1000", "--power", "4"],
        ["--data.decoder", "pillow"],
        ["--data.train_crop", "darknet"],
        ["--mix.darknet", "cutmix"],
        ["--compile", "true"],
        ["--optim.decay_norm_and_bias", "false"],
        ["--model-kwargs", "drop_rate=0.1", "drop_path_rate=0.1"],
    ):
        load_recipe(None, read_overrides(parser.parse_all(words)))
    assert "cutmix" in str(MixRecipe.__annotations__["darknet"])


@pytest.mark.parametrize("layout", ["timm", "mmpretrain", "deepspark"])
def test_layouts(layout: str) -> None:
    assert layout in LAYOUTS


def test_flags_of_the_troubleshooting_page() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "TROUBLESHOOTING.md").read_text()
    known = OPTIONS | {option for action in create_validate_parser()._actions for option in action.option_strings}
    flags = [flag for span in spans(page) for flag in re.findall(r"--[a-z][\w.-]*", span)]
    assert len(flags) > 20
    assert [flag for flag in flags if flag not in known] == []


def test_scripts_that_the_pages_name() -> None:
    root = Path(__file__).resolve().parent.parent
    for page in ("COMING_FROM.md", "TROUBLESHOOTING.md"):
        for name in re.findall(r"(?:scripts|recipes)/[\w./]+", (root / "docs" / page).read_text()):
            assert (root / name.rstrip(".")).exists(), name


def test_the_table_of_features() -> None:
    root = Path(__file__).resolve().parent.parent
    rows = [line.split("|")[1:-1] for line in (root / "docs" / "FEATURES.md").read_text().splitlines() if "|" in line]
    rows = [[cell.strip() for cell in row] for row in rows if "---" not in row[1] and row[1].strip() != "here"]
    assert len(rows) > 50
    for row in rows:
        assert len(row) == 10, row
        assert row[1] in ("yes", "no", "partly", "not yet run"), row
        path = row[9].split(",")[0].split(" ")[0].strip("`")
        assert row[1] == "no" or (root / path).exists(), row
