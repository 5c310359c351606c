"""The files of validate.py, beside what it prints and what predict.py says of the same pictures."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cspnet.cli.predict_job import predict
from cspnet.cli.subject import read_subject
from cspnet.cli.train import main as train
from cspnet.cli.validate import main as validate
from cspnet.cli.weight_flags import AskedWeights

TIMM_COLUMNS = ["model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation"]


@pytest.fixture(scope="module")
def checkpoint(picture_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on(picture_tree, tmp_path_factory.mktemp("trained"))


def train_on(data: Path, folder: Path) -> Path:
    words = ["--data-path", data, "--output-dir", folder / "run", "--model", "cspdarknet_tiny"]
    words += ["--img-size", 32, "--workers", 0, "--batch-size", 8, "--steps", 2, "--device", "cpu"]
    assert train([str(word) for word in words]) == 0
    return folder / "run" / "checkpoints" / "last.pt"


@pytest.fixture
def data(picture_tree: Path, tmp_path: Path) -> Path:
    """A copy in which a picture of the validation cannot be read."""
    copy = Path(shutil.copytree(picture_tree, tmp_path / "data"))
    sorted((copy / "val").rglob("*.jpg"))[3].write_bytes(b"no picture")
    return copy


def run(checkpoint: Path, data: Path, *more: object) -> int:
    words = ["--checkpoint", checkpoint, "--data-path", data, "--device", "cpu", "--workers", 0, "--batch-size", 4]
    return validate([str(word) for word in (*words, *more)])


def test_names_that_are_not_utf8(picture_tree: Path, tmp_path: Path) -> None:
    """As old archives leave them: of pictures, and of a class."""
    data = Path(shutil.copytree(picture_tree, tmp_path / "data"))
    for split in ("train", "val"):
        os.rename(data / split / "class_3", os.fsencode(data / split) + b"/class_\xe9")
    first = sorted((data / "val" / "class_0").iterdir())[0]
    os.rename(first, os.fsencode(first.parent) + b"/\xe9.jpg")
    files = {name: tmp_path / f"{name}.out" for name in ("json", "per-image", "per-class", "confusion")}
    assert (
        run(train_on(data, tmp_path), data, *(word for name, file in files.items() for word in (f"--{name}", file)))
        == 0
    )
    assert json.loads(files["json"].read_text())["num_samples"] == 10
    pictures = read(files["per-image"])
    assert len(pictures) == 10
    assert str(first.parent / r"\udce9.jpg") in {row["picture"] for row in pictures}
    assert r"class_\udce9" in {row["class"] for row in read(files["per-class"])}


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_every_file(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"{name}.out" for name in ("json", "per-image", "per-class", "confusion", "results-file")}
    assert run(checkpoint, data, *(word for name, file in files.items() for word in (f"--{name}", file))) == 0
    capsys.readouterr()
    result = json.loads(files["json"].read_text())
    pictures, classes = read(files["per-image"]), read(files["per-class"])
    paths = sorted(map(str, (data / "val").rglob("*.jpg")))
    assert [row["picture"] for row in pictures] == paths
    assert [row["class"] for row in pictures] == [Path(path).parent.name for path in paths]
    subject = read_subject(AskedWeights(checkpoint, {"train.device": "cpu"}))
    for row, other in zip(pictures, predict(subject, paths, top=4, batch_size=3), strict=True):
        answers = [row[f"top{place}"] for place in range(1, 5)]
        assert answers == ([f"class_{c}" for c in other.classes] if not other.problem else [""] * 4)
        assert row["correct1"] == str(int(answers[0] == row["class"]))
    for place in ("1", "5"):
        assert sum(int(row["correct" + place]) for row in pictures) == result["correct" + place]
        assert sum(int(row["correct" + place]) for row in classes) == result["correct" + place]
    assert sum(int(row["pictures"]) for row in classes) == result["num_samples"] == 10
    counts = read(files["confusion"])
    assert sum(int(row[row["class"]]) for row in counts) == result["correct1"]
    assert sum(int(count) for row in counts for key, count in row.items() if key != "class") == 9


def test_rows_of_timm(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.csv"
    assert run(checkpoint, data, "--results-file", file, "--json", tmp_path / "a.json") == 0
    file.write_text(file.read_text().rstrip("\n"))  # as an editor may leave it
    assert (
        run(checkpoint, data, "--results-file", file, "--img-size", 48, "--crop-pct", 1, "--interpolation", "bicubic")
        == 0
    )
    first, second = read(file)
    assert list(first) == TIMM_COLUMNS
    result = json.loads((tmp_path / "a.json").read_text())
    assert float(first["top1"]) == pytest.approx(result["acc1"], abs=5e-4)
    assert float(first["top5_err"]) == pytest.approx(100 - result["acc5"], abs=5e-4)
    assert (first["model"], first["param_count"], first["img_size"]) == ("cspdarknet_tiny", "0.24", "32")
    assert [second[key] for key in ("img_size", "crop_pct", "interpolation")] == ["48", "1.0", "bicubic"]


WRONG: dict[str, tuple[Any, str]] = {
    "other columns": (["--results-file", "mine.csv"], "holds other columns"),
    "no such folder": (["--per-image", "gone/a.csv"], "--per-image gone/a.csv: name a file in a folder that is there"),
    "one for two": (["--per-image", "new.csv", "--per-class", "new.csv"], "would write the same file"),
    "a folder": (["--per-class", "folder"], "--per-class folder: name a file"),
    "not a text file": (["--results-file", "bytes.csv"], "cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_things_end_in_one_line(
    case: str,
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").write_text("a,b\n1,2\n")
    Path("bytes.csv").write_bytes(b"\xff\xfe")
    Path("folder").mkdir()
    words, said = WRONG[case]
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert run(checkpoint, data, *words) == 2
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert said in line
    assert told.out == ""
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
