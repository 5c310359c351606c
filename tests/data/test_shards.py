"""Shards are read as the loose files are: names, labels, bytes, batches; and what is wrong with them is said."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cspnet.data import shard_index as index_module
from cspnet.data import shards as shards_module
from cspnet.data.decode import UnreadableImageError
from cspnet.data.findings import Problem
from cspnet.data.index import find_split, open_index
from cspnet.data.loader import Batch, EvalLoader, EvalPictures, Reader, TrainLoader, TrainPictures
from cspnet.data.packing import Packed, member_names, pack_split, plan_packing
from cspnet.data.sampler import BatchPlan
from cspnet.data.samples import SampleIndex
from cspnet.data.shards import ShardIndex, list_shards, original_name
from cspnet.data.transforms import EvalTransform, build_train_transform
from cspnet.errors import DataError
from cspnet.recipe.schema import DataRecipe, Recipe
from tests.conftest import draw_jpeg
from tests.data.shard_files import Content, write_shard

SEED = 3
CPU = torch.device("cpu")
TRAIN = build_train_transform(Recipe(data=DataRecipe(train_px=16)))
EVAL = EvalTransform(16, 0.875, "bilinear")
LONG_AGO_S = 1_000_000_000


def pack(source: Path, folder: Path, shard_size: int = 10) -> Packed:
    index = open_index(source, root=str(source.parent), cache_dir=None)
    packing = plan_packing(index, folder, root=source.parent, shard_size=shard_size, encoding=None)
    return pack_split(packing, workers=2, skip_bad=False, report_bad=print, report_done=lambda count: None)


@pytest.fixture(scope="module")
def packed_once(picture_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture tree as shards of 10. Read only: copy it before changing it."""
    out = tmp_path_factory.mktemp("packed")
    for split in ("train", "val"):
        pack(picture_tree / split, out / split)
    return out


