"""What becomes of reading processes: they die with a reason, they read with one thread, they end with their parent."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from cspnet.data.index import open_index
from cspnet.data.loader import (
    Batch,
    EvalLoader,
    EvalPictures,
    Reader,
    ReadingError,
    TrainLoader,
    TrainPictures,
    start_reading,
)
from cspnet.data.sampler import BatchAddress, BatchPlan
from cspnet.data.samples import SampleIndex
from cspnet.data.transforms import EvalTransform, build_train_transform
from cspnet.data.workers import TellingErrors, read_all, start_worker
from cspnet.errors import DataError, UserError, WorkerError
from cspnet.recipe.schema import DataRecipe, Recipe


class Acts(Dataset[int]):
    """Items 0, 1, 2 …; item 5 waits for its start and does something first."""

    def __init__(self, act: Callable[[], object], start: Event) -> None:
        self.act, self.start = act, start

    def __getitem__(self, i: int) -> int:
        if i == 5:
            assert self.start.wait(60)
            self.act()
        return i


class Numbers(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(8))


def read(act: Callable[[], object], workers: int = 2, start: Event | None = None) -> Iterator[int]:
    if start is None:
        start = multiprocessing.Event()
        start.set()
    return read_all(
        DataLoader(
            TellingErrors(Acts(act, start)),
            batch_size=None,
            sampler=Numbers(),
            num_workers=workers,
            multiprocessing_context=multiprocessing.get_context("fork") if workers else None,
            worker_init_fn=start_worker,
        )
    )


DEATHS = {
    "SIGKILL": (lambda: os.kill(os.getpid(), signal.SIGKILL), ("memory", "fewer --workers (now 2)", "data.prefetch")),
    "SIGBUS": (lambda: os.kill(os.getpid(), signal.SIGBUS), ("/dev/shm", "--workers 0", "shard")),
    "SIGSEGV": (lambda: os.kill(os.getpid(), signal.SIGSEGV), ("library", "check_dataset.py")),
    "exit code 3": (lambda: os._exit(3), ("--workers 0",)),
}


@pytest.mark.parametrize("name", DEATHS)
def test_a_dead_process_is_told_with_its_cause(name: str) -> None:
    """Whatever was ready is given first, and nothing interrupts the program before it asks for what is not."""
    act, words = DEATHS[name]
    start, others = multiprocessing.Event(), set(multiprocessing.active_children())
    items = read(act, start=start)
    processes = set(multiprocessing.active_children()) - others
    # The process that is to die has handed over all it made before: a death in the middle of that loses it.
    assert list(itertools.islice(items, 4)) == [0, 1, 2, 3]
    start.set()
    assert wait([process.sentinel for process in processes], 60)
    assert next(items) == 4  # of the other process
    with pytest.raises(WorkerError) as caught:
        next(items)
    message = str(caught.value)
    assert name in message
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_who_handles_the_end_of_child_processes_goes_on_to_do_so() -> None:
    before, others = signal.getsignal(signal.SIGCHLD), multiprocessing.active_children()
    items = read(lambda: None)
    assert signal.getsignal(signal.SIGCHLD) is before
    assert list(items) == list(range(8))
    assert set(multiprocessing.active_children()) <= set(others)


def fail() -> None:
    raise DataError("that cannot be read; do this")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_for_the_user_comes_as_it_was_raised(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        list(read(fail, workers))
    assert str(caught.value) == "that cannot be read; do this"


def test_dropping_the_iterator_ends_its_processes() -> None:
    others = set(multiprocessing.active_children())
    items = read(lambda: None)
    assert next(items) == 0
    assert len(set(multiprocessing.active_children()) - others) == 2
    del items
    assert set(multiprocessing.active_children()) <= others


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="who has sent a signal cannot be told here")
@pytest.mark.parametrize("name", ["TERM", "USR1", "INT"])
def test_signals_that_ask_a_run_to_stop_are_its_own_business(name: str) -> None:
    """Where all processes of a group, or of a service, get them; a process still ends when its parent ends it."""
    start, others = multiprocessing.Event(), set(multiprocessing.active_children())
    items = read(lambda: None, start=start)
    processes = set(multiprocessing.active_children()) - others
    assert list(itertools.islice(items, 5)) == [0, 1, 2, 3, 4]  # both are set up, and one waits
    for process in processes:
        subprocess.run(["kill", f"-{name}", str(process.pid)], check=True)
    wait([process.sentinel for process in processes], 0.2)
    assert [process.exitcode for process in processes] == [None, None]
    start.set()
    assert list(items) == [5, 6, 7]
    if name == "TERM":
        again = read(lambda: None)
        (process, _) = set(multiprocessing.active_children()) - others
        assert next(again) == 0
        process.terminate()
        process.join(60)
        assert process.exitcode is not None


TRAIN = build_train_transform(Recipe(data=DataRecipe(train_px=16)))
CPU = torch.device("cpu")
EVAL = EvalTransform(16, 0.875, "bilinear")


def start_training(index: SampleIndex, workers: int) -> Iterator[Batch]:
    pictures = TrainPictures(Reader(index, "apply", "fast"), TRAIN, 0)
    return TrainLoader(pictures, BatchPlan(len(index), 4, 1, 1, 0), 0, workers, 2, CPU).start_at(0, 0)


def start_validating(index: SampleIndex, workers: int) -> Iterator[Batch]:
    return iter(EvalLoader(EvalPictures(Reader(index, "apply", "fast"), EVAL), 4, 0, 1, workers, 2, CPU))


STARTS = pytest.mark.parametrize("start", [start_training, start_validating])
Start = Callable[[SampleIndex, int], Iterator[Batch]]


@STARTS
@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_ours_names_the_picture_last(
    picture_tree: Path, monkeypatch: pytest.MonkeyPatch, start: Start, workers: int
) -> None:
    index = open_index(picture_tree / "train", root=str(picture_tree), cache_dir=None)
    path = index.path(11)

    def stumble(index: SampleIndex, sample: int) -> bytes:
        return read(index, sample) if sample != 11 else [b""][sample]

    read = SampleIndex.read
    monkeypatch.setattr(SampleIndex, "read", stumble)
    batches = start(index, workers)
    with pytest.raises(ReadingError) as caught:
        for _ in range(12):
            next(batches)
    assert not isinstance(caught.value, UserError)
    assert str(caught.value).splitlines()[-1].endswith(f"{path}: IndexError: list index out of range")


@STARTS
@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_vanish_during_the_run_are_bad_pictures(
    picture_tree: Path, tmp_path: Path, start: Start, workers: int
) -> None:
    shutil.copytree(picture_tree / "train", tmp_path / "train")
    index = open_index(tmp_path / "train", root=str(tmp_path), cache_dir=None)
    batches = start(index, workers)
    first = next(batches)
    assert (len(first.images), first.bad) == (4, [])
    shutil.rmtree(tmp_path / "train")
    bad = next(batch.bad for batch in itertools.islice(batches, 11) if batch.bad)
    assert bad[0].reason == "No such file or directory"
    assert bad[0].path in {index.path(i) for i in range(len(index))}


@contextlib.contextmanager
def no_shared_memory() -> Iterator[None]:
    """For what is started in it. A limit on the size of files is one on those of /dev/shm."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@STARTS
