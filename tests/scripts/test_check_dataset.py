"""A data set with every kind of fault, counted as it was made."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cspnet.data.findings import KINDS
from cspnet.data.index import open_index
from cspnet.data.samples import SampleIndex
from cspnet.data.survey import SplitSurvey, find_copies, inspect_all
from tests.conftest import ROOT
from tests.processes import members_of, start_group, wait_for_the_end_of

Run = Callable[..., subprocess.CompletedProcess[str]]


def encode(seed: int, format_name: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (48, 40)) -> bytes:
    """A picture of its own for every seed."""
    rgb = np.random.default_rng(seed).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(rgb).convert(mode).save(stream, format_name)
    return stream.getvalue()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def fill(folder: Path, count: int, seed: int) -> None:
    for i in range(count):
        write(folder / f"{i:03d}.jpg", encode(seed + i))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, 24 and 2 pictures; nothing wrong with any. Read only."""
    root = tmp_path_factory.mktemp("clean")
    for number, name in enumerate(("cat", "dog")):
        fill(root / "train" / name, 12, 1000 * number)
        fill(root / "val" / name, 1, 1000 * number + 500)
    return root


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of fault that folders can have. Read only."""
    root = tmp_path_factory.mktemp("faulty").resolve()
    cat, dog, val = root / "train" / "cat", root / "train" / "dog", root / "val"
    fill(cat, 40, 0)
    fill(dog, 4, 1000)
    write(cat / "cut.jpg", encode(1)[:-400])
    write(cat / "nothing.jpg", b"")
    write(cat / "page.jpg", b"<html>404</html>")
    write(cat / "bomb.pgm", b"P5 100000 100000 255\n" + bytes(100))
    (cat / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (cat / "folder.jpg").mkdir()  # not a file: no picture, and nothing in it
    write(cat / "really.jpg", encode(2001, "PNG"))
    write(cat / "ink.jpg", encode(2002, mode="CMYK"))
    write(cat / "small.jpg", encode(2003, size=(20, 20)))
    write(cat / "notes.txt", b"mine")
    write(cat / "._000.jpg", b"\0")
    write(cat / "copy.jpg", (cat / "000.jpg").read_bytes())
    write(dog / "not a dog.jpg", (cat / "001.jpg").read_bytes())
    write(val / "cat" / "seen.jpg", (cat / "002.jpg").read_bytes())
    write(val / "cat" / "seen again.jpg", (cat / "002.jpg").read_bytes())
    write(val / "cat" / "also cut.jpg", encode(3)[:-400])
    write(val / "zebra" / "0.jpg", encode(3000))
    (root / "train" / "empty").mkdir()
    write(root / "train" / "README.md", b"mine")
    return root


COUNTS = {
    "truncated": 2, "zero_byte": 1, "not_picture": 1, "bomb": 1, "dangling_link": 1, "empty_class": 1,
    "unknown_class": 1, "leaked": 1, "conflicting": 1, "duplicate": 1, "misnamed": 1, "cmyk": 1, "tiny": 1,
    "left_out": 3, "few_pictures": 1, "unseen_class": 1,
}  # fmt: skip
TRAIN = {"cat": 40 + 9, "dog": 5, "empty": 0}


def check(fork_script: Run, folder: Path, *flags: object) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the script; its report."""
    name = folder / "report.json"
    done = fork_script("scripts/check_dataset.py", *flags, "--json", name)
    return done, json.loads(name.read_text())


