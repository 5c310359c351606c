"""ImageNet-ReaL: every class that can be seen in a picture is a right answer, and a picture without any does not count.

Source: Are we done with ImageNet?, arXiv 2006.07159; its file real.json holds a list of classes for each of the 50,000
validation pictures, in the order of their numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cspnet.errors import DataError

__all__ = ["RealResult", "count_real", "find_real_labels", "read_real_labels"]

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.")


@dataclass(frozen=True)
class RealResult:
    """Right first answers among the pictures that have labels."""

    correct1: int
    num_labelled: int

    @property
    def acc1(self) -> float:
        """In percent."""
        return 100 * self.correct1 / max(1, self.num_labelled)


def read_real_labels(file: Path) -> dict[str, list[int]]:
    """{name of a picture's file, without its folder: classes} of real.json, or of a file that has just that form.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file}: not a JSON file") from error
    if isinstance(content, list):
        content = {f"ILSVRC2012_val_{number:08d}.JPEG": labels for number, labels in enumerate(content, start=1)}
    if not isinstance(content, dict) or not content or not all(_is_label_list(labels) for labels in content.values()):
        raise DataError(f"{file}: expected a list of class numbers for each picture, as in real.json")
    return content


def _is_label_list(labels: object) -> bool:
    return isinstance(labels, list) and all(type(label) is int and label >= 0 for label in labels)


def find_real_labels(paths: Sequence[str], labels: Mapping[str, Sequence[int]]) -> list[Sequence[int]]:
    """The labels of each picture.

    Args:
        paths: of the pictures.
        labels: {file name: classes}.
    Raises:
        DataError: a picture is not among them; the message names it.
    """
    found = []
    for path in paths:
        name = path.replace("\\", "/").rsplit("/", 1)[-1]
        if (number := _NUMBER.search(name)) is not None:
            name = f"ILSVRC2012_val_{number[1]}.JPEG"  # whatever its ending is here
        if name not in labels:
            raise DataError(f"{path}: is not among the labels")
        found.append(labels[name])
    return found


def count_real(top1: np.ndarray, is_readable: np.ndarray, labels: Sequence[Sequence[int]]) -> RealResult:
    """How many first answers are among the labels.

    Args:
        top1: (N,) int64 first answers.
        is_readable: (N,) bool; a picture that could not be read is wrong.
        labels: of each picture.
    """
    answers = zip(top1.tolist(), is_readable.tolist(), labels, strict=True)
    correct1 = sum(was_read and answer in right for answer, was_read, right in answers)
    return RealResult(correct1, sum(map(bool, labels)))
