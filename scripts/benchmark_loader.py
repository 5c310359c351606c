#!/usr/bin/env python3
"""How fast training pictures come, by our input pipeline and by others, on the same pictures and in turn.

    python3 scripts/benchmark_loader.py DATA                             # 300 of its pictures, 224 px
    python3 scripts/benchmark_loader.py DATA --packed OUT --workers 1 2  # and the shards of pack_dataset.py DATA OUT
    python3 scripts/benchmark_loader.py DATA --size 128 --limit 1000 --repeats 9 --json t.json --markdown t.md

DATA is a folder of pictures, at any depth (with a train/ in it: that), or a list file; the pictures are taken evenly
from all of it. Every row reads, decodes, crops at random (8 to 100 % of the area), resizes to --size, flips, and puts
the picture into a batch of 64. Rows: ours from loose files (with each decoder, with and without decoding at a smaller
size), from shards of the original bytes, from shards encoded anew (--max-side, --quality; both are packed for this
run), and from those of --packed; timm's transform and the reference of torchvision on Pillow; DALI on the CPU and FFCV,
where they are installed; and the limit, decoding whole pictures.

Speed per core is pictures per second of CPU time of the thread that makes them or, for DALI and FFCV, of all threads,
with one thread each where that can be said. The rows take turns, so that a busy machine slows all of them alike; what
counts are the ratios to timm's transform, each taken within one round. After that, each in passes of its own: where our
time goes; by how much the pictures differ from Pillow's; and whole loaders, with --workers processes up to the device,
against as many times the speed of one core alone just before (with more processes than cores that cannot be reached).
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

# One thread in every library; they read this when they are imported.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.runtime.signals import leaving_at_signals

with leaving_at_signals({signal.SIGINT: 130}, "benchmark_loader.py"):  # these take seconds
    import numpy as np
    import torch
    from other_loaders import dali, ffcv, timm_loader, timm_transform, torchvision_reference

    from cspnet.cli.benchmark_report import check_bounds, describe_machine, spread, tell_report
    from cspnet.cli.flags import FlagParser, non_empty_path, run_door
    from cspnet.cli.measure_loader import (
        BATCH_SIZE,
        Pass,
        Start,
        WholeLoader,
        decoding_alone,
        measure_errors,
        measure_parts,
        measure_passes,
        measure_streams,
        our_stream,
        ours,
    )
    from cspnet.cli.outputs import check_outputs
    from cspnet.data.decode import EXTENSIONS, UnreadableImageError, open_picture
    from cspnet.data.index import open_index
    from cspnet.data.loader import default_workers
    from cspnet.data.packing import Encoding, pack_split, plan_packing
    from cspnet.data.samples import SampleIndex, digest_samples, join_paths
    from cspnet.data.shards import ShardIndex, holds_shards, list_shards
    from cspnet.errors import EXIT_DONE, UserError

BASE, LOOSE, LIMIT = "timm's transform", "ours, loose", "limit: decoding alone"
PACKAGES = ("pillow", "torch", "torchvision", "timm", "simplejpeg", "nvidia-dali-cuda120", "ffcv")
_MISSING = "not installed"
_FFCV_TIMES = 10
_BATCHES_A_WORKER = 16
"""Of whole loaders between two looks at the clock: at either one, a batch of each process is half done."""


class Sources(NamedTuple):
    """The same pictures, as they are and packed."""

    loose: SampleIndex
    original: SampleIndex
    """Shards of the same bytes."""
    encoded: SampleIndex
    encoding: Encoding
    given: ShardIndex | None
    """Shards that were there already."""
    folder: Path
    """For what others need to write."""


# The rows


class Row(NamedTuple):
    """A pipeline."""

    make: Callable[[], Pass]
    num_bytes: Callable[[], float]
    """That it reads for a picture, on average; asked after `make`."""
    limit: str = ""
    """The row that decodes the same bytes and does nothing else."""
    is_threaded: bool = False
    """Whether it works in threads of its own."""
    times: int = 1
    """How many times a pass makes all pictures."""


def plan_rows(sources: Sources, size_px: int) -> dict[str, Row]:
    """Name -> pipeline, in the order of the table."""
    loose, encoded, given = sources.loose, sources.encoded, sources.given
    encoding, beton = describe(sources.encoding), sources.folder / "pictures.beton"

    def row(index: SampleIndex, make: Callable[[], Pass], limit: str = "") -> Row:
        return Row(make, lambda: mean_bytes(index), limit)

    rows = {
        BASE: row(loose, lambda: timm_transform(loose, size_px), LIMIT),
        "torchvision's reference": row(loose, lambda: torchvision_reference(loose, size_px), LIMIT),
        "DALI, CPU, fused crop": row(loose, lambda: dali(loose, size_px), LIMIT)._replace(is_threaded=True),
        LOOSE: row(loose, lambda: ours(loose, size_px), LIMIT),
        f"{LOOSE}, data.shrink false": row(loose, lambda: ours(loose, size_px, shrink=False), LIMIT),
        f"{LOOSE}, data.decoder pillow": row(loose, lambda: ours(loose, size_px, "pillow"), LIMIT),
        "ours, shards, original bytes": row(sources.original, lambda: ours(sources.original, size_px), LIMIT),
        LIMIT: row(loose, lambda: decoding_alone(loose)),
        f"ours, shards, {encoding}": row(encoded, lambda: ours(encoded, size_px), f"{LIMIT}, {encoding}"),
        f"FFCV, {encoding}": Row(
            lambda: ffcv(loose, size_px, sources.encoding, beton, _FFCV_TIMES),
            lambda: beton.stat().st_size / len(loose),
            f"{LIMIT}, {encoding}",
            is_threaded=True,
            times=_FFCV_TIMES,
        ),
        f"{LIMIT}, {encoding}": row(encoded, lambda: decoding_alone(encoded)),
    }
    if given is not None:
        rows["ours, shards of --packed"] = row(given, lambda: ours(given, size_px), f"{LIMIT}, --packed")
        rows[f"{LIMIT}, --packed"] = row(given, lambda: decoding_alone(given))
    return rows


def make_passes(rows: dict[str, Row]) -> tuple[dict[str, Pass], dict[str, str]]:
    """What makes the pictures, and why there is nothing to measure, by name."""
    passes: dict[str, Pass] = {}
    missing: dict[str, str] = {}
    for name, row in rows.items():
        try:
            passes[name] = row.make()
        except ImportError:
            missing[name] = _MISSING
        except RuntimeError as error:  # installed, but not as it needs to be
            missing[name] = f"does not run: {str(error).splitlines()[0]}"
    return passes, missing


def measure_whole_loaders(
    sources: Sources, passes: Mapping[str, Pass], size_px: int, workers: int, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Pictures per second of whole loaders and, in the same round, of one core alone; and the former in percent."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoded = f"ours, shards, {describe(sources.encoding)}"
    starts: dict[str, Start] = {
        "timm's loader": timm_loader(sources.loose, size_px, workers, device.type == "cuda"),
        LOOSE: our_stream(sources.loose, size_px, workers, device),
        encoded: our_stream(sources.encoded, size_px, workers, device),
    }
    if sources.given is not None:
        starts["ours, shards of --packed"] = our_stream(sources.given, size_px, workers, device)
    loaders = {
        name: WholeLoader(start, passes[BASE if name == "timm's loader" else name]) for name, start in starts.items()
    }
    rates = measure_streams(loaders, len(sources.loose), device, workers, _BATCHES_A_WORKER * workers, repeats)
    return {
        name: {
            "images_per_s": [rate for rate, _ in pairs],
            "images_per_s_alone": [alone for _, alone in pairs],
            "percent_of_cores": [100 * rate / (workers * alone) for rate, alone in pairs],
        }
        for name, pairs in rates.items()
    }


# Preparing and telling


def find_pictures(data: Path, limit: int) -> tuple[SampleIndex, list[str]]:
    """Pictures taken evenly from a folder or list, and their names as in the data set.

    All of them must be readable, because other programs end at one that is not.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    if not data.exists() or (data.is_file() and holds_shards(data)):
        raise UserError(f"{data}: expected a folder of pictures or a list file; shards go with --packed")
    if data.is_file():
        folder = data.resolve().parent
        listed = open_index(data, root=str(folder), cache_dir=None)
        paths = [Path(listed.path(i)) for i in range(len(listed))]
    else:
        # The folder is resolved and the files are not: a link may have another name than what it leads to.
        folder = (data / "train" if (data / "train").is_dir() else data).resolve()
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not paths:
        raise UserError(f"{data}: no pictures below it; name a folder that has some")
    count = min(limit, len(paths))
    paths = [paths[i * len(paths) // count] for i in range(count)]
    names = [os.path.relpath(path, folder) for path in paths]
    joined, ends = join_paths([str(path) for path in paths])
    labels = np.zeros(count, np.int32)
    index = SampleIndex(str(folder), joined, ends, labels, (), digest_samples(names, labels.tolist()))
    check_readable(index)
    return index, names


def check_readable(index: SampleIndex) -> None:
    """Decode all pictures.

    Raises:
        UserError: one cannot be read.
    """
    for i in range(len(index)):
        try:
            open_picture(index.read(i), decoder="pillow").rgb()
        except UnreadableImageError as error:
            raise UserError(f"{index.path(i)}: cannot be read: {error}; take it out of the data set") from error


def find_packed(out: Path, names: Sequence[str]) -> ShardIndex:
    """Those pictures in shards that were packed before.

    Raises:
        UserError: no shards, or a picture is not among them.
    """
    patterns = [out / "*.tar", out / "train" / "*.tar"] if out.is_dir() else [out]
    path = next((path for path in patterns if holds_shards(path) and list_shards(path)), None)
    if path is None:
        raise UserError(f"--packed {out}: no shards there; make them with scripts/pack_dataset.py DATA {out}")
    index = open_index(path, root=str(path.parent), cache_dir=None)
    assert isinstance(index, ShardIndex)
    numbers = {index.name(i): i for i in range(len(index))}
    missing = next((name for name in names if name not in numbers), None)
    if missing is not None:
        raise UserError(f"--packed {out}: has no {missing}; pack all of this data set with scripts/pack_dataset.py")
    packed = take([numbers[name] for name in names], index)
    check_readable(packed)
    return packed


def take(samples: Sequence[int], index: ShardIndex) -> ShardIndex:
    """Some samples of shards."""
    paths, ends = join_paths([index.name(i) for i in samples])
    chosen = np.asarray(samples)
    return replace(
        index,
        paths=paths,
        ends=ends,
        labels=index.labels[chosen],
        shards=index.shards[chosen],
        offsets=index.offsets[chosen],
        sizes=index.sizes[chosen],
        heads=index.heads[chosen],
    )


def pack(index: SampleIndex, folder: Path, encoding: Encoding | None) -> SampleIndex:
    """The same pictures in shards."""
    packing = plan_packing(index, folder, root=Path(index.source), shard_size=1000, encoding=encoding)
    packed = pack_split(packing, workers=1, skip_bad=False, report_bad=print, report_done=lambda count: None)
    return packed.index


def measure(
    data: Path, out: Path | None, size_px: int, limit: int, repeats: int, workers: Sequence[int], encoding: Encoding
) -> dict[str, Any]:
    """All figures, in built-in types: the JSON of this script."""
    loose, names = find_pictures(data, limit)
    given = find_packed(out, names) if out is not None else None
    with tempfile.TemporaryDirectory(prefix="cspnet-loader-") as temporary:
        room = Path(temporary)
        original, encoded = pack(loose, room / "original", None), pack(loose, room / "encoded", encoding)
        sources = Sources(loose, original, encoded, encoding, given, room)
        rows = plan_rows(sources, size_px)
        passes, missing = make_passes(rows)
        seconds = measure_passes(passes, repeats, [name for name, row in rows.items() if row.is_threaded])
        rates = {name: [rows[name].times * len(loose) / value for value in values] for name, values in seconds.items()}
        packed = {f"ours, shards, {describe(encoding)}": encoded}
        packed |= {"ours, shards of --packed": given} if given is not None else {}
        parts = {name: measure_parts(index, size_px, repeats) for name, index in {LOOSE: loose, **packed}.items()}
        whole = {
            str(count): measure_whole_loaders(sources, passes, size_px, count, repeats)
            for count in dict.fromkeys(workers)
        }
        return {
            "machine": describe_machine(PACKAGES),
            "pictures": len(loose),
            "size_px": size_px,
            "repeats": repeats,
            "packed": None if given is None else given.encoding or "original bytes",
            "bytes_a_picture": {name: row.num_bytes() for name, row in rows.items() if name in passes},
            "images_per_s_per_core": {name: rates.get(name, missing.get(name)) for name in rows},
            "limits": {name: row.limit for name, row in rows.items() if row.limit},
            "cpu_ms_by_part": parts,
            "grey_levels_apart": measure_errors(loose, encoded, size_px),
            "whole_loaders": whole,
        }


def describe(encoding: Encoding) -> str:
    """A few words for the tables."""
    return f"{encoding.max_side_px} px, quality {encoding.quality}"


def mean_bytes(index: SampleIndex) -> float:
    """Bytes read for a picture."""
    return sum(len(index.read(i)) for i in range(len(index))) / len(index)


def table_lines(report: dict[str, Any]) -> list[str]:
    """The figures as Markdown."""
    given = f"; --packed: {report['packed']}" * bool(report["packed"])
    return [
        report["machine"],
        f"{report['pictures']} pictures at {report['size_px']} px, batches of {BATCH_SIZE}, n = {report['repeats']}; "
        f"median (lowest to highest){given}",
        "",
        *_speed_lines(report),
        "",
        *_part_lines(report["cpu_ms_by_part"]),
        "",
        "| pictures, beside Pillow's from the original | grey levels apart: mean | 99 % | most |",
        "|---|---|---|---|",
        *(
            f"| {name} | {apart['mean']:.2f} | {apart['99 %']:.0f} | {apart['most']} |"
            for name, apart in report["grey_levels_apart"].items()
        ),
        "",
        *_loader_lines(report["whole_loaders"]),
    ]


def _speed_lines(report: dict[str, Any]) -> list[str]:
    rates = report["images_per_s_per_core"]
    lines = [
        f"| pipeline | kB a picture | images/s per core | times {BASE} | % of decoding alone |",
        "|---|---|---|---|---|",
    ]

    def ratios(name: str, base: str, factor: float) -> list[float]:
        return [factor * value / other for value, other in zip(rates[name], rates[base], strict=True)]

    for name, values in rates.items():
        if isinstance(values, str):
            lines.append(f"| {name} | | {values} | | |")
            continue
        limit = report["limits"].get(name)
        share = spread(ratios(name, limit, 100)) if limit else ""
        size = f"{report['bytes_a_picture'][name] / 1000:,.1f}"
        lines.append(f"| {name} | {size} | {spread(values)} | {spread(ratios(name, BASE, 1), 2)} | {share} |")
    return lines


def _part_lines(parts: dict[str, dict[str, list[float]]]) -> list[str]:
    lines = [f"| CPU ms a picture | {' | '.join(parts)} |", "|---|" + "---|" * len(parts)]
    for part in parts[LOOSE]:
        lines.append(f"| {part} | {' | '.join(spread(values[part], 3) for values in parts.values())} |")
    sums = [spread([sum(each) for each in zip(*values.values(), strict=True)], 3) for values in parts.values()]
    return [*lines, f"| sum | {' | '.join(sums)} |"]


def _loader_lines(whole: dict[str, dict[str, dict[str, list[float]]]]) -> list[str]:
    lines = ["| whole loader | processes | images/s | % of as many cores alone |", "|---|---|---|---|"]
    for count, loaders in whole.items():
        for name, found in loaders.items():
            lines.append(
                f"| {name} | {count} | {spread(found['images_per_s'])} | {spread(found['percent_of_cores'])} |"
            )
    return lines


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="benchmark_loader.py", description=__doc__)
    parser.add_argument("data", type=non_empty_path, metavar="DATA", help="folder with pictures, or a list file")
    parser.add_argument("--packed", type=non_empty_path, metavar="OUT", help="the same data set in shards [none]")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="side of a training picture [%(default)s]")
    parser.add_argument(
        "--limit", "--pictures", type=int, default=300, metavar="N", help="how many pictures [%(default)s]"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds measured [%(default)s]")
    parser.add_argument("--max-side", type=int, default=400, metavar="PX", help="of those encoded anew [%(default)s]")
    parser.add_argument("--quality", type=int, default=90, metavar="Q", help="of those encoded anew [%(default)s]")
    parser.add_argument(
        "--workers", type=int, nargs="+", metavar="N", help="processes of whole loaders [one a core, at most 8]"
    )
    parser.add_argument("--json", type=non_empty_path, metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", type=non_empty_path, metavar="FILE", help="write the tables there as well")
    args = parser.parse_all(sys.argv[1:])
    workers = args.workers or [default_workers(1)]
    limits = [("size", args.size, 1, 4096), ("limit", args.limit, 1, 10**6), ("repeats", args.repeats, 1, 1000)]
    limits += [("workers", count, 1, 1024) for count in workers]
    limits += [("quality", args.quality, 1, 100), ("max-side", args.max_side, 8, 65000)]
    check_bounds(limits)
    check_outputs({"--json": args.json, "--markdown": args.markdown})
    torch.set_num_threads(1)
    encoding = Encoding(args.max_side, args.quality)
    report = measure(args.data, args.packed, args.size, args.limit, args.repeats, workers, encoding)
    text = "\n".join(table_lines(report)) + "\n"
    tell_report(report, text, args.json, args.markdown)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("benchmark_loader.py", main))
