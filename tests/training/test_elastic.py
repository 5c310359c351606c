"""Real runs on several machines (agents of torchrun on this one), which lose processes and machines, and get others.

All have the same recipe, the same global batch, and slices of the same size. So a run on two processes is the same as
another on two, bit for bit, and its records are those of one process but for the order of the additions; the learning
rate is small, so that this makes no difference worth mentioning.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cspnet.cli.compare_runs import read_records
from cspnet.cli.train import main
from cspnet.data.index import open_index
from cspnet.data.sampler import epoch_order
from tests.conftest import ROOT
from tests.forking import Forked
from tests.processes import parent_of
from tests.training.whole_runs import STEPS_PER_EPOCH, assert_same_runs, draw_pictures, find_processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds a run's processes in /proc"),
]

EPOCHS, GLOBAL_BATCH, SEED = 3, 8, 7
FLAGS = (
    *("--model", "cspdarknet_tiny", "--img-size", "32", "--device", "cpu", "--precision", "fp32", "--workers", "0"),
    *("--epochs", str(EPOCHS), "--global-batch", str(GLOBAL_BATCH), "--batch-size", "2", "--seed", str(SEED)),
    *("--lr", "0.0001", "--cutmix", "1.0", "--mixup", "0.4", "--aa", "trivial", "--reprob", "0.3"),
    *("--smoothing", "0.1", "--ema.decay", "0.9", "--print-freq", "3", "--log.tensorboard", "false"),
    *("--checkpoint.every_steps", "2", "--checkpoint.keep", "100"),
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("elastic"))


class Agents:
    """Started torchruns, with their output in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, **variables: str) -> None:
        """torchrun with some arguments, on a machine that has only a loopback."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **variables}
        with self.log(len(self.processes)).open("wb") as log:
            command = [sys.executable, "-m", "torch.distributed.run", *arguments]
            self.processes.append(Forked(command, cwd=ROOT, env=environment, stdout=log, stderr=log))

    def log(self, number: int) -> Path:
        return self.folder / f"agent-{number}.log"

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Returns when something is so; all have to live that long."""
        deadline = time.monotonic() + 120
        while not condition():
            assert all(process.poll() is None for process in self.processes), self.tell()
            assert time.monotonic() < deadline, self.tell()
            time.sleep(0.005)

    def end(self, number: int) -> str:
        """The output of one that has ended well."""
        try:
            code = self.processes[number].wait(timeout=120)
        except subprocess.TimeoutExpired:
            code = None
        assert code == 0, self.tell()
        return self.log(number).read_text()

    def tell(self) -> str:
        return "\n".join(f"--- {path}\n{path.read_text()}" for path in sorted(self.folder.glob("agent-*.log")))


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    """None of their processes is left behind."""
    started = Agents(tmp_path)
    yield started
    kill(*(process.pid for process in started.processes), *find_processes(tmp_path))
    for process in started.processes:
        process.wait(timeout=60)


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def fill_in(mark: str, pictures: Path, folder: Path, processes: int) -> tuple[dict[str, str], list[str]]:
    """The command of README.md that has a mark in it, for this machine: its environment, and torchrun's arguments."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    command = next(line for line in text.splitlines() if "torchrun " in line and mark in line)
    variables, _, command = command.partition("torchrun ")
    command = command.replace("HOST:PORT", f"127.0.0.1:{find_free_port()}")
    for pattern, here in (
        (r"--nproc_per_node=\d+", f"--nproc_per_node={processes} --local-addr=127.0.0.1"),
        (r"--data-path \S+", f"--data-path {pictures}"),
        (r"--output-dir \S+", f"--output-dir {folder}"),
        (r"--(global-batch|batch-size) \d+", ""),
    ):
        command, found = re.subn(pattern, here, command)
        assert found, f"README.md: {pattern} is not in: {command}"
    return dict(word.split("=", 1) for word in variables.split()), [*command.split(), *FLAGS]


def run_alone(pictures: Path, folder: Path, *more: str) -> None:
    """One process, which is this one."""
    assert main([*FLAGS, "--data-path", str(pictures), "--output-dir", str(folder), *more]) == 0


@pytest.fixture(scope="module")
def alone(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody touched, on one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run_alone(pictures, folder)
    return folder


@pytest.fixture(scope="module")
def two_nodes(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The run that nobody touched, on two machines as README.md starts it, and what they printed."""
    base = tmp_path_factory.mktemp("nodes")
    started = Agents(base)
    environment, arguments = fill_in("--nnodes=4", pictures, base / "run", processes=1)
    assert not environment
    arguments[arguments.index("--nnodes=4")] = "--nnodes=2"
    try:
        for _ in range(2):
            started.start(*arguments)
        return base / "run", [started.end(number) for number in range(2)]
    finally:
        kill(*(process.pid for process in started.processes), *find_processes(base))


