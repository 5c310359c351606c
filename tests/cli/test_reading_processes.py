"""The doors when a reading process dies, and the reading processes when a door is told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cspnet.cli.train import main as train
from tests.processes import members_of, start_group, wait_for_the_end_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc"),
]

SMALL = ("--device", "cpu", "--precision", "fp32", "--workers", "2")
TRAIN = ("train.py", *SMALL, "--model", "cspdarknet_tiny", "--img-size", "32", "--batch-size", "8", "--epochs", "1")

# (door, split in which a picture is held back, reading processes at that time)
PLACES = {
    "training": ("train", 2),
    "validation in training": ("val", 4),
    "validate.py": ("val", 2),
}


@pytest.fixture(scope="module")
def checkpoint(picture_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    flags = (*TRAIN[1:], "--workers", "0", "--steps", "1", "--output-dir", folder / "run", "--data-path", picture_tree)
    assert train([str(flag) for flag in flags]) == 0
    return folder / "run" / "checkpoints" / "last.pt"


def start(
    place: str, pictures: Path, folder: Path, checkpoint: Path, timeout_s: int = 180
) -> tuple[subprocess.Popen[str], int]:
    """A door as the leader of a process group, while it reads a picture for ever; the end of the pipe it waits for."""
    split, _ = PLACES[place]
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    holding = ("-m", "tests.held", min((pictures / split / "class_1").iterdir()), pipe)
    words = (
        *TRAIN,
        "--output-dir",
        folder / "run",
        "--data.cache_dir",
        folder / "cache",
        "--data.timeout_s",
        timeout_s,
    )
    if place == "validate.py":
        words = ("validate.py", *SMALL, "--checkpoint", checkpoint, "--data-timeout", timeout_s)
    process = start_group(*holding, *words, "--data-path", pictures)
    while process.poll() is None:
        with contextlib.suppress(OSError):  # nobody reads it yet
            return process, os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("place", PLACES)
def test_a_reading_process_that_is_killed_is_one_line(
    picture_tree: Path, tmp_path: Path, checkpoint: Path, place: str
) -> None:
    process, pipe = start(place, picture_tree, tmp_path, checkpoint)
    workers = sorted(set(members_of(process.pid)) - {process.pid})
    assert len(workers) == PLACES[place][1]
    for worker in workers[-2:]:  # those that were started last
        os.kill(worker, signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    os.close(pipe)
    assert process.returncode == 2, told
    assert "Traceback" not in told
    last = told.splitlines()[-1]
    assert last.startswith(f"{'validate.py' if place == 'validate.py' else 'train.py'}: error: ")
    assert "was killed by SIGKILL: most likely the memory ran out; use fewer --workers (now 2)" in last
    wait_for_the_end_of(process.pid)


@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_is_one_line_and_leaves_nothing(
    picture_tree: Path, tmp_path: Path, checkpoint: Path, place: str
) -> None:
    process, pipe = start(place, picture_tree, tmp_path, checkpoint)
    assert len(members_of(process.pid)) == 1 + PLACES[place][1]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    os.close(pipe)
    _, told = process.communicate(timeout=60)
    assert "Traceback" not in told
    last = told.splitlines()[-1]
    if place == "validate.py":
        assert (process.returncode, last) == (130, "validate.py: interrupted")
    else:  # behind the step, or before the next batch of the validation: tests/training/test_signals.py
        assert process.returncode == 75, told
        assert last.startswith("train.py: stopped by SIGINT behind step ")
    wait_for_the_end_of(process.pid)


@pytest.mark.parametrize("place", PLACES)
def test_reading_processes_end_with_the_one_they_read_for(
    picture_tree: Path, tmp_path: Path, checkpoint: Path, place: str
) -> None:
    """Even while they wait for a disk that does not answer."""
    process, pipe = start(place, picture_tree, tmp_path, checkpoint)
    assert len(members_of(process.pid)) == 1 + PLACES[place][1]
    process.kill()
    _, told = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert "Traceback" not in told
    wait_for_the_end_of(process.pid)
    os.close(pipe)


@pytest.mark.parametrize("place", ["training", "validate.py"])
def test_a_disk_that_hangs_is_one_line(picture_tree: Path, tmp_path: Path, checkpoint: Path, place: str) -> None:
    """Which names the file; nobody waits for it any longer."""
    process, pipe = start(place, picture_tree, tmp_path, checkpoint, timeout_s=2)
    _, told = process.communicate(timeout=60)
    os.close(pipe)
    assert process.returncode == 1, told
    file = min((picture_tree / PLACES[place][0] / "class_1").iterdir())
    door = "validate.py" if place == "validate.py" else "train.py"
    line = f"{door}: error: nothing has been read for 2 s (data.timeout_s), waiting for {file}: "
    assert told.splitlines()[-1].startswith(line)
    assert "Traceback" not in told
    wait_for_the_end_of(process.pid)
