#!/usr/bin/env python3
"""Write docs/RECIPES.md: every recipe with its claim, cost, source and commands, as the head of its file says them.

    python3 scripts/list_recipes.py            # write the page
    python3 scripts/list_recipes.py --check    # exit code 2 if the page is not what would be written

The text between the tables is docs/RECIPES.template.md, where a line `<!-- recipes: darknet -->` stands for the recipes
of recipes/darknet/ (`.` for those of recipes/ itself).
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, run_door
from cspnet.errors import EXIT_DONE, UserError
from cspnet.recipe.load import load_recipe
from cspnet.runtime.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "RECIPES.md"
TEMPLATE = ROOT / "docs" / "RECIPES.template.md"

ALWAYS = ("Source", "Claim", "Cost")
IMAGENET = ("One GPU", "Eight GPUs", "Status")
"""What a recipe for ImageNet says besides."""
SMALL = ("Command",)
"""What a recipe for a small data set says instead."""
OPTIONAL = ("Data",)
COMMANDS = ("One GPU", "Eight GPUs", "Command")

_FIELD = re.compile(r"# ([A-Z][A-Za-z ]*):\s+(\S.*)")
_MORE = re.compile(r"#\s{2,}(\S.*)")
_MARKER = re.compile(r"<!-- recipes: (\S+) -->")


@dataclass(frozen=True)
class Header:
    """The comment at the head of a recipe: its first line, and {field: text} with the line breaks of the file."""

    title: str
    fields: dict[str, str]


@dataclass(frozen=True)
class Entry:
    """A recipe of the page: its path below recipes/, its head, and the network it trains."""

    path: str
    header: Header
    model: str


def parse_header(text: str, where: str) -> Header:
    """The head of a recipe file's text.

    The first line is the title. A field is `# Name: text`, and goes on in the lines that are indented below it.

    Args:
        where: the file's name, for the message.
    Raises:
        UserError: a line that is neither, or a field that is unknown, missing or there twice.
    """
    lines = text.splitlines()
    head = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    if not head or not head[0].removeprefix("#").strip():
        raise UserError(f"{where}: the first line has to be a comment with the recipe's title")
    fields: dict[str, str] = {}
    name = ""
    for number, line in enumerate(head[1:], start=2):
        if line.strip() == "#":
            continue
        if match := _FIELD.fullmatch(line):
            name = match[1]
            if name in fields:
                raise UserError(f"{where}: line {number}: {name} is there twice")
            fields[name] = match[2].rstrip()
        elif (match := _MORE.fullmatch(line)) and name:
            fields[name] += "\n" + match[1].rstrip()
        else:
            raise UserError(
                f"{where}: line {number}: expected `# Name: text`, or an indented line that goes on with it"
            )
    needed = ALWAYS + (SMALL if "Command" in fields else IMAGENET)
    for name in needed:
        if name not in fields:
            raise UserError(f"{where}: the head has no `# {name}:`; it needs {', '.join(needed)}")
    for name in fields:
        if name not in needed + OPTIONAL:
            raise UserError(f"{where}: the head has an unknown `# {name}:`; it may have {', '.join(needed + OPTIONAL)}")
    return Header(head[0].removeprefix("#").strip(), fields)


def split_command(field: str) -> tuple[str, str]:
    """A field that starts with a command -> (the command on one line, the remark below it).

    A backslash at the end of a line continues the command, as in a shell.
    """
    lines = field.splitlines()
    end = next((i for i, line in enumerate(lines) if not line.endswith("\\")), len(lines) - 1)
    command = " ".join(line.removesuffix("\\").strip() for line in lines[: end + 1])
    return command, " ".join(lines[end + 1 :])


def read_entries(folder: Path) -> list[Entry]:
    """The recipes below a folder, by path; the files in base/ are no recipes but parts of them.

    Raises:
        UserError: a head or a recipe that is wrong.
    """
    paths = sorted(path for path in folder.rglob("*.yaml") if path.parent.name != "base")
    return [
        Entry(
            path.relative_to(folder).as_posix(),
            parse_header(path.read_text(encoding="utf-8"), str(path)),
            load_recipe(path).recipe.model.name,
        )
        for path in paths
    ]


def render_folder(entries: list[Entry]) -> str:
    """The table of some recipes, and below it the sources and commands of each."""
    lines = ["| recipe | model | claim | cost | status |", "| --- | --- | --- | --- | --- |"]
    for entry in entries:
        fields = entry.header.fields
        cells = (
            f"[{entry.path}](../recipes/{entry.path})",
            entry.model,
            fields["Claim"],
            fields["Cost"],
            fields.get("Status", "docs/RESULTS.md"),
        )
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    for entry in entries:
        fields = entry.header.fields
        commands = {name: split_command(fields[name]) for name in COMMANDS if name in fields}
        lines += [
            "",
            f"**`{entry.path}`**: {entry.header.title}. "
            + " ".join(f"{name}: {' '.join(fields[name].split())}" for name in ("Source", *OPTIONAL) if name in fields),
            "",
            "```",
        ]
        lines += [command for command, _ in commands.values()]
        lines += ["```"]
        remarks = [f"{name}: {remark}" for name, (_, remark) in commands.items() if remark]
        lines += ["", " ".join(remarks)] if remarks else []
    return "\n".join(lines)


def render_page(template: str, entries: list[Entry]) -> str:
    """The page: the template with its markers replaced.

    Raises:
        UserError: a folder of recipes without a marker, or a marker without recipes.
    """
    folders: dict[str, list[Entry]] = {}
    for entry in entries:
        folders.setdefault(str(Path(entry.path).parent), []).append(entry)
    marked = _MARKER.findall(template)
    for name in sorted(set(folders) ^ set(marked)):
        problem = "has no place" if name in folders else "has no recipes"
        raise UserError(f"{TEMPLATE.name}: recipes/{name}: {problem}; a line `<!-- recipes: {name} -->` stands for it")
    return _MARKER.sub(lambda match: render_folder(folders[match[1]]), template)


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="list_recipes.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 2 if the page is out of date")
    args = parser.parse_all(sys.argv[1:])
    entries = read_entries(ROOT / "recipes")
    page = render_page(TEMPLATE.read_text(encoding="utf-8"), entries)
    if args.check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
            raise UserError("docs/RECIPES.md: is out of date; write it with python3 scripts/list_recipes.py")
    else:
        write_atomically(PAGE, page.encode())
    print(f"{len(entries)} recipes in docs/RECIPES.md")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("list_recipes.py", main))
