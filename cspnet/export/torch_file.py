"""torch.export programs (.pt2): run by torch without our code; what the file says of itself is in its extra files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch

from cspnet.export.network import Check, ExportedNet, check_same, quietly, trace
from cspnet.runtime.files import replacing

__all__ = ["write_program"]


def write_program(
    path: Path, network: ExportedNet, reference: ExportedNet, about: Mapping[str, str], *, name: str
) -> Check:
    """Write a .pt2 file, checked before it gets its name; the rest as for `write_onnx`.

        extra = {"classes": "", "preprocessing": ""}
        model = torch.export.load("mine.pt2", extra_files=extra).module()

    Raises:
        ModelError: the network cannot be exported, or the file is not the same.
        OSError: the file cannot be written.
    """
    program = trace(network, name)
    archive = io.BytesIO()  # torch has errors of its own for a disk that is full
    with quietly(f"model {name}: torch.export cannot save it"):
        torch.export.save(program, archive, extra_files=dict(about))
    with replacing(path) as temporary:
        temporary.write_bytes(archive.getbuffer())
        with quietly("torch.export cannot load what it has saved"), temporary.open("rb") as file:
            loaded = torch.export.load(file).module()
        with torch.inference_mode():
            return check_same(loaded, reference, "the torch.export file")
