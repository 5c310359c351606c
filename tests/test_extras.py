"""The extras of the package are what the tests are run with."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT

tomllib = pytest.importorskip("tomllib", reason="is in Python from 3.11 on")


def read_lines(name: str) -> list[str]:
    return [line.strip() for line in (ROOT / name).read_text().splitlines() if line.strip() and line[0] not in "#-"]


def test_extras_and_requirements_agree() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (whole,), tools = ([part for part in extras["dev"] if part.startswith("cspnet[") is own] for own in (True, False))
    named = whole.removeprefix("cspnet[").removesuffix("]").split(",")
    assert set(named) == set(extras) - {"dev"}
    needed = {package for name in named for package in extras[name]} | set(tools)
    runtime = set(read_lines("requirements.txt"))
    assert set(read_lines("requirements-dev.txt")) == needed - runtime
    locked = {line.split("==")[0].lower() for line in read_lines("requirements.lock")}
    assert {package.split(">=")[0].lower() for package in needed | runtime} <= locked
