"""A script of the project on a disk that does not answer: python -m tests.held PICTURE PIPE SCRIPT [ARGUMENTS].

Whoever reads PICTURE waits until somebody writes to PIPE, and has what is written. Without PIPE it is read as ever.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from cspnet.data.samples import SampleIndex

__all__ = ["hold"]


def hold(picture: str, pipe: str) -> None:
    """From now on, in this process and in those that it forks."""
    read, held = SampleIndex.read, str(Path(picture).resolve())

    def read_held(index: SampleIndex, i: int) -> bytes:
        return Path(pipe).read_bytes() if index.path(i) == held and Path(pipe).exists() else read(index, i)

    SampleIndex.read = read_held  # type: ignore[method-assign]


if __name__ == "__main__":
    hold(*sys.argv[1:3])
    sys.argv = sys.argv[3:]
    runpy.run_path(sys.argv[0], run_name="__main__")
