"""validate.py on several files, over several views of a picture, and by other people's rules for right answers."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

import cspnet
from cspnet.cli.validate import main
from cspnet.evaluation.views import AveragedViews
from tests.conftest import draw_tree

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GEOMETRY = ("--model", "cspdarknet_tiny", "--img-size", "32", "--crop-pct", "0.8")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_tree(tmp_path_factory.mktemp("views"), classes=6, train=6, val=24)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two networks without training, whose answers are of many classes all the same."""
    folder, files = tmp_path_factory.mktemp("weights"), []
    for seed in range(2):
        torch.manual_seed(seed)
        model = cspnet.create_model("cspdarknet_tiny", num_classes=6)
        torch.nn.init.normal_(model.head.fc.weight, std=5)
        model.train()
        with torch.no_grad():
            for _ in range(20):  # running statistics, as if trained on noise
                model(torch.randn(8, 3, 32, 32))
        files.append(folder / f"{seed}.pth")
        torch.save(model.state_dict(), files[-1])
    return files


def validate(*words: object) -> int:
    return main([str(word) for word in (*words, "--device", "cpu", "--workers", 0)])


def list_pictures(pictures: Path) -> list[tuple[Path, int]]:
    classes = sorted((pictures / "val").iterdir())
    return [(file, label) for label, folder in enumerate(classes) for file in sorted(folder.iterdir())]


def open_resized(file: Path) -> Image.Image:
    return tv.resize(Image.open(file).convert("RGB"), [40])


def probabilities(file: Path, views: Callable[[Image.Image], list[Image.Image]], pictures: Path) -> list[torch.Tensor]:
    """Of each picture, in their order: the mean over its views."""
    model = cspnet.create_model("cspdarknet_tiny", num_classes=6)
    model.load_state_dict(torch.load(file, weights_only=True))
    model.eval()
    found = []
    for picture, _ in list_pictures(pictures):
        seen = [tv.normalize(tv.to_tensor(v), list(MEAN), list(STD)) for v in views(open_resized(picture))]
        with torch.no_grad():
            found.append(model(torch.stack(seen)).softmax(1).mean(0))
    return found


def middle(image: Image.Image) -> list[Image.Image]:
    return [tv.center_crop(image, [32, 32])]