def test_faults_are_named_and_counted(faulty: Path, tmp_path: Path, fork_script: Run) -> None:
    done, report = check(fork_script, tmp_path, faulty, "--workers", 0)
    assert (done.returncode, done.stderr) == (1, "")
    assert {kind: about["count"] for kind, about in report["kinds"].items() if about["count"]} == COUNTS
    assert Counter(finding["kind"] for finding in report["findings"]) == COUNTS
    for severity in ("broken", "odd", "note"):
        assert report[severity] == sum(count for kind, count in COUNTS.items() if KINDS[kind].severity == severity)

    def places(kind: str) -> list[str]:
        found = [finding for finding in report["findings"] if finding["kind"] == kind]
        return [os.path.relpath(place, faulty) for one in found for place in (one["place"], *one["more"])]

    assert places("truncated") == ["train/cat/cut.jpg", "val/cat/also cut.jpg"]
    assert places("dangling_link") == ["train/cat/gone.jpg"]
    assert places("empty_class") == ["train/empty"]
    assert places("leaked") == ["train/cat/002.jpg", "val/cat/seen again.jpg", "val/cat/seen.jpg"]
    assert places("conflicting") == ["train/cat/001.jpg", "train/dog/not a dog.jpg"]
    assert places("duplicate") == ["train/cat/000.jpg", "train/cat/copy.jpg"]
    assert places("left_out") == ["train/README.md", "train/cat/._000.jpg", "train/cat/notes.txt"]
    for kind, count in COUNTS.items():
        assert f"{kind}: {count}" in done.stdout
    assert "train/cat/cut.jpg: image file is truncated" in done.stdout


def test_the_table_of_a_split(faulty: Path, tmp_path: Path, fork_script: Run) -> None:
    _, report = check(fork_script, tmp_path, faulty, "--workers", 0)
    train, val = report["splits"]
    assert (train["name"], train["source"]) == ("train", str(faulty / "train"))
    assert train["class_counts"] == TRAIN
    assert (train["pictures"], train["readable"]) == (54, 54 - 5)
    assert train["formats"] == {"JPEG": 48, "PNG": 1}
    assert train["modes"] == {"CMYK": 1, "RGB": 48}
    assert train["shorter_side_px"] == {"min": 20, "median": 40, "max": 40}
    assert train["longer_side_px"] == {"min": 20, "median": 48, "max": 48}
    assert train["bytes"] == sum(os.path.getsize(file) for file in faulty.glob("train/*/[!.]*.*") if file.is_file()) - 4
    assert (val["class_counts"], val["readable"]) == ({"cat": 3, "dog": 0, "empty": 0, "zebra": 1}, 3)


def test_the_number_of_processes_changes_nothing(faulty: Path, tmp_path: Path, run_script: Run) -> None:
    runs = [check(run_script, tmp_path, faulty, "--workers", workers) for workers in (0, 1, 2)]
    texts = ["".join(done.stdout.splitlines(keepends=True)[:-1]) for done, _ in runs]  # without the speed
    assert texts[0] == texts[1] == texts[2]
    assert runs[0][1] == runs[1][1] == runs[2][1]
    assert runs[2][0].stdout.splitlines()[-1].endswith("pictures/s (--workers 2)")


def test_nothing_broken_is_exit_code_0(clean: Path, tmp_path: Path, fork_script: Run) -> None:
    done, report = check(fork_script, tmp_path, clean, "--workers", 0)
    assert (done.returncode, done.stderr) == (0, "")
    assert (report["broken"], report["odd"], report["note"], report["findings"]) == (0, 0, 0, [])
    root = tmp_path / "odd"
    shutil.copytree(clean, root)
    write(root / "train" / "cat" / "p.jpg", encode(7, "PNG"))
    done, report = check(fork_script, tmp_path, root, "--workers", 0)
    assert (done.returncode, report["broken"], report["odd"]) == (0, 0, 1)


def test_a_pipe_is_left_out_and_counted_once(clean: Path, tmp_path: Path, fork_script: Run) -> None:
    shutil.copytree(clean, tmp_path / "data")
    os.mkfifo(tmp_path / "data" / "train" / "cat" / "pipe.jpg")
    done, report = check(fork_script, tmp_path, tmp_path / "data", "--workers", 0)
    assert (done.returncode, report["odd"]) == (0, 1)
    (found,) = (finding for finding in report["findings"] if finding["kind"] == "left_out")
    assert Path(found["place"]).name == "pipe.jpg"


