"""What a file of weights is: the network in it, its classes, and the pictures that it was made for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cspnet.cli import build
from cspnet.cli.weight_flags import AskedWeights
from cspnet.data.index import find_split, open_index
from cspnet.data.samples import SampleIndex
from cspnet.errors import CheckpointError, DataError, UserError
from cspnet.models import create_model
from cspnet.models.folding import FoldedNetwork, fold_batch_norm
from cspnet.recipe.load import COMMAND_LINE, DEFAULT, load_recipe
from cspnet.recipe.schema import Recipe
from cspnet.weights.files import is_plain
from cspnet.weights.load import count_classes
from cspnet.weights.match import Weights, describes_itself, match_weights, read_weight_file

__all__ = ["Subject", "build_folded", "name_classes", "open_val_index", "read_subject"]

# Where the data lay in training, and on what machine, says nothing about where it lies now.
_MACHINE_KEYS = ("data.workers", "data.outside_root", "data.timeout_s", "train.timeout_s", "train.device")
_ABOUT_KEYS = ("recipe", "eval_cfg", "progress", "seen")
_GEOMETRY_KEYS = ("data.val_px", "data.crop_ratio", "data.val_interpolation", "data.mean", "data.std")


@dataclass(frozen=True)
class Subject:
    """What a file says about itself: weights, recipe, class names."""

    recipe: Recipe
    weights: Weights
    num_classes: int
    classes: tuple[str, ...]
    geometry_source: str
    """Where size, crop, interpolation and colours of the pictures come from."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What a file of ours says beside its weights (recipe, eval_cfg, progress, seen), as far as it does."""

    def names(self) -> tuple[str, ...]:
        """Of the classes; numbers where the file has no names."""
        return self.classes or tuple(f"class {number}" for number in range(self.num_classes))


def read_subject(asked: AskedWeights) -> Subject:
    """Weights and recipe of a file: a checkpoint of ours, or a plain weight file whose model --model names.

    Raises:
        CheckpointError: missing, damaged, of another model, or it does not say of which.
        ModelError, RecipeError: a model or a value that cannot be.
    """
    where, overrides = str(asked.file), asked.overrides
    content = read_weight_file(asked.file, asked.source)
    which = {None: "auto", True: "ema", False: "raw"}[asked.ema]
    about = content if describes_itself(content) else None
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if about is not None:
        if overrides.get("model.name", about["arch"]) != about["arch"]:
            raise CheckpointError(f"{where}: holds {about['arch']}, not {overrides['model.name']}; leave --model out")
        saved = {key: value for key, value in about["recipe"].items() if key not in _MACHINE_KEYS}
        layers.append((where, saved))
    elif "model.name" not in overrides:
        raise CheckpointError(f"{where}: does not say which model it holds; name it with --model NAME")
    model = load_recipe(None, overrides, layers).recipe.model
    with torch.device("meta"):
        template = create_model(model.name, **model.options)
    weights = match_weights(
        content, template, source=asked.source, which=which, num_classes=asked.num_classes, where=where
    )
    if about is None and weights.preprocessing is not None:
        layers.append((f"{where} ({weights.layout})", build.geometry_values(weights.preprocessing)))
    resolved = load_recipe(None, overrides, layers)
    return Subject(
        recipe=resolved.recipe,
        weights=weights,
        num_classes=about["num_classes"] if about else count_classes(template, weights.state, where=where),
        classes=tuple(about["classes"]) if about else (),
        geometry_source=_describe_sources({key: resolved.sources[key] for key in _GEOMETRY_KEYS}),
        about={key: about[key] for key in _ABOUT_KEYS if key in about and is_plain(about[key])} if about else {},
    )


def name_classes(file: Path | None, subject: Subject) -> Sequence[str]:
    """The names in a file, one a line; without a file, those that the weights have.

    Raises:
        UserError: it cannot be read, or holds another number of names.
    """
    if file is None:
        return subject.names()
    try:
        names = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"--classes {file}: cannot be read: {reason}") from error
    if len(names) != subject.num_classes:
        raise UserError(f"--classes {file}: {len(names)} lines, but the network has {subject.num_classes} classes")
    return names


def open_val_index(subject: Subject, file: Path, warn: Callable[[str], None]) -> SampleIndex:
    """The validation pictures of the recipe, labelled by the subject's classes.

    Args:
        file: names the subject in an error.
    Raises:
        DataError: they are not there, or are of other classes.
    """
    cfg = subject.recipe.data
    path = find_split(str(cfg.root), "val", cfg.val or "auto", cfg.format)
    index = open_index(
        path,
        root=str(cfg.root),
        outside_root=cfg.outside_root,
        cache_dir=cfg.cache_dir,
        classes=subject.classes,
        num_classes=subject.num_classes,
        warn=warn,
    )
    if index.classes and len(index.classes) != subject.num_classes:
        raise DataError(f"{path}: {len(index.classes)} class folders, but {file} has {subject.num_classes} classes")
    return index


def build_folded(recipe: Recipe, model: nn.Module, device: torch.device) -> FoldedNetwork:
    """A copy of the network with BatchNorms folded, tried at the size of the validation pictures."""
    side_px = build.build_geometry(recipe.data).size_px
    noise = torch.randn(1, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    return fold_batch_norm(model, noise.to(device))


def _describe_sources(sources: Mapping[str, str]) -> str:
    """`FILE; val_px from the command line`: the source of most keys first, then the others by name."""
    names = {COMMAND_LINE: "the command line", DEFAULT: "the default recipe, as the file does not say"}
    (most, _), *others = Counter(sources.values()).most_common()
    text = names.get(most, most)
    for source, _ in others:
        keys = ", ".join(key.removeprefix("data.") for key in sources if sources[key] == source)
        text += f"; {keys} from {names.get(source, source)}"
    return text
