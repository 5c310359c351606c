"""Packing as a user does it: what is written, what is said, and what is left when it is stopped."""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cspnet.cli.train import main as train
from cspnet.data import packing as packing_module
from cspnet.data.index import open_index
from cspnet.data.packing import Encoding, Packed, pack_split, plan_packing
from cspnet.data.shards import ShardIndex
from cspnet.errors import DataError
from tests.conftest import ROOT, draw_tree
from tests.processes import members_of, start_group, wait_for_the_end_of

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tree(picture_tree: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return shutil.copytree(picture_tree, tmp_path / "tree")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the indexes, which hold time stamps."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "index.npz")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def open_packed(folder: Path) -> ShardIndex:
    index = open_index(folder / "*.tar", root=str(folder.parent), cache_dir=None)
    assert isinstance(index, ShardIndex)
    return index


def pack_here(source: Path, folder: Path, encoding: Encoding | None = None, skip_bad: bool = False) -> Packed:
    """Pack a folder in this process and its children, so that a test can make them fail."""
    index = open_index(source, root=str(source.parent), cache_dir=None)
    packing = plan_packing(index, folder, root=source.parent, shard_size=10, encoding=encoding)
    return pack_split(packing, workers=2, skip_bad=skip_bad, report_bad=print, report_done=lambda count: None)


# What is written


def test_a_run_goes_on_with_the_shards_of_its_pictures(tree: Path, tmp_path: Path, fork_script: Run) -> None:
    """One epoch from the files and one from the shards end with the weights of two epochs from the files."""
    flags = ["--model", "cspdarknet_tiny", "--img-size", 32, "--batch-size", 16, "--lr", 0.01, "--device", "cpu"]
    flags += ["--precision", "fp32", "--workers", 0, "--log.tensorboard", "false", "--schedule.name", "constant"]
    done = fork_script("scripts/pack_dataset.py", tree, tmp_path / "packed", "--shard-size", 20)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"train: 48 pictures in 3 shards, original bytes: {tmp_path}/packed/train",
        f"val: 10 pictures in 1 shards, original bytes: {tmp_path}/packed/val",
    ]
    weights = []
    for name, data in (("loose", tree), ("packed", tmp_path / "packed")):
        for epochs, source in ((1, tree), (2, data)):
            folder = tmp_path / f"run_{name}"
            command = [*flags, "--data-path", source, "--output-dir", folder, "--epochs", epochs, "--resume", "auto"]
            assert train([str(word) for word in command]) == 0
        checkpoint = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
        assert checkpoint["progress"]["epoch"] == 2
        weights.append(checkpoint["state_dict"])
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


def test_a_split_of_another_name_is_not_passed_over_in_silence(tree: Path, tmp_path: Path, fork_script: Run) -> None:
    (tree / "val").rename(tree / "test")
    done = fork_script("scripts/pack_dataset.py", tree, tmp_path / "packed")
    assert done.returncode == 0
    assert f"{tree}: no val there: only train is packed; --splits train test packs both" in done.stdout + done.stderr
    assert [folder.name for folder in (tmp_path / "packed").iterdir()] == ["train"]


