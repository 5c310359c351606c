"""Saving beside the training: what is written is the state at the save, and a failure is told, survived, or the end."""

from __future__ import annotations

import csv
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cspnet.cli.train import main
from cspnet.errors import RunFolderError
from cspnet.training import saving
from cspnet.training.saving import HostCopies, Saver
from cspnet.training.state import Progress
from tests.training.whole_runs import assert_same

FLAGS = ["--model", "cspdarknet_tiny", "--img-size", "32", "--workers", "0", "--device", "cpu", "--precision", "fp32"]
FLAGS += ["--log.tensorboard", "false", "--print-freq", "1", "--batch-size", "8", "--lr", "0.01"]


def make_saver(folder: Path, *, max_failures: int = 0, warnings: list[str] | None = None) -> Saver:
    return Saver(folder, keep=3, max_failures=max_failures, warn=[].append if warnings is None else warnings.append)


class Gate:
    """Stands in for the writer: writes when it is let through, and fails when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.errors: list[Exception | None] = []
        self.written: list[tuple[int, dict[str, Any]]] = []
        monkeypatch.setattr(saving, "save_checkpoint", self.write)

    def write(self, folder: Path, content: dict[str, Any], *, step: int, **others: Any) -> None:
        assert self.open.wait(60)
        if self.errors and (error := self.errors.pop(0)):
            raise error
        self.written.append((step, {key: value.clone() for key, value in content.items()}))


# Copies


def make_state() -> dict[str, Any]:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return {
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ranks": [(torch.get_rng_state(), {"sums": [1.0, 2.0]})],
        "progress": {"step": 3, "best": None},
    }


def test_copies_are_the_same_to_the_stride_and_independent() -> None:
    state = make_state()
    taken = HostCopies().take(state)
    assert_same(taken, state)
    assert type(taken["state_dict"]) is OrderedDict
    assert taken["state_dict"]._metadata == state["state_dict"]._metadata
    for key, value in state["state_dict"].items():
        assert taken["state_dict"][key].stride() == value.stride(), key
    before = {key: value.clone() for key, value in taken["state_dict"].items()}
    for value in state["state_dict"].values():
        value.add_(1)
    state["ranks"][0][1]["sums"].append(3.0)
    assert_same(dict(taken["state_dict"]), before)
    assert taken["ranks"][0][1] == {"sums": [1.0, 2.0]}


def test_the_room_of_a_copy_is_used_again() -> None:
    copies, state = HostCopies(), make_state()
    first = [tensor.data_ptr() for tensor in copies.take(state)["state_dict"].values()]
    assert [tensor.data_ptr() for tensor in copies.take(state)["state_dict"].values()] == first
    state["state_dict"]["0.weight"] = torch.randn(5, 5)  # another shape
    assert_same(copies.take(state), state)


# The thread


def test_the_run_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, saver, weight = Gate(monkeypatch), make_saver(tmp_path), torch.zeros(3)
    saver.save({"weight": weight}, step=1, is_best=False)  # returns although nothing can be written yet
    weight += 1
    assert gate.written == []
    gate.open.set()
    saver.save({"weight": weight}, step=2, is_best=False)
    weight += 1
    assert saver.find_failure() is None
    assert [step for step, _ in gate.written] == [1, 2]
    assert [content["weight"].tolist() for _, content in gate.written] == [[0, 0, 0], [1, 1, 1]]


def test_a_save_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, saver = Gate(monkeypatch), make_saver(tmp_path)
    saver.save({"weight": torch.zeros(1)}, step=1, is_best=False)
    second = threading.Thread(
        target=saver.save, args=({"weight": torch.ones(1)},), kwargs={"step": 2, "is_best": False}
    )
    second.start()
    second.join(0.2)
    assert second.is_alive()
    gate.open.set()
    second.join(60)
    saver.wait()
    assert [(step, content["weight"].item()) for step, content in gate.written] == [(1, 0), (2, 1)]


# Failures


def full() -> RunFolderError:
    return RunFolderError("step-1.pt: cannot write the checkpoint: No space left on device")


def fail_in_turn(
    folder: Path, monkeypatch: pytest.MonkeyPatch, errors: list[Exception | None], max_failures: int
) -> tuple[list[bool], list[str], Saver]:
    """Whether the run would end behind each of a few saves, the warnings, and the saver."""
    gate, warnings = Gate(monkeypatch), list[str]()
    saver = make_saver(folder, max_failures=max_failures, warnings=warnings)
    gate.open.set()
    gate.errors = list(errors)
    ends = []
    for step in range(len(errors)):
        saver.save({"weight": torch.zeros(1)}, step=step, is_best=False)
        ends.append(saver.find_failure() is not None)
    return ends, warnings, saver


def test_so_many_failures_in_a_row_are_told_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [full(), full(), None, full(), full(), full()]
    ends, warnings, saver = fail_in_turn(tmp_path, monkeypatch, errors, max_failures=2)
    assert ends == [False, False, False, False, False, True]
    assert [line.partition("; ")[2] for line in warnings] == [
        *(f"going on ({n} failures in a row, of at most 2)" for n in (1, 2, 1, 2)),
        "the run ends at its next save (3 failures in a row, of at most 2)",
    ]
    failure = saver.find_failure()
    assert isinstance(failure, RunFolderError)
    assert str(failure).endswith("once it can be written again, go on with --resume auto")


def test_the_last_save_must_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, saver = fail_in_turn(tmp_path, monkeypatch, [full()], max_failures=9)
    assert saver.find_failure() is None
    assert isinstance(saver.find_failure(is_last=True), RunFolderError)
    _, _, saver = fail_in_turn(tmp_path, monkeypatch, [full(), None], max_failures=9)
    assert saver.find_failure(is_last=True) is None


def test_a_bug_in_the_thread_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, warnings, saver = fail_in_turn(tmp_path, monkeypatch, [ZeroDivisionError("ours")], max_failures=9)
    assert warnings == []
    assert isinstance(saver.find_failure(), ZeroDivisionError)


# Whole runs


def run(pictures: Path, folder: Path, *flags: str) -> int:
    return main([*FLAGS, "--data-path", str(pictures), "--output-dir", str(folder), *flags])


def load(folder: Path, name: str = "last.pt") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def list_steps(folder: Path) -> list[int]:
    return sorted(int(file.stem.partition("-")[2]) for file in (folder / "checkpoints").glob("step-*.pt"))


@pytest.fixture
def limited_files(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """No checkpoint grows beyond 100 kB, which is too little, until so many saves have failed."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(failures: int) -> None:
        failed = 0

        def save(*args: Any, **kwargs: Any) -> Any:
            nonlocal failed
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if failed < failures else before[0], before[1]))
            try:
                return real(*args, **kwargs)
            except RunFolderError:
                failed += 1
                raise
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

        real = saving.save_checkpoint
        monkeypatch.setattr(saving, "save_checkpoint", save)

    return limit


