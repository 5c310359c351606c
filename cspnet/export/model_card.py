"""A model card: the Markdown page beside published weights, which tells where they come from and how to use them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from torch import nn

from cspnet.errors import CheckpointError, on_one_line
from cspnet.export.metadata import Contents
from cspnet.models.darknet_cfg import CFG_PREFIX
from cspnet.models.foreign import FOREIGN_PREFIXES
from cspnet.models.zoo import ZOO
from cspnet.weights.layouts import LAYOUTS, export_state, find_graph
from cspnet.weights.match import doubt_export

__all__ = ["NAMES_OF_BOTH", "Trained", "load_with_timm", "write_card"]

NAMES_OF_BOTH = (*LAYOUTS["timm"].graphs, "densenet121", "densenet169", "densenet201")
"""Networks whose name timm has too: there `timm.create_model` builds timm's."""

_MAIN_KEYS = (
    *("train.epochs", "train.steps", "train.global_batch", "train.batch_size", "train.accumulate", "train.precision"),
    *("optim.name", "optim.lr", "optim.lr_base_size", "optim.momentum", "optim.weight_decay", "optim.clip_norm"),
    *("schedule.name", "schedule.warmup_epochs", "schedule.warmup_steps", "loss.name", "loss.smoothing"),
    *("data.train_px", "data.train_crop", "augment.policy", "augment.erase_prob", "augment.repeats"),
    *("mix.cutmix_alpha", "mix.mixup_alpha", "mix.darknet", "adversarial.lr", "ema.decay", "train.seed"),
)
_MOST_NAMES = 20
"""Of classes on the card; the file has all."""
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&])")


@dataclass(frozen=True)
class Trained:
    """What the source says of the training; empty for weights that say nothing."""

    recipe: Mapping[str, Any]
    """{dotted key: value}."""
    is_average: bool
    """Whether the weights are a moving average."""
    step: int | None = None
    epoch: int | None = None
    acc1: float | None = None
    """In percent, of these weights, in the run's own validation."""
    measured_at: str = ""
    """The pictures of that validation."""


def write_card(
    contents: Contents,
    trained: Trained,
    model: nn.Module,
    *,
    file: str,
    source: str,
    options: Mapping[str, Any],
    license: str,
) -> str:
    """The card as Markdown, with the head that model hubs read.

    Args:
        contents: what is in the file.
        model: the network with the weights.
        file: name of the file of weights, beside which the card lies.
        source: name of the file they were made from.
        options: of the network.
        license: of the weights; empty if nobody has said.
    """
    name = contents.model_name
    timm_lines = load_with_timm(name, model, file=file, num_classes=len(contents.classes), options=options)
    is_timms = "import timm" in timm_lines and not any(line.startswith("import cspnet") for line in timm_lines)
    head = ["---", f"library_name: {'timm' if is_timms else 'cspnet'}"]
    head += [f"license: {json.dumps(license)}"] * bool(license)
    head += ["pipeline_tag: image-classification", "tags: [image-classification, cspnet]", "---", ""]
    lines = [*head, f"# {_plain(file.removesuffix('.safetensors'))}", "", *_describe(contents, trained, model, options)]
    lines += [
        "",
        f"Made from {_plain(source)} (SHA-256 `{contents.source_sha256}`) by cspnet {contents.cspnet_version}.",
    ]
    lines += ["", "## Pictures", "", *_describe_pictures(contents)]
    lines += ["", "## Training", "", *_describe_training(trained)]
    lines += ["", "## Use", "", "The file says which network it holds:", "", "```"]
    lines += [f"python3 scripts/predict.py --checkpoint {file} PICTURE …", "```"]
    if not name.startswith(CFG_PREFIX):  # its options hold the text of the cfg file
        lines += ["", "```python", *_load_with_ours(name, file, len(contents.classes), options), "```"]
    if timm_lines:
        lines += ["", "With timm:", "", "```python", *timm_lines, "```"]
    licence = (
        f"{_plain(license)}." if license else "Nobody has stated one: ask whoever trained them, or made the pictures."
    )
    return "\n".join([*lines, "", "## Licence of the weights", "", licence, ""])


