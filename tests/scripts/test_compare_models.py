"""The authors' table comes out of our networks, and wrong wishes are refused in one line."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.models.darknet_cfgs import CFGS
from tests.processes import start_group

Run = Callable[..., subprocess.CompletedProcess[str]]
Table = dict[str, dict[str, str]]

# (name, #Parameter in millions, BFLOPs, Acc@1 / Acc@5) as printed.
# Source: the README of WongKinYiu/CrossStagePartialNetworks.
README = [
    ("darknet53", "41.57", "18.57", "77.2 / 93.8"),
    ("csdarknet53", "27.61", "13.07", "77.2 / 93.6"),
    ("csdarknet53_elastic", None, "7.74", "76.1 / 93.3"),
    ("resnet50_darknet", "22.73", "9.74", "75.8 / 92.9"),
    ("csresnet50", "21.57", "8.97", "76.6 / 93.3"),
    ("csresnet50_elastic", None, "9.36", "76.8 / 93.5"),
    ("resnext50_darknet", "22.19", "10.11", "77.8 / 94.2"),
    ("csresnext50", "20.50", "7.93", "77.9 / 94.0"),
    ("csresnext50_elastic", None, "5.45", "77.2 / 93.8"),
    # 1.0155 in convolutions and 0.0011 in pools: Darknet counts local average pools too (maxpool_layer.c makes both).
    ("peleenet", "2.79", "1.017", "70.7 / 90.0"),
    ("mobilenet_v2_darknet", "3.47", "0.858", "67.0 / 87.7"),
    ("csmobilenet_v2", "2.51", "0.764", "67.7 / 88.3"),
    ("resnet10", "5.24", "2.273", "63.5 / 85.0"),
]
# (name, change of #Parameter, change of BFLOPs) in percent, as printed there.
CHANGES = [
    ("csdarknet53", -34, -30),
    ("csdarknet53_elastic", None, -58),
    ("csresnet50", -5, -8),
    ("csresnet50_elastic", None, -4),
    ("csresnext50", -8, -22),
    ("csresnext50_elastic", None, -46),
    ("csmobilenet_v2", -28, -11),
]


def read_csv(file: Path) -> Table:
    with file.open(newline="") as lines:
        return {row["model"]: row for row in csv.DictReader(lines)}


@pytest.fixture(scope="module")
def zoo_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The whole zoo, each network at its own size, as CSV and as Markdown. Read only."""
    folder = tmp_path_factory.mktemp("table")
    files = folder / "zoo.csv", folder / "zoo.md"
    process = start_group("scripts/compare_models.py", "--csv", files[0], "--markdown", files[1])
    printed, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert len(printed.splitlines()) > len(read_csv(files[0]))
    return files


@pytest.fixture(scope="module")
def zoo_table(zoo_files: tuple[Path, Path]) -> Table:
    return read_csv(zoo_files[0])


def test_the_table_in_the_documents_is_the_current_one(zoo_files: tuple[Path, Path]) -> None:
    text = (ROOT / "docs" / "MODELS.md").read_text()
    assert text.split("-->\n")[1].startswith(zoo_files[1].read_text() + "<!-- end of table")


def agrees(counted: float, printed: str) -> bool:
    """Less than one unit of the last digit apart: the README rounds some figures and cuts others (9.749 -> 9.74)."""
    return abs(counted - float(printed)) < 10.0 ** -len(printed.split(".")[1])


@pytest.mark.parametrize(("name", "params_m", "bflops", "accuracy"), README)
def test_the_readmes_table_of_the_authors_repository_is_reproduced(
    zoo_table: Table, name: str, params_m: str | None, bflops: str, accuracy: str
) -> None:
    row = zoo_table[name]
    assert f"{row['published_acc1']} / {row['published_acc5']}" == accuracy
    if params_m is not None:
        assert agrees(int(row["conv_weights"]) / 1e6, params_m), row["conv_weights"]
    assert agrees(float(row["bflops"]), bflops), row["bflops"]


def test_peleenets_weights_to_the_last_one(zoo_table: Table) -> None:
    """2.79152 million, worked out from PeleeNet's description. Source: arXiv 1804.06882, table 1."""
    assert int(zoo_table["peleenet"]["conv_weights"]) == 2_791_520


@pytest.mark.parametrize(("name", "params", "bflops"), CHANGES)
def test_the_readmes_changes_are_reproduced(zoo_table: Table, name: str, params: int | None, bflops: int) -> None:
    row = zoo_table[name]
    if params is not None:
        assert round(100 * (float(row["conv_weights_ratio"]) - 1)) == params
    assert round(100 * (float(row["bflops_ratio"]) - 1)) == bflops


def test_published_figures_of_the_zoo_are_its_own(zoo_table: Table) -> None:
    compared = [row for row in zoo_table.values() if row["published_bflops"] and row["status"] == "exact"]
    assert compared
    for row in compared:
        assert float(row["bflops"]) == pytest.approx(float(row["published_bflops"]), rel=2e-3), row["model"]
    for row in (row for row in zoo_table.values() if row["published_conv_weights_m"] and row["status"] == "exact"):
        conv_weights_m = int(row["conv_weights"]) / 1e6
        assert conv_weights_m == pytest.approx(float(row["published_conv_weights_m"]), abs=0.01), row["model"]


