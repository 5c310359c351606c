"""Every script as a person starts it, from anywhere: other tests run most of them in forks (tests/forking.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOORS = sorted(path for path in (ROOT / "scripts").glob("*.py") if "FlagParser(" in path.read_text())


def test_these_are_the_scripts() -> None:
    names = {path.name for path in (ROOT / "scripts").glob("*.py")} - {path.name for path in DOORS}
    assert names == {"other_loaders.py", "timm_loop.py"}  # parts of scripts


@pytest.mark.parametrize("script", DOORS, ids=lambda path: path.name)
def test_it_finds_what_it_imports(script: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, script, "--no-such-flag"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{script.name}: error: ")
    assert line.endswith(f"see {script.name} --help") or "did you mean" in line
