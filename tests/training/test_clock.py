"""How time is counted: by hand-made clocks, and by a model of a GPU and its queue."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from cspnet.training.clock import Clock, GpuWaits, HostWaits, Spent


class Host:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def now(self) -> float:
        return self.time_s

    def work(self, seconds: float) -> None:
        self.time_s += seconds


def test_what_was_spent() -> None:
    spent = Spent(steps=4, images=400, flops=8e9, elapsed_s=10.0, data_s=2.0)
    assert spent.images_per_s == 40
    assert spent.compute_images_per_s == 50
    assert spent.data_wait_ratio == 0.2
    assert spent + spent == Spent(8, 800, 16e9, 20.0, 4.0)
    assert (spent + spent) - spent == spent


def test_no_time_at_all_and_nothing_but_waiting() -> None:
    assert (Spent().images_per_s, Spent().compute_images_per_s, Spent().data_wait_ratio) == (0, None, 0)
    waiting = Spent(steps=1, images=8, elapsed_s=2.0, data_s=2.0)
    assert (waiting.images_per_s, waiting.compute_images_per_s, waiting.data_wait_ratio) == (4, None, 1)


def slow_batches(host: Host, seconds: float) -> Iterator[Any]:
    for number in itertools.count():
        host.work(seconds)
        yield number


def test_the_clock_runs_while_steps_are_trained() -> None:
    host = Host()
    clock = Clock(HostWaits(host.now), host.now)
    batches = slow_batches(host, 2.0)
    assert clock.read() == Spent()
    with clock.running():
        timed = clock.timing(batches)
        for number in range(3):
            assert next(timed) == number
            host.work(5.0)
            clock.advance(8, 1e6)
            with clock.paused():
                host.work(100.0)
        assert clock.read() == Spent(3, 24, 3e6, 21.0, 6.0)
    host.work(1000.0)  # a validation
    with clock.running():
        assert next(clock.timing(batches)) == 3
        host.work(1.0)
        clock.advance(8, 1e6)
    host.work(1000.0)
    assert clock.read() == Spent(4, 32, 4e6, 24.0, 8.0)


def test_an_error_stops_the_clock() -> None:
    host = Host()
    clock = Clock(HostWaits(host.now), host.now)
    with pytest.raises(KeyError), clock.running():
        host.work(3.0)
        raise KeyError
    host.work(50.0)
    assert clock.read().elapsed_s == 3


class Gpu:
    """A queue: work begins when all before it is done, but not before it was queued."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.done_s = host.time_s
        self.idle_s = 0.0
        self.num_events = 0

    def queue(self, seconds: float) -> None:
        self.idle_s += max(0.0, self.host.time_s - self.done_s)
        self.done_s = max(self.done_s, self.host.time_s) + seconds

    def create_event(self) -> Event:
        self.num_events += 1
        return Event(self)


class Event:
    """What torch.cuda.Event does, as far as it is used."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.time_s = 0.0

    def record(self) -> None:
        self.time_s = max(self.gpu.done_s, self.gpu.host.time_s)

    def query(self) -> bool:
        return self.gpu.host.time_s >= self.time_s

    def elapsed_time(self, other: Event) -> float:
        assert self.query() and other.query()
        return 1000 * (other.time_s - self.time_s)


@pytest.mark.parametrize("step_s", [0.5, 0.9, 1.1, 2.0])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_gpu_waits_only_while_it_has_nothing_to_do(step_s: float, passes: int) -> None:
    """A batch comes every second; the process runs ahead of the GPU by at most a step, as the loop does."""
    host = Host()
    gpu = Gpu(host)
    clock = Clock(GpuWaits(gpu.create_event), host.now)
    came_s = itertools.count(host.time_s + 1)

    def batches() -> Iterator[Any]:
        for there_s in came_s:
            host.time_s = max(host.time_s, there_s)
            yield None

    steps, ends_s = 50, [host.time_s]
    with clock.running():
        timed = clock.timing(batches())
        for _ in range(steps):
            for _ in range(passes):
                next(timed)
                gpu.queue(step_s)
            clock.advance(8, 0)
            host.time_s = max(host.time_s, ends_s[-1])  # looking back at the step before
            ends_s.append(gpu.done_s)
        host.time_s = max(host.time_s, gpu.done_s)  # host sync: a record
        spent = clock.read()
    assert spent.data_s == pytest.approx(gpu.idle_s)
    assert spent.elapsed_s - spent.data_s == pytest.approx(steps * passes * step_s)
    assert spent.compute_images_per_s == pytest.approx(8 / (passes * step_s))
    assert gpu.num_events <= 2 * (2 * passes + 2), "events are used again"


def test_what_has_not_come_to_pass_is_counted_later() -> None:
    host = Host()
    gpu = Gpu(host)
    waits = GpuWaits(gpu.create_event)
    gpu.queue(10.0)
    waits.begin()
    host.work(1.0)
    waits.end()
    assert waits.read_s() == 0  # the GPU is still busy, and nobody waits for it
    host.work(9.0)
    assert waits.read_s() == 0
    waits.begin()
    host.work(4.0)
    waits.end()
    assert waits.read_s() == 4
