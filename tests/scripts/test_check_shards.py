"""The check of a data set that lies in shards: what training would refuse or replace, told all at once."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.shard_files import write_shard

Run = Callable[..., subprocess.CompletedProcess[str]]


def encode(seed: int) -> bytes:
    """A JPEG of its own for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(40, 48, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def samples(first: int, count: int, label: int) -> dict[str, bytes]:
    """`count` pictures of one class with their labels."""
    return {
        name: content
        for i in range(first, first + count)
        for name, content in ((f"{i:03d}.jpg", encode(i)), (f"{i:03d}.cls", b"%d" % label))
    }


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """train/ with two shards and val/ with one, as other people write them; nothing wrong with any."""
    root = tmp_path / "data"
    write_shard(root / "train" / "a.tar", samples(0, 12, 0))
    write_shard(root / "train" / "b.tar", samples(12, 12, 1))
    write_shard(root / "val" / "c.tar", samples(100, 2, 0) | samples(102, 2, 1))
    return root


def check(fork_script: Run, folder: Path, *flags: object) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    done = fork_script("scripts/check_dataset.py", *flags, "--workers", 0, "--json", folder / "report.json")
    assert (folder / "report.json").exists(), done.stderr
    return done, json.loads((folder / "report.json").read_text())


def test_nothing_is_wrong(shards: Path, tmp_path: Path, fork_script: Run) -> None:
    for data in (shards, shards / "train", shards / "train" / "a.tar", shards / "train" / "?.tar"):
        done, report = check(fork_script, tmp_path, data)
        assert (done.returncode, done.stderr) == (0, ""), data
        assert report["broken"] == report["odd"] == 0
    done, report = check(fork_script, tmp_path, shards)
    assert [(split["name"], split["pictures"]) for split in report["splits"]] == [("train", 24), ("val", 4)]
    assert report["splits"][0]["class_counts"] == {"0": 12, "1": 12}


def test_faults_are_named_and_counted(shards: Path, tmp_path: Path, fork_script: Run) -> None:
    train, val = shards / "train", shards / "val"
    good = samples(30, 4, 0)
    faulty = {
        **good,
        "cut.jpg": encode(50)[:-300],
        "cut.cls": b"1",
        "alone.jpg": encode(51),
        "nothing.cls": b"1",
        "word.jpg": encode(52),
        "word.cls": b"cat",
        "030.png": encode(53),
    }
    write_shard(train / "c.tar", faulty, ("link.jpg", "030.jpg"))
    write_shard(train / "d.tar", samples(60, 3, 1))
    os.truncate(train / "d.tar", os.path.getsize(train / "d.tar") - 14_000)
    write_shard(val / "d.tar", samples(104, 1, 7) | {"seen.jpg": encode(0), "seen.cls": b"0"})
    done, report = check(fork_script, tmp_path, shards)
    assert (done.returncode, done.stderr) == (1, "")
    places: dict[str, list[str]] = {}
    for finding in report["findings"]:
        places.setdefault(finding["kind"], []).append(os.path.relpath(finding["place"], shards))
    assert places.pop("bad_member") == [
        f"train/c.tar: {name}" for name in ("word.cls", "030.png", "link.jpg", "alone.jpg", "nothing.cls")
    ]
    assert places == {
        "truncated": ["train/c.tar/cut.jpg"],
        "damaged_shard": ["train/d.tar"],
        "label_out_of_range": ["val/*.tar"],
        "leaked": ["train/a.tar/000.jpg"],
    }
    assert report["broken"] == 8
    assert "d.tar: cut short" in done.stdout


def test_an_old_index_and_missing_shards(shards: Path, tmp_path: Path, fork_script: Run) -> None:
    packed = tmp_path / "packed"
    assert fork_script("scripts/pack_dataset.py", shards, packed, "--shard-size", 8).returncode == 0
    done, report = check(fork_script, tmp_path, packed)
    assert (done.returncode, report["broken"], report["odd"]) == (0, 0, 0)
    (packed / "train" / "train-000001.tar").unlink()
    done, report = check(fork_script, tmp_path, packed)
    found = {finding["kind"]: finding["text"] for finding in report["findings"]}
    assert found["mixed_shards"].startswith("holds 2 of 3 shards")
    assert "train-000001.tar is gone" in found["stale_index"]
    assert done.returncode == 1
