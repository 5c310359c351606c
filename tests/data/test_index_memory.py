"""What an index of a large data set costs: few bytes a sample, and these once, however many workers there are."""

from __future__ import annotations

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
    """Instead of a batch: by how much a worker grows when it reads every path and label."""

    index: SampleIndex

    def __getitem__(self, address: BatchAddress) -> int:
        before = private_bytes()
        for i in range(len(self.index)):
            self.index.path(i)
        int(self.index.labels.sum())
        return private_bytes() - before


def test_bytes_a_sample(tmp_path: Path) -> None:
    """Of the arrays in memory, and of what is kept on the disk."""
    index = generate_index(20_000)
    arrays = (index.paths, index.ends, index.labels)
    assert sum(array.nbytes for array in arrays) <= 200 * len(index)
    (tmp_path / "x.jpg").write_bytes(b"x")
    (tmp_path / "train_list.txt").write_text("".join(f"x.jpg {i}\n" for i in range(2000)))
    listed = open_index(tmp_path / "train_list.txt", root=str(tmp_path), cache_dir=None)
    assert type(listed) is SampleIndex
    assert not any(isinstance(value, (list, dict)) for value in vars(listed).values())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_share_it() -> None:
    index = generate_index(NUM_SAMPLES)
    plan = BatchPlan(NUM_SAMPLES, 8, 1, 1, 0)
    growths = start_reading(Touch(index), lambda: plan.addresses(0, 0, 0), 2, 1, torch.device("cpu"))
    size = index.paths.nbytes + index.ends.nbytes + index.labels.nbytes
    for _ in range(2):
        assert next(growths) < size / 4