@pytest.fixture
def packed(packed_once: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return shutil.copytree(packed_once, tmp_path / "packed")


def open_packed(folder: Path, cache: Path | None = None, warnings: list[str] | None = None) -> ShardIndex:
    warn = [].append if warnings is None else warnings.append
    cache_dir = str(cache) if cache else None
    index = open_index(folder / "*.tar", root=str(folder.parent), cache_dir=cache_dir, warn=warn)
    assert isinstance(index, ShardIndex)
    return index


def open_loose(folder: Path) -> SampleIndex:
    return open_index(folder, root=str(folder.parent), cache_dir=None)


def test_samples_are_those_of_the_loose_files(picture_tree: Path, packed_once: Path) -> None:
    loose, packed = open_loose(picture_tree / "train"), open_packed(packed_once / "train")
    assert len(packed) == len(loose) == 48
    assert packed.fingerprint == loose.fingerprint
    assert packed.classes == loose.classes
    assert packed.labels.tolist() == loose.labels.tolist()
    for i in range(48):
        assert packed.read(i) == Path(loose.path(i)).read_bytes()
        inside = os.path.relpath(loose.path(i), picture_tree / "train")
        assert packed.path(i) == f"{packed_once}/train/train-{i // 10:06d}.tar/{inside}"


def test_members_are_what_tarfile_extracts(packed_once: Path) -> None:
    index = open_packed(packed_once / "train")
    found = []
    for file in sorted((packed_once / "train").glob("*.tar")):
        with tarfile.open(file) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        keys = list(dict.fromkeys(name.split(".")[0] for name in members))
        found += [(f"{key}.jpg", members[f"{key}.jpg"], int(members[f"{key}.cls"])) for key in keys]
    assert found == [(index.name(i), index.read(i), int(index.labels[i])) for i in range(len(index))]


def digest_batches(index: SampleIndex, workers: int) -> list[str]:
    """A hash of every batch of an epoch and a half, and of a validation."""
    train = TrainLoader(
        TrainPictures(Reader(index, "apply", "fast"), TRAIN, SEED), BatchPlan(48, 8, 1, 1, SEED), 0, workers, 2, CPU
    )
    val = EvalLoader(EvalPictures(Reader(index, "apply", "fast"), EVAL), 8, 0, 1, workers, 2, CPU)

    def digest(batch: Batch) -> str:
        assert batch.bad == []
        tensors = (batch.images, batch.targets, batch.flipped)
        return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()

    return [digest(batch) for batch in (*itertools.islice(train.start_at(0, 0), 9), *val)]


def test_batches_are_the_same_loose_and_packed_for_any_number_of_workers(picture_tree: Path, packed_once: Path) -> None:
    expected = digest_batches(open_loose(picture_tree / "train"), 0)
    assert len(set(expected)) == len(expected) == 15
    for workers in (0, 1, 2, 4):
        assert digest_batches(open_packed(packed_once / "train"), workers) == expected
    assert digest_batches(open_loose(picture_tree / "train"), 2) == expected


def read_all(index: ShardIndex) -> list[bytes]:
    return [index.read(i) for i in range(len(index))]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_index_goes_to_other_processes(packed_once: Path, method: str) -> None:
    index = open_packed(packed_once / "val")
    expected = read_all(index)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(read_all, (index,)) == expected
    relabelled = replace(index, labels=index.labels + 1)
    assert read_all(pickle.loads(pickle.dumps(relabelled))) == expected


def test_more_shards_than_open_maps(packed_once: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_packed(packed_once / "train")
    expected = read_all(index)
    small = shards_module.functools.lru_cache(maxsize=2)(shards_module._map_file.__wrapped__)
    monkeypatch.setattr(shards_module, "_map_file", small)
    order = np.random.default_rng(0).permutation(48).tolist()
    assert [index.read(i) for i in order] == [expected[i] for i in order]
    assert small.cache_info().currsize == 2


def test_memory_per_sample(tmp_path: Path) -> None:
    content = {f"n0144/{i:06d}.{kind}": b"1" for i in range(3000) for kind in ("jpg", "cls")}
    index = open_packed(write_shard(tmp_path / "s" / "x.tar", content).parent)
    assert len(pickle.dumps(index)) / 3000 < 60


# Shards made by others


def foreign(folder: Path) -> tuple[Path, list[tuple[str, bytes, int]]]:
    """timm's imagenet-1k-wds: flat keys, .json beside them; the order of .cls and .jpg is free."""
    rng = np.random.default_rng(0)
    expected = []
    for split, names in (
        ("train", ["imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar"]),
        ("validation", ["imagenet1k-validation-00.tar"]),
    ):
        for number, name in enumerate(names):
            content: dict[str, bytes] = {}
            for i in (2, 0, 1):
                draw_jpeg(folder / "one.jpg", rng)
                data, label, key = (folder / "one.jpg").read_bytes(), (number + i) % 3, f"n{number}_{i}_{split}"
                sample = {f"{key}.cls": b"%d" % label, f"{key}.jpg": data, f"{key}.json": json.dumps({"l": 1}).encode()}
                content.update(sample if i else dict(reversed(sample.items())))
                expected.append((f"{name}/{key}.jpg", data, label))
            write_shard(folder / name, content)
    (folder / "one.jpg").unlink()
    return folder, expected


def test_shards_of_others_are_read_as_they_are(tmp_path: Path) -> None:
    folder, expected = foreign(tmp_path / "wds")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = []
    for split in ("train", "val"):
        path = find_split(str(folder), split, "auto", "auto")
        index = open_index(path, root=str(folder), cache_dir=str(tmp_path / "cache"))
        found += [
            (os.path.relpath(index.path(i), folder), index.read(i), int(index.labels[i])) for i in range(len(index))
        ]
        assert index.classes == ()
    assert found == expected
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_class_names_beside_shards(tmp_path: Path) -> None:
    folder, _ = foreign(tmp_path / "wds")
    (folder / "classes.txt").write_text("cat\ndog\nfish\n")
    path = folder / "*val*.tar"
    assert open_index(path, root=str(folder), cache_dir=None).classes == ("cat", "dog", "fish")
    with pytest.raises(DataError, match=r"classes\.txt: names other classes, or in another order"):
        open_index(path, root=str(folder), cache_dir=None, classes=("dog", "cat", "fish"))
    (folder / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"label 2 of .*00\.tar/n0_2_validation\.jpg is out of range"):
        open_index(path, root=str(folder), cache_dir=None)


def test_resharding_keeps_the_fingerprint(tmp_path: Path, picture_tree: Path) -> None:
    pack(picture_tree / "train", tmp_path / "a", 7)
    pack(picture_tree / "train", tmp_path / "b", 48)
    assert open_packed(tmp_path / "a").fingerprint == open_packed(tmp_path / "b").fingerprint


GOOD = {"a.jpg": b"x", "a.cls": b"0"}
FAULTS: dict[str, tuple[Content, str]] = {
    "no label": ({**GOOD, "b.jpg": b"x"}, r"b\.jpg: has no label; expected b\.cls"),
    "no picture": ({**GOOD, "b.cls": b"0"}, r"b\.cls: has no picture"),
    "a word": (
        {**GOOD, "b.jpg": b"x", "b.cls": b"cat"},
        r"b\.cls: expected a label of 0 or more, of at most 9 digits, got 'cat'",
    ),
    "negative": (
        {**GOOD, "b.jpg": b"x", "b.cls": b"-1"},
        r"b\.cls: expected a label of 0 or more, of at most 9 digits, got '-1'",
    ),
    "empty": ({**GOOD, "b.jpg": b"x", "b.cls": b""}, r"b\.cls: expected a label"),
    "huge": ({**GOOD, "b.jpg": b"x", "b.cls": b"9" * 30}, r"b\.cls: expected a label"),
    "two pictures": ({**GOOD, "a.png": b"x"}, r"a\.png: there is another picture of that key"),
    "nothing": ({"readme.txt": b"x"}, r"no pictures in x\.tar$"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_of_shards(tmp_path: Path, case: str) -> None:
    content, words = FAULTS[case]
    write_shard(tmp_path / "x.tar", content)
    with pytest.raises(DataError, match=words) as caught:
        open_packed(tmp_path)
    assert "x.tar" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_link_is_no_picture(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.tar", GOOD, ("b.jpg", "a.jpg"))
    with pytest.raises(DataError, match=r"x\.tar: b\.jpg: is a link"):
        open_packed(tmp_path)


def test_hidden_and_other_members_are_passed_over(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.tar", {"._a.jpg": b"", "._a.cls": b"", "a.txt": b"", **GOOD, "dir.x/b.seg": b""})
    assert open_packed(tmp_path).name(0) == "a.jpg"
    assert len(open_packed(tmp_path)) == 1


# Names that WebDataset would read otherwise


def webdataset_key(name: str) -> tuple[str, str]:
    """webdataset.tariterators.base_plus_ext: the key ends at the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension


NAMES = (
    "a/plain.jpg",
    "a/two.dots.jpg",
    "a/two.tods.jpg",
    "a/same.jpg",
    "a/same.png",
    "a/per%2Ecent.jpg",
    "a.b/in a folder.JPEG",
    "a/again.jpg",
    "a/again.jpg",
    "a/ünï.日.tiff",
    "/absolute/x.jpg",
    "a/" + os.fsdecode(b"caf\xe9.x.jpg"),
)


@pytest.mark.parametrize("jpeg_only", [False, True])
def test_names_make_keys_and_come_back(jpeg_only: bool) -> None:
    members = member_names(NAMES, jpeg_only=jpeg_only)
    assert tuple(map(original_name, members)) == NAMES
    assert members[0] == "a/plain.jpg"
    keys = [webdataset_key(member) for member in members]
    assert len({key for key, _ in keys}) == len(NAMES)
    for (_, extension), name in zip(keys, NAMES, strict=True):
        own = name.rpartition(".")[2]
        assert extension == ("jpg" if jpeg_only and own.lower() not in ("jpg", "jpeg") else own)


def test_odd_names_keep_their_fingerprint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ("a/1.jpg", "a/1.x.jpg", "a/ü 2.JPEG", "b/3%.jpg", "b/sub/4.png", "b/sub/4.jpg")
    for name in names:
        draw_jpeg(tmp_path / "train" / name, rng)
    loose = open_loose(tmp_path / "train")
    packed = pack(tmp_path / "train", tmp_path / "out", 4).index
    assert packed.fingerprint == loose.fingerprint
    assert [packed.read(i) for i in range(6)] == [loose.read(i) for i in range(6)]


def test_a_list_keeps_its_fingerprint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("train/a.jpg", "train/b.jpg", "c.jpg"):
        draw_jpeg(tmp_path / "root" / name, rng)
    path = tmp_path / "root" / "train_list.txt"
    path.write_text("train/b.jpg 1\nc.jpg 0\ntrain/a.jpg 5\ntrain/b.jpg 1\n")
    loose = open_loose(path)
    packed = pack(path, tmp_path / "out").index
    assert packed.fingerprint == loose.fingerprint
    assert packed.labels.tolist() == [1, 0, 5, 1]
    assert [packed.read(i) for i in range(4)] == [loose.read(i) for i in range(4)]


# Where the splits are


@pytest.mark.parametrize("data_format", ["auto", "shards"])
def test_a_split_is_found(tmp_path: Path, packed_once: Path, data_format: str) -> None:
    assert find_split(str(packed_once), "val", "auto", data_format) == packed_once / "val" / "*.tar"
    assert find_split("/", "val", str(packed_once / "val"), data_format) == packed_once / "val" / "*.tar"
    folder, _ = foreign(tmp_path / "wds")
    assert find_split(str(folder), "train", "auto", data_format) == folder / "*train*.tar"
    assert find_split(str(folder), "val", "auto", data_format) == folder / "*val*.tar"
    pattern = "imagenet1k-train-*.tar"
    assert find_split(str(folder), "val", pattern, data_format) == folder / pattern
    assert find_split("/", "val", str(folder / pattern), data_format) == folder / pattern
    assert find_split(str(folder), "val", "imagenet1k-train-0001.tar", data_format).name == "imagenet1k-train-0001.tar"


def test_folders_and_lists_come_first_where_they_are_meant(tmp_path: Path, picture_tree: Path) -> None:
    root = shutil.copytree(picture_tree, tmp_path / "both")
    write_shard(root / "train" / "n01440764.tar", GOOD)  # as ImageNet's own archives, left beside the folders
    assert find_split(str(root), "train", "auto", "auto") == root / "train"
    assert find_split(str(root), "train", "auto", "folder") == root / "train"
    assert find_split(str(root), "train", "auto", "shards") == root / "train" / "*.tar"
    shutil.rmtree(root / "train")
    (root / "train_list.txt").write_text("val/class_0/0000.jpg 0\n")
    assert find_split(str(root), "train", "auto", "auto") == root / "train_list.txt"
    with pytest.raises(DataError, match=r"no train or \*train\*\.tar or train_list\.txt there \(it holds val/\)"):
        (root / "train_list.txt").unlink()
        find_split(str(root), "train", "auto", "auto")
    with pytest.raises(DataError, match=r"no x-\*\.tar there"):
        find_split(str(root), "train", "x-*.tar", "auto")


# The index and what may have become of the shards


def refuse_to_scan(*args: object, **options: object) -> None:
    raise AssertionError("scanned again")


def age(folder: Path) -> None:
    for path in folder.glob("*.tar"):
        os.utime(path, (LONG_AGO_S, LONG_AGO_S))


def test_the_index_beside_the_shards_is_used(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    age(packed / "train")  # a copy, whose time stamps are others
    expected = open_packed(packed / "train")
    monkeypatch.setattr(index_module, "scan_shards", refuse_to_scan)
    warnings: list[str] = []
    found = open_packed(packed / "train", warnings=warnings)
    assert warnings == []
    assert found.fingerprint == expected.fingerprint
    assert read_all(found) == read_all(expected)


def test_the_cache_is_used_for_shards_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = foreign(tmp_path / "wds")
    age(folder)
    first = open_packed(folder, tmp_path / "cache")
    monkeypatch.setattr(index_module, "scan_shards", refuse_to_scan)
    assert read_all(open_packed(folder, tmp_path / "cache")) == read_all(first)
    with pytest.raises(AssertionError, match="scanned again"):
        open_packed(folder, tmp_path / "other cache")


def test_an_older_index_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    folder, _ = foreign(tmp_path / "wds")
    age(folder)
    open_packed(folder, tmp_path / "cache")
    content = {"new.jpg": b"new", "new.cls": b"1"}
    changes = {
        "has 10,240 bytes and had": lambda: write_shard(folder / "imagenet1k-train-0001.tar", content),
        "is new": lambda: write_shard(folder / "more.tar", content),
        "is gone": lambda: (folder / "more.tar").unlink(),
    }
    for words, change in changes.items():
        change()
        age(folder)
        warnings: list[str] = []
        index = open_packed(folder, tmp_path / "cache", warnings)
        (warning,) = warnings
        assert words in warning
        assert "scanned anew" in warning
        fresh = open_packed(folder)
        assert read_all(index) == read_all(fresh)
        assert index.fingerprint == fresh.fingerprint


@pytest.mark.parametrize(
    "content", [{"b.jpg": b"y", "b.cls": b"1"}, {**GOOD, "a.cls": b"1"}], ids=["other", "relabelled"]
)
def test_a_shard_of_the_same_size_written_again(tmp_path: Path, content: dict[str, bytes]) -> None:
    write_shard(tmp_path / "x.tar", GOOD)
    age(tmp_path)
    assert open_packed(tmp_path, tmp_path / "cache").labels.tolist() == [0]
    write_shard(tmp_path / "x.tar", content)
    warnings: list[str] = []
    index = open_packed(tmp_path, tmp_path / "cache", warnings)
    assert (index.read(0), index.labels.tolist()) == (next(iter(content.values())), [1])
    assert "x.tar was written again" in warnings[0]


def test_shards_of_another_plan_in_the_place_of_packed_ones(packed: Path, picture_tree: Path, tmp_path: Path) -> None:
    """As large, with the same members, and other labels: only the plan tells."""
    index = open_index(picture_tree / "val", root=str(picture_tree), cache_dir=None)
    labels = (index.labels + 1) % len(index.classes)
    other = plan_packing(
        replace(index, labels=labels), tmp_path / "val", root=picture_tree, shard_size=10, encoding=None
    )
    pack_split(other, workers=1, skip_bad=False, report_bad=print, report_done=lambda count: None)
    old = open_packed(packed / "val")
    (file,) = (tmp_path / "val").glob("*.tar")
    assert file.stat().st_size == (packed / "val" / file.name).stat().st_size
    shutil.copyfile(file, packed / "val" / file.name)
    warnings: list[str] = []
    found = open_packed(packed / "val", warnings=warnings)
    assert found.labels.tolist() == labels.tolist() != old.labels.tolist()
    assert f"{file.name} was written again" in warnings[0]


def test_a_shard_that_is_a_link_to_nothing_is_not_passed_over(tmp_path: Path) -> None:
    write_shard(tmp_path / "x-0.tar", GOOD)
    (tmp_path / "x-1.tar").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"x-1\.tar: .*No such file"):
        open_packed(tmp_path)
    problems: list[Problem] = []
    open_index(tmp_path / "*.tar", root=str(tmp_path), cache_dir=None, complain=problems.append)
    assert [(problem.kind, problem.place) for problem in problems] == [("damaged_shard", str(tmp_path / "x-1.tar"))]


def test_a_single_shard_may_be_a_link(tmp_path: Path) -> None:
    write_shard(tmp_path / "blob", GOOD)
    (tmp_path / "wds").mkdir()
    (tmp_path / "wds" / "train-0.tar").symlink_to("../blob")
    index = open_index(tmp_path / "wds" / "train-0.tar", root=str(tmp_path), cache_dir=None)
    assert index.labels.tolist() == [0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_that_could_be_of_both_splits_are_asked_about(tmp_path: Path, split: str) -> None:
    for name in ("retrieval-train-0.tar", "retrieval-val-0.tar"):
        write_shard(tmp_path / name, GOOD)
    with pytest.raises(DataError, match=f"has both train and val in its name.*--{split}-split PATTERN"):
        find_split(str(tmp_path), split, "auto", "auto")
    named = find_split(str(tmp_path), split, f"*-{split}-*.tar", "auto")
    assert [file.name for file in list_shards(named)] == [f"retrieval-{split}-0.tar"]


def test_a_damaged_index_costs_a_scan(packed: Path) -> None:
    expected = read_all(open_packed(packed / "val"))
    (packed / "val" / "index.npz").write_bytes(b"nonsense")
    warnings: list[str] = []
    assert read_all(open_packed(packed / "val", warnings=warnings)) == expected
    assert "cannot be read by this version; the shards are scanned anew" in warnings[0]
    (packed / "val" / "index.npz").unlink()
    assert read_all(open_packed(packed / "val")) == expected


@pytest.mark.parametrize("blocks", [2, 20, 40])
def test_a_shard_cut_short_is_an_error(packed: Path, blocks: int) -> None:
    file = packed / "train" / "train-000002.tar"
    os.truncate(file, 512 * blocks)
    with pytest.raises(DataError, match=r"train-000002\.tar: cut short"):
        open_packed(packed / "train")


def test_a_missing_shard_is_an_error(packed: Path) -> None:
    (packed / "train" / "train-000004.tar").unlink()
    with pytest.raises(DataError, match="holds 4 of 5 shards"):
        open_packed(packed / "train")
    some = packed / "train" / "train-00000[01].tar"  # asked for
    assert len(open_index(some, root=str(packed), cache_dir=None)) == 20


def test_shards_of_different_plans_do_not_mix(packed: Path) -> None:
    shutil.copy(packed / "val" / "val-000000.tar", packed / "train" / "x.tar")
    with pytest.raises(DataError, match=r"x\.tar: was not packed together with train-000000\.tar"):
        open_packed(packed / "train")


# During a run


def spoil(folder: Path, how: str) -> str:
    file = folder / "train-000001.tar"
    if how == "vanished":
        file.unlink()
        return "cannot be read: No such file"
    if how == "cut":
        os.truncate(file, 1024)
        return "cut short"
    content = file.read_bytes()
    file.unlink()  # a new file: whoever has the old one open goes on reading it
    file.write_bytes(content[512:] + content[:512])
    return "has changed"


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("how", ["vanished", "cut", "replaced"])
def test_a_shard_spoilt_during_a_run(packed: Path, how: str, mapped: bool) -> None:
    """Its pictures are bad ones, in every process alike; those of other shards are as before."""
    index = open_packed(packed / "train")
    expected = read_all(index) if mapped else [b""]
    words = spoil(packed / "train", how)
    for i in range(10, 20):
        with pytest.raises(UnreadableImageError, match=words):
            index.read(i)
    if mapped:
        assert [index.read(i) for i in range(20, 48)] == expected[20:]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_without_a_vanished_shard(packed: Path, workers: int) -> None:
    index = open_packed(packed / "train")
    loader = TrainLoader(
        TrainPictures(Reader(index, "apply", "fast"), TRAIN, SEED), BatchPlan(48, 8, 1, 1, SEED), 0, workers, 2, CPU
    )
    healthy = list(itertools.islice(loader.start_at(0, 0), 6))
    (packed / "train" / "train-000001.tar").unlink()
    batches = list(itertools.islice(loader.start_at(0, 0), 6))
    assert [len(batch.images) for batch in batches] == [8] * 6
    assert {bad.path for batch in batches for bad in batch.bad} == {index.path(i) for i in range(10, 20)}
    same = sum(int((a.images == b.images).flatten(1).all(1).sum()) for a, b in zip(batches, healthy, strict=True))
    assert same == 38


# Indexes that say what is not so: found by scripts/fuzz.py, or while it was written


def change_index(
    folder: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None], *, deflate: bool = False
) -> None:
    """Write an index anew with something changed in what it says and in its arrays."""
    file = folder / "index.npz"
    with np.load(file) as archive:
        arrays = dict(archive)
    meta = json.loads(arrays.pop("meta").tobytes())
    change(meta, arrays)
    text = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    (np.savez_compressed if deflate else np.savez)(file, meta=text, **arrays)


def set_value(part: str, value: object) -> Callable[[dict[str, Any], dict[str, np.ndarray]], None]:
    return lambda meta, arrays: (meta if part in meta else arrays).__setitem__(part, value)


def scale(part: str, factor: int, offset: int) -> Callable[[dict[str, Any], dict[str, np.ndarray]], None]:
    def change(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays[part] = (arrays[part].astype(np.int64) * factor + offset).astype(arrays[part].dtype)

    return change


FALSE_INDEXES = {
    "no fingerprint": set_value("fingerprint", None),
    "a plan of other parts": set_value("plan", [1, 2]),
    "a plan of shards without pictures": set_value("plan", ["x", 48, 0, ""]),
    "a plan of other numbers": set_value("plan", ["x", 1e300, 10, ""]),
    "offsets below 0": scale("offsets", 1, -(10**9)),
    "sizes below 0": scale("sizes", -1, 0),
    "labels below 0": scale("labels", 1, -10),
    "shards that are not there": scale("shards", 1, 100),
    "ends beyond the names": scale("ends", 2, 0),
    "ends that go back": scale("ends", -1, 10**6),
    "fewer labels": lambda meta, arrays: arrays.update(labels=arrays["labels"][:-1]),
    "no pictures": lambda meta, arrays: arrays.update({name: value[:0] for name, value in arrays.items()}),
    "numbers of another kind": lambda meta, arrays: arrays.update(offsets=arrays["offsets"].astype(float)),
    "a table": lambda meta, arrays: arrays.update(offsets=arrays["offsets"][None]),
    "a time stamp without end": lambda meta, arrays: meta["stamps"][0].__setitem__(1, float("inf")),
}


@pytest.mark.parametrize("case", FALSE_INDEXES)
def test_an_index_that_cannot_be_costs_a_scan(packed: Path, case: str) -> None:
    expected = read_all(open_packed(packed / "train"))
    change_index(packed / "train", FALSE_INDEXES[case])
    warnings: list[str] = []
    assert read_all(open_packed(packed / "train", warnings=warnings)) == expected
    assert "cannot be read by this version; the shards are scanned anew" in warnings[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda stamps: [[f"../train/{stamps[0][0]}", *stamps[0][1:]], *stamps[1:]],
        lambda stamps: [["/etc/hostname", 1, 1], *stamps[1:]],
        lambda stamps: stamps[::-1],
        lambda stamps: stamps * 2,
    ],
)
def test_an_index_of_other_files_costs_a_scan(packed: Path, change: Callable[[list[Any]], list[Any]]) -> None:
    expected = read_all(open_packed(packed / "train"))
    change_index(packed / "train", lambda meta, arrays: meta.update(stamps=change(meta["stamps"])))
    warnings: list[str] = []
    assert read_all(open_packed(packed / "train", warnings=warnings)) == expected
    assert "is older than the shards" in warnings[0]


def test_an_index_is_no_larger_than_its_file(packed: Path) -> None:
    """A deflated index is none of ours: a few bytes of it may become gigabytes."""
    expected = read_all(open_packed(packed / "train"))
    change_index(packed / "train", lambda meta, arrays: None)
    warnings: list[str] = []
    assert read_all(open_packed(packed / "train", warnings=warnings)) == expected
    assert warnings == []
    change_index(packed / "train", lambda meta, arrays: None, deflate=True)
    assert read_all(open_packed(packed / "train", warnings=warnings)) == expected
    assert "cannot be read by this version" in warnings[0]


@pytest.mark.parametrize(
    "text", ["null", "[]", "{}", '{"format": 1}', "[" * 100_000, '{"format": 1, "num_samples": 1}']
)
def test_a_comment_that_is_no_plan(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": f"cspnet shard {text}"}):
        pass
    with pytest.raises(DataError, match="packed by another version"):
        open_index(path, root=str(tmp_path), cache_dir=None)
