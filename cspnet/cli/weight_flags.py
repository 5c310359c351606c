"""The flags of all commands that take a file of weights: which network is in it, and how it wants its pictures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cspnet.cli.flags import join_tokens

__all__ = ["AskedWeights", "add_geometry_flags", "add_weight_flags", "read_asked"]


@dataclass(frozen=True)
class AskedWeights:
    """Which weights a command is about, as its flags say."""

    file: Path
    """A checkpoint, or somebody's weight file."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """{dotted key of the recipe: value} of what was given."""
    source: str = "auto"
    """Whose weight file it is; auto finds out."""
    num_classes: int | None = None
    """Classes of a Darknet file; None takes 1000."""
    ema: bool | None = None
    """The moving average or the raw weights; None takes the average if there is one."""


def add_weight_flags(what: argparse._ArgumentGroup, *, several: bool = False) -> None:
    """Which file (or files), whose, and what is in it."""
    what.add_argument(
        "--checkpoint",
        "--weights",
        type=Path,
        required=True,
        **({"nargs": "+", "action": "extend"} if several else {}),
        metavar="FILE",
        help="checkpoint or weight file" + ", or several of them" * several,
    )
    what.add_argument(
        "--source",
        default="auto",
        choices=("auto", "cspnet", "timm", "mmpretrain", "deepspark", "darknet"),
        help="whose weight file it is [found out]",
    )
    what.add_argument("--model", "-a", "--arch", metavar="NAME", help="model of a weight file that does not name it")
    what.add_argument(
        "--model-kwargs", nargs="+", metavar="KEY=VALUE", help="options of the model, such as activation=mish"
    )
    what.add_argument(
        "--num-classes", type=int, metavar="N", help="classes in a Darknet .weights file, which does not say it [1000]"
    )
    what.add_argument(
        "--ema",
        "--use-ema",
        action=argparse.BooleanOptionalAction,
        help="the moving average or the raw weights [the average, if there is one]",
    )


def add_geometry_flags(data: argparse._ArgumentGroup) -> None:
    """Size, crop and colours of a picture."""
    data.add_argument("--img-size", "--val-crop-size", type=int, metavar="PX", help="side of a picture [the weights']")
    data.add_argument("--crop-pct", "--crop-ratio", type=float, metavar="RATIO", help="centre share [the weights']")
    data.add_argument("--interpolation", metavar="NAME", help="bilinear, bicubic, … [the weights']")
    data.add_argument("--mean", nargs="+", metavar="VALUE", help="of red, green, blue [the weights']")
    data.add_argument("--std", nargs="+", metavar="VALUE", help="of red, green, blue [the weights']")
    data.add_argument("--exif", choices=("apply", "ignore"), help="EXIF orientation [as in training]")


def _list_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """{dotted key of the recipe: value} of these flags, None for what was not given."""
    return {
        "model.name": args.model,
        "model.options": args.model_kwargs and join_tokens(args.model_kwargs),
        "data.val_px": args.img_size,
        "data.crop_ratio": args.crop_pct,
        "data.val_interpolation": args.interpolation,
        "data.mean": args.mean and join_tokens(args.mean),
        "data.std": args.std and join_tokens(args.std),
        "data.exif": args.exif,
    }


def read_asked(args: argparse.Namespace, file: Path, more: Mapping[str, Any] | None = None) -> AskedWeights:
    """What the flags ask for, of one of the files.

    Args:
        more: {dotted key of the recipe: value} of other flags, None for what was not given.
    """
    values = {**_list_overrides(args), **(more or {})}
    given = {key: value for key, value in values.items() if value is not None}
    return AskedWeights(file, given, args.source, args.num_classes, args.ema)
