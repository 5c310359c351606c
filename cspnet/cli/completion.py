"""Completion of command lines by the shell: shtab writes the script from the flags. The one door to it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from cspnet.errors import EXIT_DONE, UserError

__all__ = ["add_completion_flag"]

_SHELLS = ("bash", "zsh", "tcsh")


def add_completion_flag(
    group: argparse._ArgumentGroup, create_whole: Callable[[], argparse.ArgumentParser] | None = None
) -> None:
    """A flag that prints a shell's script: `eval "$(cspnet-train --print-completion bash)"`.

    shtab leaves out what --help leaves out: `create_whole` makes the parser that has everything in its help.
    """
    group.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        create_whole=create_whole,
        metavar="|".join(_SHELLS),
        help="print a script that completes this command's flags, their words, files and the networks' names",
    )


class _PrintCompletion(argparse.Action):
    """Prints the script, and exits."""

    def __init__(self, create_whole: Callable[[], argparse.ArgumentParser] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.create_whole = create_whole

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> NoReturn:
        if values not in _SHELLS:
            raise UserError(f"{option_string} {values}: unknown shell; there are {', '.join(_SHELLS)}")
        try:
            import shtab
        except ImportError:
            raise UserError(f"{option_string}: needs shtab; pip install shtab") from None
        from cspnet.models import list_models

        if self.create_whole is not None:
            parser = self.create_whole()
        for action in parser._actions:
            words = str(action.metavar or "").split("|")
            if "--model" in action.option_strings:
                action.choices = list_models()
            elif len(words) > 1 and "FILE" not in words:
                action.choices = words
            elif action.type is Path or words[-1] == "FILE":
                action.complete = shtab.FILE
            elif words == ["DIR"] or "--data-path" in action.option_strings:
                action.complete = shtab.DIRECTORY
        # Under the name that an installed package has: it can be called from anywhere, so that it can be completed.
        parser.prog = "cspnet-" + parser.prog.removesuffix(".py")
        print(shtab.complete(parser, shell=values))
        raise SystemExit(EXIT_DONE)
