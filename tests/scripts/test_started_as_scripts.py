"""Every script as a person starts it, from anywhere: other tests run most of them in forks (tests/forking.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PARTS = {"other_loaders.py", "timm_loop.py"}
"""Of other scripts."""
SCRIPTS = sorted(path for path in (ROOT / "scripts").glob("*.py") if path.name not in PARTS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_it_finds_what_it_imports(script: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, script, "--no-such-flag"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{script.name}: ")