def test_a_loop_that_keeps_no_batches_needs_no_dev_shm(picture_tree: Path, start: Start) -> None:
    index = open_index(picture_tree / "train", root=str(picture_tree), cache_dir=None)
    with no_shared_memory():
        batches = start(index, 1)
    assert sum(len(batch.images) for batch in itertools.islice(batches, 11)) == 44


@STARTS
def test_no_room_in_shared_memory_is_an_error_and_not_a_wait(picture_tree: Path, start: Start) -> None:
    index = open_index(picture_tree / "train", root=str(picture_tree), cache_dir=None)
    with no_shared_memory():
        batches = start(index, 1)
    with pytest.raises(WorkerError, match=r"3,072 bytes in shared memory \(/dev/shm\).*--workers 0") as caught:
        _ = list(batches)  # which keeps them all
    assert "\n" not in str(caught.value)


class CountsThreads(Dataset[tuple[int, int]]):
    """How many threads its process has before and after it has made a batch."""

    def __init__(self, pictures: TrainPictures) -> None:
        self.pictures = pictures

    def __getitem__(self, address: BatchAddress) -> tuple[int, int]:
        before = len(os.listdir("/proc/self/task"))
        _ = self.pictures[address]
        return before, len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_a_process_reads_with_one_thread(tmp_path: Path) -> None:
    """On a picture large enough for every library that would share the work out."""
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "train" / "a" / "0.jpg")
    index = open_index(tmp_path / "train", root=str(tmp_path), cache_dir=None)
    transform = build_train_transform(Recipe(data=DataRecipe(train_px=512, train_scale=(0.9, 1.0), shrink=False)))
    counts = CountsThreads(TrainPictures(Reader(index, "apply", "fast"), transform, 0))
    counted = start_reading(counts, lambda: BatchPlan(1, 1, 1, 1, 0).addresses(0, 0, 0), 1, 2, CPU)
    assert all(before == after for before, after in itertools.islice(counted, 3))
