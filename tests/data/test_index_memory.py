"""What an index of a large data set costs: few bytes a sample, and these once, however many workers there are."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from cspnet.data.index import open_index
from cspnet.data.loader import start_reading
from cspnet.data.sampler import BatchAddress, BatchPlan
from cspnet.data.samples import SampleIndex, digest_samples, join_paths

ROOT = "/mnt/storage/datasets/vision/imagenet-1k/ILSVRC2012/train"
NUM_SAMPLES = 300_000


def generate_index(num_samples: int) -> SampleIndex:
    """Names as ImageNet's, below a long root, in 1000 classes."""
    names = [f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(num_samples)]
    labels = np.arange(num_samples, dtype=np.int32) % 1000
    paths, ends = join_paths([f"{ROOT}/{name}" for name in names])
    return SampleIndex(ROOT, paths, ends, labels, (), digest_samples(names, labels.tolist()))


def private_bytes() -> int:
    """Memory that this process shares with no other. Source: proc(5), /proc/[pid]/smaps_rollup."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


@dataclass(frozen=True)
class Touch(Dataset[int]):
    """Instead of a batch: what a worker has for itself when it has read every path and label."""

    index: SampleIndex

    def __getitem__(self, address: BatchAddress) -> int:
        for i in range(len(self.index)):
            self.index.path(i)
        int(self.index.labels.sum())
        return private_bytes()


def array_bytes(index: SampleIndex) -> int:
    return sum(value.nbytes for value in vars(index).values() if isinstance(value, np.ndarray))


def test_bytes_a_sample(tmp_path: Path) -> None:
    """With names as ImageNet's, below a folder as deep as a data set's."""
    root = tmp_path / ROOT[1 : 1 + max(0, len(ROOT) - len(str(tmp_path)))]
    names = [f"n{i % 10:08d}/n{i % 10:08d}_{i}.JPEG" for i in range(500)]
    for name in names:
        (root / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "train" / name).write_bytes(b"x")
    (root / "train_list.txt").write_text("".join(f"train/{name} {i % 10}\n" for i, name in enumerate(names)))
    for path in (root / "train", root / "train_list.txt"):
        index = open_index(path, root=str(root), cache_dir=None)
        assert len(index) == 500
        assert array_bytes(index) <= 200 * len(index)
        assert not any(isinstance(value, (list, dict)) for value in vars(index).values())


def worker_bytes(index: SampleIndex) -> int:
    """The most that one of two workers has for itself."""
    plan = BatchPlan(len(index), 8, 1, 1, 0)
    read = start_reading(Touch(index), lambda: plan.addresses(0, 0, 0), 2, 1, torch.device("cpu"))
    return max(itertools.islice(read, 2))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_share_it() -> None:
    large, small = generate_index(NUM_SAMPLES), generate_index(100)
    assert worker_bytes(large) - worker_bytes(small) < array_bytes(large) / 4