def test_encoded_anew(tmp_path: Path, fork_script: Run) -> None:
    """Large pictures get smaller and upright, small JPEGs keep their bytes, and all are JPEGs of the same things."""
    source = tmp_path / "data" / "train" / "cat"
    source.mkdir(parents=True)
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)).resize((210, 150))
    smooth.save(source / "large.jpg", quality=95)
    smooth.resize((70, 50)).save(source / "small.jpg", quality=95)
    smooth.save(source / "large.png")
    smooth.resize((70, 50)).save(source / "small.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth.save(source / "turned.jpg", quality=95, exif=exif)
    flags = ("--max-side", 105, "--quality", 92)
    done = fork_script("scripts/pack_dataset.py", tmp_path / "data", tmp_path / "out", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "JPEG, longer side at most 105 px, Lanczos, quality 92, 4:2:0" in done.stdout
    index = open_packed(tmp_path / "out" / "train")
    seen = {index.name(i).removeprefix("cat/"): index.read(i) for i in range(len(index))}
    assert seen.keys() == {"large.jpg", "large.png", "small.jpg", "small.png", "turned.jpg"}
    assert seen["small.jpg"] == (source / "small.jpg").read_bytes()
    sizes = {"large.jpg": (105, 75), "large.png": (105, 75), "small.png": (70, 50), "turned.jpg": (75, 105)}
    for name, size in sizes.items():
        with Image.open(io.BytesIO(seen[name])) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", size, "RGB")
            assert not image.getexif()
            upright = smooth.transpose(Image.Transpose.ROTATE_270) if name == "turned.jpg" else smooth
            expected = upright.resize(size, Image.Resampling.LANCZOS)
            assert np.abs(np.asarray(image, dtype=int) - np.asarray(expected, dtype=int)).mean() < 3
    loose = open_index(tmp_path / "data" / "train", root=str(tmp_path / "data"), cache_dir=None)
    assert index.fingerprint != loose.fingerprint


def test_a_run_tells_that_its_pictures_were_encoded_anew(picture_tree: Path, tmp_path: Path, fork_script: Run) -> None:
    done = fork_script("scripts/pack_dataset.py", picture_tree, tmp_path / "out", "--max-side", 40)
    assert done.returncode == 0
    command = ("train.py", "--model", "cspdarknet_tiny", "--img-size", 32, "--batch-size", 16, "--device", "cpu")
    done = fork_script(*command, "--data-path", tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "training pictures encoded anew: JPEG, longer side at most 40 px" in done.stdout
    assert "validation pictures encoded anew" in done.stdout


# Stopped in the middle


@pytest.fixture
def held(tree: Path) -> Path:
    """A data set, and beside it a pipe: whoever packs the 16th training picture waits until somebody writes there."""
    os.mkfifo(tree.parent / "pipe")
    return tree


def start(tree: Path, out: Path, num_shards: int) -> subprocess.Popen[str]:
    """Packing, in a process group of its own, when all shards are done but the one that waits for its picture."""
    holding = ("-m", "tests.held", sorted((tree / "train").rglob("*.jpg"))[15], tree.parent / "pipe")
    process = start_group(*holding, "scripts/pack_dataset.py", tree, out, "--shard-size", 10, "--workers", 2)
    deadline = time.monotonic() + 60
    while len(list((out / "train").glob("*.tar"))) < num_shards - 1 or not list((out / "train").glob(".*.tmp")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.fixture(scope="module")
def whole(picture_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What packing the pictures in one go makes."""
    out = tmp_path_factory.mktemp("whole")
    process = start_group("scripts/pack_dataset.py", picture_tree, out, "--shard-size", 10, "--workers", 1)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    return contents(out)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_anywhere_it_goes_on(
    held: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
    fork_script: Run,
    number: signal.Signals,
) -> None:
    out = tmp_path / "out"
    process = start(held, out, num_shards=5)
    (process.kill if number == signal.SIGKILL else lambda: os.killpg(process.pid, number))()
    _, told = process.communicate(timeout=30)
    wait_for_the_end_of(process.pid)
    if number != signal.SIGKILL:
        assert (process.returncode, told) == (130, "pack_dataset.py: interrupted\n")
        assert not list((out / "train").glob(".*"))
    there = {file.name: file.stat().st_mtime_ns for file in (out / "train").glob("*.tar")}
    assert len(there) == 4
    done = fork_script("train.py", "--data-path", out, "--val-split", "null", "--dry-run", "--device", "cpu")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "holds 4 of 5 shards; give the command that packed it again" in done.stderr
    done = fork_script("scripts/pack_dataset.py", held, out, "--shard-size", 10)
    assert (done.returncode, done.stderr) == (0, "")
    assert "48 pictures in 5 shards (4 were there), original bytes" in done.stdout
    assert {name: (out / "train" / name).stat().st_mtime_ns for name in there} == there
    assert contents(out) == whole


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_writer_is_named_and_the_rest_stays(held: Path, tmp_path: Path) -> None:
    process = start(held, tmp_path / "out", num_shards=5)
    for writer in set(members_of(process.pid)) - {process.pid}:
        os.kill(writer, signal.SIGKILL)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 2
    (line,) = told.splitlines()
    assert "a writing process was killed (out of memory?)" in line
    assert len(contents(tmp_path / "out")) == 4
    wait_for_the_end_of(process.pid)


# What goes wrong


def test_a_full_disk(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shard that fits stays, the one that does not leaves nothing, and the next try goes on."""
    write_tar = packing_module._write_tar
    full_at = 3

    def write_until_full(packing: object, shard: int, temporary: Path, bad: list[object]) -> object:
        written = write_tar(packing, shard, temporary, bad)  # type: ignore[arg-type]
        if shard == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written

    with monkeypatch.context() as patch:
        patch.setattr(packing_module, "_write_tar", write_until_full)
        with pytest.raises(DataError, match=r"train-000003\.tar: cannot be written: No space left.*; make room"):
            pack_here(tree / "train", tmp_path / "out" / "train")
    left = contents(tmp_path / "out" / "train")
    assert "train-000003.tar" not in left
    assert all(name.endswith(".tar") and not name.startswith(".") for name in left)
    packed = pack_here(tree / "train", tmp_path / "out" / "train")
    assert packed.kept_shards == len(left)
    assert len(packed.index) == 48


def test_a_limit_on_files_ends_in_one_line(tree: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    command = [sys.executable, "scripts/pack_dataset.py", str(tree), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "train-000000.tar: cannot be written: File too large" in line
    assert contents(tmp_path / "out") == {}


def test_what_does_not_read_back_is_not_kept(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar = packing_module._write_tar

    def write_and_spoil(packing: object, shard: int, temporary: Path, bad: list[object]) -> object:
        written = write_tar(packing, shard, temporary, bad)  # type: ignore[arg-type]
        content = bytearray(temporary.read_bytes())
        content[content.index(b"\xff\xd8\xff") + 100] ^= 1
        temporary.write_bytes(content)
        return written

    monkeypatch.setattr(packing_module, "_write_tar", write_and_spoil)
    with pytest.raises(DataError, match="does not read back"):
        pack_here(tree / "train", tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_pictures_that_cannot_be_packed(tree: Path, tmp_path: Path, fork_script: Run) -> None:
    """All of them are named; the shards without one are written; --bad skip leaves them out for good."""
    pictures = sorted((tree / "train").rglob("*.jpg"))
    for picture in (pictures[3], pictures[25]):
        picture.unlink()
        picture.symlink_to(tree / "nowhere.jpg")
    out = tmp_path / "out"
    flags = (tree, out, "--shard-size", 10, "--splits", "train")
    done = fork_script("scripts/pack_dataset.py", *flags)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [str(pictures[3]) in lines[0] or str(pictures[25]) in lines[0], len(lines)] == [True, 3]
    assert "pictures that cannot be packed: 2" in lines[-1]
    assert len(contents(out)) == 3
    done = fork_script("scripts/pack_dataset.py", *flags, "--bad", "skip")
    assert done.returncode == 0
    assert "46 pictures in 5 shards (3 were there)" in done.stdout
    assert f"pictures left out: 2, the first of them {pictures[3]}" in done.stderr
    kept = [str(path.relative_to(tree / "train")) for path in pictures if path not in (pictures[3], pictures[25])]
    index = open_packed(out / "train")
    assert [index.name(i) for i in range(len(index))] == kept


def test_broken_pictures_are_packed_as_they_are_but_not_encoded_anew(tree: Path, tmp_path: Path) -> None:
    broken = sorted((tree / "train").rglob("*.jpg"))[7]
    broken.write_bytes(broken.read_bytes()[:300])
    packed = pack_here(tree / "train", tmp_path / "as_it_is")
    assert packed.index.read(7) == broken.read_bytes()
    with pytest.raises(DataError, match="pictures that cannot be packed: 1"):
        pack_here(tree / "train", tmp_path / "smaller", Encoding(40, 90))
    assert pack_here(tree / "train", tmp_path / "smaller", Encoding(40, 90), skip_bad=True).left_out == (str(broken),)
    with pytest.raises(DataError, match="left out by an earlier --bad skip: 1"):
        pack_here(tree / "train", tmp_path / "smaller", Encoding(40, 90))


def test_a_folder_of_other_shards_is_left_alone(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "train"
    pack_here(tree / "train", out)
    before = contents(out)
    with pytest.raises(DataError, match="packed with another encoding"):
        pack_here(tree / "train", out, Encoding(40, 90))
    with pytest.raises(DataError, match="packed with another set of pictures"):
        pack_here(draw_tree(tmp_path / "others", 4, 48, 1, seed=9) / "val", out)
    assert contents(out) == before


WRONG = {
    "no data": (["nowhere", "OUT"], "no such folder"),
    "itself": (["TREE", "TREE"], "is the data set itself"),
    "side": (["TREE", "OUT", "--max-side", "7"], "--max-side 7: use a number from 8 to"),
    "quality": (["TREE", "OUT", "--max-side", "64", "--quality", "0"], "--quality 0: use a number from 1 to 100"),
    "only quality": (["TREE", "OUT", "--quality", "80"], "--quality: only pictures that --max-side makes smaller"),
    "shard size": (["TREE", "OUT", "--shard-size", "0"], "--shard-size 0"),
    "workers": (["TREE", "OUT", "--workers", "0"], "--workers 0"),
    "split": (["TREE", "OUT", "--splits", "test"], "no test"),
    "another place": (["TREE", "OUT", "--splits", "../train"], "--splits ../train: is not the name of a folder"),
    "among the pictures": (["TREE", "TREE/train/class_0", "--splits", "train"], "lies among the pictures of"),
    "a file": (["TREE", "FILE/OUT"], "cannot be made"),
    "shards of both": (
        ["SHARDS", "OUT"],
        "has both train and val in its name; put the shards of each split into a folder",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_things_end_in_one_line(picture_tree: Path, tmp_path: Path, fork_script: Run, case: str) -> None:
    flags, words = WRONG[case]
    (tmp_path / "file").write_text("mine")
    places = {"TREE": picture_tree, "OUT": tmp_path / "out", "FILE/OUT": tmp_path / "file" / "out"}
    places["SHARDS"] = tmp_path / "shards"
    places["SHARDS"].mkdir()
    (places["SHARDS"] / "retrieval-train-0.tar").touch()
    places["TREE/train/class_0"] = picture_tree / "train" / "class_0"
    done = fork_script("scripts/pack_dataset.py", *(places.get(flag, flag) for flag in flags))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert words in line
    assert "--train" not in line and "--data-path" not in line, "flags that it does not have"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a.gif", "b.jpe", "noext", ".jpg"])
def test_a_list_with_a_name_that_shards_cannot_hold(tmp_path: Path, name: str) -> None:
    (tmp_path / "good.jpg").write_bytes(b"x")
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "train_list.txt").write_text(f"good.jpg 0\n{name} 1\n")
    with pytest.raises(DataError, match="cannot be packed: its name does not end as a picture's"):
        pack_here(tmp_path / "train_list.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_class_that_a_line_cannot_name(picture_tree: Path, tmp_path: Path) -> None:
    shutil.copytree(picture_tree / "val" / "class_0", tmp_path / "val" / "one\ntwo")
    with pytest.raises(DataError, match="a name that a line cannot hold"):
        pack_here(tmp_path / "val", tmp_path / "out")


@pytest.mark.parametrize("name", [b"caf\xe9", "a\u2028b".encode()])
def test_odd_names_of_classes_come_back(picture_tree: Path, tmp_path: Path, name: bytes) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"val", name)
    shutil.copytree(os.fsencode(picture_tree / "val" / "class_0"), folder)
    pack_here(tmp_path / "val", tmp_path / "out")
    assert open_packed(tmp_path / "out").classes == (os.fsdecode(name),)


def test_a_picture_that_has_changed_is_packed_again(tree: Path, tmp_path: Path) -> None:
    first = pack_here(tree / "train", tmp_path / "out")
    assert (first.kept_shards, first.renewed_shards) == (0, 0)
    changed = Path(open_index(tree / "train", root=str(tree), cache_dir=None).path(13))
    changed.write_bytes(b"another one")
    again = pack_here(tree / "train", tmp_path / "out")
    assert (again.kept_shards, again.renewed_shards) == (4, 1)
    assert open_packed(tmp_path / "out").read(13) == b"another one"
    assert pack_here(tree / "train", tmp_path / "out").renewed_shards == 0
    # From shards to shards: all that were made of the one that has been written again.
    pack_here(tmp_path / "out" / "*.tar", tmp_path / "others")
    os.utime(tmp_path / "out" / "out-000001.tar")
    assert pack_here(tmp_path / "out" / "*.tar", tmp_path / "others").renewed_shards == 1


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_damaged_shard_is_to_be_removed(tree: Path, tmp_path: Path, damage: str) -> None:
    pack_here(tree / "train", tmp_path / "out")
    file = tmp_path / "out" / "out-000001.tar"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] if damage == "cut" else bytes(600) + data[600:])
    with pytest.raises(DataError, match=r"out-000001\.tar: .*remove") as caught:
        pack_here(tree / "train", tmp_path / "out")
    assert "another folder" not in str(caught.value)
    file.unlink()
    assert pack_here(tree / "train", tmp_path / "out").kept_shards == 4