def read_training(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, without what depends on BatchNorm's averages."""
    records = read_records(folder)
    return [{key: value for key, value in record.items() if not key.startswith("val")} for record in records]


def assert_nearly_same_training(folder: Path, reference: Path) -> None:
    """The same losses and hits in every window and epoch, but for rounding, in full and once."""
    mine, other = read_training(folder), read_training(reference)
    assert [record["step"] for record in mine] == [record["step"] for record in other]
    for record, expected in zip(mine, other, strict=True):
        assert record == pytest.approx(expected, rel=2e-3), record["step"]


def progress(folder: Path) -> dict[str, Any]:
    return dict(torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["progress"])


def test_two_nodes_train_as_one_process(two_nodes: tuple[Path, list[str]], alone: Path) -> None:
    folder, outputs = two_nodes
    spoke = [output for output in outputs if "batch   8 pictures a step (2 x 2 micro-batches x 2 processes)" in output]
    assert len(spoke) == 1, "only the first process speaks"
    assert progress(folder)["step"] == EPOCHS * STEPS_PER_EPOCH
    assert_nearly_same_training(folder, alone)


def cut_back(folder: Path, run: Path, step: int) -> None:
    """A copy of a run as if it had been killed before it saved anything behind a step."""
    shutil.copytree(run, folder)
    for file in (folder / "checkpoints").glob("*.pt"):
        if file.name > f"step-{step:08d}.pt" or not file.name.startswith("step"):
            file.unlink()


def test_two_processes_go_on_as_one(
    two_nodes: tuple[Path, list[str]], alone: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the middle of an epoch, and of the steps between two records."""
    step = STEPS_PER_EPOCH + 2
    cut_back(tmp_path / "run", two_nodes[0], step)
    run_alone(pictures, tmp_path / "run", "--resume", "auto")
    told = capsys.readouterr()
    assert f"step {step} of {EPOCHS * STEPS_PER_EPOCH}" in told.out
    assert "saved by 2 processes, resumed by 1" in told.err
    assert_nearly_same_training(tmp_path / "run", alone)


def test_a_lost_process_is_started_again(
    two_nodes: tuple[Path, list[str]], pictures: Path, tmp_path: Path, agents: Agents
) -> None:
    folder = tmp_path / "run"
    environment, arguments = fill_in("--standalone --nproc_per_node=8 --max-restarts", pictures, folder, processes=2)
    assert not environment
    agents.start(*arguments)
    agents.wait_until(lambda: len(find_processes(folder, "RANK=1")) == 1)
    (lost,) = find_processes(folder, "RANK=1")
    agents.wait_until((folder / "checkpoints" / f"step-{STEPS_PER_EPOCH + 2:08d}.pt").exists)
    os.kill(lost, signal.SIGKILL)
    output = agents.end(0)
    assert output.count("resumed from") == 1
    assert_same_runs(folder, two_nodes[0])


def find_picture(pictures: Path, epoch: int, step: int, read_before: int = 0) -> Path:
    """A picture that is read in a step of an epoch (and in an earlier step of the first epoch)."""
    index = open_index(pictures / "train", root=str(pictures), cache_dir=None)
    first, order = (epoch_order(SEED, number, len(index)).tolist() for number in (0, epoch))
    samples = order[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH]
    return Path(index.path(next(i for i in samples if not epoch or first.index(i) < read_before * GLOBAL_BATCH)))


class Gate:
    """A picture that keeps its reader waiting from the time it is shut until it is opened."""

    def __init__(self, picture: Path, pipe: Path) -> None:
        self.picture, self.pipe, self.end = picture, pipe, -1

    def shut(self) -> None:
        os.mkfifo(self.pipe)

    def has_reader(self) -> bool:
        with contextlib.suppress(OSError):  # nobody reads it yet
            self.end = os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK)
        return self.end >= 0

    def open(self) -> None:
        """From now on it is a file, also for whoever comes later."""
        self.pipe.unlink()
        with contextlib.suppress(BrokenPipeError):  # its reader was killed
            os.write(self.end, self.picture.read_bytes())
        os.close(self.end)


def test_a_node_joins_and_a_node_is_lost(alone: Path, pictures: Path, tmp_path: Path, agents: Agents) -> None:
    """One process, then two, then one again: the records are those of one that was left alone."""
    folder = tmp_path / "run"
    joining = Gate(find_picture(pictures, epoch=0, step=2), tmp_path / "joining")
    losing = Gate(find_picture(pictures, epoch=1, step=3, read_before=2), tmp_path / "losing")
    environment, arguments = fill_in("--nnodes=1:2", pictures, folder, processes=1)
    assert environment == {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    arguments.insert(0, "--rdzv-conf=last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=5")
    at = arguments.index("train.py")
    gates = [[str(gate.picture), str(gate.pipe)] for gate in (joining, losing)]
    arguments[at:at] = ["-m", "tests.held", *gates[0], "tests/held.py", *gates[1]]
    joining.shut()
    agents.start(*arguments, **environment)
    agents.wait_until(joining.has_reader)
    losing.shut()
    # Ranks go by the agents' addresses, and by their process numbers, which may begin anew between the two.
    agents.start(*(word.replace("local-addr=127.0.0.1", "local-addr=127.0.0.2") for word in arguments), **environment)
    agents.wait_until(lambda: "saving behind this step" in agents.log(0).read_text())
    joining.open()
    agents.wait_until(losing.has_reader)
    agents.wait_until(lambda: progress(folder)["step"] == STEPS_PER_EPOCH + 2)  # it is written beside the steps
    second = agents.processes.pop()
    kill(second.pid, *(pid for pid in find_processes(folder) if parent_of(pid) == second.pid))
    assert second.wait(timeout=60) == -signal.SIGKILL
    losing.open()
    output = agents.end(0)
    resumed = re.findall(r"x (\d) processes\)|resumed from \S+: step (\d+) ", output)
    assert resumed == [("1", ""), ("2", ""), ("", "3"), ("1", ""), ("", str(STEPS_PER_EPOCH + 2))]
    assert output.count("stopped by") == 1
    assert_nearly_same_training(folder, alone)