def test_the_readmes_rows_that_have_no_name_here_come_from_their_cfg_files(fork_script: Run, tmp_path: Path) -> None:
    printed = {"darknet": ("7.31", "0.96"), "enetb0": ("4.81", "0.915")}
    names = []
    for name in printed:
        (tmp_path / f"{name}.cfg").write_text(CFGS[name]())
        names.append(f"cfg/{tmp_path / name}.cfg")
    done = fork_script("scripts/compare_models.py", *names, "--csv", tmp_path / "t.csv")
    assert done.returncode == 0, done.stderr
    for row, (params_m, bflops) in zip(read_csv(tmp_path / "t.csv").values(), printed.values(), strict=True):
        assert agrees(int(row["conv_weights"]) / 1e6, params_m), row["conv_weights"]
        assert agrees(float(row["bflops"]), bflops), row["bflops"]


def test_a_baseline_joins_and_other_libraries_networks_are_taken(fork_script: Run, tmp_path: Path) -> None:
    files = tmp_path / "t.csv", tmp_path / "t.md"
    done = fork_script(
        *("scripts/compare_models.py", "csdarknet53", "timm/resnet18", "csdarknet5?", "--size", 128),
        *("--csv", files[0], "--markdown", files[1]),
    )
    assert done.returncode == 0, done.stderr
    table = read_csv(files[0])
    assert list(table) == ["darknet53", "csdarknet53", "timm/resnet18"]
    assert {row["input_px"] for row in table.values()} == {"128"}
    assert 4 * float(table["darknet53"]["bflops"]) == pytest.approx(18.576, rel=1e-3)  # a quarter of the pixels
    assert "| csdarknet53 | darknet53 | exact | 128 |" in files[1].read_text()
    assert "(-34 %)" in done.stdout


def test_a_cfg_file_is_counted_at_its_own_size(fork_script: Run, tmp_path: Path) -> None:
    layers = (
        "[convolutional]\nfilters=4\nsize=3\npad=1\nactivation=leaky\n[avgpool]\n[convolutional]\nfilters=9\nsize=1\n"
    )
    (tmp_path / "tiny.cfg").write_text(f"[net]\nheight=20\nwidth=20\nchannels=1\n{layers}[softmax]\n")
    done = fork_script("scripts/compare_models.py", f"cfg/{tmp_path}/tiny.cfg", "--csv", tmp_path / "t.csv")
    assert done.returncode == 0, done.stderr
    (row,) = read_csv(tmp_path / "t.csv").values()
    assert (row["input_px"], row["status"]) == ("20", "")
    assert int(row["conv_weights"]) == 9 * 4 + 4 * 1000
    assert int(row["macs"]) == 9 * 4 * 400 + 4 * 1000


@pytest.mark.slow
def test_measuring_a_small_network(fork_script: Run, tmp_path: Path) -> None:
    done = fork_script(
        *("scripts/compare_models.py", "cspdarknet_tiny", "--size", 32, "--csv", tmp_path / "t.csv"),
        *("--measure", "--batch-size", 4, "--repeats", 3, "--steps", 1, "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    row = read_csv(tmp_path / "t.csv")["cspdarknet_tiny"]
    for what in ("forward", "training"):
        low, middle, high = (float(row[f"{what}_images_per_s{end}"]) for end in ("_min", "", "_max"))
        assert 0 < low <= middle <= high
    assert float(row["forward_images_per_s"]) > float(row["training_images_per_s"])
    assert (row["repeats"], row["peak_memory_bytes"]) == ("3", "")
    assert "not measured" in done.stdout
    assert "batch 4, 3 repeats of 1 batches" in row["conditions"]


REFUSED = {
    "no match": (["csdarknet35"], "'csdarknet35' matches no model; did you mean csdarknet53?"),
    "no match at all": (["zzz*"], "there are"),
    "no such timm model": (["timm/no_such_model"], "timm"),
    "size 0": (["--size", "0"], "--size 0: use a number from 8"),
    "too small for it": (
        ["torchvision/alexnet", "--size", "32"],
        "model torchvision/alexnet: cannot take a picture of 3 x 32 x 32",
    ),
    "not a number": (["--size", "big"], "--size"),
    "no folder": (["--csv", "no/such/folder/t.csv"], "no folder"),
    "a folder": (["--markdown", "."], "is not a file"),
    "no name": (["--csv", ""], "empty path"),
    "repeats without measuring": (["--repeats", "3"], "add --measure"),
    "no repeats": (["--measure", "--repeats", "0"], "--repeats 0: use a number from 1"),
    "unknown precision": (["--measure", "--precision", "fp8"], "--precision fp8: use auto"),
    "unknown device": (["cspdarknet_tiny", "--measure", "--device", "abacus"], "abacus"),
    "unknown flag": (["--meassure"], "did you mean --measure?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_wish_is_refused_in_one_line(fork_script: Run, case: str) -> None:
    flags, said = REFUSED[case]
    done = fork_script("scripts/compare_models.py", *flags)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert said in done.stderr


def test_help_is_complete(fork_script: Run) -> None:
    done = fork_script("scripts/compare_models.py", "--help")
    assert done.returncode == 0
    for flag in ("--size", "--measure", "--csv", "--markdown", "--device", "--batch-size", "--repeats", "BFLOPs"):
        assert flag in done.stdout
