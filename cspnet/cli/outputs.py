"""Files that a command writes where its user says: checked before the work, so that it is not done in vain."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from cspnet.errors import UserError

__all__ = ["check_outputs", "check_place"]

_FORMS: dict[str, Callable[[bytes], bool]] = {
    "--json": lambda head: head.lstrip()[:1] in (b"{", b"["),
    "--markdown": lambda head: b", Python 3." in head or b"; Python 3." in head,
}
"""What the first bytes of an earlier result look like."""


def check_place(file: Path, what: str) -> None:
    """Find out whether a file may be made.

    Args:
        what: it is, in the error.
    Raises:
        UserError: it is a folder, or lies in none that can be written.
    """
    if file.is_dir() or not file.parent.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK):
        raise UserError(f"{what}: name a file in a folder that is there and can be written")


def check_outputs(files: Mapping[str, Path | None], forms: Mapping[str, Callable[[bytes], bool]] | None = None) -> None:
    """Find out before the work whether results can be written; {flag: file}.

    Args:
        forms: {flag: of the first bytes (up to 1 MiB) of a file that is there, whether it is an earlier result}; those
            of --json and --markdown are known.
    Raises:
        UserError: they cannot, two would be the same file, or one would take the place of something else.
    """
    flags: dict[Path, str] = {}
    for flag, file in files.items():
        if file is None:
            continue
        check_place(file, f"{flag} {file}")
        if (other := flags.setdefault(file, flag)) != flag:
            raise UserError(f"{file}: {other} and {flag} would write the same file; name two")
        if file.is_file() and not _is_earlier(file, {**_FORMS, **(forms or {})}[flag]):
            raise UserError(f"{flag} {file}: holds something else, which would be lost; name another file")


def _is_earlier(file: Path, form: Callable[[bytes], bool]) -> bool:
    """Whether a file that is there may be replaced: it is empty, or an earlier result."""
    try:
        with file.open("rb") as opened:
            head = opened.read(1 << 20)
    except OSError:
        return False
    return not head or form(head)
