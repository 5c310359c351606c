"""How fast training pictures come: our input pipeline and its parts, and the clock that others are measured by too.

A `Pass` makes all pictures once, in this process; a `Stream` gives batches from processes of its own. Several of either
take turns, so that a busy machine slows all of them alike, and what counts are ratios within a round.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cspnet.data.decode import open_picture, resize
from cspnet.data.jpeg import decode_jpeg, read_jpeg_header
from cspnet.data.loader import Reader, TrainLoader, TrainPictures
from cspnet.data.mixing import mirror
from cspnet.data.sampler import BatchAddress, BatchPlan
from cspnet.data.samples import SampleIndex
from cspnet.data.transforms import EvalTransform, build_train_transform, random_resized_box
from cspnet.errors import DataError
from cspnet.recipe.load import load_recipe
from cspnet.runtime.random import generator_at

__all__ = [
    "ASPECT",
    "BATCH_SIZE",
    "PARTS",
    "SCALE",
    "Pass",
    "Start",
    "WholeLoader",
    "batch_size_for",
    "chunks",
    "decoding_alone",
    "measure_errors",
    "measure_parts",
    "measure_passes",
    "measure_streams",
    "our_stream",
    "ours",
    "show_in_parts",
]

Decoder = Literal["fast", "pillow"]
BATCH_SIZE = 64
SCALE, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
PARTS = ("read", "header", "decode", "crop and resize", "draws, flip, copy")

Pass = Callable[[int], object]
"""Makes all pictures, once where nothing else is said; the argument is the number of the round."""
Start = Callable[[], Iterator[Tensor]]
"""Starts processes that make batches without end; they stop when the iterator is let go."""


def batch_size_for(num_samples: int) -> int:
    """Pictures in a batch."""
    return min(BATCH_SIZE, num_samples)


def chunks(num_samples: int) -> Iterator[np.ndarray]:
    """The samples of each batch of a pass."""
    return (np.arange(start, min(start + BATCH_SIZE, num_samples)) for start in range(0, num_samples, BATCH_SIZE))


def _create_pictures(index: SampleIndex, size_px: int, decoder: Decoder = "fast", shrink: bool = True) -> TrainPictures:
    recipe = load_recipe(
        None,
        {
            "data.train_px": size_px,
            "data.train_scale": list(SCALE),
            "data.train_aspect": list(ASPECT),
            "data.shrink": shrink,
        },
    ).recipe
    return TrainPictures(Reader(index, "apply", decoder), build_train_transform(recipe), 0)


def ours(index: SampleIndex, size_px: int, decoder: Decoder = "fast", shrink: bool = True) -> Pass:
    """Our pipeline, in this process."""
    pictures = _create_pictures(index, size_px, decoder, shrink)

    def run(repeat: int) -> None:
        for samples in chunks(len(index)):
            batch = pictures[BatchAddress(repeat, samples, samples)]
            if bad := batch.bad:
                raise DataError(f"{bad[0].path}: cannot be read: {bad[0].reason}; measure on whole pictures")
            mirror(batch.images, batch.flipped)  # as all others do that are measured beside

    return run


def decoding_alone(index: SampleIndex) -> Pass:
    """Whole pictures from bytes in memory, by libjpeg-turbo where it can."""
    contents = [index.read(i) for i in range(len(index))]

    def run(repeat: int) -> None:
        for data in contents:
            header = read_jpeg_header(data)
            try:
                if header is None:
                    raise ValueError("not such a JPEG")
                decode_jpeg(data, header, header.height)
            except ValueError:
                open_picture(data, decoder="pillow").rgb()

    return run


def measure_passes(passes: Mapping[str, Pass], repeats: int, threaded: Collection[str] = ()) -> dict[str, list[float]]:
    """CPU seconds of each round, per pass; the passes take turns.

    Only for the `threaded` ones all threads of this process count: those of one may be busy in the turn of another.
    """
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for repeat in range(repeats + 1):
        for name, run in passes.items():
            clock = time.process_time if name in threaded else time.thread_time
            started_s = clock()
            run(repeat)
            taken_s = clock() - started_s
            if repeat:  # the first round warms caches and compiles
                seconds[name].append(taken_s)
    return seconds


def show_in_parts(pictures: TrainPictures, address: BatchAddress, taken_ns: Counter[str]) -> np.ndarray:
    """The pictures of a batch as `TrainPictures` makes them, and mirrored, with the clock of the CPU read in between.

    What Pillow decodes it decodes while opening: that is counted as header.
    """
    clock, reader = time.thread_time_ns, pictures.reader

    def timed(work: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            started = clock()
            result = work(*args, **options)
            taken_ns[part] += clock() - started
            return result

        return run

    side = pictures.transform.sizes.size_at(address.epoch)
    images = np.empty((len(address.samples), side, side, 3), dtype=np.uint8)
    flipped = torch.empty(len(images), dtype=torch.bool)
    for i, (position, sample) in enumerate(zip(address.positions, address.samples, strict=True)):
        decode_before, resize_before = taken_ns["decode"], taken_ns["crop and resize"]
        started = clock()
        data = reader.index.read(int(sample))
        was_read = clock()
        picture = open_picture(data, reader.exif, reader.decoder)
        was_opened = clock()
        # On this one object, so that what is measured is the pipeline itself and no copy of it.
        vars(picture)["decode_box"] = timed(picture.decode_box, "decode")
        vars(picture)["crop_resize"] = timed(picture.crop_resize, "crop and resize")
        was_watched = clock()
        rng = generator_at(pictures.seed, "augment", address.epoch, int(position))
        images[i], flipped[i] = pictures.transform(picture, rng, side)
        taken_ns["draws, flip, copy"] += clock() - was_watched - (taken_ns["crop and resize"] - resize_before)
        taken_ns["crop and resize"] -= taken_ns["decode"] - decode_before  # which happens within it
        taken_ns["read"] += was_read - started
        taken_ns["header"] += was_opened - was_read
    return timed(mirror, "draws, flip, copy")(torch.from_numpy(images), flipped).numpy()


def measure_parts(index: SampleIndex, size_px: int, repeats: int) -> dict[str, list[float]]:
    """CPU milliseconds a picture by part, in each round of a pass of its own; `the rest` is batches and clocks."""
    pictures = _create_pictures(index, size_px)
    parts: dict[str, list[float]] = {name: [] for name in (*PARTS, "the rest")}
    for repeat in range(repeats + 1):
        taken_ns: Counter[str] = Counter()
        started = time.thread_time_ns()
        for samples in chunks(len(index)):
            show_in_parts(pictures, BatchAddress(repeat, samples, samples), taken_ns)
        taken_ns["the rest"] = time.thread_time_ns() - started - taken_ns.total()
        if repeat:
            for name, values in parts.items():
                values.append(taken_ns[name] / 1e6 / len(index))
    return parts


def measure_errors(loose: SampleIndex, encoded: SampleIndex, size_px: int) -> dict[str, dict[str, float]]:
    """By how many grey levels pictures differ from those that are decoded whole from the original bytes, by Pillow."""
    eval_view = EvalTransform(size_px, 0.875, "bilinear")
    train = {shrink: _create_pictures(loose, size_px, "fast", shrink).transform for shrink in (True, False)}
    whole = [open_picture(loose.read(i), decoder="pillow") for i in range(len(loose))]

    def validation(i: int) -> tuple[np.ndarray, np.ndarray]:
        return eval_view(open_picture(encoded.read(i))), eval_view(whole[i])

    def training(i: int, shrink: bool) -> tuple[np.ndarray, np.ndarray]:
        seen, _ = train[shrink](open_picture(loose.read(i)), generator_at(0, "augment", 0, i), size_px)
        picture, rng = whole[i], generator_at(0, "augment", 0, i)
        rng.random()  # of the flip, which is drawn first and changes no grey level
        box = random_resized_box(rng, picture.width, picture.height, SCALE, ASPECT)
        return seen, np.asarray(resize(picture.rgb().crop(box), (size_px, size_px), "bilinear"))

    pairs: dict[str, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
        "validation, encoded anew": validation,
        "training, data.shrink": lambda i: training(i, True),
        "training, data.shrink false": lambda i: training(i, False),
    }
    errors: dict[str, dict[str, float]] = {}
    for name, pair in pairs.items():
        apart = np.stack([np.abs(a.astype(int) - b.astype(int)) for a, b in map(pair, range(len(whole)))])
        errors[name] = {"mean": float(apart.mean()), "99 %": float(np.quantile(apart, 0.99)), "most": int(apart.max())}
    return errors


def our_stream(index: SampleIndex, size_px: int, workers: int, device: torch.device) -> Start:
    """Our whole loader: uint8 batches from processes, on the device, mirrored there."""
    plan = BatchPlan(len(index), batch_size_for(len(index)), 1, 1, 0)
    loader = TrainLoader(_create_pictures(index, size_px), plan, 0, workers, 2, device)
    return lambda: (mirror(batch.images, batch.flipped) for batch in loader.start_at(0, 0))


class WholeLoader(NamedTuple):
    """A loader with its processes, and the same work in this process."""

    start: Start
    alone: Pass


def measure_streams(
    loaders: Mapping[str, WholeLoader], num_samples: int, device: torch.device, workers: int, batches: int, repeats: int
) -> dict[str, list[tuple[float, float]]]:
    """Pictures per second of whole loaders, to the device, and of one core alone, in each round; they take turns.

    Each round starts its processes anew, outside the clock: those of the loader whose turn is over would otherwise read
    ahead during the next one's, and have batches in hand at their own.
    """
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
    for _ in range(repeats):
        for name, loader in loaders.items():
            (alone_s,) = measure_passes({name: loader.alone}, 1)[name]
            stream = loader.start()
            for _ in range(4 * workers):  # until all processes are at work
                next(stream)
            num_images = 0
            started_s = time.perf_counter()
            for _ in range(batches):
                images = next(stream).to(device, non_blocking=True)
                num_images += len(images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # host sync: the last copies count
            taken_s = time.perf_counter() - started_s
            rates[name].append((num_images / taken_s, num_samples / alone_s))
            del stream  # its processes end before the next one's turn
    return rates
