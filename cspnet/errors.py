"""Errors a person can mend, and the exit codes of every door.

A `UserError` is shown as one line without a traceback; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = [
    "EXIT_BUG",
    "EXIT_DONE",
    "EXIT_STOPPED",
    "EXIT_USER",
    "CheckpointError",
    "DataError",
    "DeviceError",
    "LostProcessError",
    "ModelError",
    "RecipeError",
    "RunFolderError",
    "StalledError",
    "TrainingError",
    "UserError",
    "WorkerError",
    "on_one_line",
    "shared_errors",
]

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USER = 2
EXIT_STOPPED = 75
"""Stopped by a signal, with everything saved: run me again. Source: EX_TEMPFAIL of sysexits.h."""

_MOST_TEXT = 3000
"""Characters of a message, which may name what a file holds."""


def on_one_line(text: str) -> str:
    """A text with what would break its line, steer a terminal or be no text written out: `\\n`, `\\x1b`, `\\udce9`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong, where, what was expected, what to do.

    It may quote what a stranger's file holds: characters that would break the line or steer the terminal come as
    `\\n` and `\\x1b`, and the middle of a long one is left out.
    `shared` is true when every process of the run raises the same error, so that only the first has to print it;
    `is_told`, when another process has printed it.
    """

    shared = False
    is_told = False
    exit_code = EXIT_USER
    ends_by_force = False
    """Whether what hangs would hold up the end of the process too."""

    def __str__(self) -> str:
        text = on_one_line(super().__str__())
        if len(text) <= _MOST_TEXT:
            return text
        return f"{text[: _MOST_TEXT * 2 // 3]} … {text[-_MOST_TEXT // 3 :]}"


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
    """Marks the UserErrors of a block as shared: every process of the run executes it alike."""
    try:
        yield
    except UserError as error:
        error.shared = True
        raise


class RecipeError(UserError):
    """An unknown key, a wrong type or an impossible value in a recipe or on the command line."""


class DataError(UserError):
    """A folder, a list or a picture that cannot be used."""


class ModelError(UserError):
    """An unknown model or an option it does not have."""


class CheckpointError(UserError):
    """A checkpoint or weight file that is damaged or belongs to another model."""


class DeviceError(UserError):
    """A device, precision or process group that is not available."""


class WorkerError(UserError):
    """A reading process that died or has no room for its batches."""


class LostProcessError(UserError):
    """Another process of the run has died, or does not come: nothing is wrong with what the user asked for."""

    exit_code = EXIT_BUG
    ends_by_force = True


class StalledError(UserError):
    """A disk, or whatever reads from it, gives nothing any more."""

    exit_code = EXIT_BUG
    ends_by_force = True


class TrainingError(UserError):
    """A run that cannot sensibly go on: not a wrong setting, but a failure."""

    exit_code = EXIT_BUG


class RunFolderError(UserError):
    """A run folder that cannot be used as asked."""
