"""The benchmark of training beside timm's: rows do the same work, figures belong together."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cspnet.cli.measure_speed import Trial, take_turns
from cspnet.cli.measure_training import (
    Apart,
    ApartError,
    LoopOfOneBatch,
    OurUpdates,
    measure_peak,
    recipe_of,
    time_apart,
)
from cspnet.errors import UserError
from scripts import benchmark_train
from tests.conftest import ROOT

SMALL = "timm/test_resnet"  # in the place of cspresnet50, which takes a minute
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _beside_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))  # where the script finds timm_loop


def run(monkeypatch: pytest.MonkeyPatch, *flags: object) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmark_train.py", *map(str, flags)])
    return benchmark_train.main()


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.2f} ({min(values):,.2f} to {max(values):,.2f})"


def fork_instead_of_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the processes of the rows have what is patched here, and no imports to wait for."""
    forking = multiprocessing.get_context("fork")
    monkeypatch.setattr("cspnet.cli.measure_training.multiprocessing.get_context", lambda kind: forking)


def test_rows_and_ratios(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def compile_nothing(model: object, **how: object) -> None:
        raise RuntimeError("no compiler\nfor miles")

    started: list[str] = []
    start = Apart.__init__

    def start_alone(apart: Apart, make: Any) -> None:
        assert multiprocessing.active_children() == []  # nobody else's memory is beside it
        started.append(make.func.__name__)
        start(apart, make)

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(Apart, "__init__", start_alone)
    fork_instead_of_starting(monkeypatch)
    files = tmp_path / "t.json", tmp_path / "t.md"
    flags = ("--device", "cpu", "--size", 32, "--batch-size", 4, "--steps", 1, "--repeats", 2, "--json", files[0])
    assert run(monkeypatch, SMALL, *flags, "--without-memory", "--markdown", files[1]) == 0
    printed = capsys.readouterr().out
    assert files[1].read_text() == printed
    report = json.loads(files[0].read_text())
    assert printed.startswith(report["machine"]) and "timm 1." in report["machine"]
    found = report["rows"][SMALL]
    rates: dict[str, list[float]] = found["images_per_s"]
    assert [row for row in rates if row.startswith("timm")] == [
        "timm, its defaults",
        "timm, channels_last",
        "timm, channels_last, amp bf16",
    ]
    assert len([row for row in rates if row.startswith("ours")]) == 2  # by default, and in the other precision
    medians = {row: statistics.median(values) for row, values in rates.items() if row.startswith("timm")}
    best = found["best_of_timm"]
    assert medians[best] == max(medians.values())
    for row in ("timm, channels_last, compile", "timm, channels_last, amp bf16, compile", "ours, compile"):
        assert found["missing"].pop(row) == "does not compile here: RuntimeError: no compiler"
        assert f"| {row} | does not compile here" in printed
    assert found["missing"] == {}
    assert len(started) == 8 + 5 * 2  # each row's first steps, and two rounds of those that have some
    for row, values in rates.items():
        assert len(values) == 2 and min(values) > 0
        (line,) = (line for line in printed.splitlines() if line.startswith((f"| {row} |", f"| {row} (")))
        assert f"| {spread(values)} |" in line
        for base in ("timm, its defaults", best):
            assert f"| {spread([a / b for a, b in zip(values, rates[base], strict=True)])} |" in line


def small(batch_size: int) -> OurUpdates:
    return OurUpdates(recipe_of(SMALL, 32, batch_size), Trial(CPU, "fp32", batch_size, 1, 1))


def fail(kind: str) -> OurUpdates:
    if kind == "death":
        os._exit(3)
    raise UserError("no such thing") if kind == "user" else ValueError("no\nsense")


def test_a_contender_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_instead_of_starting(monkeypatch)
    here = small(8)
    here.network.train()
    apart = Apart(partial(small, 8))
    try:
        assert apart.first_losses == pytest.approx([float(here.update()) for _ in range(2)], rel=1e-4)
        assert apart.time_training() > 0
    finally:
        apart.close()
    with pytest.raises(UserError, match="no such thing"):
        Apart(partial(fail, "user"))
    with pytest.raises(ApartError, match="ValueError: no\nsense"):
        Apart(partial(fail, "other"))
    with pytest.raises(UserError, match="has died"):
        Apart(partial(fail, "death"))
    apart = Apart(partial(small, 8))
    apart._process.kill()
    apart._process.join()
    with pytest.raises(UserError, match="has died"):  # as the kernel kills one where memory is full
        apart.time_training()
    apart.close()
    assert time_apart(partial(small, 8)) > 0
    assert multiprocessing.active_children() == []


class Sleeper:
    """A contender whose round takes a minute."""

    def first_steps(self) -> list[float]:
        return []

    def time_training(self) -> float:
        time.sleep(60)
        return 1.0


def test_an_interruption_ends_a_contender_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_instead_of_starting(monkeypatch)
    apart = Apart(Sleeper)
    assert apart._process.pid
    os.kill(apart._process.pid, signal.SIGINT)  # a terminal sends it to all of them; that one is deaf to it
    interruption = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in this process leaves it by force
    try:
        with pytest.raises(KeyboardInterrupt):
            interruption.start()
            apart.time_training()
    finally:
        signal.signal(signal.SIGINT, before)
    apart.close()
    assert apart._process.exitcode == 1


def test_both_train_alike() -> None:
    """From the same weights, in float32, both come by the same losses for some steps: the same work is timed."""
    from timm_loop import TimmSettings, TimmUpdates

    trial = Trial(CPU, "fp32", 8, 1, 1)
    ours = OurUpdates(recipe_of(SMALL, 32, 8), trial)
    weights = {key: value.clone() for key, value in ours.model.state_dict().items()}
    theirs = TimmUpdates(SMALL, 32, trial, TimmSettings(channels_last=True), weights)
    ours.network.train(), theirs.network.train()
    losses = [(float(ours.update()), float(theirs.update())) for _ in range(4)]
    assert losses == [(pytest.approx(loss, rel=1e-4), loss) for _, loss in losses]
    assert losses[3][0] < losses[0][0]  # and they learn something
    assert ours.state.progress.step == 4


def test_our_network_takes_timms_place() -> None:
    """Ours and timm's cspresnet50: the weights of one are the other's, and so is the loss."""
    from timm_loop import TimmSettings, TimmUpdates

    trial = Trial(CPU, "fp32", 2, 1, 1)
    ours = OurUpdates(recipe_of("cspresnet50", 32, 2), trial)
    theirs = TimmUpdates("cspresnet50", 32, trial, TimmSettings(), ours.model.state_dict())
    ours.network.train(), theirs.network.train()
    assert float(ours.update()) == pytest.approx(float(theirs.update()), rel=1e-4)
    with pytest.raises(UserError, match="has other weights than ours"):
        TimmUpdates("cspresnext50", 32, trial, TimmSettings(), ours.model.state_dict())


def test_rows_that_differ_are_not_compared() -> None:
    benchmark_train.check_losses("x", {"a": 6.9, "b": 6.9001})
    for other in (7.0, float("nan")):
        with pytest.raises(UserError, match="not comparable"):
            benchmark_train.check_losses("x", {"a": 6.9, "b": other})


def test_the_loop_and_its_bare_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bare step updates the same weights in the same way; shares are those of the rates."""
    trial = Trial(CPU, "fp32", 4, 3, 1)
    whole, bare = (OurUpdates(recipe_of("cspdarknet_tiny", 32, 4), trial) for _ in range(2))
    for _ in range(2):
        whole.update()
        bare.bare_update()
    for mine, other in zip(whole.model.parameters(), bare.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    loop = LoopOfOneBatch(whole)
    for _ in range(2):
        assert loop.time_training() > 0
        assert (loop.run.state.progress.step, loop.images) == (3, 12)
    file = tmp_path / "t.json"
    flags = ("--loop-overhead", "--size", 32, "--batch-size", 4, "--repeats", 2, "--device", "cpu", "--json", file)
    assert run(monkeypatch, "cspdarknet_tiny", *flags) == 0
    found = json.loads(file.read_text())["loop_overhead"]["cspdarknet_tiny"]
    rates = found["images_per_s"]
    printed = capsys.readouterr().out
    for key in ("step", "loop"):
        seconds = [(1 / whole, 1 / bare) for whole, bare in zip(rates[key], rates["bare"], strict=True)]
        assert found["percent_of_step"][key] == pytest.approx([100 * (a - b) / a for a, b in seconds])
        assert f"| {spread(rates[key])} | {spread(found['percent_of_step'][key])} |" in printed


def test_from_jpegs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, picture_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.json"
    flags = ("--data", picture_tree, "--epoch-pictures", 20, "--workers", 1, "--size", 32, "--batch-size", 8)
    kept: list[torch.device] = []
    monkeypatch.setattr("cspnet.cli.measure_training.keep_freed_memory", kept.append)
    fork_instead_of_starting(monkeypatch)
    assert run(monkeypatch, SMALL, *flags, "--repeats", 1, "--device", "cpu", "--json", file) == 0
    assert multiprocessing.active_children() == []
    found: dict[str, Any] = json.loads(file.read_text())["epochs"][SMALL]
    assert (found["pictures"], found["workers"]) == (16, 1)  # whole steps
    assert kept == [CPU]  # as train.py does; the processes of the rows are other ones
    rates = found["images_per_s"]
    assert list(rates)[::2] == ["timm, its defaults", "ours, train.py's defaults"]
    printed = capsys.readouterr().out
    for values in rates.values():
        assert f"| {spread(values)} | {values[0] / rates['timm, its defaults'][0]:.2f} (" in printed


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux' /proc")
def test_memory_of_a_process_of_its_own() -> None:
    """It holds the weights, their gradients and momentum, and the pictures."""
    trial = Trial(CPU, "fp32", 64, 1, 1)
    make = partial(OurUpdates, recipe_of("cspdarknet_tiny", 64, 64), trial)
    weights = sum(p.numel() * 4 for p in make().model.parameters())
    peak = measure_peak(make, CPU)
    assert peak is not None
    assert peak > 3 * weights + 64 * 3 * 64 * 64 * 4
    assert peak < 4 * 2**30  # and not all that the process has mapped


def test_turns() -> None:
    """A round to warm up, unless there is none; then every other round backwards."""
    calls: list[str] = []
    work = {name: partial(lambda name: calls.append(name) or len(calls), name) for name in "abc"}
    assert take_turns(work, 2) == {"a": [4, 9], "b": [5, 8], "c": [6, 7]}
    assert "".join(calls) == "cba" + "abc" + "cba"
    calls.clear()
    assert take_turns(work, 2, warm_up=False) == {"a": [1, 6], "b": [2, 5], "c": [3, 4]}


def test_a_terminal_sees_how_far_the_rounds_are(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    slow = {name: lambda: time.sleep(0.2) or 1.0 for name in "ab"}  # tqdm draws ten times a second
    take_turns(slow, 1, shows=False)
    assert terminal.getvalue() == ""
    take_turns(slow, 1)
    seen = terminal.getvalue()
    assert all(f"{number}/4 " in seen for number in range(5))
    assert seen.rsplit("\r", 2)[1].strip() == ""


CASES = {
    "nonesuch": "timm has no such network",
    "cspdarknet_tiny": "timm has no such network",
    "cspresnet50 --repeats 0": "--repeats 0: use a number from 1",
    "cspresnet50 --size 4": "--size 4: use a number from 8",
    "cspresnet50 --workers 2": "goes with --data",
    "cspresnet50 --data /nowhere --loop-overhead": "one at a time",
    "cspresnet50 --data /nowhere/at/all": "no such folder",
    "cspresnet50 --json /nowhere/t.json": "name a file in a folder that is there",
    "cspresnet50 --device abacus": "abacus",
    "cspresnet50 --device cpu --size 32 --batch-size 1": "a batch of one picture",
    "nonesuch --loop-overhead": "nonesuch",
    "--size": "expected one argument",
}


@pytest.mark.parametrize("flags", CASES)
def test_wrong_things(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import cspnet.timm_models  # noqa: F401 (cspdarknet_tiny is among timm's names from now on)

    with pytest.raises(UserError, match=CASES[flags]) as caught:
        run(monkeypatch, *flags.split())
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_one_line_and_two(run_script: Any) -> None:
    done = run_script("scripts/benchmark_train.py", "cspresnet50", "--batchsize", 3)
    assert done.returncode == 2
    assert done.stderr == "benchmark_train.py: error: --batchsize: unknown flag; did you mean --batch-size?\n"
