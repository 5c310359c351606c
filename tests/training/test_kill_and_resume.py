"""A run killed with SIGKILL at any step and resumed ends with exactly the weights of the run that was left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.whole_runs import assert_same_runs, command, draw_pictures, kill_after_step, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds a run's processes in /proc"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of them cannot be read: they are counted, by a run that is killed as well."""
    folder = draw_pictures(tmp_path_factory.mktemp("killed"))
    for file in sorted((folder / "train").glob("*/*.jpg"))[::17]:
        file.write_bytes(file.read_bytes()[:200])
    return folder


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def untouched(
    request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    folder = tmp_path_factory.mktemp("untouched") / "run"
    run(command(pictures, folder, request.param, 0))
    return request.param, folder


@pytest.mark.parametrize(("workers", "steps"), [(0, (3,)), (2, (8, 17))], ids=["no workers", "two workers"])
def test_killed_run_ends_as_if_untouched(
    untouched: tuple[int, Path], pictures: Path, tmp_path: Path, workers: int, steps: tuple[int, ...]
) -> None:
    """On two processes without workers, as a person starts it: through exec and torchrun."""
    processes, reference = untouched
    folder, forked = tmp_path / "run", processes == 1 or workers > 0
    arguments = command(pictures, folder, processes, workers, "--resume", "auto")
    for step in steps:
        kill_after_step(arguments, folder, step, forked)
    output = run(arguments, forked)
    assert "resumed from" in output
    assert_same_runs(folder, reference)
