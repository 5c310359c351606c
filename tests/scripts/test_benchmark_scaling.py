"""How speed grows with processes: the estimate beside numbers made by hand, the page of it, and a measurement."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cspnet.cli.estimate_scaling import BUCKET_BYTES, Assumptions, estimate, exchange_seconds
from cspnet.cli.measure_scaling import counts_up_to
from cspnet.errors import UserError
from scripts import benchmark_scaling
from tests.conftest import ROOT
from tests.processes import members_of, start_group

Run = Callable[..., subprocess.CompletedProcess[str]]

# 100 images at 1000 a second: a step of 100 ms. Four buckets of gradients.
ASSUMED = Assumptions(
    images_per_s=1000.0,
    batch_size=100,
    gradient_bytes=4 * BUCKET_BYTES,
    link_bytes_per_s=40 * BUCKET_BYTES,
    network_bytes_per_s=20 * BUCKET_BYTES,
    devices_per_machine=4,
    backward_share=0.5,
    picture_bytes=1000.0,
)


def run(monkeypatch: pytest.MonkeyPatch, *flags: object) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmark_scaling.py", *map(str, flags)])
    return benchmark_scaling.main()


def test_one_device_exchanges_nothing() -> None:
    found = estimate(ASSUMED, 1)
    assert (found.step_s, found.exchange_s, found.exposed_s, found.images_per_s) == (0.1, 0.0, 0.0, 1000.0)
    assert (found.efficiency, found.global_batch, found.data_bytes_per_s, found.limits) == (1.0, 100, 1e6, ())


def test_by_hand() -> None:
    # Two: each sends 2 * 1/2 of 4 buckets at 40 a second: 100 ms, of which 50 hide behind half of a step.
    two = estimate(ASSUMED, 2)
    assert two.exchange_s == pytest.approx(0.100)
    assert two.exposed_s == pytest.approx(0.050)
    assert two.images_per_s == pytest.approx(200 / 0.150)
    assert two.efficiency == pytest.approx(0.1 / 0.15)
    assert (two.global_batch, two.limits) == (200, ("network",))
    # Four: 2 * 3/4 of 4 buckets: 150 ms. Eight are two machines: 2 * 7/8 of 4 buckets at 20 a second: 350 ms.
    assert estimate(ASSUMED, 4).exposed_s == pytest.approx(0.100)
    eight = estimate(ASSUMED, 8)
    assert eight.exchange_s == pytest.approx(0.350)
    assert eight.images_per_s == pytest.approx(800 / 0.400)
    assert eight.data_bytes_per_s == pytest.approx(2000 / 2 * 1000)  # half of the pictures in each machine
    # A latency of 1 ms comes once in each of 14 rounds.
    assert exchange_seconds(replace(ASSUMED, latency_s=0.001), 8) == pytest.approx(0.364)


def test_the_last_bucket_is_never_hidden() -> None:
    fast = replace(ASSUMED, link_bytes_per_s=400 * BUCKET_BYTES)
    assert estimate(fast, 2).exchange_s == pytest.approx(0.010)
    assert estimate(fast, 2).exposed_s == pytest.approx(0.0025)  # one of four
    small = replace(fast, gradient_bytes=BUCKET_BYTES / 2)
    assert estimate(small, 2).exposed_s == estimate(small, 2).exchange_s  # all of one


def test_what_holds_it_back() -> None:
    free = replace(ASSUMED, link_bytes_per_s=1e15, network_bytes_per_s=1e15)
    assert estimate(free, 8).limits == ()
    assert estimate(replace(free, largest_batch=799), 8).limits == ("batch size",)
    slow = replace(free, reading_images_per_s=1500.0)  # of each of two machines
    found = estimate(slow, 8)
    assert (found.images_per_s, found.limits) == (3000.0, ("input",))
    assert found.efficiency == pytest.approx(3 / 8)
    assert estimate(replace(ASSUMED, reading_images_per_s=1.0, largest_batch=1), 8).limits == (
        "input",
        "network",
        "batch size",
    )


@pytest.mark.parametrize(
    "wrong",
    [{"images_per_s": 0.0}, {"images_per_s": float("nan")}, {"reading_images_per_s": 0.0}, {"batch_size": 0}]
    + [{"backward_share": 1.0}, {"latency_s": float("nan")}, {"picture_bytes": 0.0}, {"link_bytes_per_s": -1.0}],
)
def test_what_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="an estimate needs"):
        replace(ASSUMED, **wrong)


def test_the_page_says_what_the_script_computes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "SCALING.md").read_text()
    commands = re.findall(r"`python3 scripts/benchmark_scaling\.py (.*--estimate.*)`", page)
    assert len(commands) == 5
    for command in commands:
        assert run(monkeypatch, *shlex.split(command)) == 0
        printed = capsys.readouterr().out
        assert printed.startswith("An estimate, nothing measured: ")
        assert f"`\n\n{printed}\n" in page


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_what_can_be_told_is_told_where_the_rest_cannot_be_written(tmp_path: Path, run_script: Run) -> None:
    assumed = ("--estimate", "--images-per-s", 1000, "--bandwidth-gbs", 200)
    text, figures = tmp_path / "table.md", tmp_path / "figures.json"
    done = run_script("scripts/benchmark_scaling.py", *assumed, "--json", "/dev/full", "--markdown", text)
    assert done.returncode == 2
    assert done.stderr == "benchmark_scaling.py: error: /dev/full: cannot write the result: No space left on device\n"
    assert done.stdout == text.read_text()
    command = [sys.executable, "scripts/benchmark_scaling.py", *map(str, assumed), "--json", str(figures)]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr == "benchmark_scaling.py: error: the output: No space left on device\n"
    assert list(json.loads(figures.read_text())["estimates"]) == ["1", "8", "64", "512"]


def test_counts() -> None:
    assert [counts_up_to(n) for n in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes(number: signal.Signals, tmp_path: Path) -> None:
    """A terminal sends it to all of them, while they wait for each other."""
    flags = ("--device", "cpu", "--size", 32, "--batch-size", 2, "--processes", 2, "--repeats", 1000)
    command = ("scripts/benchmark_scaling.py", "cspdarknet_tiny", *flags)
    process = start_group(*command, variables={"TMPDIR": str(tmp_path)}, forked=False)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("cspnet-scaling-*/meeting")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, number)
    told = process.communicate(timeout=60)
    said = {signal.SIGINT: (130, "benchmark_scaling.py: interrupted\n"), signal.SIGTERM: (-signal.SIGTERM, "")}
    assert (process.returncode, *told) == (said[number][0], "", said[number][1])
    while members_of(process.pid):
        assert time.monotonic() < deadline + 60
        time.sleep(0.05)


def test_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two processes on two cores, or on what is said to be two; the figures belong together."""
    monkeypatch.setattr("cspnet.runtime.processes.count_cores", lambda: 2)
    file = tmp_path / "t.json"
    flags = ("--device", "cpu", "--size", 32, "--batch-size", 4, "--steps", 1, "--repeats", 2, "--json", file)
    assert run(monkeypatch, "cspdarknet_tiny", *flags) == 0
    printed = capsys.readouterr().out
    figures = json.loads(file.read_text())["processes"]
    assert list(figures) == ["1", "2"]
    alone = figures["1"]["images_per_s"]["exchanging"]
    for count, found in figures.items():
        together, quiet = found["images_per_s"]["exchanging"], found["images_per_s"]["quiet"]
        assert len(together) == len(quiet) == 2 and min(together + quiet) > 0
        efficiency = [value / (int(count) * one) for value, one in zip(together, alone, strict=True)]
        assert found["efficiency"] == pytest.approx(efficiency)
        assert f"| {count} | {statistics.median(together):,.2f} (" in printed
    assert figures["1"]["communication_percent"] is None
    rates = figures["2"]["images_per_s"]
    seconds = [(1 / a, 1 / b) for a, b in zip(rates["exchanging"], rates["quiet"], strict=True)]
    assert figures["2"]["communication_percent"] == pytest.approx([100 * (a - b) / a for a, b in seconds])


