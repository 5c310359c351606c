"""The index of a data set against torchvision's ImageFolder, and its cache."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from cspnet.data import index as index_module
from cspnet.data.findings import Problem
from cspnet.data.index import find_left_out, find_split, open_index
from cspnet.data.samples import SampleIndex
from cspnet.errors import DataError

LONG_AGO_S = 1_000_000_000


def make_files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not looked at")
    return root


def age(root: Path, time_s: int = LONG_AGO_S) -> None:
    """Set the time stamps of a folder and all below it into the past, as those of a data set at rest are."""
    for path in (root, *root.rglob("*")):
        os.utime(path, (time_s, time_s))


def open_at(path: Path, cache_dir: Path, **options: object) -> SampleIndex:
    return open_index(path, root=str(path.parent), cache_dir=str(cache_dir), **options)


def samples_of(index: SampleIndex) -> list[tuple[str, int]]:
    return [(index.path(i), int(index.labels[i])) for i in range(len(index))]


TREES = {
    "plain": ("b/1.jpg", "a/2.jpg", "a/1.jpg", "c/1.jpg"),
    "order of numbers and cases": ("10/9.jpg", "10/10.jpg", "9/a.jpg", "9/B.jpg", "Z/x.jpg", "a/x.jpg", "é/x.jpg"),
    "nested": ("a/z.jpg", "a/sub/1.jpg", "a/sub/deep/2.jpg", "a/sub.2/3.jpg", "a/Sub/4.jpg", "b/only/deep/5.jpg"),
    "extensions": tuple(
        f"{kind}/{name}"
        for kind in "ab"
        for name in ("1.JPEG", "2.Png", "3.ppm", "4.bmp", "5.PGM", "6.tif", "7.tiff", "8.webp", "9.jpg.txt")
        + ("10.gif", "11", "12.jpgx", "13.npy", "14jpg", "15.tar.jpg")
    ),
    "odd names": ("with space/a b.jpg", "with space/ c .jpg", "ünï/日本.jpg", "a/new\nline.jpg", "a/per%20cent.jpg"),
    "files beside the classes": ("a/1.jpg", "b/1.jpg", "labels.txt", "stray.jpg"),
}


@pytest.mark.parametrize("names", TREES.values(), ids=TREES)
def test_folders_are_read_as_torchvision_reads_them(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = make_files(tmp_path / "train", *names)
    index, reference = open_at(root, tmp_path / "cache"), ImageFolder(str(root))
    assert samples_of(index) == reference.samples
    assert list(index.classes) == reference.classes
    assert len(index) == len(reference.samples) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_file_names_that_are_not_utf8_survive_the_cache(tmp_path: Path) -> None:
    root = make_files(tmp_path / "train", "a/1.jpg", "a/" + os.fsdecode(b"caf\xe9.jpg"), os.fsdecode(b"\xff/2.jpg"))
    age(root)
    for _ in range(2):
        assert samples_of(open_at(root, tmp_path / "cache")) == ImageFolder(str(root)).samples


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    make_files(tmp_path / "elsewhere", "1.jpg", "sub/2.jpg")
    root = make_files(tmp_path / "train", "a/0.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert samples_of(open_at(root, tmp_path / "cache")) == ImageFolder(str(root)).samples


def test_hidden_folders_are_not_classes(tmp_path: Path) -> None:
    root = make_files(tmp_path / "train", "a/1.jpg", "b/1.jpg", ".ipynb_checkpoints/1.jpg")
    index = open_at(root, tmp_path / "cache")
    assert index.classes == ("a", "b")
    assert index.labels.tolist() == [0, 1]


def write_list(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a.jpg 0\nb.jpg 1\n", [("a.jpg", 0), ("b.jpg", 1)]),
        ("b.jpg 1\na.jpg 0", [("b.jpg", 1), ("a.jpg", 0)]),
        ("a.jpg 0\r\nb.jpg 1\r\n", [("a.jpg", 0), ("b.jpg", 1)]),
        ("\n  \na.jpg 0\n\r\n\t\nb.jpg 1\n\n", [("a.jpg", 0), ("b.jpg", 1)]),
        ("a.jpg\t0\nb.jpg\t1\n", [("a.jpg", 0), ("b.jpg", 1)]),
        ("with two spaces.jpg 3\n", [("with two spaces.jpg", 3)]),
        ("with two spaces.jpg\t3\n", [("with two spaces.jpg", 3)]),
        ("a.jpg   7  \n", [("a.jpg", 7)]),
        ("sub/ünï.jpg 007\n", [("sub/ünï.jpg", 7)]),
        ("a.jpg 5\na.jpg 5\n", [("a.jpg", 5), ("a.jpg", 5)]),
    ],
)
def test_lists(tmp_path: Path, content: str, expected: list[tuple[str, int]]) -> None:
    make_files(tmp_path, "a.jpg", "b.jpg", "with two spaces.jpg", "sub/ünï.jpg")
    index = open_at(write_list(tmp_path / "train_list.txt", content), tmp_path / "cache")
    assert samples_of(index) == [(str(tmp_path / name), label) for name, label in expected]
    assert index.classes == ()


def test_paths_of_a_list_start_at_its_folder_or_at_the_root(tmp_path: Path) -> None:
    make_files(tmp_path / "root", "train/1.jpg", "both.jpg")
    make_files(tmp_path / "lists", "near.jpg", "both.jpg")
    path = write_list(tmp_path / "lists" / "l.txt", "train/1.jpg 0\nnear.jpg 1\nboth.jpg 2\n")
    index = open_index(path, root=str(tmp_path / "root"), cache_dir=str(tmp_path / "cache"))
    expected = ["root/train/1.jpg", "lists/near.jpg", "lists/both.jpg"]
    assert [index.path(i) for i in range(3)] == [str(tmp_path / name) for name in expected]


def make_two_folders(folder: Path) -> Path:
    """root/ and lists/ with a picture each, one beside both, and links: another name of root, and a way out of it."""
    make_files(folder, "root/train/1.jpg", "lists/near.jpg", "far/x.jpg")
    (folder / "alias").symlink_to(folder / "root")
    (folder / "root" / "linked").symlink_to(folder / "far")
    return folder


INSIDE = (
    *("train/../train/1.jpg", "../lists/near.jpg", "../root/train/1.jpg", "linked/x.jpg", "ROOT/linked/x.jpg"),
    *("ROOT/train/1.jpg", "ALIAS/train/1.jpg"),
)
OUTSIDE = (
    *("../far/x.jpg", "train/../../far/x.jpg", "FAR/x.jpg", "ROOT/../far/x.jpg", "../gone.jpg"),
    *("/etc/hostname", "../" * 40 + "etc/hostname", "ALIAS/linked/x.jpg"),
)


def write_entry(folder: Path, entry: str) -> Path:
    """A list of one entry, in which ROOT, ALIAS and FAR stand for absolute paths."""
    for name in ("root", "alias", "far"):
        entry = entry.replace(name.upper(), str(folder / name))
    return write_list(folder / "lists" / "l.txt", f"{entry} 0\n")


@pytest.mark.parametrize("entry", INSIDE)
def test_entries_that_stay_inside(tmp_path: Path, entry: str) -> None:
    path = write_entry(make_two_folders(tmp_path), entry)
    index = open_index(path, root=str(tmp_path / "root"), cache_dir=None)
    assert Path(index.path(0)).read_bytes() == b"not looked at"


@pytest.mark.parametrize("entry", OUTSIDE)
def test_entries_that_lead_out_are_refused_unless_that_is_allowed(tmp_path: Path, entry: str) -> None:
    path = write_entry(make_two_folders(tmp_path), entry)
    how = {"root": str(tmp_path / "root"), "cache_dir": str(tmp_path / "cache")}
    age(tmp_path)  # so that what is read is kept
    with pytest.raises(DataError, match=r"l\.txt line 1: .* lies outside of .*/lists and .*/root; .*--outside-root"):
        open_index(path, **how)
    found: list[Problem] = []
    with pytest.raises(DataError) if "gone" in entry else contextlib.nullcontext():
        assert Path(open_index(path, **how, outside_root=True).path(0)).is_file()
    open_index(path, **how, complain=found.append)
    assert [problem.kind for problem in found] == ["outside_root"]
    with pytest.raises(DataError, match="lies outside"):  # what was kept by the other rule does not count
        open_index(path, **how)


def test_a_way_out_behind_a_link(tmp_path: Path) -> None:
    """As written, linked/.. is the root; to the system it is where the link leads."""
    path = write_entry(make_two_folders(tmp_path), "linked/../far/x.jpg")
    assert (tmp_path / "root" / "linked/../far/x.jpg").is_file()
    with pytest.raises(DataError, match="no file"):
        open_index(path, root=str(tmp_path / "root"), cache_dir=None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a.jpg 0\n\ngone.jpg 1\n", r"line 3: no file gone\.jpg"),
        ("a.jpg 0\nsub 1\n", r"line 2: no file sub"),
        ("a.jpg 0\na.jpg\n", r"line 2: expected `path label`"),
        ("a.jpg 0\na.jpg -1\n", r"line 2: expected"),
        ("a.jpg 0\na.jpg 1.0\n", r"line 2: expected"),
        ("a.jpg 0\na.jpg cat\n", r"line 2: expected .*'a\.jpg cat'"),
        ("a.jpg 0\na.jpg,1\n", r"line 2: expected"),
        ("3\n", r"line 1: expected"),
        (f"a.jpg {2**31}\n", r"line 1: expected"),
        ("", "the list is empty"),
        ("\n \r\n", "the list is empty"),
        ("a.jpg 9\na.jpg 10\n", r"label 10 of .*a\.jpg is out of range: there are 10 classes, 0 to 9"),
    ],
)
def test_faults_of_lists(tmp_path: Path, content: str, words: str) -> None:
    make_files(tmp_path, "a.jpg", "sub/b.jpg")
    path = write_list(tmp_path / "train_list.txt", content)
    with pytest.raises(DataError, match=words) as caught:
        open_at(path, tmp_path / "cache", num_classes=10)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "train_list.txt"
    path.write_bytes(b"\xff\xd8\xff\xe0 0\n")
    with pytest.raises(DataError, match="UTF-8"):
        open_at(path, tmp_path / "cache")


def test_labels_of_a_list_are_free_without_a_number_of_classes(tmp_path: Path) -> None:
    make_files(tmp_path, "a.jpg")
    index = open_at(write_list(tmp_path / "l.txt", "a.jpg 123456\n"), tmp_path / "cache")
    assert index.labels.tolist() == [123456]


@pytest.mark.parametrize(
    ("names", "folders", "words"),
    [
        (("a/1.jpg",), ("b",), "b: no pictures in this class folder"),
        (("a/1.jpg", "b/readme.txt"), (), "b: no pictures in this class folder"),
        (("stray.jpg",), (), "no class folders"),
        ((".hidden/1.jpg",), (), "no class folders"),
    ],
)
def test_faults_of_folders(tmp_path: Path, names: tuple[str, ...], folders: tuple[str, ...], words: str) -> None:
    root = make_files(tmp_path / "train", *names)
    for name in folders:
        (root / name).mkdir()
    with pytest.raises(DataError, match=words) as caught:
        open_at(root, tmp_path / "cache")
    assert str(root) in str(caught.value)


def test_a_validation_split_is_labelled_by_the_training_classes(tmp_path: Path) -> None:
    train = open_at(make_files(tmp_path / "train", "a/1.jpg", "b/1.jpg", "c/1.jpg"), tmp_path / "cache")
    val_root = make_files(tmp_path / "val", "a/1.jpg", "c/1.jpg", "c/2.jpg")
    age(val_root)
    for _ in range(2):  # scanned, then from the cache
        val = open_at(val_root, tmp_path / "cache", classes=train.classes)
        assert val.labels.tolist() == [0, 2, 2]
        assert val.classes == ("a", "b", "c")
    assert open_at(val_root, tmp_path / "cache").labels.tolist() == [0, 1, 1]


def test_an_unknown_class_of_a_validation_split(tmp_path: Path) -> None:
    val = make_files(tmp_path / "val", "a/1.jpg", "new/1.jpg")
    with pytest.raises(DataError, match=r"class folder new is not among the model's 2 classes \(a, b\)"):
        open_at(val, tmp_path / "cache", classes=("a", "b"))


@pytest.mark.parametrize(
    ("split", "name", "data_format", "expected"),
    [
        ("train", "auto", "folder", "train"),
        ("val", "auto", "folder", "val"),
        ("train", "auto", "list", "train_list.txt"),
        ("val", "auto", "list", "val_list.txt"),
        ("val", "test", "folder", "test"),
    ],
)
def test_find_split(tmp_path: Path, split: str, name: str, data_format: str, expected: str) -> None:
    make_files(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "test/a/1.jpg", "train_list.txt", "val_list.txt")
    assert find_split(str(tmp_path), split, name, data_format) == tmp_path / expected
    assert find_split("/", split, str(tmp_path / expected), data_format) == tmp_path / expected


def test_hidden_files_are_no_pictures(tmp_path: Path) -> None:
    """Unlike torchvision, which reads the ._x.jpg that macOS leaves beside x.jpg."""
    root = make_files(tmp_path / "train", "a/.hidden.jpg", "a/x.jpg", "a/._x.jpg")
    index = open_index(root, root=str(tmp_path), cache_dir=None)
    assert [Path(index.path(i)).name for i in range(len(index))] == ["x.jpg"]


def test_a_link_that_leads_back_is_an_error(tmp_path: Path) -> None:
    root = make_files(tmp_path / "train", "a/x.jpg", "b/y.jpg")
    (root / "a" / "up").symlink_to("..")
    with pytest.raises(DataError, match=r"a/up: links to a folder that it lies in"):
        open_index(root, root=str(tmp_path), cache_dir=None)


def test_linked_folders_are_read(tmp_path: Path) -> None:
    root = make_files(tmp_path / "train", "a/x.jpg")
    make_files(tmp_path / "elsewhere", "y.jpg")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    index = open_index(root, root=str(tmp_path), cache_dir=None)
    assert [Path(index.path(i)).name for i in range(len(index))] == ["x.jpg", "y.jpg"]
    assert index.classes == ("a", "b")


def test_find_split_sees_through_common_mistakes(tmp_path: Path) -> None:
    make_files(tmp_path / "data", "train/a/1.jpg", "val/a/1.jpg")
    with pytest.raises(DataError, match=r"did you mean .*data\?"):
        find_split(str(tmp_path / "data" / "train"), "train", "auto", "folder")
    make_files(tmp_path / "bare", "a/1.jpg", "b/1.jpg")
    with pytest.raises(DataError, match=r"scripts/make_lists\.py"):
        find_split(str(tmp_path / "bare"), "train", "auto", "folder")


def test_find_split_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        find_split(str(tmp_path / "nowhere"), "train", "auto", "folder")
    with pytest.raises(DataError, match=r"no train there \(it is empty\).*--train-split"):
        find_split(str(tmp_path), "train", "auto", "folder")
    make_files(tmp_path, "training/a/1.jpg")
    with pytest.raises(DataError, match=r"no val_list\.txt there \(it holds training/\).*--val-split NAME"):
        find_split(str(tmp_path), "val", "auto", "list")


def refuse_to_scan(*args: object) -> None:
    raise AssertionError("scanned again")


@pytest.fixture
def old_tree(tmp_path: Path) -> Path:
    root = make_files(tmp_path / "train", "a/1.jpg", "a/sub/2.jpg", "b/1.jpg")
    age(root)
    return root


def test_an_unchanged_folder_is_not_scanned_again(
    old_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_at(old_tree, tmp_path / "cache")
    monkeypatch.setattr(index_module, "_scan_folder", refuse_to_scan)
    second = open_at(old_tree, tmp_path / "cache")
    assert samples_of(second) == samples_of(first) == ImageFolder(str(old_tree)).samples
    assert second.classes == first.classes
    assert second.fingerprint == first.fingerprint
    with pytest.raises(AssertionError, match="scanned again"):
        open_at(old_tree, tmp_path / "another cache")


def test_an_unchanged_list_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path, "a.jpg", "b.jpg")
    path = write_list(tmp_path / "l.txt", "b.jpg 4\na.jpg 0\n")
    os.utime(path, (LONG_AGO_S, LONG_AGO_S))
    first = open_at(path, tmp_path / "cache")
    monkeypatch.setattr(index_module, "_read_list", refuse_to_scan)
    assert samples_of(open_at(path, tmp_path / "cache")) == samples_of(first)
    with pytest.raises(DataError, match="out of range"):  # checked for cached lists, too
        open_at(path, tmp_path / "cache", num_classes=4)


def test_a_cached_list_belongs_to_its_root(tmp_path: Path) -> None:
    make_files(tmp_path, "one/x.jpg", "two/x.jpg")
    path = write_list(tmp_path / "lists" / "l.txt", "x.jpg 0\n")
    os.utime(path, (LONG_AGO_S, LONG_AGO_S))
    for root in (tmp_path / "one", tmp_path / "two"):
        index = open_index(path, root=str(root), cache_dir=str(tmp_path / "cache"))
        assert index.path(0) == str(root / "x.jpg")


@pytest.mark.parametrize("name", ["a/0.jpg", "a/sub/3.jpg", "c/1.jpg", "b/new/1.jpg"])
def test_an_added_picture_is_seen(old_tree: Path, tmp_path: Path, name: str) -> None:
    assert len(open_at(old_tree, tmp_path / "cache")) == 3
    make_files(old_tree, name)
    assert samples_of(open_at(old_tree, tmp_path / "cache")) == ImageFolder(str(old_tree)).samples
    age(old_tree, LONG_AGO_S + 1)
    for _ in range(2):
        assert len(open_at(old_tree, tmp_path / "cache")) == 4


def test_a_removed_picture_and_a_removed_folder_are_seen(old_tree: Path, tmp_path: Path) -> None:
    open_at(old_tree, tmp_path / "cache")
    (old_tree / "a" / "1.jpg").unlink()
    assert len(open_at(old_tree, tmp_path / "cache")) == 2
    age(old_tree, LONG_AGO_S + 1)
    open_at(old_tree, tmp_path / "cache")
    shutil.rmtree(old_tree / "b")
    assert open_at(old_tree, tmp_path / "cache").classes == ("a",)


def test_a_folder_that_changes_right_now_is_not_kept(old_tree: Path, tmp_path: Path) -> None:
    soon = time.time() + 60
    os.utime(old_tree / "a", (soon, soon))
    open_at(old_tree, tmp_path / "cache")
    assert list((tmp_path / "cache").glob("*")) == []


def damage(content: bytes) -> list[bytes]:
    """Files of the wrong kind, files cut off, and files with one byte changed."""
    flips = [content[:i] + bytes([content[i] ^ 0xFF]) + content[i + 1 :] for i in range(0, len(content), 7)]
    return [
        b"",
        b"nonsense",
        bytes(1000),
        pickle.dumps([1]),
        *(content[:n] for n in range(0, len(content), 50)),
        *flips,
    ]


def test_a_damaged_cache_is_ignored(old_tree: Path, tmp_path: Path) -> None:
    expected = samples_of(open_at(old_tree, tmp_path / "cache"))
    (file,) = (tmp_path / "cache").iterdir()
    for content in damage(file.read_bytes()):
        file.write_bytes(content)
        assert samples_of(open_at(old_tree, tmp_path / "cache")) == expected


def test_a_cache_that_cannot_be_written_does_no_harm(old_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    for cache_dir in (tmp_path / "a file", tmp_path / "a file" / "below"):
        assert samples_of(open_at(old_tree, cache_dir)) == ImageFolder(str(old_tree)).samples


def test_the_fingerprint_is_that_of_the_samples_not_of_their_place(old_tree: Path, tmp_path: Path) -> None:
    here = open_at(old_tree, tmp_path / "cache").fingerprint
    copied = shutil.copytree(old_tree, tmp_path / "a much longer name" / "train")
    assert open_at(copied, tmp_path / "cache").fingerprint == here
    make_files(copied, "b/2.jpg")
    assert open_at(copied, tmp_path / "cache").fingerprint != here
    (copied / "b" / "2.jpg").unlink()
    (copied / "b").rename(copied / "0")
    assert open_at(copied, tmp_path / "cache").fingerprint != here


def test_an_index_is_a_few_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"{i % 3}/{i:05d}_{'x' * int(rng.integers(80, 150))}.jpg" for i in range(2000)]
    root = make_files(tmp_path / "train", *names)
    age(root)
    path_bytes = sum(len(os.fsencode(path)) for path, _ in ImageFolder(str(root)).samples)
    for _ in range(2):  # scanned, then from the cache
        index = open_at(root, tmp_path / "cache")
        arrays = (index.paths, index.ends, index.labels)
        assert all(array.dtype.kind in "iu" for array in arrays)
        assert sum(array.nbytes for array in arrays) == path_bytes + (8 + 4) * len(names)
        assert len(pickle.dumps(index)) < path_bytes + (8 + 4) * len(names) + 4096  # nothing else a sample


def test_all_problems_of_a_list_can_be_collected(tmp_path: Path) -> None:
    make_files(tmp_path, "a.jpg", "b.jpg")
    path = write_list(tmp_path / "l.txt", "a.jpg 0\n\nnonsense\ngone.jpg 1\nb.jpg 2\nb.jpg 1\n,\n")
    os.utime(path, (LONG_AGO_S, LONG_AGO_S))  # it may be cached, and must not be
    problems: list[Problem] = []
    index = open_at(path, tmp_path / "cache", num_classes=2, complain=problems.append)
    assert [(Path(name).name, label) for name, label in samples_of(index)] == [("a.jpg", 0), ("b.jpg", 1)]
    assert [(problem.kind, problem.place) for problem in problems] == [
        ("malformed_line", f"{path} line 3"),
        ("missing_file", f"{path} line 4"),
        ("label_out_of_range", f"{path} line 5"),
        ("malformed_line", f"{path} line 7"),
    ]
    with pytest.raises(DataError) as caught:
        open_at(path, tmp_path / "cache", num_classes=2)
    assert str(caught.value) == str(problems[0])


def test_a_list_of_problems_alone_has_no_samples(tmp_path: Path) -> None:
    problems: list[Problem] = []
    path = write_list(tmp_path / "l.txt", "gone.jpg 0\n")
    index = open_at(path, tmp_path / "cache", num_classes=2, complain=problems.append)
    assert (len(index), len(problems)) == (0, 1)


def test_all_problems_of_folders_can_be_collected(tmp_path: Path) -> None:
    root = make_files(tmp_path / "val", "a/1.jpg", "c/1.jpg", "d/notes.txt", "e/1.jpg")
    (root / "b").mkdir()
    (root / "a" / "up").symlink_to(root)
    problems: list[Problem] = []
    index = open_at(root, tmp_path / "cache", classes=("a", "b", "d", "e"), complain=problems.append)
    assert [(problem.kind, Path(problem.place).name) for problem in problems] == [
        ("link_loop", "up"),
        ("empty_class", "b"),
        ("empty_class", "d"),
        ("unknown_class", "val"),
    ]
    assert index.classes == ("a", "b", "d", "e", "c")
    assert index.labels.tolist() == [0, 4, 3]


def test_what_is_left_out_of_a_folder(tmp_path: Path) -> None:
    root = make_files(
        tmp_path, "a/1.jpg", "a/._1.jpg", "a/sub/notes.txt", "b/2.PNG", "stray.jpg", "README.md", ".cache/x.jpg"
    )
    (root / "c").symlink_to(root / "gone")
    (root / "b" / "3.jpg").symlink_to(root / "gone.jpg")  # in the index: to be reported where it is read
    found = {(os.path.relpath(place, root), kind) for kind, place, _ in find_left_out(root)}
    assert found == {
        ("c", "dangling_link"),
        (".cache", "left_out"),
        ("README.md", "left_out"),
        ("stray.jpg", "left_out"),
        ("a/._1.jpg", "left_out"),
        ("a/sub/notes.txt", "left_out"),
    }


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"cat\ndog\n", ("cat", "dog")),
        (b"cat\r\ndog\r\n\r\n", ("cat", "dog")),
        (b"\xef\xbb\xbfcat\ndog", ("cat", "dog")),
        (b"crane\ncrane\n", ("crane", "crane")),  # ImageNet has two
        ("a\u2028b\nc\x85d\n".encode(), ("a\u2028b", "c\x85d")),
        (b"caf\xe9\ndog\n", (os.fsdecode(b"caf\xe9"), "dog")),
        (b"", ()),
        (b"cat\n\ndog\n", r"classes\.txt line 2: expected the name of class 1"),
        (b"cat\n\0\n", r"classes\.txt line 2: expected the name of class 1"),
    ],
)
def test_names_of_classes_beside_a_list(tmp_path: Path, content: bytes, names: tuple[str, ...] | str) -> None:
    make_files(tmp_path, "a.jpg")
    path = write_list(tmp_path / "l.txt", "a.jpg 0\n")
    (tmp_path / "classes.txt").write_bytes(content)
    if isinstance(names, str):
        with pytest.raises(DataError, match=names):
            open_at(path, tmp_path / "cache")
    else:
        assert open_at(path, tmp_path / "cache").classes == names


def test_a_list_whose_classes_are_not_trainings(tmp_path: Path) -> None:
    make_files(tmp_path, "a.jpg")
    path = write_list(tmp_path / "l.txt", "a.jpg 0\n")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert open_at(path, tmp_path / "cache", classes=("dog", "cat")).labels.tolist() == [0]
    with pytest.raises(DataError, match=r"classes\.txt: names other classes, or in another order"):
        open_at(path, tmp_path / "cache", classes=("cat", "dog"))


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_files(tmp_path / "train", "a/1.jpg", "a/locked/2.jpg")
    scan = os.scandir

    def scandir(path: str) -> object:
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)  # permissions are nothing to root
        with pytest.raises(DataError, match=r"a/locked: this folder cannot be read: Permission denied"):
            open_at(root, tmp_path / "cache")


FALSE_INDEXES = {
    "a list": (b"[]", {}),
    "a nest": (b"[" * 100_000, {}),
    "labels below 0": (None, {"labels": np.array([-1, 0], dtype=np.int32)}),
    "labels without a class": (None, {"labels": np.array([0, 2], dtype=np.int32)}),
    "ends beyond the names": (None, {"ends": np.array([3, 10**6], dtype=np.int64)}),
    "a zero in a name": (None, {"paths": np.zeros(14, dtype=np.uint8), "ends": np.array([7, 14], dtype=np.int64)}),
    "objects": (None, {"paths": np.array([os.system], dtype=object)}),
}


@pytest.mark.parametrize("case", FALSE_INDEXES)
def test_a_kept_index_that_cannot_be_costs_a_scan(tmp_path: Path, case: str) -> None:
    """Found by scripts/fuzz.py."""
    make_files(tmp_path / "train", "a/1.jpg", "b/2.jpg")
    age(tmp_path)
    expected = samples_of(open_at(tmp_path / "train", tmp_path / "cache"))
    (file,) = (tmp_path / "cache").iterdir()
    with np.load(file) as archive:
        arrays = dict(archive)
    text, other = FALSE_INDEXES[case]
    if text is not None:
        other = {"meta": np.frombuffer(text, dtype=np.uint8)}
    np.savez(file, **{**arrays, **other})
    assert samples_of(open_at(tmp_path / "train", tmp_path / "cache")) == expected
