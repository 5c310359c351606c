"""From YAML files and the command line to one frozen Recipe that knows where each of its values came from.

Precedence, last wins: the schema's defaults, the `base:` chain of the recipe file, the file itself, the command line.
Keys are dotted (`optim.lr`). YAML is read here and nowhere else.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import ValidationError

from cspnet.errors import RecipeError
from cspnet.recipe.aliases import ALIASES
from cspnet.recipe.checks import check_recipe
from cspnet.recipe.schema import Recipe

__all__ = [
    "COMMAND_LINE",
    "FieldHelp",
    "ResolvedRecipe",
    "field_table",
    "format_recipe",
    "inline",
    "list_differences",
    "load_recipe",
    "nearest_key",
    "parse_value",
    "recipe_from_values",
    "recipe_to_values",
    "recipe_to_yaml",
]

COMMAND_LINE = "command line"
"""What ResolvedRecipe.sources says of the values in `overrides`."""
DEFAULT = "default"

_SAME_LENGTHS = (("train.epochs", "train.steps"), ("schedule.warmup_epochs", "schedule.warmup_steps"))
ALTERNATIVES = (*_SAME_LENGTHS, *((b, a) for a, b in _SAME_LENGTHS))
"""Two ways to say one thing: who sets the first takes back what an earlier layer said by the second."""


RENAMED = {"mix.cutmix_prob": "mix.prob"}
"""{key in older recipes and checkpoints: key today}."""

_MOST_BYTES = 1 << 20
"""Of a recipe file, which has a few thousand: YAML's time and memory grow with them."""
_MOST_LAYERS = 32
"""Of a base chain."""


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe and, for every dotted key, where its value came from."""

    recipe: Recipe
    sources: Mapping[str, str]


@dataclass(frozen=True)
class FieldHelp:
    """A field of the schema, for --help and --print-config."""

    key: str
    annotation: Any
    default: Any
    help: str


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers (1e-4 is a float) and words (on, off, yes and no are text), and no key given twice.

    Nor aliases: with them a few lines stand for more than any memory holds, or for something without an end.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"*{event.anchor} is an alias; write out what it stands for, or use base:"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))  # a leading zero does not make it octal


_NUMBERS_AND_WORDS = {
    "tag:yaml.org,2002:bool": (r"true|false|True|False|TRUE|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        "-+0123456789.",
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_pattern, _first) in _NUMBERS_AND_WORDS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal)


class _Dumper(yaml.SafeDumper):
    """Quotes text that the loader would take for something else."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _sections() -> dict[str, Any]:
    return {f.name: f.type for f in fields(Recipe)}


def field_table() -> dict[str, FieldHelp]:
    """Every dotted key of the schema, in order."""
    table = {}
    for name, section in get_type_hints(Recipe).items():
        hints = get_type_hints(section, include_extras=True)
        for f in fields(section):
            pydantic_field = section.__pydantic_fields__[f.name]
            table[f"{name}.{f.name}"] = FieldHelp(
                f"{name}.{f.name}",
                hints[f.name],
                pydantic_field.get_default(call_default_factory=True),
                pydantic_field.description or "",
            )
    return table


def nearest_key(key: str) -> str:
    """The known key a mistyped one most likely means, dotted; empty when none is near."""
    names: dict[str, str] = {}
    for known in field_table():
        names[known] = known
        names.setdefault(known.split(".")[-1], known)
    for flag, targets in ALIASES.items():
        names.setdefault(flag.lstrip("-").replace("-", "_"), targets[0])
    for candidate in (key, key.split(".")[-1]):
        match = difflib.get_close_matches(candidate, list(names), n=1, cutoff=0.6)
        if match:
            return names[match[0]]
    return ""


