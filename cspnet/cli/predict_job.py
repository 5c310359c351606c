"""scripts/predict.py behind its command line: pictures in, the likeliest classes of each out."""

from __future__ import annotations

import glob
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from cspnet.cli import build
from cspnet.cli.outputs import check_outputs
from cspnet.cli.subject import Subject, build_folded, name_classes, read_subject
from cspnet.cli.weight_flags import AskedWeights
from cspnet.data.decode import EXTENSIONS, Picture, UnreadableImageError, open_picture
from cspnet.data.transforms import EvalTransform
from cspnet.errors import EXIT_BUG, EXIT_DONE, DataError, UserError
from cspnet.reporting.contact_sheet import MADE_BY, SIDE_PX, Caption, draw_sheet
from cspnet.runtime.device import choose_amp_dtype, choose_device
from cspnet.runtime.files import printable
from cspnet.runtime.memory import told_shortage
from cspnet.runtime.processes import count_cores
from cspnet.runtime.tasks import closing, result_of, submit
from cspnet.weights.load import load_state_dict

__all__ = ["PredictJob", "Prediction", "find_pictures", "predict", "run_predict_job"]

_MOST_IN_SHEET = 200


@dataclass(frozen=True)
class PredictJob:
    """A parsed command line."""

    pictures: Sequence[str]
    """Files, folders, and patterns that the shell has left alone."""
    weights: AskedWeights
    class_file: Path | None
    """A name a line, in the order of the classes."""
    top: int
    batch_size: int
    writes_json: bool
    """JSON lines instead of text."""
    sheet: Path | None


@dataclass(frozen=True)
class Prediction:
    """What a network says about a picture."""

    path: str
    classes: tuple[int, ...]
    """The likeliest first."""
    probabilities: tuple[float, ...]
    problem: str = ""
    """Why the picture cannot be read; then there are no classes."""


def run_predict_job(job: PredictJob) -> int:
    """Predict and print; the exit code, 1 if a picture could not be read."""
    _check_sheet(job.sheet)
    paths = find_pictures(job.pictures)
    subject = read_subject(job.weights)
    names = name_classes(job.class_file, subject)
    for warning in subject.weights.warnings:
        print(f"warning: {job.weights.file}: {warning}", file=sys.stderr)
    captions: list[Caption] = []
    num_bad = 0
    for found in predict(subject, paths, top=job.top, batch_size=job.batch_size, where=str(job.weights.file)):
        top = [(names[c], c, p) for c, p in zip(found.classes, found.probabilities, strict=True)]
        path = printable(found.path)
        num_bad += bool(found.problem)
        if job.writes_json:
            answers = [{"class": name, "index": c, "probability": p} for name, c, p in top]
            content = {"path": path, "error": found.problem} if found.problem else {"path": path, "top": answers}
            print(json.dumps(content), flush=True)
        elif not found.problem:
            print(path + "".join(f"  {name} {100 * p:.1f}%" for name, _, p in top), flush=True)
        if found.problem and not job.writes_json:
            print(f"{path}: cannot be read: {found.problem}", file=sys.stderr)
        if len(captions) < _MOST_IN_SHEET and job.sheet:
            best = f"{top[0][0]} {100 * top[0][2]:.1f}%" if top else "cannot be read"
            captions.append(Caption(_read_small(found.path, subject.recipe.data.exif), best, os.path.basename(path)))
    if job.sheet:
        _write_sheet(job.sheet, captions, num_left=len(paths) - len(captions))
    return EXIT_BUG if num_bad else EXIT_DONE


def find_pictures(given: Sequence[str]) -> list[str]:
    """The pictures that files, folders (with what is below them) and patterns name, in their order.

    Raises:
        DataError: something names none.
    """
    paths: list[str] = []
    for name in given:
        if os.path.isdir(name):
            found = sorted(
                os.path.join(folder, file)
                for folder, _, files in os.walk(name)
                for file in files
                if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
            )
        elif os.path.lexists(name):
            found = [name]
        else:
            found = sorted(glob.glob(name, recursive=True))
        if not found:
            what = "no pictures in it" if os.path.isdir(name) else "no such file, folder or pattern"
            raise DataError(f"{printable(name)}: {what}")
        paths += found
    return paths


