"""ONNX files, by torch's exporter, and onnxruntime to check them.

The exporter that goes through torch.export (`dynamo=True`) takes all our networks, with batches of any size (tried with
PyTorch 2.14). It writes opset 18; newer ones it converts to, and for older ones it writes 18 all the same, with no more
than a log line: those are refused here, and the opset that came out is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor

from cspnet.errors import ModelError
from cspnet.export.network import Check, ExportedNet, check_same, quietly, trace
from cspnet.runtime.files import replacing

__all__ = ["DEFAULT_OPSET", "newest_opset", "write_onnx"]

DEFAULT_OPSET = 18
"""The lowest that the exporter has, and what it writes without a conversion; onnxruntime reads it since 1.14."""


def newest_opset() -> int:
    """The highest opset that the installed onnx knows."""
    return int(onnx.defs.onnx_opset_version())


def write_onnx(
    path: Path, network: ExportedNet, reference: ExportedNet, about: Mapping[str, str], *, opset: int, name: str
) -> Check:
    """Write an ONNX file: input `images`, output as `about` says; checked before it gets its name.

    Args:
        network: what is written.
        reference: what it has to agree with.
        about: {key: text} for the file's metadata.
        opset: from DEFAULT_OPSET to `newest_opset()`.
        name: the network's, for errors.
    Raises:
        ModelError: the network cannot be exported, or the file is not the same.
        OSError: the file cannot be written.
    """
    program = trace(network, name)
    with quietly(f"model {name}: torch's ONNX exporter cannot take it"):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=["images"],
            output_names=[about["output"]],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
        assert exported is not None
        model = exported.model_proto
        _tidy(model)
        model.producer_name, model.producer_version = "cspnet", about["cspnet_version"]
        onnx.helper.set_model_props(model, dict(about))
        onnx.checker.check_model(model)
    got = next(entry.version for entry in model.opset_import if not entry.domain)
    if got != opset:
        raise ModelError(f"model {name}: the installed onnxscript cannot write opset {opset}, only {got}")
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        return check_same(_open(temporary, opset), reference, "the ONNX file")


def _tidy(model: onnx.ModelProto) -> None:
    """Take out what the exporter notes about our source code, with folders of this machine in it."""
    graph = model.graph
    del graph.value_info[:]  # shapes in between: whoever needs them infers them
    for entry in (*graph.node, *graph.input, *graph.output, *graph.initializer, graph):
        entry.doc_string = ""
        del entry.metadata_props[:]


def _open(path: Path, opset: int) -> Callable[[Tensor], Tensor]:
    """A file of ONNX in onnxruntime, on the CPU: input -> output."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is in the error as well
    with quietly(f"onnxruntime {onnxruntime.__version__} cannot load a file of opset {opset}"):
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (output,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(output)

    return run
