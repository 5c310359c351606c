#!/usr/bin/env python3
"""How long a large data set takes to open, and how much memory its index takes, on names that are made up.

    python3 scripts/benchmark_start.py                              # a list of 1,281,167 lines, as ImageNet has
    python3 scripts/benchmark_start.py --kind tree --samples 1281167     # as many files, in 1000 folders
    python3 scripts/benchmark_start.py --kind shards --folder /mnt/disk

Each start is a process of its own: it opens the index, starts two workers and waits for its first batch of 64 pictures
(of 32 px, so that decoding them takes next to nothing). The first start scans, the others find what it has kept. The
time is that from `open_index` on; importing the libraries comes before it. The data set is made in a temporary folder,
and removed.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, non_empty_path, run_door
from cspnet.errors import EXIT_DONE, UserError

KINDS = ("list", "tree", "shards")
NUM_CLASSES = 1000
BATCH_SIZE = 64
_LINKS_A_FILE = 30_000
"""Names that one file gets in a tree: ext4 allows 65,000."""
_SHARD_SIZE = 10_000
_WAIT_S = 2.5
"""What has just been changed is not kept (`cspnet.data.samples.RACY_NS`)."""


def encode_picture() -> bytes:
    """A JPEG of 32 px."""
    from PIL import Image

    stream = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def names_of(num_samples: int) -> Iterator[tuple[str, int]]:
    """Names as ImageNet's, with their classes."""
    for i in range(num_samples):
        label = i * NUM_CLASSES // num_samples
        yield f"n{label:08d}/n{label:08d}_{i}.JPEG", label


def make_data(kind: str, folder: Path, num_samples: int) -> Path:
    """Make a data set and say where it lies, in the form that `open_index` takes."""
    picture = encode_picture()
    if kind == "list":
        (folder / "one.jpg").write_bytes(picture)
        path = folder / "train_list.txt"
        # Paths as long as ImageNet's, which all lead to the same file.
        with path.open("w") as file:
            for name, label in names_of(num_samples):
                file.write(f"{'./' * (len(name) // 2 - 3)}one.jpg {label}\n")
        return path
    if kind == "tree":
        for i, (name, _) in enumerate(names_of(num_samples)):
            target = folder / "train" / name
            if i * NUM_CLASSES // num_samples != (i - 1) * NUM_CLASSES // num_samples or i == 0:
                target.parent.mkdir(parents=True)
            if i % _LINKS_A_FILE == 0:
                original = target
                original.write_bytes(picture)
            else:
                os.link(original, target)
        return folder / "train"
    samples = list(names_of(num_samples))
    (folder / "train").mkdir()
    for start in range(0, num_samples, _SHARD_SIZE):
        with tarfile.open(folder / "train" / f"{start // _SHARD_SIZE:06d}.tar", "w") as tar:
            for name, label in samples[start : start + _SHARD_SIZE]:
                for member, content in ((name, picture), (name[:-4] + "cls", b"%d" % label)):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder / "train" / "*.tar"


def measure_start(path: Path, root: Path, cache_dir: Path) -> dict[str, Any]:
    """Open an index and wait for the first batch, in this process."""
    import torch

    from cspnet.data.index import open_index
    from cspnet.data.loader import Reader, TrainLoader, TrainPictures
    from cspnet.data.sampler import BatchPlan
    from cspnet.data.transforms import build_train_transform
    from cspnet.recipe.load import load_recipe

    transform = build_train_transform(load_recipe(None, {"data.train_px": 32}).recipe)
    started_s = time.perf_counter()
    index = open_index(path, root=str(root), cache_dir=str(cache_dir))
    opened_s = time.perf_counter()
    plan = BatchPlan(len(index), BATCH_SIZE, 1, 1, 0)
    loader = TrainLoader(
        TrainPictures(Reader(index, "apply", "fast"), transform, 0), plan, 0, 2, 2, torch.device("cpu")
    )
    batch = next(loader.start_at(0, 0))
    ready_s = time.perf_counter()
    assert len(batch.images) == BATCH_SIZE
    assert not batch.bad
    arrays = [value for value in vars(index).values() if hasattr(value, "nbytes")]
    return {
        "samples": len(index),
        "open_s": opened_s - started_s,
        "first_batch_s": ready_s - started_s,
        "bytes_a_sample": sum(array.nbytes for array in arrays) / len(index),
    }


def measure(kind: str, where: Path | None, num_samples: int, repeats: int) -> None:
    """Make a data set, start on it again and again, and print what came out."""
    with tempfile.TemporaryDirectory(prefix="cspnet-start-", dir=where) as temporary:
        folder = Path(temporary)
        path = make_data(kind, folder, num_samples)
        time.sleep(_WAIT_S)
        command = [sys.executable, __file__, "--measure", str(path), str(folder), str(folder / "cache")]
        starts = []
        for _ in range(repeats + 1):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(f"a start failed: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
            starts.append(json.loads(done.stdout))
    first, later = starts[0], [start["first_batch_s"] for start in starts[1:]]
    opened = statistics.median(start["open_s"] for start in starts[1:])
    print(f"{kind}: {first['samples']:,} samples, {first['bytes_a_sample']:.0f} bytes of memory a sample")
    print(f"first start: first batch after {first['first_batch_s']:.2f} s (index {first['open_s']:.2f} s)")
    print(
        f"later starts: first batch after {statistics.median(later):.2f} s ({min(later):.2f} to {max(later):.2f}, "
        f"n = {len(later)}; index {opened:.2f} s)"
    )


def main() -> int:
    """The command line."""
    if len(sys.argv) == 5 and sys.argv[1] == "--measure":  # one start, for `measure`
        path, root, cache_dir = map(Path, sys.argv[2:])
        print(json.dumps(measure_start(path, root, cache_dir)))
        return EXIT_DONE
    parser = FlagParser(prog="benchmark_start.py", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="list", help="what the data set is [%(default)s]")
    parser.add_argument("--samples", type=int, default=1_281_167, metavar="N", help="pictures in it [%(default)s]")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="starts after the first [%(default)s]")
    parser.add_argument("--folder", type=non_empty_path, metavar="DIR", help="where to make it [temporary files]")
    args = parser.parse_all(sys.argv[1:])
    if args.samples < NUM_CLASSES:
        raise UserError(f"--samples {args.samples}: use {NUM_CLASSES} or more, one a class")
    if args.repeats < 1:
        raise UserError(f"--repeats {args.repeats}: use 1 or more")
    if args.folder is not None and not args.folder.is_dir():
        raise UserError(f"--folder {args.folder}: no such folder")
    measure(args.kind, args.folder, args.samples, args.repeats)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("benchmark_start.py", main))
