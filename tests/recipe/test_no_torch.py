"""What needs no network answers at once: PyTorch takes seconds to import, and nothing here may import it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import pytest

RunScript = Callable[..., subprocess.CompletedProcess[str]]

HEAVY = {"torch", "torchvision", "timm", "tensorboard", "PIL"}

COMMANDS: dict[str, tuple[str, ...]] = {
    "train --help": ("train.py", "--help"),
    "train --print-config": ("train.py", "--print-config", "--recipe", "recipes/cifar10.yaml", "--lr", "0.3"),
    "validate --help": ("validate.py", "--help"),
    "import cspnet": ("-c", "import cspnet; print(cspnet.__version__)"),
}


def imported_packages(importtime: str) -> set[str]:
    """Top-level names in the output of python -X importtime: `import time: self | cumulative | name`."""
    return set(re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\w+)", importtime, flags=re.MULTILINE))


@pytest.mark.parametrize("name", COMMANDS)
def test_imports_nothing_heavy(name: str, run_script: RunScript) -> None:
    done = run_script("-X", "importtime", *COMMANDS[name])
    assert done.returncode == 0, done.stderr[-2000:]
    packages = imported_packages(done.stderr)
    assert "cspnet" in packages  # the list is read as meant
    assert done.stdout.strip()
    assert not packages & HEAVY


def test_a_network_does_need_torch(run_script: RunScript) -> None:
    done = run_script("-X", "importtime", "-c", "import cspnet; cspnet.create_model")
    assert "torch" in imported_packages(done.stderr)
