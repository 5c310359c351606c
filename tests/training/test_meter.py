"""The meter: totals without the first steps, utilisation by hand, and what the records of real runs hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cspnet.cli import metering
from cspnet.cli.train import main
from cspnet.data.sampler import BatchPlan
from cspnet.models.complexity import count_complexity
from cspnet.models.zoo import create_model
from cspnet.reporting.verdict import Setting, judge
from cspnet.runtime.distributed import World
from cspnet.runtime.peak import Peak
from cspnet.training import meter as meter_module
from cspnet.training.clock import Clock, HostWaits, Spent
from cspnet.training.meter import MEASURED_KEYS, WARM_UP_STEPS, Meter

CPU = torch.device("cpu")
FLAGS = ["--model", "cspdarknet_tiny", "--img-size", "32", "--workers", "0", "--device", "cpu", "--precision", "fp32"]
FLAGS += ["--batch-size", "8", "--log.every_steps", "2", "--val-split", "null"]
ALONE = World()
PEAK = Peak(1e12, "fp32", is_measured=True)


class Steps:
    """A meter whose steps take what they are told to: reading, and computing."""

    def __init__(self, world: World = ALONE, **how: Any) -> None:
        self.time_s = 0.0
        plan = BatchPlan(num_samples=1000, batch_size=4, accumulate=2, world_size=world.size, seed=0)
        self.meter = Meter(world, CPU, plan, clock=Clock(HostWaits(self.now), self.now), **how)
        self.reading_s = 0.0

    def now(self) -> float:
        return self.time_s

    def batches(self) -> Iterator[Any]:
        while True:
            self.time_s += self.reading_s
            yield None

    def train(self, *steps: tuple[float, float], size_px: int = 32) -> Spent:
        with self.meter.timing(self.batches(), size_px) as batches:
            for reading_s, computing_s in steps:
                self.reading_s = reading_s
                next(batches)
                self.time_s += computing_s
                self.meter.advance()
            return self.meter.take()


@pytest.mark.parametrize("first", range(1, 6))
def test_totals_leave_the_first_steps_out_wherever_records_fall(first: int) -> None:
    assert WARM_UP_STEPS == 3
    seconds = [(50.0, 7.0), (1.0, 5.0), (1.0, 5.0), (1.0, 2.0), (2.0, 3.0), (0.0, 4.0), (1.0, 1.0)]
    run = Steps()

    def spent(steps: list[tuple[float, float]]) -> Spent:
        reading_s = sum(reading for reading, _ in steps)
        return Spent(len(steps), 8 * len(steps), 0.0, reading_s + sum(computing for _, computing in steps), reading_s)

    assert run.train(*seconds[:first]) == spent(seconds[3 if first > 3 else 0 : first])
    assert run.meter.epoch == spent(seconds[3 if first > 3 else 0 : first])
    assert run.train(*seconds[first:]) == spent(seconds[max(3, first) :])
    assert run.meter.epoch == spent(seconds[max(3, first) :])
    assert run.meter.total == spent(seconds[3:]) == Spent(4, 32, 0.0, 14.0, 4.0)


@pytest.mark.parametrize("records", [(1, 7), (2, 3, 7), (3, 4, 7), (4, 7), (1, 2, 3)])
def test_an_epoch_leaves_them_out_once_it_has_others(records: tuple[int, ...]) -> None:
    """Steps of 10 s, from the fourth on 1 s, with records behind those that are listed."""
    run, at = Steps(), 0
    with run.meter.timing(run.batches(), 32) as batches:
        for step in range(1, records[-1] + 1):
            next(batches)
            run.time_s += 10.0 if step <= 3 else 1.0
            run.meter.advance()
            if step == records[at]:
                at += 1
                run.meter.take()
    others = records[-1] - 3
    assert run.meter.epoch == (Spent(others, 8 * others, 0.0, 1.0 * others) if others else Spent(3, 24, 0.0, 30.0))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_of_first_steps_only_has_no_total(steps: int) -> None:
    run = Steps()
    run.train(*[(1.0, 1.0)] * steps)
    assert run.meter.total == Spent()


def test_utilisation_by_hand() -> None:
    """8 pictures a step of 1e9 multiply-adds: 3 x 2 x 1e9 x 8 FLOPs in 0.1 s are 4.8e11 of 1e12."""
    run = Steps(macs={32: 10**9}, peak=PEAK)
    spent = run.train((0.04, 0.06))
    assert run.meter.mfu(spent) == pytest.approx(0.48)
    figures = run.meter.figures(spent)
    assert list(figures) == list(MEASURED_KEYS)
    assert figures["train/images_per_s"] == pytest.approx(80)
    assert figures["train/compute_images_per_s"] == pytest.approx(80 / 0.6)
    assert figures["train/data_wait_ratio"] == pytest.approx(0.4)
    assert figures["train/mfu"] == pytest.approx(0.48)
    told = run.meter.describe(spent)
    assert re.fullmatch(r"80 img/s \(compute alone 133\), data 40%, peak memory \d+\.\d GiB, MFU 48%", told)


def test_of_two_processes_each_counts_its_own_flops() -> None:
    one, two = (Steps(World(0, size), macs={32: 10**9}, peak=PEAK).meter for size in (1, 2))
    spent = Spent(flops=1e12, elapsed_s=2.0)
    assert one.mfu(spent) == two.mfu(spent) == 0.5


@pytest.mark.parametrize("how", [{}, {"macs": {32: 10**9}}, {"peak": PEAK}, {"macs": {64: 10**9}, "peak": PEAK}])
def test_without_flops_or_peak_there_is_no_utilisation(how: dict[str, Any]) -> None:
    run = Steps(**how)
    spent = run.train((0.0, 1.0))
    assert list(run.meter.figures(spent)) == list(MEASURED_KEYS[:-1])
    assert "MFU" not in run.meter.describe(spent)


def test_the_longest_wait_of_all_processes_is_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Steps(World(0, 2))
    monkeypatch.setattr(meter_module, "gather_objects", lambda world, mine: [mine, 2.5])
    assert run.train(*[(0.5, 1.0)] * 5) == Spent(2, 32, 0.0, 3.0, 2.5)
    assert run.meter.epoch == run.meter.total == Spent(2, 32, 0.0, 3.0, 2.5)


def read_records(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if "train/loss" in record]


@pytest.fixture
def known_peak(monkeypatch: pytest.MonkeyPatch) -> Peak:
    monkeypatch.setattr(metering, "find_peak", lambda device, dtype: PEAK)
    return PEAK


def test_a_run_tells_its_speed(
    picture_tree: Path, tmp_path: Path, known_peak: Peak, capsys: pytest.CaptureFixture[str]
) -> None:
    """The utilisation of every record is that of the size of its epoch's pictures."""
    growing = ["--data.start_px", "32", "--data.ramp_epochs", "[1, 2]", "--img-size", "64", "--epochs", "3"]
    words = [*FLAGS, *growing, "--data-path", str(picture_tree), "--output-dir", str(tmp_path / "run")]
    assert main(words) == 0
    out = capsys.readouterr().out.splitlines()
    records = read_records(tmp_path / "run")
    model = create_model("cspdarknet_tiny", 4)
    macs = {
        0: count_complexity(model, 32).macs,
        1: count_complexity(model, 32).macs,
        2: count_complexity(model, 64).macs,
    }
    assert macs[2] > 3 * macs[0]
    assert [record["step"] for record in records] == list(range(2, 19, 2))
    for record in records:
        expected = 3 * 2 * macs[record["epoch"]] * record["train/images_per_s"] / known_peak.flops_per_s
        assert record["train/mfu"] == pytest.approx(expected)
        alone = record["train/images_per_s"] / (1 - record["train/data_wait_ratio"])
        assert record["train/compute_images_per_s"] == pytest.approx(alone)
    assert sum(bool(re.match(r"epoch \d/3 trained: .*MFU", line)) for line in out) == 3
    speed, verdict, done, *_ = out[-3:]
    assert re.fullmatch(r"speed   [\d,]+ img/s \(compute alone .* of 1 TFLOP/s \(fp32, measured\)", speed)
    assert re.match(
        r"verdict (input|compute)-bound: \d+\.\d% of a step is waiting for data; what would help: \S", verdict
    )
    assert done.startswith("done: ")


