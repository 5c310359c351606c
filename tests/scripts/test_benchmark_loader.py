"""The benchmark of input pipelines, on a few drawn pictures: every row is there, and the figures belong together."""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cspnet.data.index import open_index
from tests.processes import start_group

Run = Callable[..., subprocess.CompletedProcess[str]]
ENCODED = "40 px, quality 90"
GIVEN = "ours, shards of --packed"
NUM_PICTURES = 20


class Report(NamedTuple):
    printed: str
    markdown: str
    figures: dict[str, Any]
    packed: Path


@pytest.fixture(scope="module")
def report(picture_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """What is printed and written, with shards that were packed before."""
    folder = tmp_path_factory.mktemp("report")
    packed, file, table = folder / "packed", folder / "report.json", folder / "report.md"
    flags = ["--packed", packed, "--limit", NUM_PICTURES, "--size", 32, "--repeats", 2, "--workers", 1, 2]
    flags += ["--max-side", 40, "--json", file, "--markdown", table]
    for command in (
        ["scripts/pack_dataset.py", picture_tree, packed, "--splits", "train", "--max-side", 35],
        ["scripts/benchmark_loader.py", picture_tree, *flags],
    ):
        process = start_group(*command)
        printed, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
    return Report(printed, table.read_text(), json.loads(file.read_text()), packed)


def chosen_pictures(tree: Path) -> list[Path]:
    """20 of the 48 training pictures, evenly."""
    paths = sorted((tree / "train").rglob("*.jpg"))
    assert len(paths) == 48
    return [paths[i * 48 // NUM_PICTURES] for i in range(NUM_PICTURES)]


def test_every_row_is_there(report: Report) -> None:
    printed, figures = report.printed, report.figures
    assert report.markdown == printed
    assert (figures["pictures"], figures["size_px"], figures["repeats"]) == (NUM_PICTURES, 32, 2)
    assert "pillow" in figures["machine"]
    assert printed.startswith(figures["machine"] + "\n")
    rates = dict(figures["images_per_s_per_core"])
    for name, library in (("DALI, CPU, fused crop", "nvidia.dali"), (f"FFCV, {ENCODED}", "ffcv")):
        found = rates.pop(name)
        parent = library.partition(".")[0]
        if importlib.util.find_spec(parent) is None or importlib.util.find_spec(library) is None:
            assert found == "not installed"
            assert f"| {name} | | not installed | | |" in printed
    assert list(rates) == [
        "timm's transform",
        "torchvision's reference",
        "ours, loose",
        "ours, loose, data.shrink false",
        "ours, loose, data.decoder pillow",
        "ours, shards, original bytes",
        "limit: decoding alone",
        f"ours, shards, {ENCODED}",
        f"limit: decoding alone, {ENCODED}",
        GIVEN,
        "limit: decoding alone, --packed",
    ]
    for name, values in rates.items():
        assert len(values) == 2
        assert all(rate > 0 for rate in values)
        size = f"{figures['bytes_a_picture'][name] / 1000:,.1f}"
        assert (
            f"| {name} | {size} | {statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"
            in printed
        )


def test_ratios_are_within_a_round(report: Report) -> None:
    rates, limits = report.figures["images_per_s_per_core"], report.figures["limits"]
    assert limits[GIVEN] == "limit: decoding alone, --packed"
    (line,) = (line for line in report.printed.splitlines() if line.startswith(f"| {GIVEN} |") and line.count("|") == 6)
    cells = [cell.strip() for cell in line.split("|")]
    for cell, base, factor, digits in ((cells[4], "timm's transform", 1, 2), (cells[5], limits[GIVEN], 100, 0)):
        low, high = sorted(factor * own / other for own, other in zip(rates[GIVEN], rates[base], strict=True))
        assert cell == f"{(low + high) / 2:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def test_the_same_pictures_for_all(report: Report, picture_tree: Path) -> None:
    sizes = report.figures["bytes_a_picture"]
    chosen = chosen_pictures(picture_tree)
    mean = sum(path.stat().st_size for path in chosen) / NUM_PICTURES
    for name in ("timm's transform", "ours, loose", "ours, shards, original bytes", "limit: decoding alone"):
        assert sizes[name] == mean
    packed = open_index(report.packed / "train" / "*.tar", root=str(report.packed), cache_dir=None)
    names = {path.relative_to(picture_tree / "train").as_posix() for path in chosen}
    inside = [i for i in range(len(packed)) if "/".join(packed.path(i).split("/")[-2:]) in names]
    assert len(inside) == NUM_PICTURES
    assert sizes[GIVEN] == sum(len(packed.read(i)) for i in inside) / NUM_PICTURES
    assert report.figures["packed"] == packed.encoding


def test_parts_make_up_the_whole(report: Report) -> None:
    parts = report.figures["cpu_ms_by_part"]
    assert list(parts) == ["ours, loose", f"ours, shards, {ENCODED}", GIVEN]
    sums = [line for line in report.printed.splitlines() if line.startswith("| sum |")]
    for number, by_part in enumerate(parts.values()):
        assert list(by_part) == ["read", "header", "decode", "crop and resize", "draws, flip, copy", "the rest"]
        assert all(len(values) == 2 and min(values) > 0 for values in by_part.values())
        whole = sum(statistics.median(values) for values in by_part.values())  # of two, the median is the mean
        assert float(sums[0].split("|")[number + 2].split()[0]) == pytest.approx(whole, abs=6e-4)


def test_pictures_beside_pillows(report: Report) -> None:
    errors = report.figures["grey_levels_apart"]
    assert errors["training, data.shrink false"]["most"] <= 1  # torch's resizing beside Pillow's
    assert all(0 <= apart["mean"] <= apart["99 %"] <= apart["most"] for apart in errors.values())


def test_whole_loaders(report: Report) -> None:
    whole = report.figures["whole_loaders"]
    assert list(whole) == ["1", "2"]
    for count, loaders in whole.items():
        assert list(loaders) == ["timm's loader", "ours, loose", f"ours, shards, {ENCODED}", GIVEN]
        for name, found in loaders.items():
            rates, alone = found["images_per_s"], found["images_per_s_alone"]
            assert (len(rates), len(alone)) == (2, 2)
            cores = [100 * value / (int(count) * one) for value, one in zip(rates, alone, strict=True)]
            assert found["percent_of_cores"] == pytest.approx(cores)
            assert f"| {name} | {count} | {statistics.median(found['images_per_s']):,.0f} (" in report.printed


def test_lists_and_links(tmp_path: Path, picture_tree: Path, fork_script: Run) -> None:
    picture = chosen_pictures(picture_tree)[0]
    (tmp_path / "by another name.jpg").symlink_to(picture)
    (tmp_path / "some.txt").write_text("by another name.jpg 0\n")
    for data in (tmp_path, tmp_path / "some.txt"):
        flags = ("--size", 32, "--repeats", 1, "--workers", 1, "--json", tmp_path / "report.json")
        done = fork_script("scripts/benchmark_loader.py", data, *flags)
        assert (done.returncode, done.stderr) == (0, "")
        figures = json.loads((tmp_path / "report.json").read_text())
        assert figures["pictures"] == 1
        assert figures["bytes_a_picture"]["ours, loose"] == picture.stat().st_size
        assert figures["packed"] is None
        assert GIVEN not in done.stdout


def test_wrong_things_end_in_one_line(tmp_path: Path, picture_tree: Path, fork_script: Run, report: Report) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "y.jpg").symlink_to(chosen_pictures(picture_tree)[0])
    same = tmp_path / "same"
    cases: list[tuple[tuple[object, ...], str]] = [
        ((tmp_path / "empty",), "no pictures below it"),
        ((tmp_path / "nowhere",), "expected a folder of pictures or a list file"),
        ((next(report.packed.glob("train/*.tar")),), "shards go with --packed"),
        ((tmp_path / "broken",), "x.jpg: cannot be read"),
        ((picture_tree, "--packed", tmp_path / "empty"), "no shards there"),
        ((tmp_path / "other", "--packed", report.packed), "has no y.jpg"),
        ((picture_tree, "--size", 0), "--size 0: use a number from 1"),
        ((picture_tree, "--workers", 1, 0), "--workers 0"),
        ((picture_tree, "--quality", 101), "--quality 101: use a number from 1 to 100"),
        ((picture_tree, "--json", tmp_path / "nowhere" / "x.json"), "name a file in a folder that is there"),
        ((picture_tree, "--json", same, "--markdown", same), "would write the same file"),
    ]
    for flags, words in cases:
        done = fork_script("scripts/benchmark_loader.py", *flags)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert words in line
