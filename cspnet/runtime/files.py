"""Files that are complete or absent."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cspnet.errors import UserError

__all__ = ["printable", "replacing", "write_atomically", "write_output"]


def printable(path: str) -> str:
    """A path as text that can be written anywhere: a file name may be any bytes."""
    return path.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which takes the place of `path` at the end: a kill leaves the old file or the new.

    The bytes are fsynced before the rename and the folder after it, so that a power cut cannot tear them apart.
    If the block fails, the temporary file is removed and the old one stays.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(name, 0o666 & ~umask)  # a temporary file is private; what it becomes is not
    try:
        yield Path(name)
        _sync(Path(name))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if os.name == "posix":
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file as a whole."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_output(path: Path, data: bytes) -> None:
    """Write a result where a user has said: behind a link, and into a pipe or a device as it is.

    Raises:
        UserError: the system does not let it be written.
    """
    behind = Path(os.path.realpath(path))
    try:
        if behind.exists() and not behind.is_file():
            behind.write_bytes(data)
        else:
            write_atomically(behind, data)
    except OSError as error:
        raise UserError(f"{path}: cannot write the result: {error.strerror}") from error
