#!/usr/bin/env python3
"""Does the host's memory stay flat? Trains for many steps and looks at the memory of all its processes on the way.

    python3 scripts/measure_memory.py --steps 10000
    python3 scripts/measure_memory.py --steps 10000 --data-path DIR --model cspdarknet53 --img-size 224 -- --aa trivial

Trains a small CSPNet by train.py on drawn JPEGs (or on DIR), with reading processes, CutMix, label smoothing, a moving
average, validations and checkpoints, in float32 on the CPU; what stands behind -- goes to train.py. At about --samples
records, in between validations, it adds up what the main process and its reading processes take, each page once (PSS of
/proc/PID/smaps_rollup). Behind the first tenth of the steps, a line is laid through that. Exit code 1: from the second
tenth to the last one, the median has grown by more than --most MiB.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, run_door
from cspnet.errors import EXIT_BUG, EXIT_DONE, UserError
from cspnet.reporting.console import Console, open_bar

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
FLAGS = (
    *("--device", "cpu", "--precision", "fp32", "--lr", "0.05", "--sched", "constant"),
    *("--cutmix", "1.0", "--smoothing", "0.1", "--ema.decay", "0.99", "--log.tensorboard", "false"),
)


@dataclass(frozen=True)
class Sample:
    """Bytes at a step."""

    step: int
    main: int
    """Of the main process; memory that it shares is shared out."""
    readers: int
    """Of its reading processes together."""

    @property
    def total(self) -> int:
        """Of all of them."""
        return self.main + self.readers


def read_pss(process: int) -> int:
    """Bytes of a process, those that it shares with others shared out; 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def find_children(process: int) -> list[int]:
    """The processes that a process has started."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def read_step(file: Path) -> tuple[int, bool]:
    """Step of the last whole record of metrics.jsonl, and whether it is of training only."""
    with contextlib.suppress(OSError, ValueError, IndexError), file.open("rb") as records:
        records.seek(max(0, file.stat().st_size - 2000))
        record = json.loads(records.read().split(b"\n")[-2])
        return record["step"], "train/loss" in record
    return 0, False


def watch(process: subprocess.Popen[bytes], file: Path, steps: int, every: int, workers: int) -> list[Sample]:
    """Samples of a training, one a record, until it ends; none while processes come or go, as for a validation."""
    samples: list[Sample] = []
    with open_bar(steps, "trained", "step") as bar:
        while process.poll() is None:
            step, trains = read_step(file)
            children = find_children(process.pid) if trains and step > (samples[-1].step if samples else 0) else []
            if children and len(children) == workers and step < steps:
                sample = Sample(step, read_pss(process.pid), sum(map(read_pss, children)))
                if find_children(process.pid) == children:
                    samples.append(sample)
                    bar.update(step - bar.n)
            time.sleep(0.005)
    return samples


def fit_line(samples: list[Sample]) -> tuple[float, float]:
    """MiB per 1,000 steps by least squares, and its standard error."""
    xs, ys = [sample.step / 1000 for sample in samples], [sample.total / MIB for sample in samples]
    slope, intercept = statistics.linear_regression(xs, ys)
    rest = sum((y - slope * x - intercept) ** 2 for x, y in zip(xs, ys, strict=True))
    spread = sum((x - statistics.fmean(xs)) ** 2 for x in xs)
    return slope, (rest / max(1, len(xs) - 2) / spread) ** 0.5


def report(samples: list[Sample], steps: int, most_mib: float, console: Console) -> bool:
    """Print the table; whether the memory stayed flat."""
    console.say("|    step | main process, MiB | reading processes, MiB | together, MiB |")
    console.say("|---|---|---|---|")
    wanted = [steps * i / 10 for i in range(11)]
    for sample in sorted({min(samples, key=lambda s: abs(s.step - step)) for step in wanted}, key=lambda s: s.step):
        sizes = sample.main / MIB, sample.readers / MIB, sample.total / MIB
        console.say(f"| {sample.step:>7,} | {sizes[0]:.1f} | {sizes[1]:.1f} | {sizes[2]:.1f} |")
    settled = [sample for sample in samples if sample.step >= steps / 10]
    first = [sample.total for sample in settled if sample.step < steps / 5]
    last = [sample.total for sample in settled if sample.step >= steps * 9 / 10]
    if len(first) < 2 or len(last) < 2:
        raise UserError(f"{len(samples)} samples are too few; give more --samples or --steps")
    slope, error = fit_line(settled)
    growth = (statistics.median(last) - statistics.median(first)) / MIB
    console.say(
        f"from step {settled[0].step:,} on, n = {len(settled)}: {slope:+.2f} ± {error:.2f} MiB per 1,000 steps; from "
        f"the second tenth to the last one {growth:+.1f} MiB (at most {most_mib:g} are allowed)"
    )
    return growth <= most_mib


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="measure_memory.py", description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000, metavar="N", help="[%(default)s]")
    parser.add_argument("--samples", type=int, default=200, metavar="N", help="looks at the memory [%(default)s]")
    parser.add_argument("--most", type=float, default=16.0, metavar="MIB", help="growth allowed [%(default)s]")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="reading processes [%(default)s]")
    parser.add_argument("--data-path", type=Path, metavar="DIR", help="pictures [drawn ones]")
    parser.add_argument("--model", default="cspdarknet_tiny", metavar="NAME", help="[%(default)s]")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="[%(default)s]")
    parser.add_argument("--img-size", type=int, default=48, metavar="PX", help="[%(default)s]")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the run there [a temporary folder]")
    parser.add_argument("more", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_all(sys.argv[1:])
    if not Path("/proc/self/smaps_rollup").exists():
        raise UserError("this needs Linux, whose /proc tells how much of a process's memory is shared")
    if args.workers < 1:
        raise UserError("expected --workers from 1")
    every = args.steps // max(1, args.samples)
    if every < 1:
        raise UserError(f"--samples {args.samples}: there are only {args.steps} steps")
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cspnet-memory-")))
        folder.mkdir(parents=True, exist_ok=True)
        pictures = args.data_path or folder.resolve() / "pictures"
        if args.data_path is None:
            subprocess.run([sys.executable, "scripts/draw_dataset.py", str(pictures)], cwd=ROOT, check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip
        run, log = folder.resolve() / "run", folder.resolve() / "log"
        what = ("--model", args.model, "--batch-size", args.batch_size, "--img-size", args.img_size)
        how = ("--workers", args.workers, "--steps", args.steps, "--print-freq", every)
        where = ("--data-path", pictures.resolve(), "--output-dir", run)
        more = [word for word in args.more if word != "--"]
        words = [sys.executable, "train.py", *FLAGS, *map(str, (*what, *how, *where)), *more]
        with log.open("wb") as output:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=output, stderr=output)
            stack.callback(process.kill)
            samples = watch(process, run / "metrics.jsonl", args.steps, every, args.workers)
        if process.returncode:
            raise UserError(f"the training failed: {log.read_text(errors='replace').strip().splitlines()[-1]}")
        if len(samples) < 4:
            raise UserError(f"{len(samples)} samples are too few; give more --steps")
        return EXIT_DONE if report(samples, args.steps, args.most, Console(0)) else EXIT_BUG


if __name__ == "__main__":
    sys.exit(run_door("measure_memory.py", main))
