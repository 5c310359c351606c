"""Rows beside their baselines, as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io

from cspnet.models.complexity import Complexity
from cspnet.models.zoo import ZOO, Published
from cspnet.reporting.model_table import (
    ModelRow,
    Speed,
    add_speeds,
    format_csv,
    format_markdown,
    format_text,
    group_names,
)

BASE = ModelRow("base", "exact", 256, Complexity(41_600_000, 40_000_000, 10**9, 2.0, 10, 20), None)
PARTIAL = ModelRow(
    "partial",
    "exact",
    256,
    Complexity(27_000_000, 26_400_000, 6 * 10**8, 1.4, 5, 10),
    Published(26.4, 1.4, 77.2, 93.6, "their README"),
    BASE,
)
SPEEDS = {
    "base": Speed((80.0, 100.0, 90.0), (10.0, 10.0, 10.0), 2**31, "a GPU"),
    "partial": Speed((120.0, 150.0, 40.0), (8.0, 8.0, 8.0), None, "a GPU"),
}


def read_csv(text: str) -> dict[str, dict[str, str]]:
    return {row["model"]: row for row in csv.DictReader(io.StringIO(text))}


def test_a_row_says_how_much_less_than_its_baseline() -> None:
    text = format_text([BASE, PARTIAL])
    base, partial, note = text.splitlines()[1:]
    assert "%" not in base
    assert "26.40 (-34 %)" in partial
    assert "1.400 (-30 %)" in partial
    assert "27.00 (-35 %)" in partial and "0.600 (-40 %)" in partial and partial.count("0.00 (-50 %)") == 2
    assert "77.2 / 93.6 [1]" in partial
    assert note == "[1] their README"
    assert "images/s" not in text


def test_markdown_has_the_same_cells() -> None:
    lines = format_markdown([BASE, PARTIAL]).splitlines()
    assert {line.count("|") for line in lines[:4]} == {13}
    assert set(lines[1]) <= set("|- ")
    assert "| 26.40 (-34 %) |" in lines[3]


def test_speeds_are_compared_repeat_by_repeat() -> None:
    rows = add_speeds([BASE, PARTIAL], SPEEDS)
    text = format_text(rows)
    assert "120 (40 to 150) x1.50" in text  # the median of 120 / 80, 150 / 100 and 40 / 90, not 120 / 90
    assert "8 (8 to 8) x0.80" in text
    assert "2.00" in text.splitlines()[1]
    assert "not measured" in text.splitlines()[2]
    assert text.splitlines()[-1].endswith("a GPU")
    table = read_csv(format_csv(rows))
    assert (table["partial"]["forward_ratio"], table["partial"]["training_ratio"]) == ("1.5", "0.8")
    assert (table["base"]["forward_ratio"], table["base"]["peak_memory_bytes"]) == ("", str(2**31))


def test_csv_holds_whole_numbers_and_fractions() -> None:
    table = read_csv(format_csv([BASE, PARTIAL]))
    assert (table["base"]["macs"], table["base"]["baseline"], table["base"]["published_acc1"]) == ("1000000000", "", "")
    assert float(table["partial"]["conv_weights_ratio"]) == 0.66
    assert (table["partial"]["published_acc5"], table["partial"]["repeats"]) == ("93.6", "")
    ratios = [float(table["partial"][f"{name}_ratio"]) for name in ("params", "macs", "bflops", "activations", "cio")]
    assert ratios == [27 / 41.6, 0.6, 0.7, 0.5, 0.5]


def test_peak_memory_is_compared_where_both_have_it() -> None:
    speeds = {**SPEEDS, "partial": Speed((1.0,) * 3, (1.0,) * 3, 3 * 2**30, "a GPU")}
    rows = add_speeds([BASE, PARTIAL], speeds)
    assert "3.00 x1.50" in format_text(rows)
    table = read_csv(format_csv(rows))
    assert (table["base"]["peak_memory_ratio"], table["partial"]["peak_memory_ratio"]) == ("", "1.5")


def test_baselines_join_and_come_first() -> None:
    assert group_names(["timm/resnet50", "cspdarknet_tiny"]) == [["timm/resnet50"], ["cspdarknet_tiny"]]
    assert group_names(["csdarknet53", "csresnet50", "darknet53"]) == [
        ["darknet53", "csdarknet53"],
        ["resnet50_darknet", "csresnet50"],
    ]


def test_baselines_are_in_the_zoo_and_have_the_same_size() -> None:
    pairs = [(entry, ZOO[entry.baseline]) for entry in ZOO.values() if entry.baseline]
    assert pairs
    assert all(entry.input_px == baseline.input_px for entry, baseline in pairs)
