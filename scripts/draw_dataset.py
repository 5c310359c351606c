#!/usr/bin/env python3
"""Draw a small image classification dataset as JPEGs in ImageFolder layout.

The 12 classes are 4 shapes x 3 textures, for example ``circle_stripes``. Colours, background, place, size, rotation
and texture scale vary freely inside every class, so only the outline and the texture inside it tell the class.

    python3 scripts/draw_dataset.py OUT     # OUT/train/<class>/0000.jpg ... and OUT/val/<class>/0000.jpg ...

Lengths inside a picture are fractions of its side, colours are RGB in [0, 1], angles are radians.
"""

import argparse
import colorsys
import contextlib
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.runtime.processes import create_context, held_back_signals, leave_with_parent
from cspnet.runtime.tasks import closing, result_of, submit

SHAPES = ("circle", "triangle", "star", "cross")
TEXTURES = ("stripes", "dots", "checks")
CLASSES = tuple(f"{shape}_{texture}" for shape in SHAPES for texture in TEXTURES)
SPLITS = ("train", "val")
SUPERSAMPLING = 2
LUMA = (0.299, 0.587, 0.114)

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


def turned(x: Floats, y: Floats, angle: float) -> tuple[Floats, Floats]:
    """Coordinates of the points (x, y), each [H, W], on axes rotated by angle."""
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def tipped_polygon(x: Floats, y: Floats, tips: int, inner: float) -> Mask:
    """Mask [H, W] of the polygon around the origin with tips at radius 1 and notches at radius inner."""
    # Folding the angle into half a tip leaves one straight edge, from (1, 0) to the notch, to test against.
    half = math.pi / tips
    folded = np.abs((np.arctan2(y, x) + half) % (2 * half) - half)
    radius = np.hypot(x, y)
    notch_x, notch_y = inner * math.cos(half), inner * math.sin(half)
    inside: Mask = (notch_x - 1) * radius * np.sin(folded) >= notch_y * (radius * np.cos(folded) - 1)
    return inside


def shape_mask(rng: np.random.Generator, shape: str, x: Floats, y: Floats) -> Mask:
    """Mask [H, W] of the shape at a random place, size and rotation."""
    area = rng.uniform(0.16, 0.3)
    x, y = turned(x - rng.uniform(0.43, 0.57), y - rng.uniform(0.43, 0.57), rng.uniform(0, 2 * math.pi))

    # All shapes get their area from one distribution, or else the amount of background alone would hint at the shape.
    if shape == "circle":
        return np.hypot(x, y) <= math.sqrt(area / math.pi)
    if shape == "cross":
        arm = rng.uniform(0.28, 0.36)
        reach = math.sqrt(area / (8 * arm - 4 * arm**2))
        x, y = np.abs(x), np.abs(y)
        return (np.maximum(x, y) <= reach) & (np.minimum(x, y) <= arm * reach)
    tips, inner = (3, 0.5) if shape == "triangle" else (5, rng.uniform(0.4, 0.48))
    reach = math.sqrt(area / (tips * inner * math.sin(math.pi / tips)))
    return tipped_polygon(x / reach, y / reach, tips, inner)


def texture_mask(rng: np.random.Generator, texture: str, x: Floats, y: Floats) -> Mask:
    """Mask [H, W] of about half the points, in a texture of random period, phase and angle."""
    period = rng.uniform(0.11, 0.17)
    x, y = turned(x, y, rng.uniform(0, 2 * math.pi))
    x, y = (x / period + rng.random()) % 1, (y / period + rng.random()) % 1
    if texture == "stripes":
        return x < 0.5
    if texture == "checks":
        return (x < 0.5) ^ (y < 0.5)
    dots: Mask = np.hypot(x - 0.5, y - 0.5) < 0.39  # covers 48 %, near the others' half, and keeps the dots apart
    return dots


