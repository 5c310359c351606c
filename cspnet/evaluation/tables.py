"""What the pictures of a validation were taken for: by picture, by class, and class against class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["CLASS_COLUMNS", "AnswerTable", "image_columns"]

CLASS_COLUMNS = ("class", "pictures", "correct1", "correct5", "acc1", "acc5", "mostly_taken_for", "times")


def image_columns(width: int) -> list[str]:
    """The header of `AnswerTable.image_rows`."""
    return ["picture", "class", "correct1", "correct5", *(f"top{place}" for place in range(1, width + 1))]


@dataclass(frozen=True)
class AnswerTable:
    """Answers of a network to all pictures of a split.

    Args:
        top: (N, k) int64, the highest classes of each picture, the highest first.
        labels: (N,) int64, the classes they are of.
        is_readable: (N,) bool; a picture that could not be read has no answer, and counts as wrong.
        names: of the classes.
    """

    top: np.ndarray
    labels: np.ndarray
    is_readable: np.ndarray
    names: Sequence[str]

    def _hits(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) bool each: whether the class is the highest, and whether it is among the highest."""
        hits = (self.top == self.labels[:, None]) & self.is_readable[:, None]
        return hits[:, 0], hits.any(1)

    def image_rows(self, paths: Sequence[str]) -> Iterator[list[str | int]]:
        """A row a picture, in their order; for one that could not be read the answers are empty."""
        first, among = self._hits()
        for i, path in enumerate(paths):
            answers = [self.names[c] for c in self.top[i]] if self.is_readable[i] else [""] * self.top.shape[1]
            yield [path, self.names[self.labels[i]], int(first[i]), int(among[i]), *answers]

    def class_rows(self) -> Iterator[list[str | int | float]]:
        """A row a class that has pictures: how many are right, in percent, and what wrong ones are taken for most."""
        first, among = self._hits()
        confusion = self.confusion()
        for number, name in enumerate(self.names):
            mine = self.labels == number
            count = int(mine.sum())
            if not count:
                continue
            others = confusion[number].copy()
            others[number] = 0
            worst = int(others.argmax())
            right1, right5 = int(first[mine].sum()), int(among[mine].sum())
            shares = [round(100 * right1 / count, 3), round(100 * right5 / count, 3)]
            yield [name, count, right1, right5, *shares, self.names[worst] if others[worst] else "", int(others[worst])]

    def confusion(self) -> np.ndarray:
        """(K, K) int64: how many readable pictures of class i (row) are taken for class j (column)."""
        counts = np.zeros((len(self.names), len(self.names)), np.int64)
        np.add.at(counts, (self.labels[self.is_readable], self.top[self.is_readable, 0]), 1)
        return counts
