"""The folder of a run: whose it is, what becomes of what lies in it, and which paths cannot be one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cspnet.cli.run_folder import Start, find_start, prepare_folder
from cspnet.cli.train import main
from cspnet.recipe.load import recipe_to_values
from cspnet.recipe.schema import Recipe
from cspnet.runtime.folder_lock import FolderLock
from tests.conftest import ROOT

HOLDS = """
import sys
from pathlib import Path
from cspnet.runtime.folder_lock import FolderLock
lock = FolderLock()
lock.take(Path(sys.argv[1]), signs=True)
print("held", flush=True)
sys.stdin.read()
"""


def command(data: Path, *more: object) -> list[str]:
    small = ["--model", "cspdarknet_tiny", "--img-size", 32, "--workers", 0, "--batch-size", 8, "--steps", 1]
    fixed = ["--precision", "fp32", "--device", "cpu", "--data.cache_dir", data.parent / "cache"]
    return [str(word) for word in ("--data-path", data, *small, *fixed, *more)]


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    *before, line = capsys.readouterr().err.splitlines()
    assert not before
    return line


@pytest.mark.skipif(os.name != "posix", reason="nothing is locked there")
def test_two_runs_do_not_share_a_folder(picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(command(picture_tree, "--output-dir", folder)) == 0
    last = (folder / "checkpoints" / "last.pt").read_bytes()
    capsys.readouterr()
    other = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(other, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        for resume in ("auto", folder / "checkpoints" / "last.pt"):
            assert main(command(picture_tree, "--output-dir", folder, "--resume", resume, "--steps", 2)) == 2
            line = last_line(capsys)
            assert f"another run is at work in it (process {process.pid} on " in line
        assert (folder / "checkpoints" / "last.pt").read_bytes() == last
    assert main(command(picture_tree, "--output-dir", folder, "--resume", "auto", "--steps", 2)) == 0


@pytest.mark.parametrize("resume", [(), ("--resume", "auto")])
def test_a_run_that_has_come_and_gone_meanwhile_is_left_alone(
    resume: tuple[str, ...],
    picture_tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is tried out at the start, a batch size or the compiler, may take minutes."""
    folder = tmp_path / "run"
    kept: dict[Path, bytes] = {}

    def let_another_run(recipe: Recipe, *args: object, **options: object) -> Recipe:
        other = [sys.executable, "train.py", *command(picture_tree, "--output-dir", folder)]
        subprocess.run(other, cwd=ROOT, capture_output=True, check=True)
        kept.update({file: file.read_bytes() for file in folder.rglob("*") if file.is_file()})
        return recipe

    monkeypatch.setattr("cspnet.cli.train_job.settle_batch_size", let_another_run)
    assert main(command(picture_tree, "--output-dir", folder, "--seed", 7, *resume)) == 2
    assert last_line(capsys).endswith(
        f"{folder}: already holds a run; go on with it by --resume auto, or choose another --output-dir"
    )
    assert folder / "checkpoints" / "last.pt" in kept
    assert {file: file.read_bytes() for file in kept} == kept


def test_records_without_a_checkpoint_are_set_aside(
    picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(command(picture_tree, "--output-dir", folder)) == 0
    old = {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "summary.csv")}
    for number in (1, 2):
        shutil.rmtree(folder / "checkpoints")
        capsys.readouterr()
        assert main(command(picture_tree, "--output-dir", folder, "--resume", "auto", "--seed", number)) == 0
        assert f"kept as metrics.jsonl.{number}" in capsys.readouterr().err
        assert (folder / "metrics.jsonl").read_bytes() != old["metrics.jsonl"]
    for name, content in old.items():
        assert (folder / f"{name}.1").read_bytes() == content
    assert (folder / "tensorboard.1").is_dir()


def test_a_first_epoch_that_was_cut_short_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 2, "train/loss": 1.0}) + "\n")
    with FolderLock() as lock:
        prepare_folder(None, Recipe(), Start(tmp_path, None), warn=pytest.fail, lock=lock)
    assert not (tmp_path / "metrics.jsonl.1").exists()


def test_two_runs_of_a_second_get_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "now")
    with FolderLock() as lock:
        folders = {prepare_folder(None, Recipe(), Start(None, None), warn=pytest.fail, lock=lock) for _ in range(3)}
    assert len(folders) == 3


def read_sources(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / "sources.json").read_text()))


