#!/usr/bin/env python3
"""Pack a data set into WebDataset shards, which train.py reads as it reads the loose files.

    python3 scripts/pack_dataset.py DIR OUT                                  # the original bytes
    python3 scripts/pack_dataset.py DIR OUT --max-side 512 --quality 90      # larger pictures become smaller JPEGs
    python3 train.py --data-path OUT

writes OUT/train/train-000000.tar … (members <name>.jpg and <name>.cls), OUT/train/classes.txt and, when all is there,
OUT/train/index.npz; the same for val. Stopped or killed, it goes on when it is given the same command again.

Packed with their original bytes, the pictures are those of DIR in every respect, broken ones included, and a run on DIR
can be resumed on OUT. With --max-side, pictures whose longer side is larger are turned upright as their EXIF
orientation says, scaled down (Lanczos, antialiased) and encoded as 4:2:0 JPEGs; JPEGs that are no larger keep their
bytes, other formats become JPEGs, and nothing is enlarged. That is another set of pictures: the shards say so.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.runtime.signals import leaving_at_signals

with leaving_at_signals({signal.SIGINT: 130}, "pack_dataset.py"):  # these take seconds
    from cspnet.cli.flags import FlagParser, non_empty_path, run_door
    from cspnet.data.index import find_split, open_index
    from cspnet.data.loader import default_workers
    from cspnet.data.packing import BadPicture, Encoding, Packing, pack_split, plan_packing
    from cspnet.errors import EXIT_DONE, DataError, UserError
    from cspnet.reporting.console import Console, open_bar

DEFAULT_QUALITY = 90


def plan_splits(
    root: Path,
    out: Path,
    splits: Sequence[str] | None,
    data_format: str,
    shard_size: int,
    encoding: Encoding | None,
    outside_root: bool,
) -> list[Packing]:
    """The splits to pack, all of them opened before the first is written; the first one's classes label the others.

    Args:
        splits: None takes train and, if there is one, val.
        outside_root: whether a list's entries may lie outside of the data set.
    Raises:
        DataError: a split cannot be found or used.
    """
    plans: list[Packing] = []
    for split in dict.fromkeys(splits or ("train", "val")):
        if split in (".", "..") or Path(split).name != split:
            raise UserError(f"--splits {split}: is not the name of a folder in {root}")
        try:
            path = find_split(str(root), split, "auto", data_format, by_flags=False)
        except DataError:
            if splits is None and plans:
                others = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and folder.name != "train")
                if others:
                    advice = f"--splits train {others[0]} packs both"
                    Console(0).warn(f"{root}: no {split} there: only train is packed; {advice}")
                continue
            raise
        classes = plans[0].index.classes if plans else ()
        index = open_index(path, root=str(root), outside_root=outside_root, cache_dir=None, classes=classes)
        pictures = path if path.is_dir() else path.parent
        if (out / split).resolve().is_relative_to(pictures.resolve()) and pictures.resolve() != root.resolve():
            raise UserError(f"{out / split}: lies among the pictures of {path}; pack into another folder")
        plans.append(plan_packing(index, out / split, root=root, shard_size=shard_size, encoding=encoding))
    return plans


def pack(packing: Packing, workers: int, skip_bad: bool) -> None:
    """Pack one split and say what came of it."""
    console, split = Console(0), packing.folder.name

    def report_bad(picture: BadPicture) -> None:
        console.warn(f"{picture.path.encode('utf-8', 'replace').decode()}: cannot be packed: {picture.reason}")

    with open_bar(len(packing.index), split, "picture") as bar:
        packed = pack_split(
            packing,
            workers=workers,
            skip_bad=skip_bad,
            report_bad=report_bad,
            report_done=bar.update,
        )
    counts = [(packed.kept_shards, "were there"), (packed.renewed_shards, "were older than their pictures")]
    kept = f" ({', '.join(f'{count} {what}' for count, what in counts if count)})" * any(count for count, _ in counts)
    console.say(
        f"{split}: {len(packed.index):,} pictures in {packing.plan.num_shards} shards{kept}, "
        f"{packed.index.encoding or 'original bytes'}: {packing.folder}"
    )
    if packed.left_out:
        console.warn(f"{split}: pictures left out: {len(packed.left_out)}, the first of them {packed.left_out[0]}")


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="pack_dataset.py", description=__doc__)
    parser.add_argument("source", type=non_empty_path, help="the data set: train/ and val/, lists, or shards")
    parser.add_argument("out", type=non_empty_path, help="gets a folder of shards a split")
    parser.add_argument("--splits", nargs="+", metavar="NAME", help="what to pack [train, and val if there is one]")
    parser.add_argument(
        "--data-format",
        choices=("auto", "folder", "list", "shards"),
        default="auto",
        help="of the source [%(default)s]",
    )
    parser.add_argument("--outside-root", action="store_true", help="a list's entries may lie outside of the data set")
    parser.add_argument("--max-side", type=int, metavar="PX", help="encode pictures with a longer side anew [none]")
    parser.add_argument("--quality", type=int, metavar="Q", help=f"of their JPEGs, 1 to 100 [{DEFAULT_QUALITY}]")
    parser.add_argument("--shard-size", type=int, default=1000, metavar="N", help="pictures a shard [%(default)s]")
    parser.add_argument("--workers", type=int, metavar="N", help="writing processes [one a core, at most 8]")
    parser.add_argument(
        "--bad",
        choices=("stop", "skip"),
        default="stop",
        help="pictures that cannot be packed: name all of them and fail, or leave them out [%(default)s]",
    )
    args = parser.parse_all(sys.argv[1:])
    workers = default_workers(1) if args.workers is None else args.workers
    quality = DEFAULT_QUALITY if args.quality is None else args.quality
    limits = {"max-side": (args.max_side, 8, 65000), "quality": (quality, 1, 100)}
    limits |= {"shard-size": (args.shard_size, 1, 10**6), "workers": (workers, 1, 1024)}
    for name, (value, low, high) in limits.items():
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name} {value}: use a number from {low} to {high}")
    if args.quality is not None and args.max_side is None:
        raise UserError("--quality: only pictures that --max-side makes smaller are encoded anew")
    if args.out.resolve() == args.source.resolve():
        raise UserError(f"{args.out}: is the data set itself; pack into another folder")
    encoding = None if args.max_side is None else Encoding(args.max_side, quality)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill is a Ctrl-C
    how = (args.data_format, args.shard_size, encoding, args.outside_root)
    plans = plan_splits(args.source, args.out, args.splits, *how)
    first = plans[0]
    if first.plan.source != first.index.fingerprint:
        Console(0).warn(
            f"{first.index.source}: holds paths of an unusual form: a run on it cannot go on with the shards"
        )
    for packing in plans:
        pack(packing, workers, args.bad == "skip")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("pack_dataset.py", main))
