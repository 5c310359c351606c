"""The heads of the recipes say what is true, and docs/RECIPES.md says what the heads say."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import cspnet
from cspnet.cli.flags import read_overrides, run_door
from cspnet.cli.train import _DESCRIPTION, create_parser
from cspnet.errors import EXIT_DONE, EXIT_USER, UserError
from cspnet.models.zoo import ZOO
from cspnet.recipe.load import load_recipe
from cspnet.recipe.schema import Recipe, TrainRecipe
from scripts import list_recipes
from scripts.list_recipes import Entry, parse_header, render_folder, render_page, split_command
from tests.conftest import ROOT

FOLDER = ROOT / "recipes"
RECIPES = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "base")
OTHERS = [FOLDER / "finetune.yaml"]  # of pictures that its user brings
IMAGENET = [path for path in RECIPES if load_recipe(path).recipe.data.train_px >= 224 and path not in OTHERS]
PICTURES = 1_281_167
CLAIMS = {
    "deepspark/cspdarknet53.yaml": "76.644",
    "darknet/csdarknet53.yaml": "77.2 / 93.6",
    "darknet/csdarknet53_elastic.yaml": "76.1 / 93.3",
    "darknet/csdarknet53_gamma.yaml": "77.8 / 94.4",
    "darknet/csdarknet53_omega.yaml": "78.7 / 94.8",
    "darknet/csmobilenet_v2.yaml": "67.7 / 88.3",
    "darknet/csresnet50.yaml": "76.6 / 93.3",
    "darknet/csresnet50_elastic.yaml": "76.8 / 93.5",
    "darknet/csresnet50_gamma.yaml": "77.1 / 94.1",
    "darknet/csresnet50_omega.yaml": "78.1 / 94.2",
    "darknet/csresnext50.yaml": "77.9 / 94.0",
    "darknet/csresnext50_blur.yaml": "77.5 / 93.8",
    "darknet/csresnext50_cutmix.yaml": "78.0 / 94.3",
    "darknet/csresnext50_elastic.yaml": "77.2 / 93.8",
    "darknet/csresnext50_gamma.yaml": "78.5 / 94.8",
    "darknet/csresnext50_mish.yaml": "78.9 / 94.5",
    "darknet/csresnext50_mixup.yaml": "77.2 / 94.0",
    "darknet/csresnext50_mosaic.yaml": "78.1 / 94.5",
    "darknet/csresnext50_omega.yaml": "79.8 / 95.2",
    "darknet/csresnext50_smoothing.yaml": "78.1 / 94.4",
    "darknet/mobilenet_v2.yaml": "67.0 / 87.7",
}
"""Acc@1 / Acc@5 as published: the authors' README and imagenet/results.md, DeepSpark's README."""
IMG_PER_S = {"cspdarknet53": 679.0, "cspresnet50": 1042.2, "cspdarknet53_mish": 1049.0}
"""Training on an RTX 3090 (timm benchmark-train, AMP, channels last, 256 px); the last on 8 BI-V100 (DeepSpark)."""
HEAD = "# A title\n#\n# Source: ours,\n#   all of it.\n# Claim: none: x\n# Cost: 1\n# Command: a\nmodel:\n"


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def fields_of(path: Path) -> dict[str, str]:
    return parse_header(path.read_text(), str(path)).fields


def run_by(command: str) -> tuple[Path, Recipe, int]:
    """The recipe file that a command names, the recipe it trains, and its number of processes."""
    words = shlex.split(command)
    processes = 1
    if words[0] == "torchrun":
        processes = int(words.pop(1).removeprefix("--nproc_per_node="))
    assert words[:2] == [words[0], "train.py"]
    args = create_parser().parse_all(words[2:])
    overrides = read_overrides(args)
    assert overrides.pop("data.root") == "DIR"
    return args.recipe, load_recipe(ROOT / args.recipe, overrides).recipe, processes


def without_batch(recipe: Recipe) -> Recipe:
    same = {"batch_size": 1, "accumulate": 1, "sync_bn": False}
    return replace(recipe, train=TrainRecipe(**{**vars(recipe.train), **same}))


def planned(recipe: Recipe, processes: int) -> tuple[int, int]:
    """Steps of a run, and pictures of a step."""
    batch = recipe.train.batch_size * recipe.train.accumulate * processes
    return recipe.train.steps or recipe.train.epochs * (PICTURES // batch), batch


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_head_has_the_fields_of_its_kind(path: Path) -> None:
    assert ("Command" in fields_of(path)) is (path not in IMAGENET)


@pytest.mark.parametrize("path", IMAGENET, ids=name_of)
def test_the_commands_train_this_recipe_with_the_pictures_a_step_that_it_costs(path: Path) -> None:
    fields = fields_of(path)
    own = load_recipe(path).recipe
    cost = re.match(r"([\d,]+) steps of ([\d,]+), ([\d.]+) million pictures, (about )?(\d+) epochs", fields["Cost"])
    assert cost is not None
    said = int(cost[1].replace(",", "")), int(cost[2].replace(",", ""))
    for name, gpus in (("One GPU", 1), ("Eight GPUs", 8)):
        file, recipe, processes = run_by(split_command(fields[name])[0])
        assert (ROOT / file).resolve() == path
        assert processes == gpus
        assert without_batch(recipe) == without_batch(own), "a command changes nothing but how the batch is divided"
        assert planned(recipe, processes) == said
        assert said[1] % recipe.augment.repeats == 0
    steps, batch = said
    assert cost[3] == f"{steps * batch / 1e6:.1f}"
    assert int(cost[5]) == round(steps * batch / PICTURES)
    assert (cost[4] is None) is (own.train.steps is None)


@pytest.mark.parametrize("path", [path for path in IMAGENET if load_recipe(path).recipe != Recipe()], ids=name_of)
def test_the_file_alone_has_the_whole_batch(path: Path) -> None:
    """The default is the exception: it counts per process, as the page it comes from."""
    _, recipe, processes = run_by(split_command(fields_of(path)["One GPU"])[0])
    assert recipe == load_recipe(path).recipe
    assert planned(recipe, processes) == planned(load_recipe(path).recipe, 1)


@pytest.mark.parametrize("path", IMAGENET, ids=name_of)
def test_a_remark_tells_the_pictures_that_batchnorm_sees(path: Path) -> None:
    for name in ("One GPU", "Eight GPUs"):
        command, remark = split_command(fields_of(path)[name])
        _, recipe, processes = run_by(command)
        seen = recipe.train.batch_size * (processes if recipe.train.sync_bn else 1)
        assert re.match(rf"BatchNorm sees (all )?{seen} pictures", remark), remark


@pytest.mark.parametrize("path", IMAGENET, ids=name_of)
def test_a_claim_is_a_figure_with_its_size_and_source_or_a_reason(path: Path) -> None:
    claim = " ".join(fields_of(path)["Claim"].split())
    recipe = load_recipe(path).recipe
    figure = re.match(r"(\d\d\.\d+)(?: / (\d\d\.\d+))? % Acc@1(?: / Acc@5)? at (\d+) px, by ", claim)
    if figure is None:
        assert re.match(r"none: .{20}", claim)
        return
    assert int(figure[3]) == (recipe.data.val_px or recipe.data.train_px)
    row = ZOO[recipe.model.name]
    assert row.status == "exact", "a reconstruction has not earned its figure"
    if name_of(path) in CLAIMS:
        assert " / ".join(figure[i] for i in (1, 2) if figure[i]) == CLAIMS[name_of(path)]
    is_the_plain_training = path.stem in (recipe.model.name, recipe.model.name.removesuffix("_darknet"))
    if is_the_plain_training and row.published is not None:
        assert (float(figure[1]), float(figure[2])) == (row.published.acc1, row.published.acc5)


def test_every_published_training_claims_its_figure() -> None:
    assert set(CLAIMS) <= {name_of(path) for path in IMAGENET}
    claimed = {name_of(path) for path in IMAGENET if not fields_of(path)["Claim"].startswith("none")}
    assert claimed - set(CLAIMS) <= {
        f"darknet/{name}.yaml" for name in ("darknet53", "resnet10", "resnet50", "resnext50")
    }


def test_hours_are_pictures_by_the_rate_that_is_cited() -> None:
    counted = 0
    for path in IMAGENET:
        cost = " ".join(fields_of(path)["Cost"].split())
        if (hours := re.search(r"; ([\d.]+) hours of .* at (?:timm's|DeepSpark's) ([\d,.]+) img/s", cost)) is None:
            assert "hour" not in cost
            continue
        recipe = load_recipe(path).recipe
        steps, batch = planned(recipe, 1)
        rate = float(hours[2].replace(",", ""))
        assert rate == IMG_PER_S[recipe.model.name]
        assert recipe.data.train_px == (224 if "DeepSpark" in cost else 256)
        assert hours[1] == f"{steps * batch / rate / 3600:.1f}"
        counted += 1
    assert counted == 5


def test_the_commands_of_help_and_readme_take_the_batch_of_their_recipe() -> None:
    text = (_DESCRIPTION + (ROOT / "README.md").read_text()).replace("\\\n", " ").replace("/data/imagenet", "DIR")
    commands = re.findall(
        r"^ *(torchrun --nproc_per_node=\d+ train.py --recipe .*? --data-path DIR)", text, re.MULTILINE
    )
    assert len(commands) >= 2
    for command in commands:
        file, recipe, processes = run_by(" ".join(command.split()))
        assert planned(recipe, processes) == planned(load_recipe(ROOT / file).recipe, 1), command


def test_the_page_is_what_the_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["list_recipes.py", "--check"])
    assert run_door("list_recipes.py", list_recipes.main) == EXIT_DONE


@pytest.mark.parametrize("old", [b"# Another page\n", None])
def test_an_old_page_is_told_in_one_line_and_left_alone(
    old: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "RECIPES.md"
    if old is not None:
        page.write_bytes(old)
    monkeypatch.setattr(list_recipes, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["list_recipes.py", "--check"])
    assert run_door("list_recipes.py", list_recipes.main) == EXIT_USER
    error = capsys.readouterr().err
    assert "out of date" in error
    assert error.count("\n") == 1
    assert (page.read_bytes() if page.exists() else None) == old
    monkeypatch.setattr(sys, "argv", ["list_recipes.py"])
    assert run_door("list_recipes.py", list_recipes.main) == EXIT_DONE
    assert page.read_bytes() == (ROOT / "docs" / "RECIPES.md").read_bytes()


def test_the_page_has_every_recipe_and_its_commands() -> None:
    page = list_recipes.PAGE.read_text()
    for path in RECIPES:
        assert f"(../recipes/{name_of(path)})" in page
        fields = fields_of(path)
        for name in list_recipes.COMMANDS:
            if name in fields:
                assert f"\n{split_command(fields[name])[0]}\n" in page


def test_the_recipes_that_are_named_exist() -> None:
    texts = [path.read_text() for path in FOLDER.rglob("*.yaml")] + [list_recipes.PAGE.read_text()]
    named = {name for text in texts for name in re.findall(r"(?:recipes/)?((?:\w+/)?[\w*]+\.yaml)", text)}
    assert len(named) > len(RECIPES)
    for name in named:
        assert list(FOLDER.glob(name)) or list((FOLDER / "base").glob(name)), name


def test_what_the_page_advises_is_possible() -> None:
    advice = re.findall(r"`(--recipe [^`]+)`", list_recipes.TEMPLATE.read_text())
    assert advice
    for words in advice:
        args = create_parser().parse_all(shlex.split(words))
        model = load_recipe(ROOT / args.recipe, read_overrides(args)).recipe.model
        assert model != load_recipe(ROOT / args.recipe).recipe.model
        assert model.options["bn_momentum"] == load_recipe(ROOT / args.recipe).recipe.model.options["bn_momentum"]
        with torch.device("meta"):
            cspnet.create_model(model.name, 1000, **model.options)


def test_a_head_is_read() -> None:
    header = parse_header(HEAD, "x.yaml")
    assert header.title == "A title"
    assert header.fields == {"Source": "ours,\nall of it.", "Claim": "none: x", "Cost": "1", "Command": "a"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (HEAD, "model:\n", "first line"),
        ("# A title\n", "#\n", "first line"),
        ("# Cost: 1\n", "", "no `# Cost:`"),
        ("# Command: a\n", "", "no `# One GPU:`"),
        ("# Command: a\n", "# Command: a\n# Status: b\n", "unknown `# Status:`"),
        ("# Cost: 1\n", "# Cost: 1\n# Cost: 2\n", "line 7: Cost is there twice"),
        ("#   all of it.\n", "# all of it.\n", "line 4: expected"),
        ("#\n# Source", "#   more\n# Source", "line 2: expected"),
        ("# Source: ours,", "# source: ours,", "line 3: expected"),
    ],
)
def test_a_wrong_head_is_refused(old: str, new: str, said: str) -> None:
    assert old in HEAD
    with pytest.raises(UserError, match=re.escape(said)) as error:
        parse_header(HEAD.replace(old, new), "x.yaml")
    assert str(error.value).startswith("x.yaml: ")


def test_a_command_goes_on_behind_a_backslash() -> None:
    assert split_command("run a \\\n--b c\nA remark,\nof two lines.") == ("run a --b c", "A remark, of two lines.")
    assert split_command("run a") == ("run a", "")
    assert split_command("run \\\na \\\nb") == ("run a b", "")


def test_a_table_row_keeps_its_columns() -> None:
    header = parse_header(HEAD.replace("none: x", "none: a | b\n#   c"), "x.yaml")
    row = render_folder([Entry("x.yaml", header, "net")]).splitlines()[2]
    assert re.split(r"(?<!\\) ?\| ?", row)[1:-1][1:4] == ["net", r"none: a \| b c", "1"]


@pytest.mark.parametrize(
    ("template", "said"),
    [("", "recipes/a: has no place"), ("<!-- recipes: a -->\n<!-- recipes: b -->\n", "recipes/b: has no recipes")],
)
def test_a_page_without_a_place_for_some_recipes_is_refused(template: str, said: str) -> None:
    entries = [Entry("a/x.yaml", parse_header(HEAD, "x.yaml"), "net")]
    with pytest.raises(UserError, match=said):
        render_page(template, entries)
