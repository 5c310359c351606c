#!/usr/bin/env python3
"""Train recipes with several seeds each and tell their accuracies, with the spread.

    python3 scripts/repeat_runs.py recipes/cifar10.yaml other.yaml --data-path DIR --output-dir runs/seeds
    python3 scripts/repeat_runs.py A.yaml B.yaml --seeds 5 --data-path DIR --output-dir runs/seeds -- --epochs 5

One run after the other, in DIR/<recipe>-seed<n>; the seeds take turns, so that stopping early leaves fair counts. What
stands behind `--` goes to every run of train.py. Started again, the same command goes on where it stopped: finished
runs are kept, the one that was cut short is resumed. The table is printed at the end and written to results.md and
results.csv.

`--with-timm FILE ...` trains these recipes through timm's own parts as well (scripts/train_with_timm.py), in
DIR/<recipe>-timm-seed<n>, so that a table shows both; such a run cannot be resumed and starts again.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, non_empty_path, run_door
from cspnet.errors import EXIT_DONE, UserError
from cspnet.runtime.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
FIRST_SEED = 1
PROGRAM, TIMM_PROGRAM = "train.py", "scripts/train_with_timm.py"


@dataclass(frozen=True)
class Result:
    """How one run ended."""

    recipe: str
    seed: int
    acc1: float
    """Of the raw weights after the last epoch, in percent."""
    ema_acc1: float | None
    """Of their moving average, if the recipe keeps one."""


def read_result(folder: Path, recipe: str, seed: int) -> Result:
    """The last validation in a run's folder.

    Raises:
        UserError: the run never validated.
    """
    file = folder / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    validated = [record for record in records if "val/acc1" in record]
    if not validated:
        raise UserError(f"{folder}: the run has not validated; give it a validation split")
    return Result(recipe, seed, validated[-1]["val/acc1"], validated[-1].get("val_ema/acc1"))


def name_recipes(files: list[Path]) -> dict[str, Path]:
    """A folder name for each recipe: its file's, without the ending.

    Raises:
        UserError: a file is missing, or two have one name.
    """
    names: dict[str, Path] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such recipe")
        if file.stem in names:
            raise UserError(f"{file}: {names[file.stem]} has the same name; rename one of them")
        names[file.stem] = file
    return names


def train(program: str, recipe: Path, seed: int, folder: Path, data: str, more: list[str]) -> None:
    """One run of train.py, from wherever it stands, or of train_with_timm.py, unless it is there.

    Raises:
        UserError: it failed; its own message stands above.
    """
    if program == TIMM_PROGRAM and (folder / "metrics.jsonl").exists():
        return
    command = [sys.executable, str(ROOT / program), "--recipe", str(recipe), "--data-path", data]
    command += ["--seed", str(seed), "--output-dir", str(folder)]
    command += [*(["--resume", "auto"] if program == PROGRAM else []), *more]
    code = subprocess.run(command).returncode
    if code:
        raise UserError(f"{folder}: {program} ended with exit code {code}; the runs before it are kept")


def describe(values: list[float]) -> str:
    """`mean ± standard deviation`; of a single value the deviation is not known."""
    spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "?"
    return f"{statistics.mean(values):.2f} ± {spread}"


def table(results: list[Result]) -> str:
    """Markdown: a row a recipe, in the order of the runs."""
    lines = [
        "| recipe | runs | Acc@1 | moving average | each |",
        "|---|---|---|---|---|",
    ]
    for recipe in dict.fromkeys(result.recipe for result in results):
        mine = [result for result in results if result.recipe == recipe]
        averages = [result.ema_acc1 for result in mine if result.ema_acc1 is not None]
        each = ", ".join(f"{result.acc1:.2f}" for result in mine)
        ema = describe(averages) if averages else ""
        lines.append(f"| {recipe} | {len(mine)} | {describe([result.acc1 for result in mine])} | {ema} | {each} |")
    return "\n".join(lines) + "\n"


def order(results: dict[tuple[str, int], Result], names: Iterable[str]) -> list[Result]:
    """The results by recipe, in the order of the command line, and by seed."""
    return [results[key] for name in names for key in sorted(results) if key[0] == name]


def write_results(folder: Path, results: list[Result]) -> None:
    """results.md and results.csv."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("recipe", "seed", "acc1", "ema_acc1"))
    writer.writerows((result.recipe, result.seed, result.acc1, result.ema_acc1) for result in results)
    write_atomically(folder / "results.csv", text.getvalue().encode())
    write_atomically(folder / "results.md", table(results).encode())


def main() -> int:
    """The command line."""
    argv = sys.argv[1:]
    mark = argv.index("--") if "--" in argv else len(argv)
    parser = FlagParser(prog="repeat_runs.py", description=__doc__)
    parser.add_argument("recipes", nargs="+", type=non_empty_path, metavar="RECIPE", help="recipe files")
    parser.add_argument("--data-path", required=True, metavar="DIR", help="the data set")
    parser.add_argument("--output-dir", required=True, type=non_empty_path, metavar="DIR", help="holds the runs")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each recipe [%(default)s]")
    parser.add_argument(
        "--with-timm", nargs="+", default=[], type=non_empty_path, metavar="RECIPE", help="through timm's parts as well"
    )
    args = parser.parse_all(argv[:mark])
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds}: use a number from 1 on")
    more = argv[mark + 1 :]
    jobs = {name: (PROGRAM, file) for name, file in name_recipes(args.recipes).items()}
    jobs |= {f"{name}-timm": (TIMM_PROGRAM, file) for name, file in name_recipes(args.with_timm).items()}
    taken = [flag for flag in more if flag.split("=")[0] in ("--seed", "--train.seed", "--output-dir", "--resume")]
    if taken:
        raise UserError(f"{taken[0]}: is set for every run; leave it out behind --")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results: dict[tuple[str, int], Result] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
        for name, (program, file) in jobs.items():
            folder = args.output_dir / f"{name}-seed{seed}"
            print(f"== {name}, seed {seed}: {folder}", flush=True)
            train(program, file, seed, folder, args.data_path, more)
            results[name, seed] = read_result(folder, name, seed)
            write_results(args.output_dir, order(results, jobs))
    print(table(order(results, jobs)), end="")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("repeat_runs.py", main))
