"""What every benchmark says and does alike: where it was run, how figures and their spread are told, and its files."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cspnet.errors import UserError
from cspnet.runtime.files import write_output
from cspnet.runtime.processes import count_cores

__all__ = ["check_bounds", "describe_commit", "describe_machine", "ratios", "read_versions", "spread"]
__all__ += ["tell_report"]


def describe_machine(packages: Iterable[str] = ("torch", "timm")) -> str:
    """Commit, processor, cores, GPU and versions of Python and of those packages that are installed."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0] if models else cpu
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = ", ".join(["Python " + platform.python_version(), *read_versions(packages)])
    return f"{describe_commit()}; {cpu}, {count_cores()} cores{gpu}; {versions}"


def describe_commit() -> str:
    """The commit, and whether files have been changed since."""

    def git(*words: str) -> str:
        root = Path(__file__).resolve().parent
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return f"commit {git('rev-parse', '--short', 'HEAD')}{' with changes' * bool(changed)}"
    except (OSError, subprocess.CalledProcessError):  # no git, or a copy without its history
        return "commit unknown"


def read_versions(packages: Iterable[str]) -> list[str]:
    """`name version` of those that are installed."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def spread(values: Sequence[float], digits: int = 0) -> str:
    """`median (lowest to highest)`."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """values / base, round by round: what slows a round down slows both."""
    return [value / other for value, other in zip(values, base, strict=True)]


def check_bounds(limits: Iterable[tuple[str, int, int, int]]) -> None:
    """Check numbers of a command line: (flag without its dashes, value, least, most).

    Raises:
        UserError: one is out of its bounds.
    """
    for name, value, least, most in limits:
        if not least <= value <= most:
            raise UserError(f"--{name} {value}: use a number from {least} to {most}")


def tell_report(report: Mapping[str, Any], text: str, json_file: Path | None, markdown_file: Path | None) -> None:
    """Print the text, and write it and the figures for programs where that is asked for; what can be told is.

    Raises:
        OSError, UserError: something cannot be written, which keeps nothing else from it.
    """
    with contextlib.ExitStack() as told:
        if markdown_file is not None:
            told.callback(write_output, markdown_file, text.encode())
        if json_file is not None:
            told.callback(write_output, json_file, (json.dumps(report, indent=1) + "\n").encode())
        told.callback(print, text, end="", flush=True)
