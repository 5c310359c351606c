"""docs/TUTORIAL.md: its commands run in their order, in an empty folder, on fewer pictures and for one epoch."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "TUTORIAL.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SHORTER = {
    "scripts/draw_dataset.py": ("--train-per-class", "4", "--val-per-class", "2", "--size", "64"),
    "train.py": ("--epochs", "1", "--batch-size", "16", "--workers", "0", "--warmup-epochs", "0", "--device", "cpu"),
    "validate.py": ("--workers", "0", "--device", "cpu"),
    "scripts/predict.py": ("--device", "cpu"),
}
LEFT = {
    "scripts/draw_dataset.py": "train/circle_checks/0000.jpg",
    "scripts/plot_run.py": "curves.png",
    "scripts/report.py": "report.html",
}
"""Script -> what it leaves in the folder that it is given."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that has the project's scripts in it."""
    for name in ("train.py", "validate.py", "scripts", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


Run = Callable[..., subprocess.CompletedProcess[str]]


def test_every_command(folder: Path, fork_script: Run) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("matplotlib")
    assert len(COMMANDS) > 10
    said = {}
    for command in COMMANDS:
        python, script, *words = shlex.split(command)
        assert python == "python3"
        done = fork_script(script, *words, *SHORTER.get(script, ()), folder=folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        if script in LEFT:
            assert (folder / words[0] / LEFT[script]).is_file()
        said[command] = done.stdout
    assert any("chance" in text.splitlines()[-1] for text in said.values())
    for file in ("classes.csv", "seen.png", "others.onnx", "runs/first/checkpoints/best.pt"):
        assert (folder / file).is_file()
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    code = f"{snippet}\nimport sys\nassert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    name, share = done.stdout.split()
    assert (folder / "others" / "val" / name).is_dir()
    assert 1 / 12 <= float(share) <= 1
