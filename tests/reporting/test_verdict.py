"""The verdict on a run: what bounds it, and advice that fits what is set."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cspnet.reporting.verdict import Setting, find_bound, judge

BEST = Setting(
    workers=8,
    cores=8,
    is_packed=True,
    is_encoded=True,
    decoder="fast",
    can_decode_on_gpu=False,
    could_shrink=False,
    faster_precision=None,
    is_channels_last=True,
    device="cuda",
    memory_ratio=0.8,
    processes=1,
    accumulate=1,
    global_batch=None,
    grad_checkpointing=False,
    deterministic=False,
)
"""Nothing to advise but other hardware."""


@pytest.mark.parametrize(
    ("data_ratio", "exchange_ratio", "bound"),
    [
        (0.0, 0.0, "compute-bound"),
        (0.10, 0.25, "compute-bound"),
        (0.101, 0.0, "input-bound"),
        (0.101, 0.9, "input-bound"),  # first of all: nothing is exchanged before there is data
        (1.0, 0.0, "input-bound"),
        (0.05, 0.251, "communication-bound"),
    ],
)
def test_what_bounds_a_run(data_ratio: float, exchange_ratio: float, bound: str) -> None:
    assert find_bound(data_ratio, exchange_ratio) == bound
    assert judge(data_ratio, exchange_ratio, BEST).startswith(f"{bound}: ")


INPUT, EXCHANGE, COMPUTE = (0.4, 0.0), (0.0, 0.4), (0.0, 0.0)
SHARES_OF = {
    INPUT: "input-bound: 40.0% of a step is waiting for data",
    EXCHANGE: "communication-bound: 0.0% of a step is waiting for data",
    COMPUTE: "compute-bound: 0.0% of a step is waiting for data",
}
ADVICE: dict[str, tuple[tuple[float, float], dict[str, object], str]] = {
    "nothing left to set": (INPUT, {}, "more cores to read with, or smaller pictures"),
    "idle cores": (INPUT, {"workers": 2}, "--workers 8, one a core (now 2)"),
    "reading in the process itself": (INPUT, {"workers": 0, "cores": 1}, "--workers 1, one a core (now 0)"),
    "more workers than cores": (INPUT, {"workers": 16}, "more cores to read with, or smaller pictures"),
    "loose files": (
        INPUT,
        {"is_packed": False, "is_encoded": False},
        "packed pictures (scripts/pack_dataset.py, --max-side makes them smaller)",
    ),
    "packed originals": (INPUT, {"is_encoded": False}, "smaller pictures (scripts/pack_dataset.py --max-side)"),
    "a slow decoder": (INPUT, {"decoder": "pillow"}, "--data.decoder fast"),
    "whole pictures": (INPUT, {"could_shrink": True}, "--data.shrink true"),
    "a GPU that could decode": (INPUT, {"can_decode_on_gpu": True}, "--data.decoder gpu"),
    "a GPU that does": (
        INPUT,
        {"can_decode_on_gpu": True, "decoder": "gpu"},
        "more cores to read with, or smaller pictures",
    ),
    "all of it": (
        INPUT,
        {"workers": 1, "decoder": "pillow", "can_decode_on_gpu": True, "is_packed": False, "is_encoded": False},
        "--workers 8, one a core (now 1), or --data.decoder fast, or --data.decoder gpu, or packed pictures "
        "(scripts/pack_dataset.py, --max-side makes them smaller)",
    ),
    "a full GPU": (
        EXCHANGE,
        {"processes": 8, "accumulate": 4},
        "--accumulate 8 (fewer and larger steps are another run), or a faster network between the processes",
    ),
    "a GPU with room": (
        EXCHANGE,
        {"processes": 8, "memory_ratio": 0.3},
        "a larger --batch-size, or --accumulate 2 (fewer and larger steps are another run), or a faster network "
        "between the processes",
    ),
    "a step of a given size": (
        EXCHANGE,
        {"processes": 8, "global_batch": 256, "memory_ratio": 0.3},
        "--global-batch 512 (fewer and larger steps are another run), or a faster network between the processes",
    ),
    "as it should be": (COMPUTE, {}, "a faster device or more of them"),
    "on a CPU": (COMPUTE, {"device": "cpu", "memory_ratio": None}, "a GPU"),
    "float32": (COMPUTE, {"faster_precision": "bf16"}, "--precision bf16, or a faster device or more of them"),
    "contiguous, and equal bits": (
        COMPUTE,
        {"is_channels_last": False, "deterministic": True},
        "--channels-last, or no --deterministic, or a faster device or more of them",
    ),
    "memory left over": (
        COMPUTE,
        {"memory_ratio": 0.25},
        "a larger --batch-size (25% of the GPU's memory is used; larger steps are another run), or a faster device or "
        "more of them",
    ),
    "memory left over by many passes": (
        COMPUTE,
        {"memory_ratio": 0.25, "accumulate": 4, "grad_checkpointing": True},
        "no --grad-checkpointing, or larger passes, --micro-batch auto (25% of the GPU's memory is used), or a faster "
        "device or more of them",
    ),
    "memory saved for a reason": (COMPUTE, {"grad_checkpointing": True}, "a faster device or more of them"),
}


@pytest.mark.parametrize("case", ADVICE)
def test_the_advice_fits_what_is_set(case: str) -> None:
    shares, changes, advice = ADVICE[case]
    setting = replace(BEST, **changes)  # type: ignore[arg-type]
    exchange = ", exchanging the gradients would take 40% if none of it overlapped with the backward pass"
    told = SHARES_OF[shares] + (exchange if setting.processes > 1 else "")
    assert judge(*shares, setting) == f"{told}; what would help: {advice}"
