"""What a run's network takes the validation pictures for: one pass, and what in it is worth a look."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cspnet.cli import build
from cspnet.cli.subject import build_folded, open_val_index, read_subject
from cspnet.cli.validate_job import run_pass
from cspnet.cli.weight_flags import AskedWeights
from cspnet.data.decode import UnreadableImageError, open_picture
from cspnet.data.samples import SampleIndex
from cspnet.evaluation.answers import gather_answers
from cspnet.evaluation.tables import AnswerTable
from cspnet.reporting.console import Console, open_bar
from cspnet.reporting.run_page import ClassRow, Mixup, Seen, ShownPicture
from cspnet.reporting.run_report import BadImageLog
from cspnet.runtime.device import choose_amp_dtype, choose_device
from cspnet.runtime.distributed import World
from cspnet.runtime.files import printable
from cspnet.weights.load import load_state_dict

__all__ = ["Look", "find_mixups", "look", "rank_sure"]

SIDE_PX = 112
"""The longer side of a picture in the page."""
_QUALITY = 80
_NUM_WORST, _NUM_BEST, _NUM_MIXUPS = 24, 12, 20


@dataclass(frozen=True)
class Look:
    """A pass, and what it was over."""

    seen: Seen
    num_pictures: int
    num_params: int


def look(checkpoint: Path, overrides: Mapping[str, Any], console: Console) -> Look:
    """Validate as validate.py does, and keep how sure the network is of each answer.

    Args:
        checkpoint: of the run; its moving average counts, if it has one.
        overrides: {dotted key of the recipe: value}: where the pictures are, and what computes.
    Raises:
        DataError: the pictures are not there, or are others.
        CheckpointError: the file cannot be used.
    """
    world = World()
    subject = read_subject(AskedWeights(checkpoint, overrides))
    recipe, device = subject.recipe, choose_device(subject.recipe.train.device)
    amp_dtype = choose_amp_dtype(recipe.train.precision, device)
    index = open_val_index(subject, checkpoint, console.warn)
    batches = iter(build.build_eval_loader(recipe, index, world, device))
    model = build.build_model(recipe, subject.num_classes, device)
    load_state_dict(model, subject.weights.state, where=str(checkpoint))
    network = build_folded(recipe, model, device).model
    for warning in subject.weights.warnings:
        console.warn(f"{checkpoint}: {warning}")
    log = BadImageLog(None, console)
    with open_bar(len(index), "validation", "picture") as progress:
        sure = _Sureness(network, progress.update)
        found = run_pass(
            recipe, index, world, device, network, amp_dtype, batches, lambda bad: log.add(bad, "counted as wrong")
        )
    top, is_readable = gather_answers(found.answers, len(index), world)
    names = subject.classes or index.classes or subject.names()
    answers = AnswerTable(top, index.labels, is_readable, names)
    kind = "moving average" if subject.weights.is_average else "raw weights"
    outcome = (
        f"{printable(checkpoint.name)}, {kind}: {str(found.result).strip('* ')} of {len(index):,} pictures, computed "
        "in float32 as validate.py does."
    )
    if found.result.num_unreadable:
        outcome += f" {found.result.num_unreadable} of them cannot be read, and count as wrong."
    mixups = find_mixups(answers)
    worst, best = rank_sure(answers, sure.values())

    def show(i: int) -> ShownPicture:
        jpeg, side_px = _shrink(index, i, recipe.data.exif)
        words = (names[index.labels[i]], names[top[i, 0]])
        return ShownPicture(jpeg, side_px, printable(index.path(i)), *words, float(sure.values()[i]))

    seen = Seen(
        outcome=outcome,
        classes=[_to_row(row) for row in answers.class_rows()],
        mixups=mixups[:_NUM_MIXUPS],
        num_mixups=sum(mixup.count for mixup in mixups),
        worst=[show(i) for i in worst[:_NUM_WORST]],
        best=[show(i) for i in best[:_NUM_BEST]],
    )
    return Look(seen, len(index), sum(p.numel() for p in model.parameters()))


class _Sureness:
    """Listens to a network: the probability of its first answer to each picture, in the order of the pass."""

    def __init__(self, network: nn.Module, advance: Callable[[int], Any]) -> None:
        self._advance = advance
        self._parts: list[Tensor] = []
        network.register_forward_hook(self._note)

    def _note(self, network: nn.Module, inputs: Any, logits: Tensor) -> None:
        self._parts.append(logits.float().softmax(1).amax(1).cpu())
        self._advance(len(logits))

    def values(self) -> np.ndarray:
        """(N,) float32; 0 where the network gave no number."""
        return np.nan_to_num(torch.cat(self._parts).numpy())


def rank_sure(answers: AnswerTable, probabilities: np.ndarray) -> tuple[list[int], list[int]]:
    """The numbers of the readable pictures that are wrong, and of those that are right, the surest first.

    Args:
        probabilities: (N,) of the first answer.
    """
    order = np.argsort(-probabilities, kind="stable")
    order = order[answers.is_readable[order]]
    is_right = answers.top[order, 0] == answers.labels[order]
    return order[~is_right].tolist(), order[is_right].tolist()


def find_mixups(answers: AnswerTable) -> list[Mixup]:
    """All pairs of a class and another that its pictures are taken for, the most frequent first."""
    labels, first = answers.labels.astype(np.int64), answers.top[:, 0]
    wrong = answers.is_readable & (first != labels)
    totals = np.bincount(labels, minlength=len(answers.names))
    pairs, counts = np.unique(labels[wrong] * len(answers.names) + first[wrong], return_counts=True)
    found = []
    for i in np.argsort(-counts, kind="stable"):
        mine, other = divmod(int(pairs[i]), len(answers.names))
        found.append(Mixup(answers.names[mine], answers.names[other], int(counts[i]), int(totals[mine])))
    return found


def _to_row(row: list[Any]) -> ClassRow:
    name, pictures, right1, right5, _, _, mostly, times = row
    return ClassRow(name, pictures, right1, right5, mostly, times)


def _shrink(index: SampleIndex, i: int, exif: Literal["apply", "ignore"]) -> tuple[bytes | None, int]:
    """A picture as a small JPEG without metadata, and its longer side in px; None if it cannot be read any more."""
    try:
        small = open_picture(index.read(i), exif).rgb()
    except UnreadableImageError:
        return None, 0
    small.thumbnail((SIDE_PX, SIDE_PX))
    small.info.clear()
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=_QUALITY)
    return encoded.getvalue(), max(small.size)
