"""A process that dies or stalls makes the others stop with a line that names it, in a stated time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cspnet.cli.compare_runs import read_records
from cspnet.data.index import open_index
from cspnet.data.sampler import BatchPlan
from cspnet.errors import EXIT_STOPPED
from tests.processes import free_port, start_group, wait_for_the_end_of
from tests.training.whole_runs import command, draw_pictures, find_rank, start, wait_for_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc"),
]

QUICKLY_S = 60
"""A hang is half an hour; what is stated is far below this, on however slow a machine."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("hangs"))


def read_until(rank: subprocess.Popen[str], text: str) -> None:
    """Returns when a process has said something on its stderr."""
    assert rank.stderr is not None
    assert any(text in line for line in rank.stderr), text


def test_signals_are_heeded_while_another_process_is_waited_for(pictures: Path, tmp_path: Path) -> None:
    """The first one is told to, the second one obeyed at once."""
    with two_ranks(flags(pictures, tmp_path / "run"), tmp_path / "run") as ranks:
        ranks[1].send_signal(signal.SIGSTOP)
        time.sleep(1)  # the first one now waits for it
        ranks[0].send_signal(signal.SIGTERM)
        read_until(ranks[0], "stopping once the other processes have come; again stops at once")
        ranks[0].send_signal(signal.SIGTERM)
        assert ranks[0].wait(QUICKLY_S) == 128 + signal.SIGTERM


def test_one_signal_is_enough_for_a_process_that_waits_for_others_to_start(pictures: Path, tmp_path: Path) -> None:
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "RANK": "0"}
    rank = start_group(*flags(pictures, tmp_path / "run"), variables=meeting)
    try:
        deadline = time.monotonic() + QUICKLY_S
        while not is_listening(int(meeting["MASTER_PORT"])):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        rank.send_signal(signal.SIGTERM)
        _, errors = rank.communicate(timeout=QUICKLY_S)
    finally:
        rank.kill()
    assert rank.returncode == EXIT_STOPPED, errors
    assert "there was nothing to save" in errors


def is_listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def flags(pictures: Path, folder: Path, *more: str) -> list[str]:
    """Of a run that does not end by itself."""
    words = command(pictures, folder, 1, 1, "--batch-size", "2", "--epochs", "1000", *more)
    return words[words.index("train.py") :]


@contextlib.contextmanager
def two_ranks(words: list[str], folder: Path, step: int = 3) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of a run, without a launcher, when they have done a step."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [start_group(*words, variables={**meeting, "RANK": str(rank)}) for rank in range(2)]
    try:
        deadline = time.monotonic() + 120
        while not any(record["step"] >= step for record in read_records(folder)):
            assert time.monotonic() < deadline
            assert [rank.poll() for rank in ranks] == [None, None], [rank.communicate()[1] for rank in ranks]
            time.sleep(0.01)
        yield ranks
    finally:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid, signal.SIGKILL)
            rank.communicate()


def end_of(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """The exit code, and what was said on stderr."""
    _, told = process.communicate(timeout=QUICKLY_S)
    wait_for_the_end_of(process.pid)
    return process.returncode, told.splitlines()


def test_a_rank_that_dies_is_named(pictures: Path, tmp_path: Path) -> None:
    with two_ranks(flags(pictures, tmp_path / "run"), tmp_path / "run") as ranks:
        ranks[1].kill()
        code, told = end_of(ranks[0])
    assert code == 1, told
    assert len(told) == 1, told
    found = re.fullmatch(
        rf"train\.py: error: rank 1 \({socket.gethostname()}, pid {ranks[1].pid}\) died in "
        r"step (\d+) \(all had done step (\d+)\), without a word: .*--resume auto",
        told[0],
    )
    assert found, told
    assert int(found[1]) == int(found[2]) + 1 >= 4


def test_a_rank_that_stalls_is_named(pictures: Path, tmp_path: Path) -> None:
    """The first one, at which they have met, and which writes what is seen of the run."""
    words = flags(pictures, tmp_path / "run", "--train.timeout_s", "3")
    with two_ranks(words, tmp_path / "run") as ranks:
        ranks[0].send_signal(signal.SIGSTOP)
        code, told = end_of(ranks[1])
    assert code == 1, told
    assert len(told) == 1, told
    place = f"[rank 1] train.py: error: rank 0 ({socket.gethostname()}, pid {ranks[0].pid}) did not come to step "
    assert told[0].startswith(place)
    assert " within 3 s (train.timeout_s): stopped by a signal; " in told[0]


def test_what_the_user_can_mend_on_one_rank_is_one_line_under_torchrun(pictures: Path, tmp_path: Path) -> None:
    """And all end with its exit code, though torchrun stops those that are left."""
    shutil.copytree(pictures, tmp_path / "data")
    index = open_index(tmp_path / "data" / "train", root=str(tmp_path / "data"), cache_dir=None)
    # The whole batch: a reading process may be at the one behind it.
    plan = BatchPlan(len(index), 2, 2, 2, 42)
    first = next(plan.addresses(1, 0, 0)).samples
    for sample in first:
        Path(index.path(int(sample))).write_bytes(b"no picture")
    words = command(tmp_path / "data", tmp_path / "run", 2, 1, "--data.bad_images", "raise")
    process = start(words)
    output, _ = process.communicate(timeout=QUICKLY_S)
    wait_for_the_end_of(process.pid)
    path = index.path(int(first[0]))
    told = [line for line in output.splitlines() if "train.py: error:" in line]
    assert told == [
        f"[rank 1] train.py: error: {path}: cannot be read: cannot identify image file (data.bad_images is raise)"
    ], output
    assert "gloo" not in output
    assert len(re.findall(r"exitcode +: 2 ", output)) == 2, output


def test_a_rank_that_dies_under_torchrun_makes_the_run_fail(pictures: Path, tmp_path: Path) -> None:
    """What torchrun tells the others then is no request that they can meet. As a person starts it."""
    process = start(command(pictures, tmp_path / "run", 2, 1, "--epochs", "1000"), forked=False)
    wait_for_step(process, tmp_path / "run", 3)
    os.kill(find_rank(tmp_path / "run", 1), signal.SIGKILL)
    output, _ = process.communicate(timeout=QUICKLY_S)
    wait_for_the_end_of(process.pid)
    told = [line for line in output.splitlines() if "train.py: error:" in line]
    assert len(told) == 1, output
    assert re.match(r"train\.py: error: rank 1 \(.*\) died in step \d+ ", told[0])
    assert "gloo" not in output
    assert set(re.findall(r"exitcode +: (-?\d+) ", output)) == {"1", "-9"}, output
