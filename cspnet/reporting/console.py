"""Lines for people: a progress bar on a terminal, plain lines elsewhere; only the first process speaks."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cspnet.errors import on_one_line
from cspnet.runtime.files import printable

__all__ = ["Console", "format_duration", "open_bar"]


def format_duration(seconds: float) -> str:
    """12.3 -> 0:12, 3723 -> 1:02:03, 90061 -> 1d 1:01:01."""
    whole = int(seconds)
    days, rest = divmod(whole, 86400)
    hours, minutes, secs = rest // 3600, rest // 60 % 60, rest % 60
    clock = f"{hours}:{minutes:02d}:{secs:02d}" if hours or days else f"{minutes}:{secs:02d}"
    return f"{days}d {clock}" if days else clock


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar without tqdm's watching thread: a process with threads does not fork well."""

    monitor_interval = 0


# One process draws. tqdm's own lock is of all processes, and a started one that is killed leaves its semaphore behind.
_Bar.set_lock(threading.RLock())


def open_bar(total: int, what: str, unit: str) -> tqdm[Any]:
    """A progress bar on stderr, gone when it is closed; nothing where that is not a terminal."""
    return _Bar(total=total, desc=what, unit=unit, leave=False, disable=not sys.stderr.isatty())


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _is_terminal() -> bool:
    """Whether stderr is a terminal, of some size: in one of none, as a container may have, tqdm draws nothing."""
    try:
        return sys.stderr.isatty() and min(os.get_terminal_size(sys.stderr.fileno())) > 0
    except (OSError, ValueError):
        return False


class Console:
    """The terminal or log of a run. All processes but the first (rank 0) keep quiet, except in `warn_own`."""

    def __init__(self, rank: int, *, plain: bool = False) -> None:
        """`plain`: lines even on a terminal, which torchrun's processes share with torchrun."""
        self.active = rank == 0
        self._draws = not plain
        self.prefix = f"[rank {rank}] " if rank else ""
        self.bar: tqdm[Any] | None = None
        self._file: Path | None = None
        self._early: list[str] = []

    def keep_in(self, file: Path) -> None:
        """Write every line into a file too, dated, behind what it holds; those that were said before as well."""
        self._file, early = file, "".join(self._early)
        self._early = []
        self._append(early)

    def keep(self, text: str) -> None:
        """A line for the file alone; as long as there is none it waits."""
        line = f"{_now()} {printable(text)}\n"
        if self._file is None:
            self._early.append(line)
        else:
            self._append(line)

    def _append(self, lines: str) -> None:
        # Opened each time, so that a file that was moved away begins anew. A full disk is told where it matters.
        if self._file is not None and lines:
            with contextlib.suppress(OSError), self._file.open("a", encoding="utf-8") as file:
                file.write(lines)

    def say(self, text: str) -> None:
        """A line, above the progress bar if there is one."""
        if not self.active:
            return
        self.keep(text)
        if self.bar is not None:
            self.bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """A line on stderr about something that all processes see."""
        if self.active:
            self.warn_own(text)

    def warn_own(self, text: str) -> None:
        """A line on stderr about something that this process alone sees."""
        text = on_one_line(text)
        self.keep(f"warning: {text}")
        tqdm.write(f"{self.prefix}warning: {text}", file=sys.stderr)

    def start_epoch(self, epoch: int, epochs: int, steps_done: int, steps: int) -> None:
        """Open the bar of an epoch, on a terminal."""
        if self.active and self._draws and _is_terminal():
            self.bar = tqdm(
                total=steps,
                initial=steps_done,
                desc=f"epoch {epoch}/{epochs}",
                leave=False,
                bar_format="{desc} [{n_fmt}/{total_fmt}]{postfix} {bar}",  # which takes what room is left
            )

    def advance(self) -> None:
        """One step is done."""
        if self.bar is not None:
            self.bar.update()

    def show_record(self, record: dict[str, Any], *, epochs: int, step_in_epoch: int, steps: int, eta_s: float) -> None:
        """The numbers of a print interval: beside the bar, or as one line."""
        loss, acc1 = f"loss {record['train/loss']:.4f}", f"acc1 {record['train/acc1']:.2f}"
        mfu = f"  mfu {record['train/mfu']:.0%}" if "train/mfu" in record else ""
        lr, eta = f"lr {record['train/lr']:.4g}", f"eta {format_duration(eta_s)}"
        speed = f"{record['train/images_per_s']:.0f} img/s  data {record['train/data_wait_ratio']:.0%}"
        if not self.active:
            return
        place = f"epoch {record['epoch'] + 1}/{epochs} [{step_in_epoch:>{len(str(steps))}}/{steps}]"
        line = f"{place}  {loss}  {acc1}  {lr}  {speed}{mfu}  {eta}"
        self.keep(line)
        if self.bar is not None:  # on a narrow terminal the end is cut off
            self.bar.set_postfix_str(f"{loss}  {lr}  {speed}  {eta}  {acc1}{mfu}")
        else:
            print(f"{_now()} {line}", flush=True)

    def end_epoch(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
