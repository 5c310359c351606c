"""Child processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from cspnet.runtime.processes import count_cores, held_back_signals
from cspnet.runtime.signals import STOP_SIGNALS


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu.max": "100000 0"}, None),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_a_container_has_the_cores_of_its_share(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert count_cores(tmp_path) == (expected or count_cores(tmp_path / "nothing"))


@pytest.fixture
def somebody_else() -> Iterator[None]:
    """A thread that no signal is blocked in, as those of numpy's libraries: the system may give it any."""
    is_over = threading.Event()
    thread = threading.Thread(target=is_over.wait)
    thread.start()
    yield
    is_over.set()
    thread.join()


class _SentError(Exception):
    pass


def _raise_sent(number: int, frame: FrameType | None) -> None:
    raise _SentError(signal.Signals(number).name)


@pytest.mark.usefixtures("somebody_else")
def test_signals_wait_until_the_block_is_over() -> None:
    handlers = {number: signal.signal(number, _raise_sent) for number in (signal.SIGINT, signal.SIGTERM)}
    done = []
    try:
        with pytest.raises(_SentError, match="SIGTERM"), held_back_signals():
            with held_back_signals():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)  # the other thread has it
                done.append("inner")
            done.append("outer")
        assert done == ["inner", "outer"]
        for number in handlers:  # both are heeded again, though the handler of one has raised
            with pytest.raises(_SentError, match=signal.Signals(number).name):
                signal.raise_signal(number)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_another_thread_may_hold_signals_back() -> None:
    found: list[object] = []

    def hold_back() -> None:
        with held_back_signals():
            found.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        found.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=hold_back)
    thread.start()
    thread.join()
    held, let_through = found
    assert set(STOP_SIGNALS) <= held  # type: ignore[operator]
    assert not set(STOP_SIGNALS) & let_through  # type: ignore[operator]
    assert signal.getsignal(signal.SIGINT) is before
