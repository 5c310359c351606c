"""Answers by picture and by class, with numbers made by hand, and gathered from several processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cspnet.data.sampler import eval_addresses
from cspnet.evaluation import answers as answers_module
from cspnet.evaluation.answers import Answers, gather_answers
from cspnet.evaluation.tables import AnswerTable, image_columns
from cspnet.runtime.distributed import World

NAMES = ("ant", "bee", "cat", "dog")
# Six pictures: an ant, an ant taken for a bee, a bee taken for a cat (the bee is second), a cat that cannot be read, a
# cat, a cat taken for a bee.
LABELS = np.array([0, 0, 1, 2, 2, 2])
TOP = np.array([[0, 1], [1, 2], [2, 1], [2, 0], [2, 3], [1, 3]])
READABLE = np.array([True, True, True, False, True, True])
TABLE = AnswerTable(TOP, LABELS, READABLE, NAMES)


def test_by_picture() -> None:
    rows = list(TABLE.image_rows([f"{i}.jpg" for i in range(6)]))
    assert image_columns(2) == ["picture", "class", "correct1", "correct5", "top1", "top2"]
    assert rows == [
        ["0.jpg", "ant", 1, 1, "ant", "bee"],
        ["1.jpg", "ant", 0, 0, "bee", "cat"],
        ["2.jpg", "bee", 0, 1, "cat", "bee"],
        ["3.jpg", "cat", 0, 0, "", ""],
        ["4.jpg", "cat", 1, 1, "cat", "dog"],
        ["5.jpg", "cat", 0, 0, "bee", "dog"],
    ]


def test_by_class() -> None:
    assert list(TABLE.class_rows()) == [
        ["ant", 2, 1, 1, 50.0, 50.0, "bee", 1],
        ["bee", 1, 0, 1, 0.0, 100.0, "cat", 1],
        ["cat", 3, 1, 1, 33.333, 33.333, "bee", 1],
    ]  # there is no picture of a dog


def test_class_against_class() -> None:
    assert TABLE.confusion().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("num_samples", [1, 2, 7, 9])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_gathered_in_the_order_of_the_index(num_samples: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process notes its share in batches of two, as the loader deals it out; sample 4 cannot be read."""
    shares: list[tuple[np.ndarray, np.ndarray] | None] = []
    first = Answers()
    for rank in range(processes):
        samples = np.array([i for address in eval_addresses(num_samples, 2, rank, processes) for i in address.samples])
        shares.append((np.stack([samples, samples + 1], 1), samples != 4) if len(samples) else None)
    for address in eval_addresses(num_samples, 2, 0, processes):
        mine = torch.from_numpy(address.samples)
        first.note(torch.stack([mine, mine + 1], 1), torch.where(mine == 4, -1, mine))

    def gather(world: World, own: tuple[np.ndarray, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray] | None]:
        assert shares[0] is not None
        assert all(map(np.array_equal, own, shares[0]))
        return shares

    monkeypatch.setattr(answers_module, "gather_objects", gather)
    top, is_readable = gather_answers(first, num_samples, World(size=processes))
    assert top[:, 0].tolist() == list(range(num_samples))
    assert top[:, 1].tolist() == list(range(1, num_samples + 1))
    assert is_readable.tolist() == [i != 4 for i in range(num_samples)]