def random_colour(rng: np.random.Generator) -> Floats:
    """Any hue, RGB [3]."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 1), rng.uniform(0.1, 1))
    return np.array(rgb, dtype=np.float32)


def random_palette(rng: np.random.Generator) -> tuple[Floats, Floats, Floats, Floats]:
    """Two texture colours that differ in brightness, then two background colours apart from both; RGB [3] each."""
    while True:
        one, other = random_colour(rng), random_colour(rng)
        # JPEG keeps brightness sharper than hue, so the texture must show in brightness.
        if abs(float((one - other) @ LUMA)) >= 0.35:
            break
    backgrounds: list[Floats] = []
    while len(backgrounds) < 2:
        colour = random_colour(rng)
        if min(np.linalg.norm(colour - one), np.linalg.norm(colour - other)) >= 0.35:
            backgrounds.append(colour)
    return one, other, backgrounds[0], backgrounds[1]


def background(rng: np.random.Generator, start: Floats, end: Floats, x: Floats, y: Floats) -> Floats:
    """Gradient between two colours, half the time with a faint texture of its own; RGB [H, W, 3]."""
    along, _ = turned(x - 0.5, y - 0.5, rng.uniform(0, 2 * math.pi))
    blend = np.clip(along * rng.uniform(0.5, 1.2) + 0.5, 0, 1)[..., None]
    picture: Floats = start * (1 - blend) + end * blend
    if rng.random() < 0.5:
        # Drawn from all textures whatever the class, so that a texture counts only inside the outline.
        faint = texture_mask(rng, TEXTURES[rng.integers(len(TEXTURES))], x, y)
        picture += np.float32(rng.uniform(0.03, 0.08)) * (2 * faint[..., None].astype(np.float32) - 1)
    return picture


def add_distractors(rng: np.random.Generator, picture: Floats, x: Floats, y: Floats) -> None:
    """Paint one to three short line segments or small blobs over picture [H, W, 3], in place."""
    for _ in range(rng.integers(1, 4)):
        is_line = rng.random() < 0.5
        half_length = rng.uniform(0.05, 0.14) if is_line else 0.0
        thickness = rng.uniform(0.008, 0.014) if is_line else rng.uniform(0.015, 0.035)
        along, across = turned(x - rng.random(), y - rng.random(), rng.uniform(0, 2 * math.pi))
        distance = np.hypot(np.maximum(np.abs(along) - half_length, 0), across)
        picture[distance <= thickness] = random_colour(rng)


def draw_picture(rng: np.random.Generator, shape: str, texture: str, size: int) -> Image.Image:
    """One picture of size x size pixels."""
    ticks = np.linspace(0, 1, size * SUPERSAMPLING, dtype=np.float32)
    x, y = np.meshgrid(ticks, ticks)

    one, other, start, end = random_palette(rng)
    picture = background(rng, start, end, x, y)
    add_distractors(rng, picture, x, y)
    inside, marked = shape_mask(rng, shape, x, y), texture_mask(rng, texture, x, y)
    picture[inside & marked] = one
    picture[inside & ~marked] = other
    add_distractors(rng, picture, x, y)
    picture = picture.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 3).mean(axis=(1, 3))

    picture *= np.float32(rng.uniform(0.75, 1.15))
    picture += rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(0.01, 0.04))
    image = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
    # The blur grows with the picture, so that textures stay as visible at every size.
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.012) * size))


def draw_class(folder: Path, split: str, label: int, count: int, size: int, seed: int, quality: int) -> None:
    """Write pictures 0 to count - 1 of class number label in split into the new folder."""
    folder.mkdir(parents=True)
    shape, texture = CLASSES[label].split("_")
    for index in range(count):
        # The full address seeds each picture, so it does not depend on counts, order or number of processes.
        rng = np.random.default_rng([seed, SPLITS.index(split), label, index])
        draw_picture(rng, shape, texture, size).save(folder / f"{index:04d}.jpg", quality=quality)


@contextlib.contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that is gone behind the block, whoever is in a hurry."""
    folder = tempfile.TemporaryDirectory(prefix=f".{out.name}.part-", dir=out.parent)
    try:
        yield Path(folder.name)
    finally:
        with held_back_signals():
            folder.cleanup()


def draw_dataset(out: Path, counts: dict[str, int], size: int, seed: int, quality: int, workers: int) -> None:
    """Draw counts[split] pictures per class into out, which appears only once it is complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(out) as scratch:
        root = scratch / out.name
        with closing(ProcessPoolExecutor(workers, create_context(), leave_with_parent)) as pool:
            tasks = [
                submit(pool, draw_class, root / split / name, split, label, counts[split], size, seed, quality)
                for split in SPLITS
                for label, name in enumerate(CLASSES)
            ]
            for task in tasks:
                result_of(task)
        root.rename(out)


class Parser(argparse.ArgumentParser):
    """Parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def main() -> None:
    """Command line entry point."""
    parser = Parser(description="Draw a dataset of 12 classes (4 shapes x 3 textures) as JPEGs in ImageFolder layout.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to create; must not exist or be empty")
    parser.add_argument("--train-per-class", type=int, default=200, help="training pictures per class (default 200)")
    parser.add_argument("--val-per-class", type=int, default=50, help="held-out pictures per class (default 50)")
    parser.add_argument("--size", type=int, default=72, help="side of a picture in pixels, 32 or more (default 72)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pictures (default 0)")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality, 1 to 95 (default 90)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default one per core)")
    args = parser.parse_args()

    limits = {"train-per-class": (1, 10**6), "val-per-class": (1, 10**6), "size": (32, 2048)}
    limits |= {"seed": (0, 2**32 - 1), "quality": (1, 95), "workers": (1, 256)}
    for name, (low, high) in limits.items():
        if not low <= (value := getattr(args, name.replace("-", "_"))) <= high:
            parser.error(f"--{name} is {value}: give a number from {low} to {high}")
    out = args.out.resolve()

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up after a polite kill as after Ctrl-C
    began = time.perf_counter()
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            parser.error(f"{args.out} exists and is not an empty folder: remove it or name another folder")
        counts = {"train": args.train_per_class, "val": args.val_per_class}
        draw_dataset(out, counts, args.size, args.seed, args.quality, args.workers)
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os._exit(1))  # whoever says it again does not want to wait
        sys.exit(f"{parser.prog}: stopped, {args.out} was not made")
    except BrokenProcessPool:
        parser.error("a drawing process was killed (out of memory?): use fewer --workers")
    except OSError as error:
        parser.error(f"cannot write {args.out}: {error}: name a folder that can be written")
    total = len(CLASSES) * sum(counts.values())
    print(f"drew {total} pictures of {len(CLASSES)} classes in {time.perf_counter() - began:.1f} s: {args.out}")


if __name__ == "__main__":
    main()