def _describe(contents: Contents, trained: Trained, model: nn.Module, options: Mapping[str, Any]) -> list[str]:
    """A table of what it is."""
    name, names = contents.model_name, contents.classes
    shown = ", ".join(map(_plain, names[:_MOST_NAMES])) + f" … (all {len(names)} are in the file)" * (
        len(names) > _MOST_NAMES
    )
    told = {key: value for key, value in options.items() if not (name.startswith(CFG_PREFIX) and key == "text")}
    rows = {
        "network": f"`{name}`" + "".join(f", {key} {_plain(str(value))}" for key, value in told.items()),
        "source": ZOO[name].source if name in ZOO else "",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "classes": f"{len(names)}: {shown}",
        "weights": "moving average" if trained.is_average else "raw",
        "steps": "" if trained.step is None else f"{trained.step:,}",
        "epochs": "" if trained.epoch is None else f"{trained.epoch:,}",
        "Acc@1": "not in the source" if trained.acc1 is None else f"{trained.acc1:.3f} %, at {trained.measured_at}",
    }
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items() if value)]


def _describe_pictures(contents: Contents) -> list[str]:
    see = contents.describe_pictures()
    turned = "turned upright as its EXIF orientation says" if see["exif"] == "apply" else "as it is stored"
    return [
        f"RGB, {turned}; the shorter side resized to {see['resize_px']} px ({see['interpolation']}, antialiased), "
        f"{see['size_px']} x {see['size_px']} px cut from the centre (crop ratio {see['crop_ratio']:g}); then "
        f"(value / 255 - mean) / std with mean {see['mean']} and std {see['std']}."
    ]


def _describe_training(trained: Trained) -> list[str]:
    known = {key: trained.recipe[key] for key in _MAIN_KEYS if key in trained.recipe}
    rows = [f"| `{key}` | {_plain(str(value))} |" for key, value in known.items() if value not in (None, 0, "none")]
    if start := trained.recipe.get("model.pretrained"):
        rows.append(f"| started from | {_plain(PurePath(start).name)} |")
    if not rows:
        return ["The source does not say how the weights were trained."]
    return ["| setting | value |", "|---|---|", *rows, "", "The whole recipe is in the file's header, under `cspnet`."]


def _call(options: Mapping[str, Any], **more: Any) -> str:
    return "".join(f", {key}={_quote(value)}" for key, value in {**more, **options}.items())


def _quote(value: Any) -> str:
    """A value of a recipe as Python: text in double quotes, as this program has it."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _load_with_ours(name: str, file: str, num_classes: int, options: Mapping[str, Any]) -> list[str]:
    return [
        "import cspnet",
        "",
        f"model = cspnet.create_model({_quote(name)}{_call(options, num_classes=num_classes)})",
        f"cspnet.load_weights(model, {_quote(file)})",
        "model.eval()",
    ]


def load_with_timm(
    name: str, model: nn.Module, *, file: str, num_classes: int, options: Mapping[str, Any]
) -> list[str]:
    """Python that loads the file into a network of timm's, or into ours under timm's calls; no lines if neither can."""

    def load(graph: str, options: Mapping[str, Any], *imports: str) -> list[str]:
        called = _call(options, num_classes=num_classes, checkpoint_path=file)
        return ["import timm", *imports, "", f"model = timm.create_model({_quote(graph)}{called}).eval()"]

    if name.startswith("timm/"):
        return load(name.removeprefix("timm/"), options)
    if name.startswith((*FOREIGN_PREFIXES, CFG_PREFIX)):
        return []
    if _is_timms(model, name):
        return load(find_graph(model, LAYOUTS["timm"].graphs), {})
    return [] if name in NAMES_OF_BOTH else load(name, options, "import cspnet.timm_models  # ours under timm's calls")


def _is_timms(model: nn.Module, name: str) -> bool:
    """Whether timm's network has these tensors under these names, in its order of concatenation, and the activation."""
    try:
        theirs = export_state(model, LAYOUTS["timm"], name)
    except CheckpointError:
        return False
    own = model.state_dict()
    is_same = own.keys() == theirs.keys() and all(own[key].equal(theirs[key]) for key in own)
    return is_same and not doubt_export(model, "timm", name)


def _plain(text: str) -> str:
    """A text that Markdown shows as it is, on one line, whatever a stranger's file has put into it."""
    return _SPECIAL.sub(r"\\\1", on_one_line(" ".join(text.split())))
