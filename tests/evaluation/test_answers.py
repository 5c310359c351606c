"""Whose answers change between two passes, with numbers made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cspnet.evaluation.answers import Answers, Changes, compare_answers
from cspnet.evaluation.evaluate import evaluate
from cspnet.runtime.distributed import World

CPU = torch.device("cpu")


class _Lookup(nn.Module):
    """The highest class of a picture is the value of its pixels, plus `shift`."""

    def __init__(self, shift: list[int]) -> None:
        super().__init__()
        self.shift = torch.tensor(shift)

    def forward(self, x: Tensor) -> Tensor:
        numbers = x[:, 0, 0, 0].long()
        return nn.functional.one_hot((numbers + self.shift[numbers]) % 8, 8).float()


def pass_over(shift: list[int], targets: list[int]) -> Answers:
    """Eight pictures in batches of three; the targets lie in one place that is used again, as on a GPU."""
    answers, place = Answers(), torch.empty(3, dtype=torch.int64)

    def batches():  # type: ignore[no-untyped-def]
        for start in (0, 3, 6):
            labels = torch.tensor(targets[start : start + 3])
            place[: len(labels)] = labels
            images = torch.arange(start, start + len(labels))[:, None, None, None]
            yield images, place[: len(labels)], None, []

    evaluate(
        _Lookup(shift), batches=batches(), common_batches=3, num_samples=8, prepare=lambda x: x, device=CPU,
        amp_dtype=torch.float32, world=World(), report_bad=lambda bad: None, note=answers.note,
    )  # fmt: skip
    return answers


def test_changes_by_hand() -> None:
    targets = [0, 1, 2, 0, 0, 5, 6, -1]
    reference = [0, 0, 0, 0, 4, 0, 1, 0]  # the answers are 0 1 2 3 0 5 7 7
    given = [0, 1, 0, 5, 1, 1, 0, 1]  # the answers are 0 2 2 0 5 6 6 0
    found = compare_answers(pass_over(given, targets), pass_over(reference, targets), World(), CPU)
    # Pictures 1, 4 and 5 were right; 3 and 6 are right now; the last one, which cannot be read, has no right answer.
    assert found == Changes(changed=5, right_to_wrong=3, wrong_to_right=2)


def test_nothing_changes() -> None:
    answers = pass_over([0] * 8, list(range(8)))
    assert compare_answers(answers, answers, World(), CPU) == Changes(0, 0, 0)
    assert compare_answers(Answers(), Answers(), World(), CPU) == Changes(0, 0, 0)  # a process without a picture


def test_other_pictures_are_noticed() -> None:
    with pytest.raises(ValueError, match="same pictures"):
        compare_answers(pass_over([0] * 8, [0] * 8), pass_over([0] * 8, [1] * 8), World(), CPU)
