"""What an exported file says of itself, in texts under fixed keys: an ONNX file in its `metadata_props`, a .pt2 in its
extra files, a .safetensors in its header.

    model_name       the network, as `cspnet.create_model` knows it
    classes          JSON: the names of the classes, in the order of the outputs
    preprocessing    JSON, an object: how a picture becomes the input
        size_px          side of the input
        resize_px        the shorter side of the picture is resized to this (the longer one rounded down) ...
        crop_ratio       ... which is size_px / crop_ratio rounded down; size_px x size_px are cut from the centre then
        interpolation    nearest, bilinear, bicubic or lanczos, each as Pillow has it (antialiased)
        exif             apply: a picture is turned upright first, as its EXIF orientation says; ignore: it is not
        color_order      RGB
        dtype, layout    float32 and NCHW: (value / 255 - mean) / std; or uint8 and NHWC: the bytes as they are
        mean, std        of red, green and blue, on a scale of 0 to 1; not there with uint8: the file does it
    output           logits or probabilities
    cspnet_version   of the program that wrote the file
    source_sha256    of the file of weights it was made from
    source_step      updates its run had done; not there where the weights do not say it
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cspnet.weights.preprocessing import Preprocessing

__all__ = ["Contents", "InputKind", "resize_px"]

InputKind = Literal["float32", "uint8"]


def resize_px(size_px: int, crop_ratio: float) -> int:
    """What the shorter side of a picture is resized to; the rule of `cspnet.data.transforms.EvalTransform`."""
    return max(size_px, math.floor(size_px / crop_ratio))


@dataclass(frozen=True)
class Contents:
    """What is in an exported file."""

    model_name: str
    classes: Sequence[str]
    """One for each output."""
    pictures: Preprocessing
    exif: str
    input_kind: InputKind
    output: Literal["logits", "probabilities"]
    cspnet_version: str
    source_sha256: str
    source_step: int | None

    def describe_pictures(self) -> dict[str, Any]:
        """The object under `preprocessing`."""
        pictures = self.pictures
        described = {
            "size_px": pictures.size_px,
            "resize_px": resize_px(pictures.size_px, pictures.crop_ratio),
            "crop_ratio": pictures.crop_ratio,
            "interpolation": pictures.interpolation,
            "exif": self.exif,
            "color_order": "RGB",
            "dtype": self.input_kind,
        }
        if self.input_kind == "uint8":
            return {**described, "layout": "NHWC"}
        return {**described, "layout": "NCHW", "mean": list(pictures.mean), "std": list(pictures.std)}

    def to_strings(self) -> dict[str, str]:
        """{key: text} of all that is said."""
        texts = {
            "model_name": self.model_name,
            "classes": json.dumps(list(self.classes)),
            "preprocessing": json.dumps(self.describe_pictures()),
            "output": self.output,
            "cspnet_version": self.cspnet_version,
            "source_sha256": self.source_sha256,
        }
        return texts if self.source_step is None else {**texts, "source_step": str(self.source_step)}
