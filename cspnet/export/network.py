"""What is exported: a network with what is asked for before and behind it; its trace; whether a file is the same."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cspnet.data.mixing import Normalizer
from cspnet.errors import ModelError
from cspnet.export.metadata import InputKind
from cspnet.weights.preprocessing import Preprocessing

__all__ = ["MOST_APART", "Check", "ExportedNet", "check_same", "quietly", "trace"]

MOST_APART = 1e-4
"""How far the outputs of a file may lie from the network's, as a share of the largest of those, in float32."""
CHECKED_BATCHES = (1, 3)
"""Sizes of the batches that a file is tried with; it is traced with another."""
_TRACED_BATCH = 2  # a trace with one picture would be of one picture for ever


class ExportedNet(nn.Module):
    """A classifier between the input and the output that a file is to have; on the CPU, in evaluation mode.

    Args:
        network: (N, 3, H, W) normalised float32 -> (N, K) logits.
        pictures: what the network wants its pictures to be.
        input_kind: float32 takes them normalised, uint8 as (N, H, W, 3) pixels, RGB.
        softmax: probabilities instead of logits.
    """

    def __init__(self, network: nn.Module, pictures: Preprocessing, input_kind: InputKind, *, softmax: bool) -> None:
        super().__init__()
        self.network = network
        self.softmax = softmax
        self.size_px = pictures.size_px
        normalize = Normalizer(pictures.mean, pictures.std, torch.device("cpu"), channels_last=False)
        self.before = normalize if input_kind == "uint8" else None
        self.outside = normalize if input_kind == "float32" else None
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Input -> logits or probabilities."""
        logits: Tensor = self.network(images if self.before is None else self.before(images))
        return logits.softmax(1) if self.softmax else logits

    def draw(self, num: int, seed: int) -> Tensor:
        """A batch of random pictures, soft patches of colour, as the input is to be."""
        rng = torch.Generator().manual_seed(seed)
        patches = torch.rand(num, 3, 7, 7, generator=rng) * 255
        pixels = F.interpolate(patches, size=(self.size_px, self.size_px), mode="bilinear").round().to(torch.uint8)
        images = pixels.permute(0, 2, 3, 1).contiguous()
        return images if self.outside is None else self.outside(images)


def trace(network: ExportedNet, name: str) -> torch.export.ExportedProgram:
    """The network as a graph of operations, for batches of any size. Its activations no longer work in place.

    Raises:
        ModelError: torch.export cannot take it, or not for any number of pictures.
    """
    images = network.draw(_TRACED_BATCH, seed=0)
    layers: Iterator[Any] = network.modules()
    for layer in layers:
        if getattr(layer, "inplace", None) is True:
            layer.inplace = False  # the ONNX exporter takes three times as long over those
    with quietly(f"model {name}: torch.export cannot take it"), torch.no_grad():
        program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program


@dataclass(frozen=True)
class Check:
    """A file beside the network it was made from."""

    apart: float
    """The largest difference of an output, as a share of the largest output."""
    num_pictures: int


def check_same(run: Callable[[Tensor], Tensor], network: ExportedNet, what: str) -> Check:
    """Compare the outputs of a file with those of the network, at two batch sizes.

    Args:
        run: the file: (N, ...) input -> (N, K) output.
        network: as it was given, with nothing folded.
        what: the file, in the error.
    Raises:
        ModelError: they are not the same, or the network's are not numbers.
    """
    worst = 0.0
    for num in CHECKED_BATCHES:
        images = network.draw(num, seed=num)
        with torch.inference_mode():
            expected = network(images)
        scale = expected.abs().max().item()
        if not torch.isfinite(expected).all():
            raise ModelError("the network's outputs are not finite: there is nothing to compare the file with")
        got = run(images)
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise ModelError(f"{what} gives {got.dtype} {tuple(got.shape)} instead of {tuple(expected.shape)}")
        apart = (got - expected).abs().max().item()
        if not apart <= MOST_APART * scale:  # a NaN is not
            share = apart / scale if scale else float("inf")
            raise ModelError(
                f"{what} gives other outputs than the network, at a batch of {num}: {share:.2g} of the largest, and "
                f"{MOST_APART:g} is allowed; nothing is written"
            )
        worst = max(worst, apart / scale if scale else 0.0)
    return Check(worst, sum(CHECKED_BATCHES))


@contextlib.contextmanager
def quietly(problem: str) -> Iterator[None]:
    """Keep what a library says while it works to itself; told only if it fails.

    Args:
        problem: what it means if it fails.
    Raises:
        ModelError: it fails, with whatever: exporters raise errors of many kinds, each of which means the same here.
    """
    said = io.StringIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # torch's loggers write to the standard error as it was at the start
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ModelError, OSError):
        raise
    except Exception as error:
        sys.stderr.write(said.getvalue())
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ModelError(f"{problem}: {type(error).__name__}: {reason}") from error
    finally:
        logging.disable(disabled)