VIEWS: dict[str, tuple[tuple[str, ...], Callable[[Image.Image], list[Image.Image]]]] = {
    "flip": (("--flip-test",), lambda image: [*middle(image), *map(tv.hflip, middle(image))]),
    "five": (("--crops", "5"), lambda image: list(tv.five_crop(tv.center_crop(image, [40, 40]), [32, 32]))),
    "ten": (
        ("--crops", "5", "--flip-test"),
        lambda image: list(tv.ten_crop(tv.center_crop(image, [40, 40]), [32, 32])),
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_the_mean_over_views_is_that_of_a_slow_loop(
    name: str, weights: list[Path], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, views = VIEWS[name]
    words = (*GEOMETRY, "--weights", weights[0], "--data-path", pictures, "--json", "out.json", "--batch-size", 5)
    assert validate(*words, *flags) == 0
    report = json.loads(Path("out.json").read_text())
    for key, how in (("views", views), ("plain", middle)):
        result = report["views"] if key == "views" else report
        expected = probabilities(weights[0], how, pictures)
        labels = [label for _, label in list_pictures(pictures)]
        assert result["correct1"] == sum(int(p.argmax()) == label for p, label in zip(expected, labels, strict=True))
        losses = [-math.log(p[label]) for p, label in zip(expected, labels, strict=True)]
        assert result["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("mean over"))
    assert f" {len(views(Image.new('RGB', (50, 40))))} views" in line
    assert f"Acc@1 {report['views']['acc1']:.3f}" in line


def test_answers_may_be_of_the_splits_classes_only(weights: list[Path], pictures: Path, tmp_path: Path) -> None:
    kept = [(file, label) for file, label in list_pictures(pictures) if label in (1, 4)]
    lines = "".join(f"{file} {label}\n" for file, label in kept)
    (tmp_path / "val_list.txt").write_text(lines)
    words = (*GEOMETRY, "--weights", weights[0], "--data-path", pictures, "--val-list", tmp_path / "val_list.txt")
    expected = dict(zip(list_pictures(pictures), probabilities(weights[0], middle, pictures), strict=True))
    for flags, allowed in (((), range(6)), (("--restrict-classes",), (1, 4))):
        assert validate(*words, *flags, "--outside-root", "--json", "out.json") == 0
        right = sum(max(allowed, key=lambda c, item=item: expected[item][c]) == item[1] for item in kept)
        assert json.loads(Path("out.json").read_text())["correct1"] == right


def test_real_labels(weights: list[Path], pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [int(p.argmax()) for p in probabilities(weights[0], middle, pictures)]
    labels: dict[str, list[int]] = {}
    names = [file.name for file, _ in list_pictures(pictures)]
    assert len(set(names)) == len(names)
    for i, (name, answer) in enumerate(zip(names, answers, strict=True)):
        labels[name] = [[], [answer], [(answer + 1) % 6], [(answer + 2) % 6, answer]][i % 4]
    Path("real.json").write_text(json.dumps(labels))
    words = (*GEOMETRY, "--weights", weights[0], "--data-path", pictures, "--real-labels", "real.json")
    assert validate(*words, "--json", "out.json") == 0
    real = json.loads(Path("out.json").read_text())["real"]
    assert (real["num_labelled"], real["correct1"]) == (18, 12)
    assert "ReaL: Acc@1 66.667 of the 18 pictures" in capsys.readouterr().out


def two_sided(fewer: int, tosses: int) -> float:
    return min(1.0, 2 * sum(math.comb(tosses, k) for k in range(fewer + 1)) / 2**tosses)


def test_several_files_are_compared(weights: list[Path], pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*GEOMETRY, "--weights", *weights, "--compare", "--json", "out.json", "--results-file", "out.csv")
    assert validate(*words, "--data-path", pictures) == 0
    reports = json.loads(Path("out.json").read_text())
    assert [report["checkpoint"] for report in reports] == [str(file) for file in weights]
    right = []
    for file in weights:
        found = probabilities(file, middle, pictures)
        pairs = zip(found, list_pictures(pictures), strict=True)
        right.append([int(p.argmax()) == label for p, (_, label) in pairs])
    only = [sum(a and not b for a, b in zip(*order, strict=True)) for order in (right, right[::-1])]
    assert min(only) > 0
    test = reports[1]["against_first"]
    assert (test["only_first"], test["only_second"]) == tuple(only)
    assert test["p_value"] == pytest.approx(two_sided(min(only), sum(only)))
    rows: list[dict[str, Any]] = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    assert [float(row["top1"]) for row in rows] == [pytest.approx(r["acc1"], abs=1e-3) for r in reports]
    out = capsys.readouterr().out.splitlines()
    best = max(reports, key=lambda report: report["acc1"])
    assert out[-3].split()[-1] == best["checkpoint"]
    assert f"p = {test['p_value']:.3g}" in out[-1]


def test_a_view_that_is_sure_of_something_else_leaves_a_finite_loss() -> None:
    class Sure(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[400.0, 0.0]]).expand(len(images), 2)

    logs = AveragedViews(Sure(), 8, flips=True)(torch.zeros(3, 3, 8, 8))
    torch.testing.assert_close(logs, torch.tensor([[0.0, -400.0]]).expand(3, 2))


def test_the_data_may_stand_behind_the_checkpoints(weights: list[Path], pictures: Path) -> None:
    assert validate(*GEOMETRY, "--json", "out.json", "--weights", *weights, pictures) == 0
    assert len(json.loads(Path("out.json").read_text())) == 2


WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "crops of the whole": (("--crop-pct", 1, "--crops", 5), "--crop-pct"),
    "four crops": (("--crops", 4), "4"),
    "nothing to compare": (("--compare",), "two checkpoints"),
    "no labels": (("--real-labels", "gone.json"), "gone.json"),
    "not labels": (("--real-labels", "bad.json"), "real.json"),
    "labels of others": (("--real-labels", "others.json"), "is not among the labels"),
    "two rules": (("--real-labels", "others.json", "--restrict-classes"), "--restrict-classes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_things_end_in_one_line(
    name: str, weights: list[Path], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.json").write_text('[["cat"]]')
    Path("others.json").write_text("[[1], [2]]")
    flags, part = WRONG[name]
    assert validate(*GEOMETRY, "--weights", weights[0], "--data-path", pictures, *flags) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert part in line
    assert "Acc@1" not in said.out, "it was found out behind a validation"


def test_tables_are_of_one_file(weights: list[Path], pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*GEOMETRY, "--weights", *weights, "--data-path", pictures)
    assert validate(*words, "--per-image", "out.csv") == 2
    assert "--per-image: is of one checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--json", "--per-image", "--per-class", "--confusion", "--results-file"])
def test_no_result_takes_the_place_of_something_else(
    flag: str, weights: list[Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.pth"
    mine.write_bytes(weights[0].read_bytes())
    words = (*GEOMETRY, "--weights", mine, "--data-path", pictures)
    assert validate(*words, flag, mine) == 2
    assert mine.read_bytes() == weights[0].read_bytes()
    assert len(capsys.readouterr().err.splitlines()) == 1
    for _ in range(2):  # but of an earlier result
        assert validate(*words, flag, tmp_path / "out.txt") == 0


def test_rows_are_not_added_to_a_pipe(weights: list[Path], pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*GEOMETRY, "--weights", weights[0], "--data-path", pictures)
    assert validate(*words, "--results-file", "/dev/null") == 2
    assert "name a file" in capsys.readouterr().err


def test_what_is_wrong_with_the_last_file_is_told_at_once(
    weights: list[Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    words = (*GEOMETRY, "--weights", weights[0], tmp_path / "bad.pth", "--data-path", pictures)
    assert validate(*words, "--results-file", "out.csv") == 2
    said = capsys.readouterr()
    assert "bad.pth" in said.err
    assert "Acc@1" not in said.out
    assert not Path("out.csv").exists()