def predict(
    subject: Subject, paths: Sequence[str], *, top: int, batch_size: int, where: str = "the weights"
) -> Iterator[Prediction]:
    """The likeliest classes of each picture, in order; a batch is read while the one before is computed.

    Args:
        subject: network, weights and geometry.
        top: how many; never more than there are classes.
        batch_size: pictures at once.
        where: names the weights in an error.
    """
    recipe = subject.recipe
    device = choose_device(recipe.train.device)
    amp_dtype = choose_amp_dtype(recipe.train.precision, device)
    model = build.build_model(recipe, subject.num_classes, device)
    load_state_dict(model, subject.weights.state, where=where)
    network = build_folded(recipe, model, device).model.eval()
    geometry = build.build_geometry(recipe.data)
    transform = EvalTransform(geometry.size_px, geometry.crop_ratio, geometry.interpolation)
    prepare = build.build_normalizer(recipe, device)
    top = min(top, subject.num_classes)

    def read(path: str) -> np.ndarray | str:
        """Its pixels, or what is wrong with it."""
        try:
            return transform(_open(path, recipe.data.exif))
        except UnreadableImageError as error:
            return str(error)

    with (
        closing(ThreadPoolExecutor(min(8, count_cores()))) as readers,
        told_shortage(device, "", "use a smaller --batch-size"),
    ):
        for chunk, pixels in _read_ahead(readers, read, paths, batch_size):
            good = [entry for entry in pixels if not isinstance(entry, str)]
            answers: Iterator[tuple[list[int], list[float]]] = iter(())
            if good:
                with (
                    torch.inference_mode(),
                    torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not torch.float32),
                ):
                    logits = network(prepare(torch.from_numpy(np.stack(good))))
                best = logits.float().softmax(1).topk(top)
                answers = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            for path, entry in zip(chunk, pixels, strict=True):
                if isinstance(entry, str):
                    yield Prediction(path, (), (), entry)
                else:
                    classes, probabilities = next(answers)
                    yield Prediction(path, tuple(classes), tuple(probabilities))


def _open(path: str, exif: Literal["apply", "ignore"]) -> Picture:
    """Raises UnreadableImageError."""
    if not os.path.isfile(path):  # a pipe would be waited for
        raise UnreadableImageError("not a file")
    try:
        return open_picture(Path(path).read_bytes(), exif)
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error)) from error


def _read_small(path: str, exif: Literal["apply", "ignore"]) -> np.ndarray | None:
    """The whole picture for a contact sheet."""
    try:
        small = _open(path, exif).rgb()
    except UnreadableImageError:
        return None
    small.thumbnail((SIDE_PX, SIDE_PX))
    return np.asarray(small)


def _read_ahead(
    readers: ThreadPoolExecutor, read: Callable[[str], np.ndarray | str], paths: Sequence[str], batch_size: int
) -> Iterator[tuple[Sequence[str], list[np.ndarray | str]]]:
    """(paths, what was read), a batch at a time, with the next one under way."""
    chunks = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    under_way = [[submit(readers, read, path) for path in chunk] for chunk in chunks[:1]]
    for chunk, following in itertools.zip_longest(chunks, chunks[1:]):
        if following is not None:
            under_way.append([submit(readers, read, path) for path in following])
        yield chunk, [result_of(task) for task in under_way.pop(0)]


def _check_sheet(file: Path | None) -> None:
    check_outputs({"--sheet": file}, {"--sheet": lambda head: MADE_BY in head})
    if file is not None and file.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--sheet {file}: let it end in .png or .jpg")


def _write_sheet(file: Path, captions: Sequence[Caption], num_left: int) -> None:
    try:
        draw_sheet(file, captions)
    except OSError as error:
        raise UserError(f"--sheet {file}: cannot be written: {error.strerror or error}") from error
    if num_left:
        print(f"{file}: the first {_MOST_IN_SHEET} pictures; {num_left} more are not in it", file=sys.stderr)
