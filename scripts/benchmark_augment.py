#!/usr/bin/env python3
"""How fast training pictures are made, in this process, and what mixing costs beside a training step.

    python3 scripts/benchmark_augment.py DIR                          # pictures per second and core
    python3 scripts/benchmark_augment.py DIR --size 256 --repeats 9
    python3 scripts/benchmark_augment.py DIR --step-model cspresnet50   # mixing as a share of a training step too

Our flips are not measured: the device makes them. "torchvision" is its RandomResizedCrop and flip, of a picture that
Pillow decodes, as its references and timm's script show one. The ways to make a picture take turns, so that a busy
machine slows all of them alike; what counts are the ratios.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.cli.flags import FlagParser, non_empty_path, run_door
from cspnet.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    import numpy as np

VIEWS: dict[str, dict[str, object]] = {
    "random_resized": {},
    "darknet": {"data.train_crop": "darknet"},
    "random_resized + rand-m9": {"augment.policy": "rand-m9-mstd0.5-inc1"},
    "random_resized + trivial": {"augment.policy": "trivial"},
    "random_resized + 3a, jitter 0.3": {"augment.policy": "3a", "augment.color_jitter": 0.3},
}
"""Name -> settings of the recipe; the first one is what the others are compared with."""

PEER = "torchvision"
"""The name of its RandomResizedCrop and flip."""

MIXES: dict[str, dict[str, object]] = {
    "cutmix": {"mix.cutmix_alpha": 1.0},
    "mixup": {"mix.mixup_alpha": 0.2},
    "darknet cutmix": {"mix.darknet": "cutmix"},
    "darknet mosaic": {"mix.darknet": "mosaic"},
    "darknet cutmix_mosaic": {"mix.darknet": "cutmix_mosaic"},
    "darknet mixup": {"mix.darknet": "mixup"},
    "darknet blur": {"mix.blur_px": 1},
    "random erasing 0.25": {"augment.erase_prob": 0.25},
}


def build_views(size_px: int) -> dict[str, Callable[[bytes, np.random.Generator], object]]:
    """Each way to make a training picture of a file's bytes; torchvision's draws from torch's own generator."""
    from PIL import Image
    from torchvision.transforms import v2

    from cspnet.data.decode import open_picture
    from cspnet.data.transforms import build_train_transform
    from cspnet.recipe.load import load_recipe

    def by_recipe(settings: dict[str, object]) -> Callable[[bytes, np.random.Generator], object]:
        transform = build_train_transform(load_recipe(None, {"data.train_px": size_px, **settings}).recipe)
        return lambda data, rng: transform(open_picture(data), rng, size_px)

    views = {name: by_recipe(settings) for name, settings in VIEWS.items()}
    peer = v2.Compose([v2.RandomResizedCrop(size_px, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    views[PEER] = lambda data, rng: peer(Image.open(io.BytesIO(data)).convert("RGB"))
    return views


def measure_views(paths: list[Path], size_px: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat, over all pictures, per way; the ways take turns."""
    import torch

    from cspnet.data.decode import UnreadableImageError, open_picture
    from cspnet.runtime.random import generator_at

    torch.set_num_threads(1)
    views = build_views(size_px)
    seconds: dict[str, list[float]] = {name: [] for name in views}
    for path in paths:
        try:
            open_picture(path.read_bytes()).rgb()
        except UnreadableImageError as error:
            raise UserError(f"{path}: cannot be read: {error}; take it out of the folder") from error
    for repeat in range(repeats + 1):
        for name, view in views.items():
            started_s = time.perf_counter()
            for i, path in enumerate(paths):
                view(path.read_bytes(), generator_at(0, "augment", repeat, i))
            if repeat:  # the first round warms the file cache
                seconds[name].append(time.perf_counter() - started_s)
    return seconds


def measure_mixes(model_name: str, batch_size: int, size_px: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat: one training step ("step"), then each way to mix its batch."""
    import torch

    from cspnet.cli.build import build_model, build_state
    from cspnet.data.mixing import mix_batch, soft_targets
    from cspnet.data.policies import Eraser
    from cspnet.recipe.load import load_recipe
    from cspnet.runtime.device import choose_amp_dtype, choose_device
    from cspnet.runtime.distributed import World
    from cspnet.runtime.random import generator_at
    from cspnet.training.step import train_step

    recipe = load_recipe(None, {"model.name": model_name, "data.train_px": size_px}).recipe
    device = choose_device("auto", 0)
    amp_dtype = choose_amp_dtype("auto", device)
    model = build_model(recipe, 1000, device)
    state = build_state(recipe, model, World(), device, amp_dtype)
    images = torch.randn(batch_size, 3, size_px, size_px, device=device).to(memory_format=torch.channels_last)
    targets = soft_targets(torch.arange(batch_size, device=device), 1000, 0.1)

    def timed(work: Callable[[], object]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started_s = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started_s

    def step() -> object:
        return train_step(state, model, [(images, targets)], lr=0.0, accumulate=1, amp_dtype=amp_dtype, clip_norm=None)

    seconds: dict[str, list[float]] = {"step": [], **{name: [] for name in MIXES}}
    mixes = {name: load_recipe(None, settings).recipe for name, settings in MIXES.items()}
    erasers = {name: Eraser(recipe.augment, device) for name, recipe in mixes.items()}
    for repeat in range(repeats + 1):
        taken = {"step": timed(step)}
        for name, cfg in mixes.items():
            batch = images.clone(memory_format=torch.preserve_format)
            rng = generator_at(0, "mix", repeat)
            taken[name] = timed(lambda: mix_batch(erasers[name](batch, rng), targets, rng, cfg.mix))  # noqa: B023
        if repeat:
            for name, value in taken.items():
                seconds[name].append(value)
    return seconds


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="benchmark_augment.py", description=__doc__)
    parser.add_argument("folder", type=non_empty_path, metavar="DIR", help="folder with pictures, at any depth")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="side of a training picture [%(default)s]")
    parser.add_argument("--pictures", type=int, default=200, metavar="N", help="how many of them [%(default)s]")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds measured [%(default)s]")
    parser.add_argument("--step-model", metavar="NAME", help="measure mixing beside a training step of this network")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="of the step [%(default)s]")
    args = parser.parse_all(sys.argv[1:])
    for name in ("size", "pictures", "repeats", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: use a number from 1 on")

    from cspnet.cli.benchmark_report import describe_machine, ratios, spread
    from cspnet.data.decode import EXTENSIONS

    paths = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in EXTENSIONS)[: args.pictures]
    if not paths:
        raise UserError(f"{args.folder}: no pictures below it; name a folder that has some")
    seconds = measure_views(paths, args.size, args.repeats)
    first = next(iter(seconds))
    print(describe_machine(("torch", "torchvision", "pillow")))
    print(f"{len(paths)} pictures at {args.size} px, decoding included, n = {args.repeats}; median (lowest to highest)")
    for name, values in seconds.items():
        rates = spread([len(paths) / value for value in values])
        faster = {other: spread(ratios(seconds[other], values), 3) for other in (first, PEER)}
        print(f"{name:32} {rates} images/s per core, {faster[first]} x {first}, {faster[PEER]} x {PEER}")
    if args.step_model:
        seconds = measure_mixes(args.step_model, args.batch_size, args.size, args.repeats)
        step = seconds.pop("step")
        print(f"a training step of {args.step_model}, batch {args.batch_size}: {spread(step, 3)} s")
        for name, values in seconds.items():
            shares = [100 * share for share in ratios(values, step)]
            print(f"{name:32} {spread(shares, 2)} % of the step")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("benchmark_augment.py", main))
