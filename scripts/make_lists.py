#!/usr/bin/env python3
"""Split a folder of class folders into training and validation lists; no picture is moved or copied.

    python3 scripts/make_lists.py DIR --val-share 0.1
    python3 train.py --data-path DIR --data-format list

writes DIR/train_list.txt and DIR/val_list.txt (lines of `path label`) and DIR/classes.txt (the class names).
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.runtime.signals import leaving_at_signals

with leaving_at_signals({signal.SIGINT: 130}, "make_lists.py"):  # these take seconds
    from cspnet.cli.flags import FlagParser, run_door
    from cspnet.data.index import open_index
    from cspnet.errors import EXIT_DONE, UserError
    from cspnet.runtime.files import write_atomically
    from cspnet.runtime.random import generator_at


def make_lists(folder: Path, val_share: float, seed: int) -> tuple[int, int]:
    """Write the lists; each class gives `val_share` of its pictures, but at least one, to validation.

    Returns:
        How many pictures there are to train and to validate.
    Raises:
        UserError: the lists are there already, the share is impossible, or a class has a single picture.
    """
    if not 0 < val_share < 1:
        raise UserError(f"--val-share {val_share}: use a number between 0 and 1")
    files = [folder / name for name in ("train_list.txt", "val_list.txt", "classes.txt")]
    there = [str(file) for file in files if file.exists()]
    if there:
        raise UserError(f"{there[0]}: is there already; remove it to make new lists")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    index = open_index(folder, root=str(folder), cache_dir=None)
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for label, name in enumerate(index.classes):
        if not any(file.is_file() for file in (folder / name).iterdir()):
            raise UserError(
                f"{folder / name}: holds folders, not pictures; if they are the classes, give {folder / name}"
            )
        paths = [index.path(int(i)) for i in (index.labels == label).nonzero()[0]]
        if len(paths) < 2:
            raise UserError(f"{folder / name}: has one picture; a class needs two, one of them to validate")
        num_val = min(max(1, round(val_share * len(paths))), len(paths) - 1)
        chosen = set(generator_at(seed, "split", label).permutation(len(paths))[:num_val].tolist())
        for i, path in enumerate(paths):
            if "\n" in path or "\r" in path or not _is_text(path):
                raise UserError(f"{path!a}: its name cannot stand in a list (a line break, or not UTF-8); rename it")
            lines["val" if i in chosen else "train"].append(f"{Path(path).relative_to(folder.resolve())} {label}\n")
    write_atomically(files[0], "".join(lines["train"]).encode())
    write_atomically(files[1], "".join(lines["val"]).encode())
    write_atomically(files[2], "".join(f"{name}\n" for name in index.classes).encode())
    return len(lines["train"]), len(lines["val"])


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="make_lists.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="holds one folder of pictures a class")
    parser.add_argument("--val-share", type=float, default=0.1, help="share of each class to validate on [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of the choice [%(default)s]")
    args = parser.parse_all(sys.argv[1:])
    train, val = make_lists(args.folder, args.val_share, args.seed)
    print(f"{train} pictures to train, {val} to validate, in {args.folder}/train_list.txt and val_list.txt")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("make_lists.py", main))