CASES = {
    "--processes 100000": "--processes 100000: use a number",
    "--processes 9999": "and each process takes one",
    "--processes 0": "--processes 0: use a number from 1",
    "nonesuch --processes 1": "nonesuch",
    "--device=": "--device: an empty value was given",
    "--estimate": "needs --images-per-s",
    "--estimate --images-per-s 9 --bandwidth-gbs 9 --device cpu": "--device: goes with measuring",
    "--estimate --images-per-s 9 --bandwidth-gbs 9 --picture-kb 0": "pictures of some bytes",
    "--estimate --images-per-s 10": "needs --bandwidth-gbs",
    "--estimate --images-per-s 10 --bandwidth-gbs 0": "above 0",
    "--estimate --images-per-s 10 --bandwidth-gbs 1 --network-gbs 0": "above 0",
    "--estimate --images-per-s 10 --bandwidth-gbs 1 --gpus 0": "--gpus 0: use a number from 1",
    "--estimate --images-per-s ten --bandwidth-gbs 1": "invalid float value",
    "--gpus 8": "goes with --estimate",
    "--picture-kb 8": "goes with --estimate",
    "--estimate --processes 2": "are measured",
    "--device meta": "meta",
}


@pytest.mark.parametrize("flags", CASES)
def test_wrong_things(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=CASES[flags]) as caught:
        run(monkeypatch, *flags.split())
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
