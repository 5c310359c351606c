"""What bounds the speed of a run, and what would help: a function of what was measured and of what is set."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Setting", "find_bound", "judge"]

MOST_DATA_RATIO = 0.10
"""Above this share of a step's time spent waiting for data, a run is input-bound."""
MOST_EXCHANGE_RATIO = 0.25
"""Above this share for the exchange of gradients, it is communication-bound."""
_LITTLE_MEMORY = 0.5
"""Below this share of a GPU's memory, larger batches surely fit."""


@dataclass(frozen=True)
class Setting:
    """What a run has set that bears on its speed."""

    workers: int
    """Reading processes of this process."""
    cores: int
    """That this process may use, for them too."""
    is_packed: bool
    """The training pictures lie in shards."""
    is_encoded: bool
    """They were made smaller when they were packed."""
    decoder: str
    """data.decoder: fast, pillow or gpu."""
    can_decode_on_gpu: bool
    """The run has a CUDA GPU, and pictures that `gpu` takes."""
    could_shrink: bool
    """data.shrink is off where it has an effect."""
    faster_precision: str | None
    """The precision to take instead, where another one is faster."""
    is_channels_last: bool
    device: str
    """cuda, mps or cpu."""
    memory_ratio: float | None
    """Share of the GPU's memory that was in use at the height; None where it is not known."""
    processes: int
    accumulate: int
    """Passes a step."""
    global_batch: int | None
    """train.global_batch."""
    grad_checkpointing: bool
    deterministic: bool


def find_bound(data_ratio: float, exchange_ratio: float) -> str:
    """`input-bound`, `communication-bound` or `compute-bound`.

    Args:
        data_ratio: share of a step's time spent waiting for data.
        exchange_ratio: share of it that exchanging the gradients takes alone; 0 for one process.
    """
    if data_ratio > MOST_DATA_RATIO:
        return "input-bound"
    return "communication-bound" if exchange_ratio > MOST_EXCHANGE_RATIO else "compute-bound"


def judge(data_ratio: float, exchange_ratio: float, setting: Setting) -> str:
    """The verdict on a run, in one line: what bounds it, by how much, and what would help where it is set as it is."""
    bound = find_bound(data_ratio, exchange_ratio)
    shares = [f"{data_ratio:.1%} of a step is waiting for data"]
    if setting.processes > 1:
        shares.append(
            f"exchanging the gradients would take {exchange_ratio:.0%} if none of it overlapped with the backward pass"
        )
    find = {"input-bound": _help_input, "communication-bound": _help_exchange, "compute-bound": _help_compute}[bound]
    return f"{bound}: {', '.join(shares)}; what would help: {', or '.join(find(setting))}"


def _help_input(setting: Setting) -> list[str]:
    advice = []
    if setting.workers < setting.cores:
        advice.append(f"--workers {setting.cores}, one a core (now {setting.workers})")
    if setting.decoder == "pillow":
        advice.append("--data.decoder fast")
    if setting.could_shrink:
        advice.append("--data.shrink true")
    if setting.can_decode_on_gpu and setting.decoder != "gpu":
        advice.append("--data.decoder gpu")
    if not setting.is_packed:
        advice.append("packed pictures (scripts/pack_dataset.py, --max-side makes them smaller)")
    elif not setting.is_encoded:
        advice.append("smaller pictures (scripts/pack_dataset.py --max-side)")
    return advice or ["more cores to read with, or smaller pictures"]


def _help_exchange(setting: Setting) -> list[str]:
    if setting.global_batch is not None:
        advice = [f"--global-batch {2 * setting.global_batch}"]
    else:
        has_room = setting.memory_ratio is None or setting.memory_ratio < _LITTLE_MEMORY
        advice = [*(["a larger --batch-size"] if has_room else []), f"--accumulate {2 * setting.accumulate}"]
    advice[-1] += " (fewer and larger steps are another run)"
    return [*advice, "a faster network between the processes"]


def _help_compute(setting: Setting) -> list[str]:
    has_room = setting.memory_ratio is not None and setting.memory_ratio < _LITTLE_MEMORY
    advice = []
    if setting.faster_precision:
        advice.append(f"--precision {setting.faster_precision}")
    if not setting.is_channels_last:
        advice.append("--channels-last")
    if setting.deterministic:
        advice.append("no --deterministic")
    if setting.grad_checkpointing and has_room:
        advice.append("no --grad-checkpointing")
    if has_room:
        used = f"{setting.memory_ratio:.0%} of the GPU's memory is used"
        if setting.accumulate > 1:
            advice.append(f"larger passes, --micro-batch auto ({used})")
        else:
            advice.append(f"a larger --batch-size ({used}; larger steps are another run)")
    if setting.device == "cpu":
        return [*advice, "a GPU"]
    return [*advice, "a faster device or more of them"]
