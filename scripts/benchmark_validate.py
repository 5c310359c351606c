#!/usr/bin/env python3
"""validate.py beside the loop of timm's validation script: the same weights on the same pictures, in turn.

    python3 scripts/benchmark_validate.py DATA                       # cspresnet50, all of DATA/val or of DATA
    python3 scripts/benchmark_validate.py DATA --model cspdarknet53 --limit 2000 --workers 16 --batch-size 256
    python3 scripts/benchmark_validate.py DATA --weights FILE --json v.json --markdown v.md

DATA holds a folder for each class, in val/ if there is one. Weights: --weights, or random ones, with the statistics of
a batch of the pictures. Size, crop, interpolation and colours: those that timm has for the model, in all rows. The rows
take turns, so that a busy machine slows all of them alike. The first round warms up, and counts: how many answers are
right, and for how many pictures the first answer is not that of timm's defaults. A pass begins with starting the
reading processes and ends with the counts; building and folding the network is not in it.

timm's loop is written from the description of its validation script (1.0): its loader with the prefetcher, float32 and
contiguous tensors by default, and meters that wait for the device after each batch. Where timm does not have the
network, its loop runs ours.
"""

from __future__ import annotations

import copy
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.runtime.signals import leaving_at_signals

with leaving_at_signals({signal.SIGINT: 130}, "benchmark_validate.py"):  # these take seconds
    import numpy as np
    import torch
    from torch import Tensor, nn

    import cspnet
    from cspnet.cli import build
    from cspnet.cli.benchmark_report import check_bounds, describe_machine, ratios, spread, tell_report
    from cspnet.cli.flags import FlagParser, non_empty_path, run_door
    from cspnet.cli.measure_speed import take_turns
    from cspnet.cli.outputs import check_outputs
    from cspnet.cli.subject import build_folded
    from cspnet.cli.validate_job import run_pass
    from cspnet.data.index import open_index
    from cspnet.data.loader import default_workers
    from cspnet.data.samples import SampleIndex, digest_samples, join_paths
    from cspnet.data.shards import ShardIndex
    from cspnet.errors import EXIT_DONE, UserError
    from cspnet.recipe.load import load_recipe
    from cspnet.recipe.schema import Recipe
    from cspnet.runtime.device import choose_device
    from cspnet.runtime.distributed import World
    from cspnet.training.step import told_single_values

BASE, DEFAULT = "timm, its defaults", "ours, its defaults: float32, folded"


@dataclass(frozen=True)
class Outcome:
    """What came of a pass."""

    seconds: float
    correct1: int
    correct5: int
    classes: Tensor
    """The first answer for each picture (N,) on the host; empty where they were not kept."""


Pass = Callable[[bool], Outcome]
"""Validates once; the argument says whether to keep the answers."""


# timm


class _Files:
    """The pictures of an index, as a reader of timm's data set."""

    def __init__(self, index: SampleIndex) -> None:
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return open(self.index.path(i), "rb"), int(self.index.labels[i])  # closed with the picture


@dataclass(frozen=True)
class TimmLoop:
    """A pass of timm's validation script."""

    model: nn.Module
    index: SampleIndex
    recipe: Recipe
    device: torch.device
    workers: int
    amp_dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format

    def __call__(self, keeps: bool) -> Outcome:
        from timm.data import ImageDataset, create_loader
        from timm.utils import AverageMeter, accuracy

        data: Any = self.recipe.data
        reader: Any = _Files(self.index)
        loader = create_loader(
            ImageDataset("", reader=reader), (3, data.val_px, data.val_px), self.recipe.eval.batch_size or 1,
            interpolation=data.val_interpolation, mean=data.mean, std=data.std, num_workers=self.workers,
            crop_pct=data.crop_ratio, crop_mode="center", pin_memory=False, device=self.device,
            persistent_workers=False,
        )  # fmt: skip
        criterion = nn.CrossEntropyLoss().to(self.device)
        losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
        kept: list[Tensor] = []
        began = time.perf_counter()
        with torch.inference_mode():
            for images, targets in loader:
                images = images.contiguous(memory_format=self.memory_format)
                is_half = self.amp_dtype is not torch.float32
                with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=is_half):
                    logits = self.model(images)
                    loss = criterion(logits, targets)
                acc1, acc5 = accuracy(logits.detach(), targets, topk=(1, 5))
                losses.update(loss.item(), len(images))
                top1.update(acc1.item(), len(images))
                top5.update(acc5.item(), len(images))
                if keeps:
                    kept.append(logits.float().topk(min(5, logits.shape[1]), dim=1).indices[:, 0].cpu())
        seconds = time.perf_counter() - began
        return Outcome(
            seconds, round(top1.sum / 100), round(top5.sum / 100), torch.cat(kept) if kept else torch.empty(0)
        )


