"""What was done to the pictures that published weights were measured on: part of the weights, kept beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Preprocessing",
    "darknet_preprocessing",
    "published_preprocessing",
    "saved_preprocessing",
    "timm_preprocessing",
]

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to the network's input: resize, centre crop, normalise."""

    size_px: int
    """Side of the square input."""
    crop_ratio: float
    """The shorter side is resized to size_px / crop_ratio, rounded down, then size_px are cut from the centre."""
    interpolation: str
    mean: Rgb
    """Of red, green and blue, on a scale of 0 to 1."""
    std: Rgb

    @property
    def colors(self) -> tuple[Rgb, Rgb]:
        """Mean and deviation."""
        return self.mean, self.std

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"{self.size_px} px, crop ratio {self.crop_ratio:.4g}, {self.interpolation}, mean {mean}, std {std}"


def _imagenet(size_px: int, crop_ratio: float, interpolation: str) -> Preprocessing:
    return Preprocessing(size_px, crop_ratio, interpolation, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


_TIMM = _imagenet(256, 0.887, "bilinear")
_MMPRETRAIN = _imagenet(256, 256 / 288, "bicubic")

# Source: timm/models/cspnet.py, default_cfgs (of darknet53 the validation size); mmpretrain configs/cspnet/*.py,
# test_pipeline; DeepSparkHub cspdarknet53, dataloader/utils/presets_classification.py.
_PUBLISHED = {
    "timm": {
        "cspdarknet53": _TIMM,
        "cspresnet50": _TIMM,
        "cspresnext50": _TIMM,
        "darknet53": _imagenet(288, 1.0, "bicubic"),
    },
    "mmpretrain": {
        "cspdarknet53": _MMPRETRAIN,
        "cspresnet50": _MMPRETRAIN,
        "cspresnext50": _imagenet(224, 224 / 256, "bicubic"),
    },
    "deepspark": {"cspdarknet53": _imagenet(224, 224 / 256, "bilinear")},
}


def published_preprocessing(layout: str, graph: str) -> Preprocessing | None:
    """What timm, mmpretrain or DeepSpark publish for a graph, a name of the zoo; None if they publish no weights."""
    return _PUBLISHED[layout].get(graph)


def darknet_preprocessing(size_px: int) -> Preprocessing:
    """Darknet's: the shorter side becomes the input's side, colours stay between 0 and 1.

    Source: AlexeyAB/darknet, src/classifier.c, `validate_classifier_single`.
    """
    return Preprocessing(size_px, 1.0, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def timm_preprocessing(cfg: Mapping[str, Any] | None) -> Preprocessing | None:
    """What a network of timm's says of itself (`pretrained_cfg`); None if it says nothing, or has no square input."""
    if not cfg or cfg["input_size"][1] != cfg["input_size"][2] or len(cfg["mean"]) != 3:
        return None
    return Preprocessing(
        cfg["input_size"][1], cfg["crop_pct"], cfg["interpolation"], tuple(cfg["mean"]), tuple(cfg["std"])
    )


def saved_preprocessing(eval_cfg: Mapping[str, Any] | None) -> Preprocessing | None:
    """What a checkpoint of ours keeps under `eval_cfg`; None if it keeps nothing.

    Raises:
        KeyError, TypeError, ValueError: it keeps something else there.
    """
    if not isinstance(eval_cfg, Mapping | None):
        raise TypeError
    if not eval_cfg:
        return None
    mean, std = (_as_rgb(eval_cfg[key]) for key in ("mean", "std"))
    size_px, crop_ratio, interpolation = eval_cfg["size_px"], eval_cfg["crop_ratio"], eval_cfg["interpolation"]
    if not isinstance(size_px, int) or not isinstance(interpolation, str):
        raise TypeError
    return Preprocessing(size_px, float(crop_ratio), interpolation, mean, std)


def _as_rgb(values: Any) -> Rgb:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
