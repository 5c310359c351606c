"""The host's memory over some hundred steps; the arithmetic of scripts/measure_memory.py."""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cspnet.reporting.console import Console
from scripts.measure_memory import MIB, Sample, find_children, fit_line, read_pss, read_step, report
from tests.conftest import draw_tree

needs_proc = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux' /proc")

# A network that takes next to no time, so that many steps do neither.
CFG = """
[net]
height=128
width=128
channels=3
[convolutional]
batch_normalize=1
filters=4
size=16
stride=16
pad=1
activation=leaky
[avgpool]
[convolutional]
filters=3
size=1
stride=1
pad=1
activation=linear
[softmax]
"""


@pytest.mark.slow
@needs_proc
def test_memory_stays_flat(tmp_path: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """A batch a step that stays, 768 KiB of bytes, would be 180 MiB more at the end.

    The first validation and the first checkpoint, which lie in between, leave some 10 to 30 behind.
    """
    pictures = draw_tree(tmp_path / "pictures", classes=3, train=1600, val=16)
    (tmp_path / "small.cfg").write_text(CFG)
    what = ("--model", f"cfg/{tmp_path / 'small.cfg'}", "--img-size", 128, "--data-path", pictures, "--keep", tmp_path)
    done = run_script("scripts/measure_memory.py", "--steps", 300, "--samples", 60, "--most", 80, *what)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MiB per 1,000 steps" in done.stdout


@needs_proc
def test_memory_of_processes_is_each_page_once() -> None:
    """What two processes share counts half in each; what one has alone counts whole."""
    size = 64 * MIB
    with mmap.mmap(-1, size) as shared:  # anonymous and shared
        shared.write(b"x" * size)
        alone = read_pss(os.getpid())
        end, start = os.pipe()
        child = os.fork()
        if not child:
            shared.seek(0)
            shared.read(size)
            os.read(end, 1)
            os._exit(0)
        try:
            assert child in find_children(os.getpid())
            deadline = time.monotonic() + 60
            while read_pss(os.getpid()) > alone - size / 4:  # until the child has read it
                assert time.monotonic() < deadline
            assert read_pss(child) > size / 4
        finally:
            os.write(start, b"x")
            os.waitpid(child, 0)
            os.close(start)
            os.close(end)
    assert read_pss(child) == 0
    assert child not in find_children(os.getpid())


def test_the_last_whole_record_counts(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_step(file) == (0, False)
    file.write_text('{"step": 5, "train/loss": 1.0}\n{"step": 10, "tr')
    assert read_step(file) == (5, True)
    file.write_text('{"step": 5, "train/loss": 1.0}\n{"step": 10, "val/acc1": 1.0}\n')
    assert read_step(file) == (10, False)


def test_a_line_through_samples() -> None:
    """Against numpy's least squares, with its covariance."""
    rng = np.random.default_rng(0)
    samples = [Sample(step, int((100 + 0.02 * step + rng.normal()) * MIB), 7 * MIB) for step in range(0, 5000, 50)]
    xs, ys = [sample.step / 1000 for sample in samples], [sample.total / MIB for sample in samples]
    (slope, _), covariance = np.polyfit(xs, ys, 1, cov=True)
    assert fit_line(samples) == pytest.approx((slope, covariance[0, 0] ** 0.5))
    assert slope == pytest.approx(20, abs=1)


@pytest.mark.parametrize(("kib_per_step", "is_flat"), [(0, True), (10, True), (20, False), (-20, True)])
def test_growth_is_from_the_second_tenth_to_the_last(
    kib_per_step: int, is_flat: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 1,000 steps; the first tenth may grow as it likes."""
    samples = [Sample(step, 10**8 + 1024 * kib_per_step * step, 10**7) for step in range(100, 1001, 10)]
    samples = [Sample(step, step * MIB, 0) for step in range(10, 100, 10)] + samples
    assert report(samples, steps=1000, most_mib=12, console=Console(0)) is is_flat
    growth = kib_per_step * (950 - 145) / 1024
    assert f"{growth:+.1f} MiB (at most 12 are allowed)" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [("--workers", 0), ("--steps", 10, "--samples", 20), ("--modle", "x")])
@needs_proc
def test_wrong_flags_end_in_one_line(
    flags: tuple[str | int, ...], fork_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = fork_script("scripts/measure_memory.py", *flags)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
