"""Which precision `auto` means: by what the hardware says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cspnet.runtime import device as rules
from cspnet.runtime.device import choose_amp_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "vendor", "expected"),
    [
        (True, True, "GenuineIntel", torch.bfloat16),
        (False, True, "AuthenticAMD", torch.bfloat16),
        (False, True, "GenuineIntel", torch.float32),
        (False, True, None, torch.float32),
        (False, False, "AuthenticAMD", torch.float32),
    ],
)
def test_a_cpu_takes_bf16_where_that_is_faster(
    amx: bool, avx512_bf16: bool, vendor: str | None, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
    monkeypatch.setattr(rules, "_read_cpu_vendor", lambda: vendor)
    assert choose_amp_dtype("auto", CPU) == expected
    assert choose_amp_dtype("bf16", CPU) == torch.bfloat16
    assert choose_amp_dtype("fp32", CPU) == torch.float32


def test_the_vendor_is_read_from_cpuinfo(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    assert rules._read_cpu_vendor(file) is None
    file.write_text(
        "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\n\nprocessor\t: 1\nvendor_id\t: other\n"
    )
    assert rules._read_cpu_vendor(file) == "AuthenticAMD"
    file.write_text("processor\t: 0\nBogoMIPS\t: 48.00\n")
    assert rules._read_cpu_vendor(file) is None
