"""scripts/predict.py: the classes of single pictures, beside a network and a transform put together by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import cspnet
from cspnet.cli.predict_job import find_pictures
from cspnet.cli.train import main as train

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def checkpoint(picture_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    words = [
        "--data-path",
        picture_tree,
        "--output-dir",
        folder / "run",
        "--model",
        "cspdarknet_tiny",
        "--img-size",
        32,
    ]
    words += [
        "--img-size",
        32,
        "--workers",
        0,
        "--batch-size",
        8,
        "--steps",
        2,
        "--device",
        "cpu",
        "--data.cache_dir",
        folder / "cache",
    ]
    assert train([str(word) for word in words]) == 0
    return folder / "run" / "checkpoints" / "last.pt"


@pytest.fixture
def predict(checkpoint: Path, fork_script: Run) -> Run:
    """predict.py with the checkpoint."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return fork_script("scripts/predict.py", "--checkpoint", checkpoint, "--device", "cpu", *words)

    return run


def answer_by_hand(checkpoint: Path, picture: Path) -> list[tuple[str, float]]:
    """torchvision's transform, and the network as it is, without anything folded: (class, probability), best first."""
    content = torch.load(checkpoint, weights_only=True)
    model = cspnet.create_model("cspdarknet_tiny", 4).eval()
    model.load_state_dict(content["state_dict"])
    geometry = content["eval_cfg"]
    transform = v2.Compose(
        [
            v2.Resize(int(32 / geometry["crop_ratio"]), interpolation=v2.InterpolationMode.BILINEAR),
            v2.CenterCrop(32),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(geometry["mean"], geometry["std"]),
        ]
    )
    with torch.no_grad():
        logits = model(transform(Image.open(picture).convert("RGB"))[None])[0]
    best = logits.softmax(0).sort(descending=True)
    return [(content["classes"][i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


def test_the_answers_are_the_networks(predict: Run, checkpoint: Path, picture_tree: Path) -> None:
    done = predict(picture_tree / "val", "--json", "--batch-size", 3, "--top", 4)
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["path"] for answer in answers] == sorted(map(str, (picture_tree / "val").rglob("*.jpg")))
    for answer in answers:
        expected = answer_by_hand(checkpoint, Path(answer["path"]))
        assert [entry["class"] for entry in answer["top"]] == [name for name, _ in expected]
        for entry, (_, probability) in zip(answer["top"], expected, strict=True):
            assert entry["probability"] == pytest.approx(probability, abs=1e-5)
            assert entry["class"] == f"class_{entry['index']}"


def test_a_line_a_picture(predict: Run, checkpoint: Path, picture_tree: Path) -> None:
    one, other = sorted((picture_tree / "val").rglob("*.jpg"))[:2]
    done = predict(other, one, other, "--top", 2)
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == [str(other), str(one), str(other)]
    best = answer_by_hand(checkpoint, one)
    assert lines[1].split("  ")[1:] == [f"{name} {100 * p:.1f}%" for name, p in best[:2]]


def test_more_than_there_are(predict: Run, picture_tree: Path) -> None:
    done = predict(picture_tree / "val" / "class_1", "--top", 99, "--json")
    assert all(len(json.loads(line)["top"]) == 4 for line in done.stdout.splitlines())


def test_what_cannot_be_read_is_told_and_passed_over(predict: Run, picture_tree: Path, tmp_path: Path) -> None:
    good = shutil.copy(min((picture_tree / "val").rglob("*.jpg")), tmp_path / "b.jpg")
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    (tmp_path / "c.jpg").write_bytes(Path(good).read_bytes()[:200])
    os.mkfifo(tmp_path / "d.jpg")
    done = predict(tmp_path, "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 1
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == [str(good)]
    told = done.stderr.splitlines()
    assert [line.split(": ")[0] for line in told] == [str(tmp_path / name) for name in ("a.jpg", "c.jpg", "d.jpg")]
    assert told[2].endswith("cannot be read: not a file")
    (tmp_path / "sheet.png").unlink()
    done = predict(tmp_path, "--json")
    problems = ["error" in json.loads(line) for line in done.stdout.splitlines()]
    assert (problems, done.returncode) == ([True, False, True, True], 1)


def test_the_contact_sheet_shows_the_pictures(predict: Run, picture_tree: Path, tmp_path: Path) -> None:
    pictures = sorted((picture_tree / "val").rglob("*.jpg"))[:8]
    assert predict(*pictures, "--sheet", tmp_path / "sheet.png").returncode == 0
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(pictures[7]) as eighth:
        assert sheet.size == (6 * 168 + 8, 2 * 200 + 8)
        left, top = 8 + 168 + (160 - eighth.width) // 2, 8 + 200 + (160 - eighth.height) // 2
        shown = sheet.crop((left, top, left + eighth.width, top + eighth.height))
        assert shown.tobytes() == eighth.convert("RGB").tobytes()
        below = sheet.crop((8, 8 + 160, 168, 8 + 160 + 32)).convert("L")
        assert below.getextrema() == (0, 255), "no text"


def test_names_from_a_file(predict: Run, picture_tree: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\nfour\n")
    done = predict(picture_tree / "val" / "class_2", "--classes", names, "--json")
    for line in done.stdout.splitlines():
        for entry in json.loads(line)["top"]:
            assert entry["class"] == names.read_text().splitlines()[entry["index"]]


def test_weights_without_names(fork_script: Run, picture_tree: Path, tmp_path: Path) -> None:
    torch.save(cspnet.create_model("cspdarknet_tiny", 3).state_dict(), tmp_path / "w.pth")
    words = ("--model", "cspdarknet_tiny", "--weights", tmp_path / "w.pth", "--img-size", 32, "--device", "cpu")
    done = fork_script("scripts/predict.py", *words, picture_tree / "val" / "class_0", "--top", 1)
    assert done.returncode == 0, done.stderr
    assert all(line.split("  ")[1].startswith("class ") for line in done.stdout.splitlines())


def test_finding_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/2.JPG", "a/1.png", "a/b/3.jpg", "a/notes.txt", "a/.hidden.jpg", "[x].jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert find_pictures(["a"]) == ["a/1.png", "a/2.JPG", "a/b/3.jpg"]
    assert find_pictures(["a/*.png", "a/**/3.*", "[x].jpg", "a/notes.txt"]) == [
        "a/1.png",
        "a/b/3.jpg",
        "[x].jpg",
        "a/notes.txt",
    ]


WRONG: dict[str, tuple[Callable[[Path], list[Any]], str]] = {
    "no such picture": (lambda tmp: [tmp / "gone.jpg"], "gone.jpg: no such file, folder or pattern"),
    "an empty folder": (lambda tmp: [tmp / "empty"], "empty: no pictures in it"),
    "a sheet nowhere": (lambda tmp: [tmp / "a.jpg", "--sheet", tmp / "no" / "s.png"], "in a folder that is there"),
    "a sheet of another kind": (lambda tmp: [tmp / "a.jpg", "--sheet", tmp / "s.gif"], "let it end in .png or .jpg"),
    "names of others": (lambda tmp: [tmp / "a.jpg", "--classes", tmp / "names"], "1 lines, but the network has 4"),
    "no names": (lambda tmp: [tmp / "a.jpg", "--classes", tmp / "gone"], "gone: cannot be read: No such file"),
    "none at all": (lambda tmp: [tmp / "a.jpg", "--top", 0], "expected numbers from 1 on"),
    "another model": (lambda tmp: [tmp / "a.jpg", "--model", "cspresnet50"], "holds cspdarknet_tiny"),
    "a device": (lambda tmp: [tmp / "a.jpg", "--device", "abacus"], "abacus"),
    "a flag": (lambda tmp: [tmp / "a.jpg", "--topk", 3], "did you mean --top?"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_things_end_in_one_line(case: str, predict: Run, tmp_path: Path) -> None:
    build, said = WRONG[case]
    (tmp_path / "empty").mkdir()
    (tmp_path / "names").write_text("one\n")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.jpg")
    before = sorted(tmp_path.iterdir())
    done = predict(*build(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert said in line
    assert sorted(tmp_path.iterdir()) == before


def test_a_sheet_takes_the_place_of_sheets_only(predict: Run, picture_tree: Path, tmp_path: Path) -> None:
    picture = next((picture_tree / "val").rglob("*.jpg"))
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(picture.read_bytes())
    done = predict(picture, "--sheet", copy)
    assert done.returncode == 2
    assert "holds something else" in done.stderr
    assert copy.read_bytes() == picture.read_bytes()
    for name in ("sheet.jpg", "sheet.png"):
        for _ in range(2):
            assert predict(picture, "--sheet", tmp_path / name).returncode == 0
