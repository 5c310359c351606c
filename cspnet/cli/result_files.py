"""The files that validate.py writes beside what it prints."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cspnet.cli.build import EvalGeometry
from cspnet.cli.outputs import check_outputs
from cspnet.data.samples import SampleIndex
from cspnet.errors import UserError
from cspnet.evaluation.metrics import EvalResult
from cspnet.evaluation.tables import CLASS_COLUMNS, AnswerTable, image_columns
from cspnet.runtime.files import printable, write_output

__all__ = ["ResultFiles"]

_TIMM_COLUMNS = (
    "model",
    "top1",
    "top1_err",
    "top5",
    "top5_err",
    "param_count",
    "img_size",
    "crop_pct",
    "interpolation",
)
"""Source: timm's validate.py, --results-file."""


_HEADERS = {
    "--per-image": "picture,class,correct1,",
    "--per-class": ",".join(CLASS_COLUMNS),
    "--confusion": "class,",
}
"""Flag -> how its table begins."""


def _starts_with(header: str) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(header.encode())


class ResultFiles:
    """Where results go, None for what is not asked for.

    Raises:
        UserError: one cannot be there.
    """

    def __init__(
        self,
        *,
        as_json: Path | None = None,
        timm_csv: Path | None = None,
        per_image: Path | None = None,
        per_class: Path | None = None,
        confusion: Path | None = None,
    ) -> None:
        self.as_json, self.timm_csv = as_json, timm_csv
        self.per_image, self.per_class, self.confusion = per_image, per_class, confusion
        flags = {"--json": as_json, "--results-file": timm_csv, "--per-image": per_image, "--per-class": per_class}
        forms = {flag: _starts_with(header) for flag, header in _HEADERS.items()}
        forms["--json"] = lambda head: b'"correct1":' in head
        forms["--results-file"] = lambda head: True  # `_check_header` says more
        check_outputs({**flags, "--confusion": confusion}, forms)
        if timm_csv and timm_csv.exists():
            _check_header(timm_csv)

    @property
    def wants_answers(self) -> bool:
        """Whether the answers to single pictures are needed."""
        return any((self.per_image, self.per_class, self.confusion))

    def write_answers(self, table: AnswerTable, index: SampleIndex) -> None:
        """The files of single pictures and classes.

        Raises:
            UserError: one cannot be written.
        """
        if self.per_image:
            rows = table.image_rows([printable(index.path(i)) for i in range(len(index))])
            _write(self.per_image, _to_csv(image_columns(table.top.shape[1]), rows))
        if self.per_class:
            _write(self.per_class, _to_csv(CLASS_COLUMNS, table.class_rows()))
        if self.confusion:
            counts: np.ndarray = table.confusion()
            rows = ([name, *line] for name, line in zip(table.names, counts.tolist(), strict=True))
            _write(self.confusion, _to_csv(["class", *table.names], rows))

    def write_json(self, report: dict[str, Any] | list[dict[str, Any]]) -> None:
        """The whole report, or those of several files."""
        if self.as_json:
            _write(self.as_json, json.dumps(report, indent=2) + "\n")

    def append_timms(self, model: str, result: EvalResult, num_params: int, geometry: EvalGeometry) -> None:
        """A row in timm's columns, behind those that the file has: percentages, and millions of parameters."""
        if self.timm_csv is None:
            return
        row = [
            model,
            *(f"{value:.3f}" for value in (result.acc1, 100 - result.acc1, result.acc5, 100 - result.acc5)),
            f"{num_params / 1e6:.2f}",
            geometry.size_px,
            geometry.crop_ratio,
            geometry.interpolation,
        ]
        before = _check_header(self.timm_csv) if self.timm_csv.exists() else ""
        _write(self.timm_csv, (before or _to_csv(_TIMM_COLUMNS, [])) + _to_csv(row, []))


def _check_header(file: Path) -> str:
    """What a results file holds, with the line break at its end that an editor may have left out."""
    if not file.is_file():
        raise UserError(f"--results-file {file}: rows are added to it, so name a file")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--results-file {file}: cannot be read") from error
    if text and text.splitlines()[0] != ",".join(_TIMM_COLUMNS):
        raise UserError(f"--results-file {file}: holds other columns; name a new file")
    return text if text.endswith("\n") or not text else text + "\n"


def _to_csv(header: Iterable[object], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _write(file: Path, text: str) -> None:
    write_output(file, printable(text).encode())  # classes are named by folders, and so by any bytes