def create_peer(name: str, model: nn.Module, num_classes: int) -> tuple[nn.Module, str]:
    """timm's network with our weights, and whose it is; a copy of ours where timm has none that takes them."""
    import timm

    bare_name = name.removeprefix("timm/")
    # `cspnet.timm_models` may have put our networks among timm's.
    if timm.is_model(bare_name) and timm.model_entrypoint(bare_name).__module__.startswith("timm."):
        peer = timm.create_model(bare_name, num_classes=num_classes)
        try:
            peer.load_state_dict(model.state_dict())
        except RuntimeError:  # the same name and another network
            pass
        else:
            return peer, f"timm's {bare_name}"
    return copy.deepcopy(model), f"our {name}"


# Ours


@dataclass(frozen=True)
class OurPass:
    """A pass of validate.py."""

    model: nn.Module
    index: SampleIndex
    recipe: Recipe
    device: torch.device
    amp_dtype: torch.dtype = torch.float32

    def __call__(self, keeps: bool) -> Outcome:
        loader = build.build_eval_loader(self.recipe, self.index, World(), self.device)
        found = run_pass(self.recipe, self.index, World(), self.device, self.model, self.amp_dtype, loader, _refuse)
        result = found.result
        return Outcome(found.seconds, result.correct1, result.correct5, torch.cat(found.answers.classes).cpu())


def _refuse(bad: Sequence[Any]) -> None:
    """timm's data set would take another picture instead of a broken one.

    Raises:
        UserError: always.
    """
    raise UserError(f"{bad[0].path}: cannot be read: {bad[0].reason}; take it out of the data set")


@torch.no_grad()
def randomize(model: nn.Module, images: Tensor) -> None:
    """Scales, shifts and statistics of BatchNorm that a fresh one does not have; the statistics are the pictures'."""
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if norm.affine:
            norm.weight.copy_(torch.empty(norm.num_features).uniform_(0.5, 1.5, generator=generator))
            norm.bias.copy_(torch.empty(norm.num_features).normal_(0, 0.2, generator=generator))
        norm.momentum = 1.0
    with told_single_values():
        model.train()(images)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


# Measuring


def plan_rows(
    name: str, model: nn.Module, index: SampleIndex, recipe: Recipe, device: torch.device, workers: int
) -> tuple[dict[str, Pass], str]:
    """Name -> pass, in the order of the table, and whose network timm's loop runs."""
    peer, whose = create_peer(name, model, len(index.classes))
    peer = peer.to(device).eval()
    loop = TimmLoop(peer, index, recipe, device, workers)
    # fp16 is the default of timm's --amp; on a CPU it would be at a disadvantage.
    half, word = (torch.float16, "float16") if device.type == "cuda" else (torch.bfloat16, "bfloat16")
    last: Any = torch.channels_last
    best = replace(loop, model=copy.deepcopy(peer).to(memory_format=last), amp_dtype=half, memory_format=last)
    folded = build_folded(recipe, model, device)
    if folded.refusal:
        raise UserError(f"--model {name}: its BatchNorms cannot be folded: {folded.refusal}")
    ours = OurPass(folded.model, index, recipe, device)
    rows: dict[str, Pass] = {
        BASE: loop,
        f"timm, channels_last, amp {word}": best,
        DEFAULT: ours,
        "ours, float32, not folded": replace(ours, model=model),
        "ours, bfloat16, folded": replace(ours, amp_dtype=torch.bfloat16),
    }
    if half is torch.float16:
        rows["ours, float16, folded"] = replace(ours, amp_dtype=half)
    return rows, whose


def measure(args: Any) -> dict[str, Any]:
    """All figures, in built-in types: the JSON of this script."""
    device = choose_device(args.device)
    index = find_pictures(args.data, args.limit)
    recipe = build_recipe(args)
    model = build.build_model(recipe, len(index.classes), device)
    if args.weights is None:
        loader = build.build_eval_loader(recipe, index, World(), device)
        pixels = next(iter(replace(loader, workers=0))).images
        randomize(model, build.build_normalizer(recipe, device)(pixels))
    else:
        cspnet.load_weights(model, args.weights)
    rows, whose = plan_rows(args.model, model, index, recipe, device, args.workers)
    found = {name: rows[name](True) for name in sorted(rows, key=lambda name: name != DEFAULT)}  # ours refuses first
    work = {name: partial(lambda run: len(index) / run(False).seconds, run) for name, run in rows.items()}
    rates = take_turns(work, args.repeats, warm_up=False)
    return {
        "machine": describe_machine(("torch", "timm", "pillow", "simplejpeg")),
        "device": str(device),
        "model": args.model,
        "peer": whose,
        "weights": "random" if args.weights is None else args.weights.name,
        "pictures": len(index),
        "geometry": str(build.build_geometry(recipe.data)),
        "batch_size": args.batch_size,
        "workers": args.workers,
        "repeats": args.repeats,
        "images_per_s": rates,
        "correct": {name: [found[name].correct1, found[name].correct5] for name in rows},
        "other_answers": {name: int((found[name].classes != found[BASE].classes).sum()) for name in rows},
    }


