"""--batch-size auto: which sizes are tried, which is taken, and that a run keeps it."""

from __future__ import annotations

import bisect
import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from cspnet.cli import batch_size
from cspnet.cli.batch_size import ROUNDS, choose_size, list_sizes, measure_sizes
from cspnet.cli.build_run import Place
from cspnet.cli.train import main
from cspnet.cli.trial import Trial
from cspnet.recipe.load import load_recipe
from cspnet.reporting.console import Console
from cspnet.runtime.distributed import World

Speeds = Callable[[dict[int, float]], list[int]]


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Speeds:
    """Gives each size a speed, in images/s; sizes that have none do not fit. The sizes tried are noted."""

    def set_speeds(rates: dict[int, float]) -> list[int]:
        tried: list[int] = []

        def time_step(trial: Trial, size: int) -> float:
            tried.append(size)
            if size not in rates:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return size / rates[size]

        monkeypatch.setattr(Trial, "time_step", time_step)
        return tried

    return set_speeds


def flags(data: Path, folder: Path, *more: object) -> list[str]:
    small = ["--model", "cspdarknet_tiny", "--img-size", 32, "--workers", 0, "--batch-size", "auto", "--steps", 1]
    fixed = ["--precision", "fp32", "--device", "cpu", "--data.cache_dir", data.parent / "cache"]
    return [str(word) for word in ("--data-path", data, "--output-dir", folder, *small, *fixed, *more)]


def kept_size(folder: Path) -> object:
    return load_recipe(folder / "recipe.yaml").recipe.train.batch_size