def test_where_values_came_from(picture_tree: Path, tmp_path: Path) -> None:
    """What comes from a checkpoint's recipe came from where that run had it from."""
    folder, recipe = tmp_path / "run", tmp_path / "mine.yaml"
    recipe.write_text("optim: {lr: 0.02}\n")
    assert main(command(picture_tree, "--output-dir", folder, "--recipe", recipe)) == 0
    first = read_sources(folder)
    assert set(first) == set(recipe_to_values(Recipe()))
    expected = {"optim.lr": str(recipe), "model.name": "command line", "optim.momentum": "default"}
    assert {key: first[key] for key in expected} == expected
    last = folder / "checkpoints" / "last.pt"
    assert main(["--resume", str(last), "--steps", "2", "--momentum", "0.8"]) == 0
    then = {**first, "optim.momentum": "command line", "train.epochs": "command line"}  # --steps takes its place
    assert read_sources(folder) == then
    assert main(["--resume", str(last), "--output-dir", str(tmp_path / "other"), "--steps", "3"]) == 0
    assert read_sources(tmp_path / "other") == then
    (folder / "sources.json").write_text("{")
    assert main(["--resume", str(last), "--steps", "3"]) == 0
    told = read_sources(folder)
    assert (told["optim.lr"], told["train.steps"]) == (f"the recipe in {last}", "command line")


Case = Callable[[Path], list[object]]
IMPOSSIBLE: dict[str, tuple[Case, str]] = {
    "not UTF-8": (lambda place: ["--output-dir", os.fsdecode(bytes(place / "caf") + b"\xe9")], "not UTF-8 text"),
    "below a file": (lambda place: ["--output-dir", place / "file" / "run"], "is not a folder"),
    "too long": (lambda place: ["--output-dir", place / ("x" * 300)], "File name too long"),
    "a loop of links": (lambda place: ["--output-dir", place / "loop"], "is not a folder"),
    "data with too long a name": (lambda place: ["--data-path", place / ("x" * 300)], "File name too long"),
    "a split with too long a name": (lambda place: ["--val-split", "x" * 300], "File name too long"),
    "a list with too long a name": (lambda place: ["--train-list", "x" * 300], "File name too long"),
    "weights with too long a name": (lambda place: ["--pretrained", place / ("x" * 300)], "File name too long"),
    "a checkpoint with too long a name": (lambda place: ["--resume", place / ("x" * 300)], "File name too long"),
    "a recipe with too long a name": (lambda place: ["--recipe", place / ("x" * 300)], "File name too long"),
    "a recipe that is a loop of links": (lambda place: ["--recipe", place / "loop"], "symbolic links"),
    "a recipe that is a pipe": (lambda place: ["--recipe", place / "pipe"], "a pipe, not a file"),
    "a checkpoint that is a pipe": (lambda place: ["--resume", place / "pipe"], "is no file"),
    "weights whose checksum is a pipe": (lambda place: ["--pretrained", place / "weights.pt"], "it is no file"),
}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_path_that_cannot_be(
    case: str, dry: list[str], picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build, said = IMPOSSIBLE[case]
    place = tmp_path / "place"
    place.mkdir()
    (place / "file").touch()
    (place / "loop").symlink_to(place / "loop")
    torch.save({}, place / "weights.pt")
    for name in ("pipe", "weights.pt.sha256"):
        os.mkfifo(place / name)
    before = sorted(tmp_path.rglob("*"))
    words = build(place)
    if words[0] != "--output-dir":
        words += ["--output-dir", place / "new"]
    assert main(command(picture_tree, *map(os.fspath, words), *dry)) == 2
    assert said in last_line(capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_whoever_may_not_write_is_told_first(
    picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write anywhere
    assert main(command(picture_tree, "--output-dir", tmp_path / "a" / "b")) == 2
    assert f"you may not write in {tmp_path}" in last_line(capsys)


def test_a_copied_checkpoint_goes_by_what_it_holds(picture_tree: Path, tmp_path: Path) -> None:
    folder, told = tmp_path / "run", list[str]()
    assert main(command(picture_tree, "--output-dir", folder)) == 0
    places: dict[str, Any] = {"writes": False, "warn": told.append, "lock": FolderLock()}
    newest = folder / "checkpoints" / "step-00000001.pt"
    (folder / "checkpoints" / "step-00000009.pt").mkdir()  # no file, no checkpoint
    assert find_start(folder, "auto", **places).checkpoint_file == newest
    assert told == []
    shutil.copy(newest, folder / "checkpoints" / "step-00000007.pt")
    assert find_start(folder, "auto", **places).checkpoint_file == newest
    assert "step-00000007.pt: not what its name says: it was saved behind step 1" in told[0]
