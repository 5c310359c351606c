"""Tuning: every combination is measured, the fastest is told, and so is whether `auto` keeps up."""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cspnet.cli.flags import FlagParser, add_recipe_flags, read_overrides
from cspnet.errors import UserError
from cspnet.recipe.load import load_recipe
from scripts import tune

CPU = torch.device("cpu")


def run(monkeypatch: pytest.MonkeyPatch, *flags: object) -> int:
    monkeypatch.setattr(sys, "argv", ["tune.py", *map(str, flags)])
    return tune.main()


def test_every_combination(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "t.json"
    flags = ("--device", "cpu", "--size", 32, "--batch-size", 2, "--steps", 1, "--repeats", 2, "--json", file)
    assert run(monkeypatch, "cspdarknet_tiny", *flags) == 0
    printed = capsys.readouterr().out
    rates: dict[str, list[float]] = json.loads(file.read_text())["images_per_s"]
    combinations = tune.list_combinations(CPU, compiles=False)
    assert list(rates) == [tune.to_flags(values) for values in combinations]
    assert len(rates) == 4
    told = [float(match) for match in re.findall(r"^\| --train[^|]* \| ([\d,.]+) \(", printed, re.MULTILINE)]
    assert told == sorted(told, reverse=True)
    assert told == pytest.approx(sorted(map(statistics.median, rates.values()), reverse=True), abs=0.006)
    best = max(rates, key=lambda row: statistics.median(rates[row]))
    assert f"\nfastest: python3 train.py {best}\n" in printed
    assert printed.count("(auto)") == 1


def test_the_flags_are_train_pys() -> None:
    """Read back by train.py's own parser, they are the values that were measured."""
    for values in tune.list_combinations(torch.device("cuda"), compiles=True):
        parser = FlagParser(prog="train.py")
        add_recipe_flags(parser)
        overrides = read_overrides(parser.parse_all(tune.to_flags(values).split()))
        assert overrides == values
        recipe = load_recipe(None, overrides).recipe.train
        assert {key: getattr(recipe, key.removeprefix("train.")) for key in values} == values


def test_half_precision_is_for_gpus() -> None:
    assert {values["train.precision"] for values in tune.list_combinations(CPU, compiles=True)} == {
        "fp32",
        "bf16",
    }
    assert {values["train.precision"] for values in tune.list_combinations(torch.device("cuda"), compiles=True)} == {
        "fp32",
        "bf16",
        "fp16",
    }


@pytest.mark.parametrize(("is_faster", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_what_train_py_takes(is_faster: bool, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cspnet.runtime.device.is_bf16_faster", lambda device: is_faster)
    values = tune.default_combination(CPU)
    assert values == {
        "train.compile": False,
        "train.compile_mode": "default",
        "train.channels_last": True,
        "train.precision": precision,
    }
    assert values in tune.list_combinations(CPU, compiles=False)


@pytest.mark.parametrize(
    ("auto", "other", "said"),
    [
        ([4.0, 5.0, 6.0], [1.0, 2.0, 3.0], "auto is the fastest"),
        ([4.0, 5.0, 6.0], [4.5, 5.5, 6.0], "auto is within the spread of the fastest"),
        ([4.0, 5.0, 6.0], [8.0, 10.0, 12.0], "auto is slower (0.500 (0.500 to 0.500) of the fastest)"),
    ],
)
def test_the_verdict(auto: list[float], other: list[float], said: str) -> None:
    found: dict[str, Any] = {"images_per_s": {"--a": other, "--b": auto}, "auto": "--b"}
    assert tune.table_lines(found)[-1].startswith(said)


def test_batch_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "t.json"
    flags = ("--device", "cpu", "--size", 32, "--sweep", 8, 2, 4, "--steps", 1, "--repeats", 2, "--json", file)
    assert run(monkeypatch, "cspdarknet_tiny", *flags) == 0
    printed, found = capsys.readouterr().out, json.loads(file.read_text())
    rates = found["images_per_s"]
    assert list(rates) == ["2", "4", "8"]
    assert all(len(each) == 2 for each in rates.values())
    rows = re.findall(r"^\| (\d+)( \(auto\))? \| ([\d,.]+) \(", printed, re.MULTILINE)
    assert [row[0] for row in rows] == list(rates)
    assert [float(row[2]) for row in rows] == pytest.approx(
        [statistics.median(each) for each in rates.values()], abs=0.006
    )
    assert [row[0] for row in rows if row[1]] == [found["auto"]]
    assert f"\n--batch-size auto takes {found['auto']} (2: " in printed


@pytest.mark.parametrize(
    ("tried", "auto", "share"), [({8: [1.0], 16: [9.0]}, "16", "1.000"), ({8: [9.0], 16: [1.0]}, "8", "0.500")]
)
def test_what_a_run_would_find_is_judged_by_the_sweep(
    tried: dict[int, list[float]], auto: str, share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks for itself, at the start of a run, and not at the sweep."""
    monkeypatch.setattr("cspnet.cli.batch_size.try_sizes", lambda trial, sizes, host: tried)
    monkeypatch.setattr("cspnet.cli.measure_speed.take_turns", lambda work, repeats: {"8": [2.0], "16": [4.0]})
    found = tune.sweep("cspdarknet_tiny", 32, [8, 16], 1, 1, CPU)
    assert found["auto"] == auto
    assert tune.sweep_lines(found)[-1].endswith(f"{share} ({share} to {share}) of the fastest")


@pytest.mark.skipif(sys.platform != "linux", reason="nobody tells elsewhere how much there is")
def test_what_the_host_has_no_room_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be killed, and what was measured with it."""
    with pytest.raises(UserError, match=f"^--sweep {2**30}: the host's memory is unlikely to have room") as caught:
        tune.sweep("cspdarknet_tiny", 32, [8, 2**30], 1, 1, CPU)
    assert caught.value.exit_code == 2


CASES = {
    "cspdarknet_tiny --sweep 8 --batch-size 8": "--sweep has the sizes",
    "cspdarknet_tiny --sweep 8 0": "--sweep 0",
    "cspdarknet_tiny --sweep 8 --compile": "one at a time",
    "cspdarknet_tiny --repeats 0": "--repeats 0",
    "cspdarknet_tiny --size 1": "--size 1",
    "nonesuch --device cpu": "nonesuch",
    "cspdarknet_tiny --device abacus": "abacus",
    "cspdarknet_tiny --json /nowhere/x": "name a file in a folder",
    "cspdarknet_tiny --precision fp32": "--precision: unknown flag",
    "--size 32": "required: MODEL",
}


@pytest.mark.parametrize("flags", CASES)
def test_wrong_things(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=CASES[flags]) as caught:
        run(monkeypatch, *flags.split())
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