def test_a_full_disk_that_is_mended_in_time_changes_nothing(
    picture_tree: Path, tmp_path: Path, limited_files: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--epochs", "2", "--checkpoint.every_steps", "2")  # six saves
    assert run(picture_tree, tmp_path / "reference", *flags) == 0
    capsys.readouterr()
    limited_files(3)
    assert run(picture_tree, tmp_path / "run", *flags) == 0
    errors = [line for line in capsys.readouterr().err.splitlines() if "cannot write the checkpoint" in line]
    assert len(errors) == 3
    assert all("the earlier ones are untouched; going on" in line for line in errors)
    assert_same(load(tmp_path / "run"), load(tmp_path / "reference"))


def test_a_disk_that_stays_full_ends_the_run_in_one_line_and_the_old_checkpoints_stay(
    picture_tree: Path, tmp_path: Path, limited_files: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(picture_tree, tmp_path / "run", "--epochs", "1") == 0
    before = load(tmp_path / "run")
    capsys.readouterr()
    limited_files(10**9)
    flags = ("--epochs", "9", "--checkpoint.every_steps", "2", "--resume", "auto", "--checkpoint.max_failures", "4")
    assert run(picture_tree, tmp_path / "run", *flags) == 2
    errors = capsys.readouterr().err.splitlines()
    *told, last = [line for line in errors if "cannot write the checkpoint" in line]
    assert len(told) == 5  # each at once
    assert last == errors[-1]
    assert last.endswith("once it can be written again, go on with --resume auto")
    assert_same(load(tmp_path / "run"), before)
    assert [path.name for path in (tmp_path / "run").rglob("*.tmp")] == []


def test_a_last_save_is_tried_however_many_failed_before(
    picture_tree: Path, tmp_path: Path, limited_files: Callable[[int], None]
) -> None:
    """Both saves in the epoch fail, which is one too many; the third one, behind the last step, finds room."""
    flags = ("--epochs", "1", "--checkpoint.every_steps", "2")  # of six
    assert run(picture_tree, tmp_path / "reference", *flags) == 0
    limited_files(2)
    assert run(picture_tree, tmp_path / "run", *flags, "--checkpoint.max_failures", "1") == 0
    assert_same(load(tmp_path / "run")["state_dict"], load(tmp_path / "reference")["state_dict"])


def test_records_that_cannot_be_taken_back_are_one_line(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(picture_tree, tmp_path / "run", "--epochs", "1") == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cspnet.reporting.metrics_file.write_atomically", refuse)
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(b"half a line")
    capsys.readouterr()
    assert run(picture_tree, tmp_path / "run", "--epochs", "2", "--resume", "auto") == 2
    assert "its records cannot be written: No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before + b"half a line"


def test_the_best_few_stay_beside_the_newest_also_across_a_resume(picture_tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = ("--checkpoint.keep", "1", "--checkpoint.keep_best", "3")
    assert run(picture_tree, folder, *flags, "--epochs", "4") == 0
    assert run(picture_tree, folder, *flags, "--epochs", "8", "--resume", "auto") == 0
    with (folder / "summary.csv").open(newline="") as file:
        scores = [float(row["eval_top1"]) for row in csv.DictReader(file)]
    steps_per_epoch = load(folder)["progress"]["step"] // 8
    best = sorted(range(8), key=lambda epoch: (-scores[epoch], epoch))[:3]
    assert list_steps(folder) == sorted({(epoch + 1) * steps_per_epoch for epoch in (*best, 7)})
    assert load(folder, "best.pt")["progress"]["step"] == (best[0] + 1) * steps_per_epoch
    assert run(picture_tree, folder, "--checkpoint.keep", "all", "--epochs", "10", "--resume", "auto") == 0
    assert len(list_steps(folder)) == len({*best, 7}) + 2


def test_ranking() -> None:
    progress, history = Progress(), [50.0, 40.0, 60.0, 60.0, 55.0, 10.0]
    best = []
    for epoch, acc1 in enumerate(history):
        progress.epoch, progress.step = epoch, 10 * (epoch + 1)
        best.append(progress.rank(acc1, most=3))
    assert best == [True, False, True, False, False, False]
    assert (progress.best_acc1, progress.best_epoch) == (60.0, 2)
    assert progress.ranking == [[30, 60.0], [40, 60.0], [50, 55.0]]
