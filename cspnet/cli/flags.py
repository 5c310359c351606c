"""Command lines whose flags come from the recipe's schema and the table of aliases."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin

from cspnet.errors import EXIT_BUG, EXIT_STOPPED, EXIT_USER, UserError
from cspnet.recipe.aliases import ALIASES, COMMON_KEYS, CONSTANT_FLAGS
from cspnet.recipe.load import FieldHelp, field_table, parse_value
from cspnet.runtime.leaving import leave, leave_by_force, leave_soon
from cspnet.runtime.output import settle_output, tell_last
from cspnet.runtime.signals import Stopped, heed_interrupts

__all__ = ["FlagParser", "add_recipe_flags", "join_tokens", "non_empty_path", "read_overrides", "run_door"]

_NO_BUGS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""A path that no system could open, or a place that takes no more, wherever that comes out."""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """`-b, --batch-size VALUE` for `-b VALUE, --batch-size VALUE`, as Python has it from 3.13 on."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class FlagParser(argparse.ArgumentParser):
    """argparse that reports a wrong command line in one line, with the flag that was probably meant."""

    def __init__(self, *, elsewhere: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        """`elsewhere`: {a flag that other programs have: what to say instead}."""
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **kwargs)
        self._elsewhere = elsewhere or {}

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse; an unknown flag is an error that names the nearest known one."""
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            flag = unknown[0].split("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(flag, known, n=1) if flag.startswith("-") else []
            advice = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            if flag in self._elsewhere:
                advice = f"here it is {self._elsewhere[flag]}"
            raise UserError(f"{flag}: unknown {'flag' if flag.startswith('-') else 'argument'}; {advice}")
        flags = argv[: argv.index("--")] if "--" in argv else argv
        for before, token in zip(["", *flags], flags, strict=False):
            flag, _, value = (before, "", "") if token == "" else token.partition("=")
            if token == "" or (flag.startswith("--") and "=" in token and not value):
                what = flag if flag.startswith("-") else "the command line"
                raise UserError(f"{what}: an empty value was given; is a variable unset?")
        return namespace


def non_empty_path(text: str) -> Path:
    """A path for argparse; an empty one, as an unset shell variable gives, is refused."""
    if not text:
        raise UserError("an empty path was given; is a variable unset?")
    return Path(text)


class _SetKeys(argparse.Action):
    """Stores {dotted key: value} in the namespace's `overrides`."""

    def __init__(self, keys: Sequence[str] = (), constant: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keys, self.constant = keys, constant

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        if values == "" or (isinstance(values, list) and "" in values):
            raise UserError(f"{option_string}: an empty value was given; is a variable unset?")
        value = self.constant if values is None or values == [] else values
        if self.nargs == "+":
            value = join_tokens(value)
            if isinstance(value, (int, float)):  # a list of one
                value = [value]
        overrides = dict(getattr(namespace, "overrides", None) or {})
        overrides.update(dict.fromkeys(self.keys, value))
        namespace.overrides = overrides


def join_tokens(tokens: list[str]) -> Any:
    """The value of a flag that takes several: [a, b] or {k: v} as YAML, a,b or a b as lists, k=v pairs as options."""
    if all("=" in token and not token.startswith("{") for token in tokens):
        return {key: parse_value(text) for key, _, text in (token.partition("=") for token in tokens)}
    if len(tokens) == 1 and "," in tokens[0] and tokens[0][0] not in "[{":
        tokens = tokens[0].split(",")
    return parse_value(tokens[0]) if len(tokens) == 1 else [parse_value(token) for token in tokens]


def _takes(field: FieldHelp, kind: type) -> bool:
    """Whether a field's values may be of a type, as `str` in `str | None`."""
    members = get_args(field.annotation) if get_origin(field.annotation) is UnionType else (field.annotation,)
    return kind in members


def _list_words(field: FieldHelp) -> tuple[str, ...]:
    """All values of a field that takes one of a few words; none if it takes anything else."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _read_text(text: str) -> str | None:
    """The value of a text field: as it is, and null or none for nothing."""
    return None if text in ("null", "none") else text


def _read_value(text: str) -> Any:
    """The value of another field."""
    return parse_value(text) if text else text


def add_recipe_flags(parser: argparse.ArgumentParser, *, help_keys: Collection[str] = COMMON_KEYS) -> None:
    """A flag for every field of the recipe, under its dotted name and its aliases, grouped by section.

    All of them are taken; only those of `help_keys` are in the help.
    """
    table = field_table()

    def describe(keys: Sequence[str], text: str) -> str:
        return text.replace("%", "%%") if all(key in help_keys for key in keys) else argparse.SUPPRESS

    flags: dict[tuple[str, ...], list[str]] = {}
    for flag, keys in ALIASES.items():
        flags.setdefault(keys, []).append(flag)
    groups = {key.split(".")[0]: None for key in table}
    sections = {name: parser.add_argument_group(name) for name in groups}
    for key, field in table.items():
        names = [*flags.pop((key,), []), f"--{key}"]
        words = _list_words(field)
        is_switch = _takes(field, bool)
        takes_several = isinstance(field.default, (tuple, dict))
        default = field.default if isinstance(field.default, str) else json.dumps(field.default)  # as in YAML
        sections[key.split(".")[0]].add_argument(
            *sorted(names, key=len),
            action=_SetKeys,
            keys=(key,),
            type=str if takes_several else _read_text if _takes(field, str) or words else _read_value,
            nargs="?" if is_switch else "+" if takes_several else None,
            constant=True if is_switch else None,
            metavar="|".join(words) or "VALUE",
            default=argparse.SUPPRESS,
            help=describe((key,), f"{field.help} [{default}]"),
        )
    for keys, names in flags.items():  # one flag for several fields
        sections[keys[0].split(".")[0]].add_argument(
            *names,
            action=_SetKeys,
            keys=keys,
            type=_read_text if "interpolation" in keys[0] else _read_value,
            metavar="VALUE",
            default=argparse.SUPPRESS,
            help=describe(keys, " and ".join(keys)),
        )
    for flag, (key, value, text) in CONSTANT_FLAGS.items():
        sections[key.split(".")[0]].add_argument(
            flag,
            action=_SetKeys,
            keys=(key,),
            nargs=0,
            constant=value,
            default=argparse.SUPPRESS,
            help=describe((key,), text),
        )


def read_overrides(namespace: argparse.Namespace) -> dict[str, Any]:
    """{dotted key: value} of what the command line sets."""
    return dict(getattr(namespace, "overrides", None) or {})


def run_door(name: str, work: Callable[[], int], environment: Mapping[str, str] = os.environ) -> int:
    """Run a door: a UserError becomes one line and its exit code; a bug keeps its traceback and gives exit code 1.

    An error that all processes of a run share is printed by the first one only.
    """
    with contextlib.ExitStack() as behind, heed_interrupts(name):
        code = _run(name, work, environment, behind)
    settle_output()
    return leave(code)


def _run(name: str, work: Callable[[], int], environment: Mapping[str, str], behind: contextlib.ExitStack) -> int:
    try:
        code = work()
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()  # what waits in it would fail later, where nobody tells it well
        return code
    except UserError as error:
        rank = environment.get("RANK", "0")
        if not error.is_told and (rank == "0" or not error.shared):
            place = "" if rank == "0" else f"[rank {rank}] "
            tell_last(f"{place}{name}: error: {' '.join(str(error).split())}")
        if error.ends_by_force:
            leave_by_force()
        return error.exit_code
    except Stopped as stopped:
        if environment.get("RANK", "0") == "0":
            tell_last(f"{name}: {stopped}")
        return EXIT_STOPPED
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os._exit(130))  # whoever says it again does not want to wait
        behind.callback(leave_soon(130))  # while what the exception holds is cleaned up
        settle_output()
        tell_last(f"{name}: interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        return EXIT_BUG
    except OSError as error:
        if error.errno not in _NO_BUGS:
            traceback.print_exc()
            return EXIT_BUG
        what = error.filename or "the output"  # of a write nobody tells which
        tell_last(f"{name}: error: {UserError(f'{what}: {error.strerror}')}")
        return EXIT_USER
    except Exception:
        traceback.print_exc()
        return EXIT_BUG