def test_one_folder_or_one_list(clean: Path, tmp_path: Path, fork_script: Run) -> None:
    for data in (clean / "val", write_list(clean / "val", tmp_path)):
        done, report = check(fork_script, tmp_path, data, "--workers", 0, *["--outside-root"] * data.is_file())
        assert done.returncode == 0, done.stderr
        (split,) = report["splits"]
        assert (split["name"], split["pictures"]) == (data.name, 2)
    done, report = check(fork_script, tmp_path, data, "--workers", 0)
    assert (done.returncode, report["kinds"]["outside_root"]["count"]) == (1, 2)


def write_list(folder: Path, target: Path) -> Path:
    """A list of a folder's pictures."""
    file = target / "some.txt"
    file.write_text("".join(f"{path} 0\n" for path in sorted(folder.glob("*/*.jpg"))))
    return file


def test_splits_are_named_as_for_training(clean: Path, tmp_path: Path, fork_script: Run) -> None:
    root = tmp_path / "renamed"
    shutil.copytree(clean, root)
    (root / "val").rename(root / "held out")
    for flags, names in (
        ((), ["train"]),
        (("--val-split", "held out"), ["train", "val"]),
        (("--train-split", "null", "--val-split", "held out"), ["val"]),
    ):
        done, report = check(fork_script, tmp_path, root, "--workers", 0, *flags)
        assert done.returncode == 0, done.stderr
        assert [split["name"] for split in report["splits"]] == names


def test_every_bad_line_of_a_list_is_told(clean: Path, tmp_path: Path, fork_script: Run) -> None:
    root = tmp_path / "lists"
    shutil.copytree(clean / "train", root)
    (root / "classes.txt").write_text("cat\ndog\n")
    good = [f"{name}/{i:03d}.jpg {label}" for label, name in enumerate(("cat", "dog")) for i in range(12)]
    bad = {"missing_file": "cat/gone.jpg 0", "malformed_line": "no label here", "label_out_of_range": "cat/000.jpg 2"}
    lines = good + [""] + list(bad.values()) * 20
    (root / "train_list.txt").write_text("\n".join(lines))
    (root / "val_list.txt").write_text("cat/gone.jpg 0\n")  # nothing of it is left to look at
    done, report = check(fork_script, tmp_path, root, "--workers", 0, "--limit", 2)
    assert (done.returncode, done.stderr) == (1, "")
    assert report["splits"][0]["class_counts"] == {"cat": 12, "dog": 12}
    assert report["splits"][1]["pictures"] == 0
    for offset, kind in enumerate(bad):
        found = [one["place"] for one in report["findings"] if (one["kind"], one["split"]) == (kind, "train")]
        assert found == [f"{root / 'train_list.txt'} line {26 + offset + 3 * i}" for i in range(20)]
        assert done.stdout.count(f"train_list.txt line {26 + offset}:") == 1
        assert f"train_list.txt line {26 + offset + 6}:" not in done.stdout
    assert done.stdout.count("… 18 more") == 2
    assert done.stdout.count("… 19 more") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("gone",), "no such file or folder"),
        (("DATA", "--val-split", "gone"), "no gone there"),
        (("DATA", "--data-format", "list"), "no train_list.txt there"),
        (("DATA/train/cat",), "no class folders"),
        (("DATA", "--workers", "-1"), "--workers -1"),
        (("DATA", "--limit", "-1"), "--limit -1"),
        (("DATA", "--json", "DATA"), "--json"),
        (("DATA", "--json", "gone/x.json"), "--json"),
        (("DATA", "--worker", "1"), "did you mean --workers"),
        ((), "see check_dataset.py --help"),
    ],
)
def test_mistakes_are_one_line(clean: Path, fork_script: Run, flags: tuple[str, ...], words: str) -> None:
    done = fork_script("scripts/check_dataset.py", *(flag.replace("DATA", str(clean)) for flag in flags))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert words in done.stderr


def test_names_that_are_no_text(clean: Path, tmp_path: Path, run_script: Run) -> None:
    root = tmp_path / "names"
    shutil.copytree(clean, root)
    bad = os.fsencode(root / "train" / "cat") + b"/\xff\nx.jpg"
    with open(bad, "wb"):
        pass
    done, report = check(run_script, tmp_path, root, "--workers", 1)
    assert (done.returncode, done.stderr) == (1, "")
    assert [os.fsencode(finding["place"]) for finding in report["findings"]] == [bad]
    assert r"\udcff\nx.jpg" in done.stdout


