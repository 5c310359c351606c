"""Some steps under torch.profiler: what each operation took, to look at in a browser, and as a table."""

from __future__ import annotations

import itertools
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from cspnet.runtime.files import write_atomically

__all__ = ["StepTrace"]

_ROWS = 30


class StepTrace:
    """Records some steps, writes `trace.json.gz` and `operations.txt`, and from then on does nothing.

    Where there are such files, of an earlier start of the run, these are `trace-2.json.gz` and `operations-2.txt`.

    The steps compute what they compute without it; they take longer.

    Args:
        folder: for the files; made if it is missing.
        device: of the run.
        steps: to record, at least 1.
        skip: steps before them, in which libraries still choose.
        say: told where the files are.
        warn: told why they cannot be written, which is no reason for a run to stop.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        steps: int,
        skip: int,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self.folder, self.steps, self.skip, self.say, self.warn = folder, steps, skip, say, warn
        self._is_on_gpu = device.type == "cuda"
        self._profile: profile | None = None
        self._has_begun = False
        self._recorded = 0

    def start(self) -> None:
        """The first step is about to begin; called again, this does nothing."""
        if self._has_begun:
            return
        self._has_begun = True
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library greets, and complains where there is no GPU
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._is_on_gpu else [])]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing warms up, in a run too short for it
            plan = schedule(wait=max(0, self.skip - 1), warmup=min(1, self.skip), active=self.steps, repeat=1)
        self._profile = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
        self._profile.start()

    def advance(self) -> None:
        """A step is done, or queued. Behind the last one that is recorded, this waits for the device and writes."""
        if self._profile is None:
            return
        self._recorded += 1
        self._profile.step()
        if self._recorded == self.skip + self.steps:
            self.finish()

    def finish(self) -> None:
        """Record no more; what is recorded is written."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, recorded: profile) -> None:
        trace, table = self._find_names()
        on = "device" if self._is_on_gpu else "cpu"
        try:
            self.folder.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as temporary:
                recorded.export_chrome_trace(str(Path(temporary) / trace.name))
                os.replace(Path(temporary) / trace.name, trace)
            text = recorded.key_averages().table(sort_by=f"self_{on}_time_total", row_limit=_ROWS)
            write_atomically(table, text.encode())
        except (OSError, RuntimeError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
            self.warn(f"{self.folder}: the trace cannot be written: {reason}")
            return
        self.say(f"profile {trace}: open it at https://ui.perfetto.dev or chrome://tracing; {table}: by operation")

    def _find_names(self) -> tuple[Path, Path]:
        """The first that are free, of the trace and of the table."""
        for suffix in itertools.chain([""], (f"-{n}" for n in itertools.count(2))):
            trace, table = self.folder / f"trace{suffix}.json.gz", self.folder / f"operations{suffix}.txt"
            if not trace.exists() and not table.exists():
                break
        return trace, table