def _flatten(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Nested sections to dotted keys; unknown sections and keys are errors."""
    known, sections = field_table(), _sections()
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if RENAMED.get(name, name) in known:  # a dotted key, written out
            entries = {name: value}
        elif name not in sections:
            _raise_unknown(where, name)
        elif value is None:
            continue  # a section with all its lines commented out
        elif not isinstance(value, Mapping):
            raise RecipeError(f"{where}: {name}: expected a section with keys below it, got {value!r}")
        else:
            entries = {f"{name}.{key}": leaf for key, leaf in value.items()}
        for old_key, leaf in entries.items():
            key = RENAMED.get(old_key, old_key)
            if key not in known:
                _raise_unknown(where, key)
            if key in flat:
                raise RecipeError(f"{where}: {key}: is given twice")
            flat[key] = leaf
    return flat


def _raise_unknown(where: str, key: str) -> None:
    sections = difflib.get_close_matches(key, list(_sections()), n=1) if "." not in key else []
    near = sections[0] if sections else nearest_key(key)
    advice = f"did you mean {near}?" if near else f"the sections are {', '.join(_sections())}"
    raise RecipeError(f"{where}: {key}: unknown key; {advice}")


def _read_text(path: Path) -> str:
    try:
        if path.is_fifo() and not str(path).startswith("/dev/"):  # not that of a shell's <(…)
            raise RecipeError(f"{path}: cannot read the recipe: a pipe, not a file")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        text = content.decode("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        near = [str(file) for file in sorted(Path("recipes").rglob("*.yaml")) if file.stem == path.name]
        advice = f"; did you mean {near[0]}?" if near else ""
        raise RecipeError(f"{path}: cannot read the recipe: {reason}{advice}") from error
    if len(content) > _MOST_BYTES:
        raise RecipeError(f"{path}: cannot read the recipe: it has more than {_MOST_BYTES:,} bytes")
    return text


def _read_yaml(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        values = yaml.load(text, Loader=_Loader)
    except Exception as error:  # tags that do not fit their value make PyYAML raise anything
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error or type(error).__name__).split())
        raise RecipeError(f"{path}:{line} not valid YAML: {problem}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected `section:` lines with keys below them, got a {type(values).__name__}")
    return values


def _read_chain(path: Path, children: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """A file's layers, the bottom of its base chain first: [(file, {dotted key: value})]."""
    if len(children) == _MOST_LAYERS:
        raise RecipeError(f"{children[-1]}: base: leads through more than {_MOST_LAYERS} files")
    if children and not _is_file(path):
        raise RecipeError(f"{children[-1]}: base: no such file: {path}")
    if os.path.realpath(path) in map(os.path.realpath, children):  # it takes links that lead nowhere, too
        raise RecipeError(f"{children[-1]}: base: {path} leads back to itself")
    values = _read_yaml(path)
    base = values.pop("base", None)
    layers: list[tuple[str, dict[str, Any]]] = []
    if base is not None:
        if not isinstance(base, str):
            raise RecipeError(f"{path}: base: expected the path of one recipe file, got {base!r}")
        layers = _read_chain(path.parent / base, (*children, path))
    return [*layers, (str(path), _flatten(values, str(path)))]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, or none that a system can have
        return False


def parse_value(text: str) -> Any:
    """A command-line value read as YAML would read it: 0.1, true, null, [1, 2], {a: 1}, or the text itself."""
    try:
        return yaml.load(text, Loader=_Loader)
    except Exception:  # whatever it is, it is not YAML; the field's type decides about it
        return text


def _explain(error: ValidationError) -> tuple[str, str]:
    """The first problem of a pydantic error: (field, what was expected and what was there)."""
    problem, *others = error.errors(include_url=False, include_context=False)
    if problem["type"] in ("missing", "too_long"):  # a pair or a triple of the wrong length: each missing place is one
        given, missing = problem["input"], sum(other["type"] == "missing" for other in (problem, *others))
        number = len(given) + missing if missing else error.errors()[0]["ctx"]["max_length"]
        return str(problem["loc"][0]), f"expected {number} values, got {given!r}"
    expected = problem["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ")
    expected = expected.replace("a valid tuple", "a list of numbers such as [0.1, 0.2]")
    expected = expected.replace("a valid dictionary", "options such as {key: value}")
    for other in others:  # of a field that may be one thing or another
        if other["loc"][0] == problem["loc"][0] and other["type"] == "literal_error":
            expected += f" or {other['msg'].removeprefix('Input should be ')}"
    return str(problem["loc"][0]), f"{expected}, got {problem['input']!r}"


def recipe_from_values(values: Mapping[str, Any], where: str, sources: Mapping[str, str] | None = None) -> Recipe:
    """A Recipe from {dotted key: value}; `sources` says, for the message, where each key came from.

    Raises:
        RecipeError: an unknown key, a wrong type or an impossible value.
    """
    sources = sources or {}
    nested: dict[str, dict[str, Any]] = {}
    for key, value in _flatten(values, where).items():
        section, name = key.split(".")
        nested.setdefault(section, {})[name] = value
    sections = {}
    for name, section in get_type_hints(Recipe).items():
        try:
            sections[name] = section(**nested.get(name, {}))
        except ValidationError as error:
            field, problem = _explain(error)
            raise RecipeError(f"{sources.get(f'{name}.{field}', where)}: {name}.{field}: {problem}") from error
    recipe = Recipe(**sections)
    problem_of_several = check_recipe(recipe)
    if problem_of_several:
        key, problem = problem_of_several
        raise RecipeError(f"{sources.get(key, where)}: {key}: {problem}")
    return recipe


def _with_options_below(layer: Mapping[str, Any], below: Any) -> Mapping[str, Any]:
    """The layer with the network's options of the layers below added to its own; its null takes one of those away."""
    own = layer.get("model.options")
    if not isinstance(own, dict) or not isinstance(below, dict):
        return layer
    kept = {key: value for key, value in below.items() if key not in own}
    own = {key: value for key, value in own.items() if value is not None or key not in below}
    return {**layer, "model.options": {**kept, **own}}


def load_recipe(
    path: Path | None,
    overrides: Mapping[str, Any] = {},
    base_layers: Iterable[tuple[str, Mapping[str, Any]]] = (),
) -> ResolvedRecipe:
    """The resolved recipe.

    Args:
        path: the recipe file, or None for the defaults.
        overrides: {dotted key: value} from the command line.
        base_layers: (where, {dotted key: value}) below the file, such as the recipe kept in a checkpoint.
    Raises:
        RecipeError: one line naming file, key, what was expected and the nearest known key.
    """
    layers = [(where, _flatten(values, where)) for where, values in base_layers]
    if path is not None:
        layers += _read_chain(path)
    layers.append((COMMAND_LINE, dict(overrides)))
    values: dict[str, Any] = {}
    sources = dict.fromkeys(field_table(), DEFAULT)
    for where, layer in layers:
        for chosen, other in ALTERNATIVES:
            if chosen in layer and other not in layer and other in values:  # a later length replaces an earlier one
                del values[other]
                sources[other] = where
        values.update(_with_options_below(layer, values.get("model.options")))
        sources.update(dict.fromkeys(layer, where))
    return ResolvedRecipe(recipe_from_values(values, COMMAND_LINE, sources), sources)


def recipe_to_values(recipe: Recipe) -> dict[str, Any]:
    """{dotted key: value} of every field, of built-in types only (tuples become lists)."""
    values = {}
    for section, content in asdict(recipe).items():
        for name, value in content.items():
            values[f"{section}.{name}"] = list(value) if isinstance(value, tuple) else value
    return values


def inline(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**9, allow_unicode=True)
    lines = text.removesuffix("...\n").splitlines()
    return lines[0] if len(lines) == 1 else json.dumps(value)  # JSON is YAML, and knows how to write line breaks


def recipe_to_yaml(recipe: Recipe) -> str:
    """The whole recipe as a file that, given back with --recipe, repeats the run."""
    lines: list[str] = []
    section = ""
    for key, value in recipe_to_values(recipe).items():
        if key.split(".")[0] != section:
            section = key.split(".")[0]
            lines.append(f"{section}:")
        lines.append(f"  {key.split('.')[1]}: {inline(value)}")
    return "\n".join(lines) + "\n"


def format_recipe(resolved: ResolvedRecipe) -> str:
    """A line a value: key, value, where it came from."""
    texts = {key: inline(value) for key, value in recipe_to_values(resolved.recipe).items()}
    key_width, value_width = max(map(len, texts)), min(40, max(map(len, texts.values())))
    return "\n".join(f"{k:<{key_width}}  {v:<{value_width}}  {resolved.sources[k]}" for k, v in texts.items())


def list_differences(old: Mapping[str, Any], new: Recipe) -> list[tuple[str, Any, Any]]:
    """[(key, value in old, value in new)] for the keys on which two recipes differ."""
    old = {RENAMED.get(key, key): value for key, value in old.items()}
    old_values = recipe_to_values(Recipe()) | old  # a key younger than the old recipe had its default then
    new_values = recipe_to_values(new)
    return [(key, old_values[key], value) for key, value in new_values.items() if old_values[key] != value]
