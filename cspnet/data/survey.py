"""A split as a whole: every picture inspected, in processes, and what only the whole can show.

Of a picture its size and a digest are kept, 32 bytes, and a line for each finding.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cspnet.data.findings import Finding, Problem
from cspnet.data.inspection import DIGEST_BYTES, Inspection, inspect_sample
from cspnet.data.samples import SampleIndex
from cspnet.errors import DataError
from cspnet.runtime.processes import create_context, leave_with_parent
from cspnet.runtime.tasks import closing, result_of, submit

__all__ = ["SplitSurvey", "find_copies", "find_small_classes", "find_unseen_classes", "inspect_all"]

FEW_PICTURES = 10
IMBALANCE_RATIO = 10
_CHUNK = 32
"""Pictures that a process inspects at a time."""


def inspect_all(index: SampleIndex, workers: int) -> Generator[list[Inspection], None, None]:
    """What every sample holds, in the order of the index and in chunks, whatever the number of processes.

    Args:
        index: the samples.
        workers: processes to read with; 0 reads in this one.
    Raises:
        DataError: a process died.
    """
    spans = ((start, min(start + _CHUNK, len(index))) for start in range(0, len(index), _CHUNK))
    if not workers:
        yield from ([inspect_sample(index, i) for i in range(*span)] for span in spans)
        return
    pending: deque[tuple[tuple[int, int], Future[list[Inspection]]]] = deque()
    try:
        with closing(ProcessPoolExecutor(workers, create_context(), _start_worker, (index,))) as pool:
            for span in spans:
                pending.append((span, submit(pool, _inspect_span, span)))
                if len(pending) > 4 * workers:
                    yield result_of(pending[0][1])
                    pending.popleft()
            while pending:
                yield result_of(pending[0][1])
                pending.popleft()
    except BrokenProcessPool as error:
        first, last = pending[0][0][0], pending[-1][0][1] - 1
        raise DataError(
            f"{index.source}: a process that read pictures died (out of memory?) somewhere from {index.path(first)} "
            f"to {index.path(last)}; --workers 1 needs the least memory"
        ) from error


_index: SampleIndex
"""The index that a worker process reads."""


def _start_worker(index: SampleIndex) -> None:
    global _index
    _index = index
    leave_with_parent()


def _inspect_span(span: tuple[int, int]) -> list[Inspection]:
    return [inspect_sample(_index, i) for i in range(*span)]


@dataclass
class SplitSurvey:
    """What has been seen of a split so far; `add` takes the pictures in the order of the index."""

    name: str
    index: SampleIndex
    findings: list[Finding] = field(default_factory=list)
    num_bytes: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sides: array[int] = field(default_factory=lambda: array("l"))
    """Width and height in pixels, as stored, of each picture, one after the other; 0 and 0 if it is broken."""
    digests: bytearray = field(default_factory=bytearray)

    def complain(self, problem: Problem) -> None:
        """A finding from a problem of the index."""
        self.findings.append(Finding(problem.kind, self.name, problem.place, problem.text))

    def add(self, inspections: Iterable[Inspection]) -> None:
        """The next pictures."""
        for seen in inspections:
            place = self.index.path(len(self.sides) // 2) if seen.findings else ""
            self.findings += [Finding(kind, self.name, place, text) for kind, text in seen.findings]
            self.num_bytes += seen.num_bytes
            self.sides.extend((seen.width, seen.height))
            self.digests += seen.digest
            if seen.width:
                self.formats[seen.format] += 1
                self.modes[seen.mode] += 1

    def sizes(self) -> np.ndarray:
        """(N, 2) widths and heights of all pictures, in pixels."""
        return np.asarray(self.sides).reshape(-1, 2)

    def class_counts(self) -> dict[str, int]:
        """Samples of each class, broken ones too; by number where the classes have no names."""
        counts = dict.fromkeys(self.index.classes, 0)
        for label, count in zip(*np.unique(self.index.labels, return_counts=True), strict=True):
            counts[self.class_name(label)] = int(count)
        return counts

    def class_name(self, label: int) -> str:
        """The name of a class, or its number."""
        return self.index.classes[label] if label < len(self.index.classes) else str(label)

    def summary(self) -> dict[str, Any]:
        """The split in built-in types, as the report has it."""
        sizes = self.sizes()
        sizes = sizes[sizes[:, 0] > 0]
        return {
            "name": self.name,
            "source": self.index.source,
            "fingerprint": self.index.fingerprint,
            "pictures": len(self.index),
            "readable": len(sizes),
            "bytes": self.num_bytes,
            "shorter_side_px": _spread(sizes.min(axis=1)),
            "longer_side_px": _spread(sizes.max(axis=1)),
            "formats": dict(sorted(self.formats.items())),
            "modes": dict(sorted(self.modes.items())),
            "class_counts": self.class_counts(),
        }


def _spread(values: np.ndarray) -> dict[str, float] | None:
    """Smallest, median and largest of what there is, None if there is nothing."""
    if not len(values):
        return None
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}


def find_unseen_classes(survey: SplitSurvey, num_classes: int) -> Iterator[Finding]:
    """One finding if some of training's `num_classes` classes have no picture in this split."""
    labels = np.unique(survey.index.labels)
    labels = labels[labels < num_classes]
    missing = num_classes - len(labels)
    if missing and not any(finding.kind == "empty_class" for finding in survey.findings):
        gaps = np.flatnonzero(labels != np.arange(len(labels)))
        first = survey.class_name(int(gaps[0]) if len(gaps) else len(labels))
        text = f"{missing} of {num_classes} classes have no pictures, the first is {first}"
        yield Finding("unseen_class", survey.name, survey.index.source, text)


