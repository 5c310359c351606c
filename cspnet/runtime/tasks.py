"""Tasks of an executor, awaited by a main thread that Ctrl-C may reach at any time.

The standard library's own waiting does not bear that: where a signal's handler raises in the middle of it, a lock that
it had just taken stays taken. The thread that delivers the results then waits for it, and so does the end of the pool,
for ever.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, TypeVar

from cspnet.runtime.processes import held_back_signals

__all__ = ["as_done", "closing", "result_of", "submit"]

T = TypeVar("T")
P = TypeVar("P", bound=Executor)


@contextlib.contextmanager
def closing(pool: P) -> Iterator[P]:
    """Behind the block its threads or processes are gone.

    If an exception has ended it, tasks that have not begun are dropped, processes are killed in theirs, and threads,
    which cannot be, are not waited for.
    """
    others = set(multiprocessing.active_children())
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        try:
            _end(pool, others)
        except BaseException:  # Ctrl-C once more, before the end was under way
            _end(pool, others)
            raise
        raise


def _end(pool: Executor, others: Collection[BaseProcess]) -> None:
    has_processes = isinstance(pool, ProcessPoolExecutor)
    if has_processes:
        with held_back_signals():
            for child in set(multiprocessing.active_children()) - set(others):
                child.kill()  # a SIGTERM could be lost in one that all processes have been sent
    pool.shutdown(wait=has_processes, cancel_futures=True)


def submit(pool: Executor, work: Callable[..., T], *args: Any) -> Future[T]:
    """pool.submit; processes and threads that start for it have stop signals held back."""
    with held_back_signals():
        return pool.submit(work, *args)


def as_done(tasks: Collection[Future[T]]) -> Iterator[Future[T]]:
    """The tasks, each once it is done."""
    done: SimpleQueue[Future[T]] = SimpleQueue()  # written in C: no handler runs while it holds its lock
    with held_back_signals():
        for task in tasks:
            task.add_done_callback(done.put)
    for _ in tasks:
        yield done.get()


def result_of(task: Future[T]) -> T:
    """What a task returns, or raises, once it is done."""
    (done,) = as_done([task])
    return done.result()
