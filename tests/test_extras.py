"""The extras of the package are what the tests are run with."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_extras_and_requirements_agree() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and newer")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    parts, tools = extras["dev"][0], extras["dev"][1:]
    named = parts.removeprefix("cspnet[").removesuffix("]").split(",")
    assert set(named) == set(extras) - {"dev"}
    listed = [line for line in (ROOT / "requirements-dev.txt").read_text().splitlines() if not line.startswith("-r")]
    assert sorted(listed) == sorted([*tools, *(package for name in named for package in extras[name])])
    locked = {line.split("==")[0].lower() for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert {package.split(">=")[0].lower() for package in listed} <= locked
