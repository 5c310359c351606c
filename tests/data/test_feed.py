"""The way to the device: the same batches, in an order of copies and work that lets neither disturb the other."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cspnet.data import feed as feed_module
from cspnet.data.feed import BadImage, Batch, feed
from cspnet.data.index import open_index
from cspnet.data.loader import EvalLoader, EvalPictures, Reader, TrainLoader, TrainPictures
from cspnet.data.mixing import Normalizer, mirror
from cspnet.data.sampler import BatchPlan
from cspnet.data.transforms import EvalTransform, build_train_transform
from cspnet.recipe.schema import DataRecipe, Recipe

CPU = torch.device("cpu")
SHAPES = [(8, 16), (8, 16), (8, 16), (5, 16), (8, 24), (8, 24), (3, 16), (8, 24), (9, 32), (1, 8)]
NEED_MORE = (0, 1, 4, 5, 8)
"""Those that are larger than all before in their place: the even ones have one, the odd ones the other."""


def draw_batches(pin: bool = False) -> Iterator[Batch]:
    """Batches of SHAPES (pictures, side in pixels), every second one with a bad picture."""
    generator = torch.Generator().manual_seed(0)
    for number, (count, side) in enumerate(SHAPES):
        images = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
        targets = torch.randint(-1, 10, (count,), generator=generator)
        flipped = torch.rand(count, generator=generator) < 0.5
        batch = Batch(images, targets, flipped, [BadImage(str(number), "why")] * (number % 2))
        yield batch.pin_memory() if pin else batch


def test_on_a_cpu_batches_pass_as_they_are() -> None:
    batches = list(draw_batches())
    for given, taken in zip(batches, feed(iter(batches), CPU), strict=True):
        assert taken is given


class Event:
    """Of a GPU that is not there: when it was recorded, and on which stream."""

    def __init__(self) -> None:
        self.recorded: tuple[int, str] | None = None

    def record(self, stream: Stream) -> None:
        stream.log.append("record")
        self.recorded = len(stream.log) - 1, stream.name


class Stream:
    def __init__(self, log: list[object], name: str) -> None:
        self.log, self.name = log, name

    def wait_event(self, event: Event) -> None:
        self.log.append(("waits for", self.name, *(event.recorded or ())))

    def wait_stream(self, other: Stream) -> None:
        self.log.append(("waits for", self.name, len(self.log), other.name))


def test_a_copy_waits_for_the_work_on_what_it_overwrites_and_for_nothing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[object] = []
    work, copies = Stream(log, "work"), Stream(log, "copies")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: copies)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    waits, places, works = [], [], []
    fed = feed_module._copy_beside(draw_batches(), CPU)
    for number, (given, taken) in enumerate(zip(draw_batches(), fed, strict=True)):
        assert torch.equal(given.images, taken.images)
        assert torch.equal(given.targets, taken.targets)
        assert torch.equal(given.flipped, taken.flipped)
        assert given.bad == taken.bad
        places.append(taken.images.data_ptr())
        before, after = [entry for entry in log if entry != "record"][-2:]
        waits.append(before)
        assert after[1::2] == ("work", "copies"), number  # type: ignore[index]
        works.append(len(log))
        log.append("work")
    for number, (_, waiting, position, on) in enumerate(waits):
        assert (waiting, on) == ("copies", "work")
        if number in NEED_MORE:
            assert number == 0 or position > works[number - 1], "new memory may be in use by any work before"
        else:
            assert places[number] == places[number - 2]
            assert position > works[number - 2], "what it overwrites is still in use"
            assert position < works[number - 1], "it waits for the work that it should be copied beside"
        assert number == 0 or places[number] != places[number - 1]


gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@gpu
@needs_gpu
@pytest.mark.parametrize("busy", [False, True])
def test_on_a_gpu_the_pixels_are_those_of_a_plain_copy(busy: bool) -> None:
    """Also when the GPU is so far behind that every copy is queued before the first batch has been worked on."""
    device = torch.device("cuda")
    normalise = Normalizer((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), device)
    results = []
    for batch in feed(draw_batches(pin=True), device):
        assert {tensor.device.type for tensor in batch[:3]} == {"cuda"}
        if busy:
            torch.cuda._sleep(20_000_000)
        results.append((normalise(mirror(batch.images, batch.flipped)), batch.targets.clone(), batch.bad))
    for (images, targets, bad), plain in zip(results, draw_batches(), strict=True):
        assert torch.equal(images, normalise(mirror(plain.images, plain.flipped).to(device)))
        assert torch.equal(targets.cpu(), plain.targets)
        assert bad == plain.bad


@gpu
@needs_gpu
def test_on_a_gpu_nothing_waits_for_the_host_and_memory_stays() -> None:
    device = torch.device("cuda")
    batches = list(draw_batches(pin=True))[:3] * 4
    memory = []
    try:
        for number, _ in enumerate(feed(iter(batches), device)):
            if number >= 2:
                torch.cuda.set_sync_debug_mode("error")
                memory.append(torch.cuda.memory_allocated(device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(set(memory)) == 1


@gpu
@needs_gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_on_a_gpu_loaders_give_what_they_give_on_a_cpu(picture_tree: Path, workers: int) -> None:
    index = open_index(picture_tree / "train", root=str(picture_tree), cache_dir=None)
    reader, plan = Reader(index, "apply", "fast"), BatchPlan(48, 8, 1, 1, 0)
    train = TrainPictures(reader, build_train_transform(Recipe(data=DataRecipe(train_px=32))), 0)
    val = EvalPictures(reader, EvalTransform(32, 0.875, "bilinear"))
    taken = []
    for device in (CPU, torch.device("cuda")):
        batches = itertools.chain(
            itertools.islice(TrainLoader(train, plan, 0, workers, 2, device).start_at(0, 16), 9),
            EvalLoader(val, 10, 0, 1, workers, 2, device),
        )
        taken.append([([tensor.cpu() for tensor in batch[:3]], batch.bad) for batch in batches])
    for (ours, bad), (theirs, their_bad) in zip(*taken, strict=True):
        assert all(map(torch.equal, ours, theirs))
        assert bad == their_bad