def find_pictures(data: Path, limit: int | None) -> SampleIndex:
    """Pictures taken evenly from class folders.

    Raises:
        UserError: there are none.
    """
    folder = data / "val" if (data / "val").is_dir() else data
    if not folder.is_dir():
        raise UserError(f"{data}: expected a folder that holds a folder for each class, in val/ or by itself")
    index = open_index(folder.resolve(), root=str(folder.resolve()), cache_dir=None)
    if isinstance(index, ShardIndex):
        raise UserError(f"{data}: holds shards, and timm's loop reads files; name a folder of them")
    count = min(limit or len(index), len(index))
    chosen = [i * len(index) // count for i in range(count)]
    paths, ends = join_paths([index.path(i) for i in chosen])
    labels = index.labels[np.asarray(chosen)]
    names = [os.path.relpath(index.path(i), folder.resolve()) for i in chosen]
    digest = digest_samples(names, labels.tolist())
    return replace(index, paths=paths, ends=ends, labels=labels, fingerprint=digest)


def build_recipe(args: Any) -> Recipe:
    """The recipe of validate.py, with the geometry that timm has for the model."""
    import timm
    from timm.data import resolve_data_config

    bare_name = args.model.removeprefix("timm/")
    known = timm.get_pretrained_cfg(bare_name) if timm.is_model(bare_name) else None
    about = known.to_dict() if known else {"input_size": (3, 224, 224)}
    asked = {} if args.size is None else {"input_size": (3, args.size, args.size)}
    data = resolve_data_config(asked, pretrained_cfg=about, use_test_size=args.size is None)
    values = {
        "model.name": args.model,
        "data.val_px": data["input_size"][-1],
        "data.train_px": data["input_size"][-1],
        "data.crop_ratio": data["crop_pct"],
        "data.val_interpolation": data["interpolation"],
        "data.mean": list(data["mean"]),
        "data.std": list(data["std"]),
        "data.exif": "ignore",  # as in timm
        "data.workers": args.workers,
        "eval.batch_size": args.batch_size,
    }
    return load_recipe(None, values).recipe


# Telling


def table_lines(report: Mapping[str, Any]) -> list[str]:
    """The figures as Markdown."""
    rates, base = report["images_per_s"], report["images_per_s"][BASE]
    lines = [
        report["machine"],
        f"{report['model']} on {report['device']}, {report['weights']} weights (timm's loop runs {report['peer']}), "
        f"{report['pictures']:,} pictures at {report['geometry']}, batches of {report['batch_size']}, "
        f"{report['workers']} reading processes, {torch.get_num_threads()} threads, "
        f"n = {report['repeats']}; median (lowest to highest)",
        "",
        "| validation | images/s | times timm's defaults | right: first, of five | other first answers |",
        "|---|---|---|---|---|",
    ]
    for name, values in rates.items():
        (right1, right5), changed = report["correct"][name], report["other_answers"][name]
        cells = f"{spread(values, 1)} | {spread(ratios(values, base), 2)}"
        lines.append(f"| {name} | {cells} | {right1:,}, {right5:,} | {changed:,} |")
    return lines


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="benchmark_validate.py", description=__doc__)
    parser.add_argument("data", type=non_empty_path, metavar="DATA", help="class folders, or a folder with val/")
    parser.add_argument("--model", default="cspresnet50", metavar="NAME", help="[%(default)s]")
    parser.add_argument("--weights", type=non_empty_path, metavar="FILE", help="with as many classes as DATA [random]")
    parser.add_argument("--size", type=int, metavar="PX", help="side of a picture [timm's for the model]")
    parser.add_argument("--limit", "--pictures", type=int, metavar="N", help="how many pictures [all]")
    parser.add_argument("-b", "--batch-size", type=int, default=64, metavar="N", help="[%(default)s]")
    parser.add_argument("-j", "--workers", type=int, metavar="N", help="reading processes [one a core, at most 8]")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds measured [%(default)s]")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:<n> [%(default)s]")
    parser.add_argument("--json", type=non_empty_path, metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", type=non_empty_path, metavar="FILE", help="write the table there as well")
    args = parser.parse_all(sys.argv[1:])
    args.workers = default_workers(1) if args.workers is None else args.workers
    bounds = {"size": 4096, "limit": 10**9, "batch-size": 65536, "workers": 1024, "repeats": 1000}
    given = {name: getattr(args, name.replace("-", "_")) for name in bounds}
    check_bounds((name, given[name], 1, most) for name, most in bounds.items() if given[name] is not None)
    check_outputs({"--json": args.json, "--markdown": args.markdown})
    report = measure(args)
    text = "\n".join(table_lines(report)) + "\n"
    tell_report(report, text, args.json, args.markdown)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("benchmark_validate.py", main))