@pytest.mark.parametrize("num_samples", [48, 1000, 1024, 1_281_167])
@pytest.mark.parametrize("passes", [1, 3, 8])
@pytest.mark.parametrize("repeats", [1, 3, 4])
def test_sizes_make_steps_that_can_be(num_samples: int, passes: int, repeats: int) -> None:
    sizes = list_sizes(num_samples, passes, repeats)
    for size in sizes:
        assert size * passes % repeats == 0
    all_of_them = [2**n * repeats // math.gcd(repeats, passes) for n in range(24)]
    can_be = [size for size in all_of_them if size >= 8 and size * passes <= num_samples]
    waste = {size: num_samples - num_samples // (size * passes) * size * passes for size in can_be}
    good = [size for size in can_be if waste[size] <= num_samples / 10]
    assert sizes == (good or can_be[:1] or sizes[:1])
    assert sizes


def test_a_size_that_leaves_out_much_of_an_epoch_is_not_tried() -> None:
    """Of 240 pictures, steps of 64 leave out 48, and of 128 even 112; of 31, each leaves out more than a tenth."""
    assert list_sizes(240, 1, 1) == [8, 16, 32]
    assert list_sizes(31, 1, 1) == [8]


def test_the_smallest_that_is_about_as_fast_is_taken() -> None:
    assert choose_size({8: [50], 16: [96], 32: [98], 64: [100]}) == 32
    assert choose_size({8: [100], 16: [99], 32: [98]}) == 8
    assert choose_size({8: [97], 16: [100], 32: [97]}) == 16


def test_one_that_is_as_fast_in_too_few_of_the_rounds_is_not_taken() -> None:
    """Five of nine make a median, but a third and more are far off."""
    other = [100.0] * 9
    assert choose_size({8: [99.0] * 6 + [80.0] * 3, 16: other}) == 8
    assert choose_size({8: [99.0] * 5 + [80.0] * 4, 16: other}) == 16
    assert choose_size({8: [97.0] * 9, 16: other}) == 16


@pytest.mark.parametrize(
    ("rates", "tried", "taken"),
    [
        ({8: 10, 16: 20}, [8, 16], 16),  # 32 of 48 pictures would leave out a third
        ({8: 40, 16: 40}, [8, 16], 8),
        ({8: 10}, [8, 16], 8),  # 16 do not fit
    ],
)
def test_what_is_tried_and_taken(
    rates: dict[int, float], tried: list[int], taken: int, speeds: Speeds, picture_tree: Path, tmp_path: Path
) -> None:
    seen = speeds(rates)
    assert main(flags(picture_tree, tmp_path / "run")) == 0
    assert list(dict.fromkeys(seen)) == tried
    assert kept_size(tmp_path / "run") == taken
    assert json.loads((tmp_path / "run" / "sources.json").read_text())["train.batch_size"].startswith("auto, tried out")


@pytest.mark.parametrize(
    ("rates", "tried", "found"),
    [
        ({8: 100.0, 16: 99.0, 32: 100.5, 64: 300.0}, [8, 16, 32], [8, 16, 32]),
        ({8: 100.0, 16: 120.0, 32: 119.0, 64: 130.0, 128: 0.0, 256: 500.0}, [8, 16, 32, 64, 128], [8, 16, 32, 64]),
        ({8: 0.0, 16: 500.0}, [8], []),
    ],
)
def test_larger_ones_are_left_out_once_it_does_not_pay(
    rates: dict[int, float], tried: list[int], found: list[int]
) -> None:
    seen: list[int] = []

    def attempt(size: int) -> float:
        seen.append(size)
        return rates[size]

    assert measure_sizes(list(rates), attempt) == {size: [rates[size]] * ROUNDS for size in found}
    assert list(dict.fromkeys(seen)) == tried


def test_a_size_that_fits_only_at_times_is_not_taken() -> None:
    seen: list[int] = []

    def attempt(size: int) -> float:
        seen.append(size)
        return 0.0 if size == 16 and seen.count(16) == 6 else size

    said: list[str] = []
    assert measure_sizes([8, 16], attempt, said.append) == {8: [8] * ROUNDS}
    assert said[-1] == "batch size 16: does not fit any more"
    assert seen.count(16) > 6


def steps_at(pace: Callable[[float], float], rates: dict[int, float], picture_s: float) -> Callable[[int], float]:
    """What steps give, in images/s, on a machine whose pace changes meanwhile; at a pace of 1 those rates."""
    now = 0.0

    def attempt(size: int) -> float:
        nonlocal now
        began, left = now, picture_s * 100 / rates[size] * size
        while left > 1e-9:
            spent = min(0.1, left / pace(now))
            left -= spent * pace(now)
            now += spent
        return picture_s * 100 * size / (now - began)

    return attempt


@pytest.mark.parametrize("change", ["slows", "hurries", "wavers", "begins fast"])
def test_a_machine_that_changes_its_pace_changes_no_choice(change: str) -> None:
    """By as much as sets the sizes apart, and more, within the time that trying takes."""
    rates = {8: 80.0, 16: 90.0, 32: 95.0, 64: 100.0, 128: 101.5, 256: 101.5, 512: 101.5, 1024: 101.5}

    def pace(now: float) -> float:
        lost, waver = 0.2 * min(1, now / 60), 0.008 * (-1) ** int(now / 7)
        return {
            "slows": 1 - lost,
            "hurries": 0.8 + lost,
            "wavers": 1 + waver,
            "begins fast": 1.25 if now < 2 else 1,
        }[change]

    assert choose_size(measure_sizes(list(rates), steps_at(pace, rates, 0.1))) == 64


def test_on_a_machine_whose_pace_jumps_the_choice_is_hardly_ever_slow() -> None:
    """To anything from half of it on, every ten seconds, while a round of all sizes takes some 13."""
    rates = {8: 80.0, 16: 90.0, 32: 95.0, 64: 100.0, 128: 101.5}
    chosen: list[float] = []
    for seed in range(200):
        rng = random.Random(seed)
        jumps = list(itertools.accumulate(rng.expovariate(1 / 10) for _ in range(2000)))
        paces = [rng.uniform(0.5, 1) for _ in range(2001)]

        def pace(now: float, jumps: list[float] = jumps, paces: list[float] = paces) -> float:
            return paces[bisect.bisect(jumps, now)]

        chosen.append(rates[choose_size(measure_sizes(list(rates), steps_at(pace, rates, 0.04)))])
    assert sum(rate >= 0.95 * max(rates.values()) for rate in chosen) >= 0.98 * len(chosen)


def test_what_was_found_is_said_as_it_is_found() -> None:
    rates, said = {8: 100.0, 16: 120.0, 32: 0.0}, []
    measure_sizes(list(rates), rates.__getitem__, said.append)
    assert said == [
        "batch size 8: 100.0 images/s",
        "batch size 16: 120.0 images/s, and 8 at the same time 100.0",
        "batch size 32: does not fit",
        "batch size: 8 to 16 in turns ...",
    ]


@pytest.mark.parametrize(
    ("room", "local_size", "tried"),
    [(10**9, 1, [8, 16, 32]), (4_700, 1, [8, 16, 32]), (4_600, 1, [8, 16]), (1_900, 1, [8]), (4_700, 2, [8, 16])],
)
def test_what_the_host_has_no_room_for_is_not_tried(
    room: int, local_size: int, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be killed. Of the room, of which this process has 1000 in the beginning, 32 pictures take 4200, of which
    a tenth is to be left; what is free is shared with the other processes there."""
    seen: list[int] = []

    def time_step(size: int) -> float:
        seen.append(size)
        return 0.01

    place = Place(World(local_size=local_size), torch.device("cpu"), torch.float32, Console(rank=1))
    monkeypatch.setattr(batch_size, "resident_bytes", lambda: 1000 + 100 * max(seen, default=0))
    monkeypatch.setattr(batch_size, "peak_host_bytes", lambda: 1000 + 100 * max(seen))
    monkeypatch.setattr(batch_size, "free_host_bytes", lambda: room - 1000 - 100 * max(seen))
    trial = cast(Trial, SimpleNamespace(place=place, time_step=time_step))
    rates = batch_size.try_sizes(trial, [8, 16, 32], batch_size.HostRoom(place, side_px=1))
    assert list(dict.fromkeys(seen)) == list(rates) == tried


def test_a_run_keeps_its_size(
    speeds: Speeds, picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = speeds({8: 10, 16: 20})
    again = ("--resume", "auto", "--lr", 0.01)
    assert main(flags(picture_tree, tmp_path / "run", *again)) == 0
    tried = f"medians of {ROUNDS} rounds in turns, 8: 10.0, 16: 20.0"
    said = f"batch size 16 (auto), by images/s of a process on drawn pictures ({tried}); lr stays 0.01"
    assert said in capsys.readouterr().out
    seen.clear()
    assert main(flags(picture_tree, tmp_path / "run", *again, "--steps", 2)) == 0
    assert main(flags(picture_tree, tmp_path / "run", *again, "--steps", 3, "--accumulate", 2)) == 0
    assert seen == []
    said = capsys.readouterr().out
    assert "batch size 16 (auto): that of the run's steps so far" in said
    assert "batch size 8 (auto): that of the run's steps so far" in said
    assert kept_size(tmp_path / "run") == 8  # 2 x 8 pictures a step
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.pt")["global_batch_size"] == 16
    capsys.readouterr()
    assert main(flags(picture_tree, tmp_path / "run", *again, "--steps", 4, "--accumulate", 3)) == 2
    assert "16 pictures, which 3 forward passes" in capsys.readouterr().err


def test_nothing_fits(speeds: Speeds, picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speeds({})
    assert main(flags(picture_tree, tmp_path / "run")) == 2
    assert "train.batch_size: not even 8 pictures fit on cpu" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ("--pretrained", "nothing.pt"),
        ("--output-dir", "train"),
        ("--output-dir", "val/class_0/run"),
        ("--model-kwargs", "{drop_rate: 7}"),
        ("--grad-checkpointing", "true", "--model", "torchvision/resnet18"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_tried(
    wrong: tuple[str, ...], speeds: Speeds, picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = speeds({8: 10, 16: 20})
    words = [picture_tree / word if word[:5] in ("train", "val/c") else word for word in wrong]
    assert main(flags(picture_tree, tmp_path / "run", *words)) == 2
    told = capsys.readouterr()
    assert (told.out, len(told.err.splitlines()), seen) == ("", 1, [])
    assert not (tmp_path / "run").exists()


def test_a_micro_batch_leaves_nothing_to_find(
    speeds: Speeds, picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But a run that has found its size goes on in smaller passes."""
    seen = speeds({8: 10, 16: 20})
    again = flags(picture_tree, tmp_path / "run", "--resume", "auto", "--micro-batch", 4)
    assert main(again) == 2
    told = capsys.readouterr()
    assert "train.batch_size auto and train.micro_batch 4: both say" in told.err
    assert (len(told.err.splitlines()), seen) == (1, [])
    assert main(flags(picture_tree, tmp_path / "run")) == 0
    assert main([*again, "--steps", "2"]) == 0
    assert "16 pictures a step (4 x 4 micro-batches" in capsys.readouterr().out


def test_a_global_batch_is_shared_out(speeds: Speeds, picture_tree: Path, tmp_path: Path) -> None:
    seen = speeds({8: 10, 12: 20, 24: 19})
    assert main(flags(picture_tree, tmp_path / "run", "--global-batch", 24)) == 0
    assert list(dict.fromkeys(seen)) == [8, 12, 24]
    assert kept_size(tmp_path / "run") == 12


@pytest.mark.parametrize(
    ("pictures", "said"), [(1000, "a step takes 1000 (1000 per process"), (64, "48 pictures, but a step takes 64")]
)
def test_a_global_batch_that_cannot_be_is_told_before_anything_is_tried(
    pictures: int, said: str, speeds: Speeds, picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = speeds({})
    assert main(flags(picture_tree, tmp_path / "run", "--global-batch", pictures)) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert (output.out, len(output.err.splitlines()), seen) == ("", 1, [])


def test_the_run_is_the_one_with_the_number(picture_tree: Path, tmp_path: Path) -> None:
    """Measured in earnest; trying leaves no trace in weights and draws."""
    drawing = ("--model-kwargs", "{drop_rate: 0.2}", "--cutmix", 1, "--steps", 2)
    assert main(flags(picture_tree, tmp_path / "auto", *drawing)) == 0
    number = kept_size(tmp_path / "auto")
    assert number in (8, 16)  # 32 would leave out a third of the pictures
    assert main([*flags(picture_tree, tmp_path / "told", *drawing), "--batch-size", str(number)]) == 0
    weights = [torch.load(tmp_path / run / "checkpoints" / "last.pt")["state_dict"] for run in ("auto", "told")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


def test_nothing_is_tried_for_a_validation(speeds: Speeds, picture_tree: Path, tmp_path: Path) -> None:
    seen = speeds({8: 10, 16: 20, 32: 10})
    assert main(flags(picture_tree, tmp_path / "run")) == 0
    seen.clear()
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    assert main(flags(picture_tree, tmp_path / "run", "--test-only", "--resume", last)) == 0
    assert seen == []
