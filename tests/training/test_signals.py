"""A run that is told to stop saves behind the step, and goes on as if it had not been told."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.processes import start_group, wait_for_the_end_of
from tests.training.whole_runs import (
    EPOCHS,
    STEPS_PER_EPOCH,
    assert_same_runs,
    command,
    draw_pictures,
    run,
    start,
    wait_for_step,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc"),
]

EXIT_STOPPED = 75


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("stopped"))


@pytest.fixture(scope="module")
def untouched(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untouched") / "run"
    run(command(pictures, folder, 1, 0))
    return folder


@pytest.fixture(scope="module")
def two_untouched(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-untouched") / "run"
    run(command(pictures, folder, 2, 0))
    return folder


def progress(folder: Path) -> dict[str, object]:
    return dict(torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["progress"])


def hold(pictures: Path, folder: Path, split: str) -> tuple[list[object], Path, bytes]:
    """What starts a script so that it waits at a picture for a pipe; the pipe, and what belongs there."""
    picture = min((pictures / split / "class_1").iterdir())
    os.mkfifo(folder / "pipe")
    return ["-m", "tests.held", picture, folder / "pipe"], folder / "pipe", picture.read_bytes()


def held(hold: list[object], arguments: list[str]) -> list[str]:
    """A run so started."""
    return [arguments[0], *map(str, hold), *arguments[1:]]


def wait_for_reader(process: subprocess.Popen[str], pipe: Path) -> int:
    """The pipe's other end, once somebody reads it."""
    while process.poll() is None:
        with contextlib.suppress(OSError):  # nobody does yet
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.01)
    raise AssertionError(process.communicate())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"])
def test_told_in_training(untouched: Path, pictures: Path, tmp_path: Path, name: str) -> None:
    """All processes of the group get it: those that read go on with it. Once (SIGUSR1) as a person starts it."""
    arguments = command(pictures, tmp_path / "run", 1, 2, "--resume", "auto")
    process = start(arguments, forked=name != "SIGUSR1")
    wait_for_step(process, tmp_path / "run", 8)
    os.killpg(process.pid, getattr(signal, name))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, output
    assert "Traceback" not in output
    lines = output.splitlines()
    assert f"{name}: saving behind this step, then stopping; again stops at once" in lines
    found = re.fullmatch(rf"train\.py: stopped by {name} behind step (\d+); saved: go on with --resume auto", lines[-1])
    assert found
    assert progress(tmp_path / "run")["step"] == int(found[1])
    assert 8 <= int(found[1]) < EPOCHS * STEPS_PER_EPOCH
    wait_for_the_end_of(process.pid)
    if name == "SIGTERM":  # they are handled alike
        run(arguments)
        assert_same_runs(tmp_path / "run", untouched)


def test_told_in_validation(untouched: Path, pictures: Path, tmp_path: Path) -> None:
    holding, pipe, data = hold(pictures, tmp_path, "val")
    arguments = command(pictures, tmp_path / "run", 1, 2, "--resume", "auto")
    process = start(held(holding, arguments))
    end = wait_for_reader(process, pipe)
    os.killpg(process.pid, signal.SIGTERM)
    os.write(end, data)
    os.close(end)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, output
    assert f"behind step {STEPS_PER_EPOCH}; saved" in output
    assert (progress(tmp_path / "run")["step"], progress(tmp_path / "run")["epoch"]) == (STEPS_PER_EPOCH, 0)
    assert "validated" not in output
    assert output.count("validated") == 0
    assert run(arguments).count("validated") == EPOCHS
    assert_same_runs(tmp_path / "run", untouched)


def test_told_in_the_last_validation(pictures: Path, tmp_path: Path) -> None:
    """All steps are done, and yet the run is not over."""
    holding, pipe, data = hold(pictures, tmp_path, "val")
    arguments = command(pictures, tmp_path / "run", 1, 0, "--resume", "auto", "--steps", "3")
    process = start(held(holding, arguments))
    end = wait_for_reader(process, pipe)
    process.send_signal(signal.SIGUSR1)
    os.write(end, data)
    os.close(end)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output.count("validated")) == (EXIT_STOPPED, 0), output
    assert run(arguments).count("validated") == 1
    assert "the run is finished" in run(arguments)
    run(command(pictures, tmp_path / "other", 1, 0, "--steps", "3"))
    assert_same_runs(tmp_path / "run", tmp_path / "other")


TELLING_ITSELF = """
import os, signal, sys
sys.path.insert(0, os.getcwd())
from cspnet.training import loop
real = loop.train_step
def step(state, *values, **others):
    if state.progress.step == {step} and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return real(state, *values, **others)
loop.train_step = step
from cspnet.cli.start import train
sys.exit(train())
"""


@pytest.mark.parametrize("step", [6, 8])
def test_one_of_two_processes_is_told(pictures: Path, two_untouched: Path, tmp_path: Path, step: int) -> None:
    """In a step; both stop behind it. In the next one, one of them begins with an attack (6), or neither (8).

    Once (8) as a person starts it, through exec and torchrun.
    """
    driver = tmp_path / "driver.py"
    driver.write_text(TELLING_ITSELF.format(step=step))
    arguments = command(pictures, tmp_path / "run", 2, 1, "--resume", "auto")
    process = start([str(driver) if word == "train.py" else word for word in arguments], forked=step != 8)
    output, _ = process.communicate(timeout=120)
    assert f"train.py: stopped by a signal to another process behind step {step + 1}; saved" in output, output
    assert len(re.findall(rf"exitcode\s*: {EXIT_STOPPED} ", output)) == 2, output
    wait_for_the_end_of(process.pid)
    run(arguments)
    assert_same_runs(tmp_path / "run", two_untouched)


def test_told_twice(pictures: Path, tmp_path: Path) -> None:
    """The first one waits for a disk that does not answer; the second one does not."""
    holding, pipe, _ = hold(pictures, tmp_path, "train")
    flags = ("--model", "cspdarknet_tiny", "--img-size", "32", "--batch-size", "51", "--device", "cpu")
    places = ("--workers", "2", "--data-path", pictures, "--output-dir", tmp_path / "run")
    process = start_group(*holding, "train.py", *flags, *places)
    end = wait_for_reader(process, pipe)
    assert process.stderr is not None
    os.killpg(process.pid, signal.SIGTERM)
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline().startswith("SIGTERM: saving behind this step")
    os.killpg(process.pid, signal.SIGTERM)  # as launchers pass it on: the same request
    time.sleep(1.1)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    wait_for_the_end_of(process.pid)
    os.close(end)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_told_before_there_is_anything_to_save(tmp_path: Path, name: str) -> None:
    """Once (SIGTERM) as a person starts it."""
    os.mkfifo(tmp_path / "train_list.txt")
    flags = ("--device", "cpu", "--val-split", "null")
    places = ("--data-path", tmp_path, "--output-dir", tmp_path / "run")
    process = start_group("train.py", *flags, *places, forked=name != "SIGTERM")
    end = wait_for_reader(process, tmp_path / "train_list.txt")
    process.send_signal(getattr(signal, name))
    os.close(end)  # a signal right in front of the read would wait for it
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (EXIT_STOPPED, f"train.py: stopped by {name}; there was nothing to save\n")
    assert not (tmp_path / "run").exists()