def test_small_and_unequal_classes_are_noted(clean: Path, tmp_path: Path, fork_script: Run) -> None:
    root = tmp_path / "unequal"
    shutil.copytree(clean / "train", root)
    write(root / "emu" / "0.jpg", encode(9000))
    done, report = check(fork_script, tmp_path, root, "--workers", 0)
    assert (done.returncode, report["note"]) == (0, 2)
    assert [(one["kind"], one["text"]) for one in report["findings"]] == [
        ("few_pictures", "emu: 1"),
        ("imbalanced", "cat: 12, emu: 1"),
    ]


def test_a_terminal_sees_a_bar_that_goes(clean: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "scripts/check_dataset.py", str(clean), "--workers", "0"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, check=True, timeout=60)
    os.close(theirs)
    seen = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "\rtrain: " in seen
    assert "/24 " in seen
    assert seen.endswith("\r")
    assert seen.rsplit("\r", 2)[1].strip() == ""
    assert b"/24 " not in done.stdout


@pytest.fixture
def held(clean: Path, tmp_path: Path) -> Path:
    """Class folders, and beside them a pipe: whoever reads one of the pictures waits for what the test writes there."""
    shutil.copytree(clean / "train", tmp_path / "held")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "held"


def start(data: Path, workers: int) -> tuple[subprocess.Popen[str], int]:
    """The script in the middle of its work, as the leader of a process group, and the end of the pipe it waits for."""
    report = data.parent / "report.json"
    pipe = data.parent / "pipe"
    holding = ("-m", "tests.held", sorted((data / "cat").iterdir())[1], pipe)
    process = start_group(*holding, "scripts/check_dataset.py", data, "--workers", workers, "--json", report)
    while process.poll() is None:
        with contextlib.suppress(OSError):  # nobody reads it yet
            return process, os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_is_one_line_and_leaves_nothing(held: Path, workers: int) -> None:
    process, pipe = start(held, workers)
    assert len(members_of(process.pid)) == 1 + workers
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    os.close(pipe)
    said, told = process.communicate(timeout=30)
    assert (process.returncode, said, told) == (130, "", "check_dataset.py: interrupted\n")
    wait_for_the_end_of(process.pid)
    assert {file.name for file in held.parent.iterdir()} == {"held", "pipe"}


def test_the_reading_processes_end_with_a_killed_one(held: Path) -> None:
    process, pipe = start(held, 2)
    process.kill()
    process.communicate(timeout=30)
    wait_for_the_end_of(process.pid)
    os.close(pipe)


def test_a_reading_process_that_dies_is_one_line(held: Path) -> None:
    process, pipe = start(held, 1)
    (worker,) = set(members_of(process.pid)) - {process.pid}
    os.kill(worker, signal.SIGKILL)
    _, told = process.communicate(timeout=30)
    os.close(pipe)
    assert (process.returncode, len(told.splitlines())) == (2, 1)
    assert "died (out of memory?)" in told
    first, last = told.partition("somewhere from ")[2].split("; ")[0].split(" to ")
    assert first <= str(sorted((held / "cat").iterdir())[1]) <= last
    assert {file.name for file in held.parent.iterdir()} == {"held", "pipe"}


class Packed(SampleIndex):
    """Samples whose bytes do not lie in files of their own."""

    def read(self, i: int) -> bytes:
        return encode(i % 3)


def test_bytes_come_from_the_index(clean: Path) -> None:
    plain = open_index(clean / "train", root=str(clean), cache_dir=None)
    for workers in (0, 2):
        survey = SplitSurvey("train", Packed(**vars(plain)))
        for chunk in inspect_all(survey.index, workers):
            survey.add(chunk)
        groups = list(find_copies([survey]))
        assert [1 + len(group.more) for group in groups] == [8, 8, 8]
        assert {group.kind for group in groups} == {"conflicting"}
