"""TensorBoard's thread has errors of its own."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cspnet.reporting.tensorboard import TensorBoardFile

RECORD = {"step": 1, "train/loss": 0.5}


def test_its_thread_dies_quietly_and_the_next_write_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    heard: list[type[BaseException] | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: heard.append(failed.exc_type))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = TensorBoardFile(tmp_path, -1, "")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # no file may grow: what a full disk does
        file.write(RECORD)
        with pytest.raises(OSError):
            file.writer.flush()
        with pytest.raises(OSError):
            file.write(RECORD)
        assert heard == []
        other = threading.Thread(target=lambda: 1 // 0)
        other.start()
        other.join()
        assert heard == [ZeroDivisionError]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
