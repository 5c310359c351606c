"""The benchmark of what safety costs, on a small network: it measures every part, and takes no nonsense."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_every_part(fork_script: Run) -> None:
    flags = ("--model", "cspdarknet_tiny", "--batch-size", 4, "--size", 32, "--repeats", 1)
    done = fork_script("scripts/benchmark_safety.py", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(":")[0] for line in done.stdout.splitlines()[1:]] == [
        "a step that looks for nothing",
        "looking for bad numbers",
        "a save that is waited for",
        "how long a step waits for one beside it",
        "2 processes agree, once a step",
    ]


@pytest.mark.parametrize("flags", [("--repeats", 0), ("--model", "nonesuch"), ("--size", "large")])
def test_wrong_things_end_in_one_line(fork_script: Run, flags: tuple[object, ...]) -> None:
    done = fork_script("scripts/benchmark_safety.py", *flags)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
