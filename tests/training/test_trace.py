"""--profile: a trace of the steps asked for, and a run that is the same as without it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from cspnet.cli.train import main
from cspnet.errors import EXIT_STOPPED
from cspnet.training import loop
from cspnet.training.run import Run
from cspnet.training.skipped import LatestSteps
from tests.training.whole_runs import assert_same_runs

FLAGS = ["--model", "cspdarknet_tiny", "--img-size", "32", "--workers", "0", "--device", "cpu", "--precision", "fp32"]
FLAGS += ["--batch-size", "8", "--log.every_steps", "2", "--val-split", "null", "--log.tensorboard", "false"]
FLAGS += ["--model-kwargs", "{drop_rate: 0.2}", "--mixup", "0.4", "--checkpoint.every_steps", "2"]


def train(pictures: Path, folder: Path, *more: str) -> int:
    return main([*FLAGS, "--data-path", str(pictures), "--output-dir", str(folder), *more])


def list_steps(folder: Path, name: str = "trace.json.gz") -> list[str]:
    """The steps that a trace has, by torch's marks."""
    with gzip.open(folder / "profile" / name) as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    assert any(event.get("name") == "aten::convolution" for event in events)
    return sorted(event["name"] for event in events if str(event.get("name")).startswith("ProfilerStep#"))


def test_the_steps_behind_the_first_ones_are_recorded_and_nothing_is_changed(
    picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(picture_tree, tmp_path / "plain", "--epochs", "2") == 0
    capsys.readouterr()
    assert train(picture_tree, tmp_path / "run", "--epochs", "2", "--profile", "2") == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert_same_runs(tmp_path / "run", tmp_path / "plain")
    assert list_steps(tmp_path / "run") == ["ProfilerStep#3", "ProfilerStep#4"]
    (line,) = (line for line in output.out.splitlines() if line.startswith("profile "))
    trace, table = (tmp_path / "run" / "profile" / name for name in ("trace.json.gz", "operations.txt"))
    assert line == f"profile {trace}: open it at https://ui.perfetto.dev or chrome://tracing; {table}: by operation"
    rows = table.read_text().splitlines()
    assert "Self CPU" in rows[1]
    assert any("aten::convolution_backward" in row for row in rows)
    assert {path.name for path in trace.parent.iterdir()} == {trace.name, table.name}
    assert not (tmp_path / "plain" / "profile").exists()


@pytest.mark.parametrize(
    ("steps", "asked", "recorded"), [(5, 2, [3, 4]), (4, 2, [2, 3]), (4, 4, [0, 1, 2, 3]), (3, 100, [0, 1, 2])]
)
def test_a_short_run(
    picture_tree: Path,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
    capsys: pytest.CaptureFixture[str],
    steps: int,
    asked: int,
    recorded: list[int],
) -> None:
    assert train(picture_tree, tmp_path / "run", "--steps", str(steps), "--profile", str(asked)) == 0
    assert list_steps(tmp_path / "run") == [f"ProfilerStep#{step}" for step in recorded]
    assert not recwarn.list
    told = f"--profile {asked}: only {steps} steps are left; {len(recorded)} are recorded"
    assert (told in capsys.readouterr().err) is (steps < 3 + asked)


def test_a_run_that_is_stopped_writes_what_there_is(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the run that goes on records its own steps, beside them."""

    def look_back(run: Run, *, leave: int) -> bool:
        run.latest.read(leave)
        return run.state.progress.step >= 5

    monkeypatch.setattr(loop, "look_back", look_back)
    assert train(picture_tree, tmp_path / "run", "--epochs", "2", "--profile", "100") == EXIT_STOPPED
    assert list_steps(tmp_path / "run") == [f"ProfilerStep#{step}" for step in range(6)], "the last one was not begun"
    monkeypatch.undo()
    earlier = {path: path.read_bytes() for path in (tmp_path / "run" / "profile").iterdir()}
    assert train(picture_tree, tmp_path / "run", "--epochs", "2", "--profile", "3", "--resume", "auto") == 0
    assert list_steps(tmp_path / "run", "trace-2.json.gz") == [f"ProfilerStep#{step}" for step in range(3, 6)]
    assert all(path.read_bytes() == data for path, data in earlier.items())
    assert {path.name for path in (tmp_path / "run" / "profile").iterdir()} == {
        *("trace.json.gz", "operations.txt", "trace-2.json.gz", "operations-2.txt")
    }


def test_a_trace_that_cannot_be_written_is_told_and_the_run_goes_on(
    picture_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note = LatestSteps.note

    def block(*args: Any) -> None:
        (tmp_path / "run" / "profile").touch()
        note(*args)

    monkeypatch.setattr(LatestSteps, "note", block)
    assert train(picture_tree, tmp_path / "run", "--epochs", "1", "--profile", "1") == 0
    output = capsys.readouterr()
    assert output.err.splitlines() == [
        f"warning: {tmp_path / 'run' / 'profile'}: the trace cannot be written: File exists"
    ]
    assert "done: " in output.out