def find_small_classes(survey: SplitSurvey) -> Iterator[Finding]:
    """Classes of a training split with few pictures, and one finding if the classes differ much in size."""
    source = survey.index.source
    counts = {name: count for name, count in survey.class_counts().items() if count}
    for name, count in counts.items():
        if count < FEW_PICTURES:
            yield Finding("few_pictures", survey.name, source, f"{name}: {count}")
    if counts and max(counts.values()) >= IMBALANCE_RATIO * min(counts.values()):
        (least, fewest), (most, largest) = (pick(counts.items(), key=lambda item: item[1]) for pick in (min, max))
        yield Finding("imbalanced", survey.name, source, f"{most}: {largest}, {least}: {fewest}")


def find_copies(surveys: Sequence[SplitSurvey]) -> Iterator[Finding]:
    """Readable pictures that are there more than once, byte for byte: a finding a group, in the order of the first."""
    owners = np.concatenate([np.full(len(survey.index), number) for number, survey in enumerate(surveys)])
    samples = np.concatenate([np.arange(len(survey.index)) for survey in surveys])
    halves = np.frombuffer(b"".join(survey.digests for survey in surveys), dtype="<u8").reshape(-1, DIGEST_BYTES // 8)
    readable = np.concatenate([survey.sizes()[:, 0] > 0 for survey in surveys])
    owners, samples, halves = owners[readable], samples[readable], halves[readable]
    order = np.lexsort(halves.T)  # stable: copies stay in the order of the splits
    same = np.concatenate(([False], (halves[order][1:] == halves[order][:-1]).all(axis=1), [False]))
    starts = np.flatnonzero(~same[:-1] & same[1:])
    ends = np.flatnonzero(same[:-1] & ~same[1:]) + 1
    groups = sorted((order[start:end].tolist() for start, end in zip(starts, ends, strict=True)), key=lambda g: g[0])
    for group in groups:
        members = [(surveys[owners[i]], int(samples[i])) for i in group]
        splits = list(dict.fromkeys(survey.name for survey, _ in members))
        classes = list(dict.fromkeys(survey.class_name(survey.index.labels[i]) for survey, i in members))
        kind = "leaked" if len(splits) > 1 else "conflicting" if len(classes) > 1 else "duplicate"
        text = f"{len(members)} times, in {' and '.join(splits)}, as {', '.join(classes[:4])}"
        first, *others = (survey.index.path(i) for survey, i in members)
        yield Finding(kind, splits[0], first, text + " …" * (len(classes) > 4), tuple(others))