SETTINGS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "plain": (
        [],
        {
            "workers": 0,
            "is_packed": False,
            "is_encoded": False,
            "decoder": "fast",
            "can_decode_on_gpu": False,
            "could_shrink": False,
            "is_channels_last": True,
            "device": "cpu",
            "memory_ratio": None,
            "processes": 1,
            "accumulate": 1,
            "global_batch": None,
            "grad_checkpointing": False,
            "deterministic": False,
        },
    ),
    "all else": (
        ["--data.shrink", "false", "--channels-last", "false", "--grad-checkpointing", "--deterministic", "--workers"]
        + ["1", "--global-batch", "8", "--batch-size", "4"],
        {
            "workers": 1,
            "could_shrink": True,
            "is_channels_last": False,
            "accumulate": 2,
            "global_batch": 8,
            "grad_checkpointing": True,
            "deterministic": True,
        },
    ),
    "nothing to shrink": (
        ["--data.shrink", "false", "--data.decoder", "pillow"],
        {"decoder": "pillow", "could_shrink": False},
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_the_verdict_goes_by_what_is_set(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    words, expected = SETTINGS[case]
    seen: list[Setting] = []

    def note(data_ratio: float, exchange_ratio: float, setting: Setting) -> str:
        assert 0 < data_ratio <= 1
        assert exchange_ratio == 0
        seen.append(setting)
        return judge(data_ratio, exchange_ratio, setting)

    monkeypatch.setattr(metering, "judge", note)
    data = ["--data-path", str(picture_tree), "--output-dir", str(tmp_path / "run"), "--steps", "4"]
    assert main([*FLAGS, *data, *words]) == 0
    (setting,) = seen
    assert {name: getattr(setting, name) for name in expected} == expected
    assert setting.cores >= 1


@pytest.mark.parametrize(
    ("amp_dtype", "auto", "advice"),
    [
        (torch.float32, torch.bfloat16, "bf16"),
        (torch.float32, torch.float16, "fp16"),
        (torch.float32, torch.float32, None),
        (torch.bfloat16, torch.bfloat16, None),
        (torch.float16, torch.bfloat16, None),
    ],
)
def test_another_precision_is_advised_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, amp_dtype: torch.dtype, auto: torch.dtype, advice: str | None
) -> None:
    monkeypatch.setattr(metering, "choose_amp_dtype", lambda precision, device: auto)
    assert metering._find_faster_precision(SimpleNamespace(amp_dtype=amp_dtype, device=CPU)) == advice  # type: ignore[arg-type]


def test_the_exchange_is_told_as_a_share_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 steps in 20 s are 2 s a step; an exchange of 0.7 s is 35 % of that."""
    told: list[tuple[float, float]] = []
    monkeypatch.setattr(metering, "judge", lambda data, exchange, setting: told.append((data, exchange)) or "")
    monkeypatch.setattr(metering, "_read_setting", lambda run, splits: None)
    meter = Steps(World(0, 2)).meter
    meter.total, meter.exchange_s = Spent(10, 160, 0.0, 20.0, 1.0), 0.7
    lines: list[str] = []
    metering.say_speed(
        SimpleNamespace(meter=meter, report=SimpleNamespace(console=SimpleNamespace(say=lines.append))), None
    )  # type: ignore[arg-type]
    assert told == [(pytest.approx(0.05), pytest.approx(0.35))]
    assert lines[0].startswith("speed   8 img/s (compute alone 8), data 5%, peak memory ")


def test_what_is_said_at_the_end_is_kept(tmp_path: Path) -> None:
    """By the first process; that there is no place for it is told, and is no failure."""
    warnings: list[str] = []
    run = SimpleNamespace(
        world=World(), state=SimpleNamespace(progress=SimpleNamespace(step=7)), report=SimpleNamespace()
    )
    run.report.console = SimpleNamespace(warn=warnings.append)
    metering.keep_speed(tmp_path, None, run)  # type: ignore[arg-type]
    metering.keep_speed(tmp_path, {"verdict": "slow"}, SimpleNamespace(world=World(1, 2)))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    metering.keep_speed(tmp_path, {"verdict": "slow"}, run)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "speed.json").read_text()) == {"step": 7, "verdict": "slow"}
    assert warnings == []
    metering.keep_speed(tmp_path / "gone", {"verdict": "slow"}, run)  # type: ignore[arg-type]
    assert warnings == ["speed.json: cannot be written: No such file or directory"]


def test_a_network_that_cannot_be_counted_has_no_utilisation(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any) -> int:
        raise TypeError("somebody else's code")

    monkeypatch.setattr(metering, "count_forward_macs", fail)
    words = [*FLAGS, "--steps", "2", "--data-path", str(picture_tree), "--output-dir", str(tmp_path / "run")]
    assert main(words) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert "mfu" not in output.out.lower()
    assert "speed   not told: the first 3 steps" in output.out
    (record,) = read_records(tmp_path / "run")
    assert list(record)[-4:] == list(MEASURED_KEYS[:-1])
