#!/usr/bin/env python3
"""Kill a training at random moments and resume it, again and again; then compare it with one that nobody touched.

    python3 scripts/torture.py --kills 50                      # one process
    python3 scripts/torture.py --kills 50 --processes 2        # two, under torchrun

Trains a small CSPNet on drawn JPEGs, with reading processes, CutMix, label smoothing and a moving average, in float32
on the CPU. SIGKILL hits launcher, ranks and reading processes at once: while the program starts, in a step, in a
validation, or while a checkpoint is being written. A run that comes to its end is compared with the untouched one
(weights, average, optimizer, random state, metrics.jsonl, summary.csv), and another one is begun, until all kills are
done. Exit code 1: some run was not the same, or could not go on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.compare_runs import compare_runs, read_records
from cspnet.cli.flags import FlagParser, run_door
from cspnet.errors import EXIT_BUG, EXIT_DONE, UserError
from cspnet.reporting.console import Console, open_bar

ROOT = Path(__file__).resolve().parent.parent
EPOCHS, BATCH = 6, 16
PER_CLASS, STEPS_PER_EPOCH = 27, 20  # of 12 classes; four pictures are left out of an epoch
FLAGS = (
    *("--model", "cspdarknet_tiny", "--img-size", "48", "--device", "cpu", "--precision", "fp32"),
    *("--epochs", str(EPOCHS), "--lr", "0.05", "--cutmix", "1.0", "--smoothing", "0.1", "--ema.decay", "0.99"),
    *("--print-freq", "1", "--checkpoint.every_steps", "3", "--log.tensorboard", "false"),
)


class Training:
    """One run, which is started, killed, and started again."""

    def __init__(self, pictures: Path, folder: Path, processes: int, workers: int) -> None:
        self.folder = folder
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        batch = ("--batch-size", str(BATCH // processes), "--workers", str(workers))
        places = ("--data-path", str(pictures), "--output-dir", str(folder), "--resume", "auto")
        self.command = [sys.executable, *launcher * (processes > 1), "train.py", *FLAGS, *batch, *places]
        self.log = folder.with_suffix(".log")

    def start(self) -> subprocess.Popen[bytes]:
        """Begin, or go on."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            return subprocess.Popen(self.command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL every process whose command line names the run's folder."""
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                if os.fsencode(self.folder) in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                    os.kill(int(entry.name), signal.SIGKILL)

    def step(self) -> int:
        """The last step that has a record."""
        return max((record["step"] for record in read_records(self.folder)), default=0)

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.folder / "checkpoints").glob(".*.tmp"))


def wait_until(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    """Returns when something is so, or the process has ended, or after a minute."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not condition():
        time.sleep(0.002)


def wait_for_moment(training: Training, process: subprocess.Popen[bytes], moment: str, draw: random.Random) -> None:
    """Returns at such a moment of a run."""
    before = training.step()
    if moment == "start-up":
        time.sleep(draw.uniform(0, 4))
    elif moment == "step":
        wanted = before + draw.randint(1, 12)
        wait_until(process, lambda: training.step() >= wanted)
        time.sleep(draw.uniform(0, 0.1))
    elif moment == "validation":
        wait_until(process, lambda: training.step() > before and training.step() % STEPS_PER_EPOCH == 0)
        time.sleep(draw.uniform(0, 0.2))
    else:
        wait_until(process, lambda: training.step() > before)
        wait_until(process, training.is_saving)


def torture(pictures: Path, folder: Path, args: argparse.Namespace, console: Console) -> bool:
    """Do the kills; whether all runs ended as the untouched one did."""
    draw, kills, runs = random.Random(args.seed), Counter[str](), 0
    reference = Training(pictures, folder / "untouched", args.processes, args.workers)
    console.say("the untouched run")
    if reference.start().wait():
        raise UserError(f"the untouched run failed: {reference.log}")
    with open_bar(args.kills, "killed", "kill") as bar:
        while kills.total() < args.kills:
            training = Training(pictures, folder / f"run-{runs + 1}", args.processes, args.workers)
            code: int | None = None
            while code is None:
                process = training.start()
                if kills.total() < args.kills:
                    moment = draw.choice(("start-up", "step", "validation", "checkpoint"))
                    wait_for_moment(training, process, moment, draw)
                    if process.poll() is None:
                        training.kill()
                        process.wait()
                        kills[moment] += 1
                        bar.update(1)
                        continue
                code = process.wait()
            runs += 1
            difference = (
                f"exit code {code}: {training.log}" if code else compare_runs(training.folder, reference.folder)
            )
            if difference:
                console.warn(f"{training.folder}: not as the untouched run: {difference}")
                return False
            shutil.rmtree(training.folder)
    counts = ", ".join(f"{count} in {moment}" for moment, count in sorted(kills.items()))
    console.say(f"{kills.total()} kills ({counts}), {args.processes} processes: {runs} runs, all as the untouched one")
    return True


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="torture.py", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="how often [%(default)s]")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="1, 2, 4 … 16 [%(default)s]")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="reading processes each [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments [%(default)s]")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the logs there [a temporary folder]")
    args = parser.parse_all(sys.argv[1:])
    if not Path("/proc/self/cmdline").exists():
        raise UserError("this needs /proc, to find all processes of a run")
    if args.kills < 1 or args.workers < 0 or args.processes < 1 or BATCH % args.processes:
        raise UserError(f"expected --kills from 1, --workers from 0, --processes that divide {BATCH}")
    if args.keep and args.keep.exists() and any(args.keep.iterdir()):
        raise UserError(f"--keep {args.keep}: is not empty")
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cspnet-torture-")))
        folder.mkdir(parents=True, exist_ok=True)
        pictures = folder.resolve() / "pictures"
        drawing = [sys.executable, "scripts/draw_dataset.py", str(pictures)]
        sizes = ["--train-per-class", str(PER_CLASS), "--val-per-class", "5"]
        subprocess.run([*drawing, *sizes], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return EXIT_DONE if torture(pictures, folder.resolve(), args, Console(0)) else EXIT_BUG


if __name__ == "__main__":
    sys.exit(run_door("torture.py", main))
