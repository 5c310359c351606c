"""From a recipe to the objects of a run."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from cspnet.data.gpu_decode import GpuDecodingLoader, create_gpu_decoder
from cspnet.data.index import find_split, open_index
from cspnet.data.loader import BadImage, EvalLoader, EvalPictures, Reader, TrainLoader, TrainPictures, default_workers
from cspnet.data.mixing import Normalizer
from cspnet.data.sampler import BatchAddress, BatchPlan
from cspnet.data.samples import SampleIndex
from cspnet.data.transforms import EvalTransform, build_sizes, build_train_transform
from cspnet.errors import DataError, DeviceError, ModelError, RecipeError
from cspnet.evaluation.evaluate import evaluate
from cspnet.evaluation.metrics import EvalResult
from cspnet.models import create_model
from cspnet.models.darknet_cfg import CFG_PREFIX, read_cfg_text
from cspnet.models.depth import find_depths, freeze
from cspnet.models.network import CspNet
from cspnet.optim.ema import Ema
from cspnet.optim.optimizers import build_optimizer
from cspnet.recipe.batch import settle_batch, settle_eval_batch
from cspnet.recipe.schema import DataRecipe, Recipe
from cspnet.runtime.determinism import has_no_deterministic_form
from cspnet.runtime.distributed import World, on_main
from cspnet.runtime.memory import is_out_of_memory
from cspnet.runtime.random import integer_at
from cspnet.training.state import Sums, TrainState
from cspnet.weights import Preprocessing

__all__ = [
    "EvalGeometry",
    "Splits",
    "build_eval_loader",
    "build_geometry",
    "build_model",
    "build_network",
    "build_normalizer",
    "build_state",
    "build_train_loader",
    "build_validation",
    "convert_sync_bn",
    "embed_cfg",
    "geometry_values",
    "open_splits",
]


@dataclass(frozen=True)
class Splits:
    """The pictures of a run."""

    train: SampleIndex
    val: SampleIndex | None
    num_classes: int


@dataclass(frozen=True)
class EvalGeometry:
    """How a validation picture becomes the network's input; kept in every checkpoint."""

    size_px: int
    crop_ratio: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    exif: str

    def is_for(self, pictures: Preprocessing) -> bool:
        """Whether it makes the pictures that weights were made for."""
        return all(getattr(self, name) == value for name, value in vars(pictures).items())

    def has_colors_of(self, pictures: Preprocessing) -> bool:
        """Whether colours are normalised as for weights."""
        return (self.mean, self.std) == pictures.colors

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return (
            f"{self.size_px} px, crop ratio {self.crop_ratio:g}, {self.interpolation}, mean {mean}, std {std}, "
            f"EXIF orientation: {self.exif}"
        )


def build_geometry(cfg: DataRecipe) -> EvalGeometry:
    """The validation geometry of a recipe."""
    return EvalGeometry(cfg.val_px or cfg.train_px, cfg.crop_ratio, cfg.val_interpolation, cfg.mean, cfg.std, cfg.exif)


def geometry_values(preprocessing: Preprocessing) -> dict[str, Any]:
    """{dotted key of the recipe: value} of the pictures that weights were made for."""
    return {
        "data.val_px": preprocessing.size_px,
        "data.crop_ratio": preprocessing.crop_ratio,
        "data.val_interpolation": preprocessing.interpolation,
        "data.mean": list(preprocessing.mean),
        "data.std": list(preprocessing.std),
    }


def open_splits(recipe: Recipe, world: World, warn: Callable[[str], None] = lambda text: None) -> Splits:
    """Both splits' indexes: looked up by the first process, handed to all.

    Args:
        warn: told of an index that is older than its shards.
    Raises:
        DataError: no data set, or one that cannot be used.
        RecipeError: model.num_classes contradicts the data.
    """
    return on_main(world, lambda: _open_splits(recipe, warn))


def _open_splits(recipe: Recipe, warn: Callable[[str], None]) -> Splits:
    cfg = recipe.data
    root = cfg.root or (str(Path(cfg.train).parent) if os.path.isabs(cfg.train) else None)
    if root is None:
        raise DataError("data.root: no data set given; name the folder that holds train/ and val/ with --data-path DIR")
    train_path = find_split(root, "train", cfg.train, cfg.format)
    try:
        val_path = None if cfg.val is None else find_split(root, "val", cfg.val, cfg.format)
    except DataError as error:
        raise DataError(f"{error}; --val-split null trains without validation") from error
    asked = recipe.model.num_classes
    open_split = functools.partial(
        open_index, root=root, outside_root=cfg.outside_root, cache_dir=cfg.cache_dir, warn=warn
    )
    train = open_split(train_path, num_classes=asked)
    num_classes = len(train.classes) or asked or int(train.labels.max()) + 1
    if asked is not None and train.classes and asked != len(train.classes):
        raise RecipeError(
            f"model.num_classes: {asked}, but {train_path} has {len(train.classes)} class folders; "
            "leave it out to take theirs"
        )
    val = None
    if val_path is not None:
        val = open_split(val_path, classes=train.classes, num_classes=num_classes)
        if val.classes and not train.classes and len(val.classes) != num_classes:
            raise DataError(
                f"{val_path}: {len(val.classes)} class folders, but the training list has {num_classes} classes"
            )
    return Splits(train, val, num_classes)


def list_picture_folders(cfg: DataRecipe) -> list[Path]:
    """The folders whose files are the splits' pictures or shards. Both splits were opened before; a list has none."""
    root = cfg.root or str(Path(cfg.train).parent)
    splits = [("train", cfg.train), *([("val", cfg.val)] if cfg.val is not None else [])]
    paths = [find_split(root, kind, value, cfg.format) for kind, value in splits]
    return [path for path in paths if path.is_dir()]


def _workers(cfg: DataRecipe, world: World) -> int:
    return default_workers(world.local_size) if cfg.workers is None else cfg.workers


def build_train_loader(recipe: Recipe, splits: Splits, world: World, device: torch.device) -> TrainLoader:
    """The training batches of this process."""
    cfg = recipe.train
    plan = BatchPlan(len(splits.train), *settle_batch(cfg, world.size), world.size, cfg.seed, recipe.augment.repeats)
    pictures = TrainPictures(_build_reader(splits.train, recipe.data), build_train_transform(recipe), cfg.seed)
    how = (plan, world.rank, _workers(recipe.data, world), recipe.data.prefetch, device, recipe.data.timeout_s)
    if recipe.data.decoder == "gpu":
        return GpuDecodingLoader(pictures, *how, decode=create_gpu_decoder(device))
    return TrainLoader(pictures, *how)


def _build_reader(index: SampleIndex, cfg: DataRecipe) -> Reader:
    """How reading processes decode; what the GPU does not decode is decoded the fast way."""
    return Reader(index, cfg.exif, "pillow" if cfg.decoder == "pillow" else "fast")


def build_eval_loader(
    recipe: Recipe,
    index: SampleIndex,
    world: World,
    device: torch.device,
    *,
    micro_batch: int | None = None,
    one_batch: bool = False,
) -> EvalLoader:
    """The validation batches of this process; the rest as for `build_validation`."""
    batch_size = settle_eval_batch(recipe, micro_batch or settle_batch(recipe.train, 1)[0])
    return EvalLoader(
        _build_eval_pictures(recipe, index),
        batch_size,
        world.rank,
        world.size,
        _workers(recipe.data, world),
        recipe.data.prefetch,
        device,
        batch_size * world.size if one_batch else None,
        recipe.data.timeout_s,
    )


def _build_eval_pictures(recipe: Recipe, index: SampleIndex) -> EvalPictures:
    geometry = build_geometry(recipe.data)
    transform = EvalTransform(geometry.size_px, geometry.crop_ratio, geometry.interpolation)
    return EvalPictures(_build_reader(index, recipe.data), transform)


def take_sample(recipe: Recipe, index: SampleIndex, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Some validation pictures, from all over a split: (N, S, S, 3) uint8, and (N,) int64 labels, -1 for unreadable."""
    pictures = _build_eval_pictures(recipe, index)
    samples = np.linspace(0, len(index) - 1, min(count, len(index))).round().astype(np.int64)
    pixels = np.empty((len(samples), pictures.max_px, pictures.max_px, 3), np.uint8)
    labels, _, _ = pictures.fill(BatchAddress(0, samples, samples), pixels)
    return pixels, labels


def build_validation(
    recipe: Recipe,
    index: SampleIndex,
    *,
    world: World,
    device: torch.device,
    amp_dtype: torch.dtype,
    report_bad: Callable[[list[BadImage]], None],
    micro_batch: int | None = None,
    one_batch: bool = False,
) -> Callable[..., EvalResult]:
    """`evaluate` of a raw model (and its `between`) on a split; other `batches` of it may be given in the call.

    Args:
        micro_batch: pictures of a forward pass in training, where there is one.
        one_batch: on one batch per process only.
    """
    loader = build_eval_loader(recipe, index, world, device, micro_batch=micro_batch, one_batch=one_batch)
    return functools.partial(
        evaluate,
        batches=loader,
        common_batches=loader.common_batches,
        num_samples=loader.num_samples,
        prepare=build_normalizer(recipe, device),
        device=device,
        amp_dtype=amp_dtype,
        world=world,
        report_bad=report_bad,
    )


def build_normalizer(recipe: Recipe, device: torch.device) -> Normalizer:
    """uint8 pictures to the network's input."""
    return Normalizer(recipe.data.mean, recipe.data.std, device, recipe.train.channels_last)


def embed_cfg(recipe: Recipe) -> Recipe:
    """The recipe with the text of its `cfg/<file>` network inside, so that run and checkpoints are complete alone.

    Raises:
        ModelError: the file cannot be read.
    """
    model = recipe.model
    if not model.name.startswith(CFG_PREFIX) or "text" in model.options:
        return recipe
    return replace(recipe, model=replace(model, options={**model.options, "text": read_cfg_text(model.name)}))


def build_model(recipe: Recipe, num_classes: int, device: torch.device) -> nn.Module:
    """The raw model, initialised from the recipe's seed, on its device.

    Raises:
        ModelError: unknown, or it cannot do what the recipe asks.
    """
    torch.manual_seed(integer_at(recipe.train.seed, "initial weights"))
    model = create_model(recipe.model.name, num_classes, **recipe.model.options)
    if recipe.train.grad_checkpointing:
        enable = getattr(model, "set_grad_checkpointing", None)
        if not callable(enable):
            raise ModelError(f"train.grad_checkpointing: {recipe.model.name} has no such mode")
        enable()
    memory_format = torch.channels_last if recipe.train.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    _check_input(recipe, model, device)
    return model


def _check_input(recipe: Recipe, model: nn.Module, device: torch.device) -> None:
    """Try the model on blank pictures: does it take these sizes and three colours?

    Raises:
        ModelError: it does not.
    """
    in_chs = model.spec.in_chs if isinstance(model, CspNet) else getattr(model, "in_chs", 3)
    if in_chs != 3:
        raise ModelError(f"model {recipe.model.name}: takes pictures of {in_chs} channels; those of a data set have 3")
    model.eval()
    try:
        data = recipe.data
        for side in sorted({*build_sizes(data).sizes(), data.train_px, data.val_px or data.train_px}):
            with torch.inference_mode():
                model(torch.zeros(1, 3, side, side, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        if is_out_of_memory(error) or has_no_deterministic_form(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"model {recipe.model.name}: cannot take RGB pictures of {side} px: {reason}") from error
    finally:
        model.train()


def build_network(
    model: nn.Module, world: World, device: torch.device, *, compile_mode: str | None = None
) -> nn.Module:
    """The view of the model that is trained: itself, or data parallel (one gradient exchange a step, rank 0's buffers
    for all), and compiled in that mode or not at all. The weights are the model's own."""
    if world.size == 1:
        return cast(nn.Module, torch.compile(model, mode=compile_mode)) if compile_mode is not None else model
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.process_group = world.group  # nccl wants all that goes on at the same time in one group
    # No static_graph: it fails where gradients are accumulated (pytorch issue 143580), and what it saves is the search
    # for unused parameters, which is off. Buckets have torch's size, 25 MiB: docs/SCALING.md reckons with it.
    network = nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        process_group=world.group,
        gradient_as_bucket_view=True,
    )
    if compile_mode is not None:
        network.compile(mode=compile_mode)  # in place: it stays DDP, which the step asks to keep quiet
    return network


def convert_sync_bn(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with BatchNorm statistics over all processes.

    Raises:
        DeviceError: not on a GPU, the only place where PyTorch has them.
    """
    if device.type != "cuda":
        raise DeviceError(
            f"train.sync_bn: PyTorch synchronises BatchNorm on GPUs only, and the device is {device.type}"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def build_state(
    recipe: Recipe, model: nn.Module, world: World, device: torch.device, amp_dtype: torch.dtype
) -> TrainState:
    """A fresh state; every process's random generator starts at an address of its own.

    Raises:
        ModelError: there are not as many parts as are to be frozen.
    """
    torch.manual_seed(integer_at(recipe.train.seed, "torch", world.rank))
    frozen = freeze(model, recipe.model.freeze)
    return TrainState(
        model=model,
        optimizer=build_optimizer(model, recipe.optim, find_depths(model)),
        ema=Ema(model, recipe.ema.decay, recipe.ema.warmup) if recipe.ema.decay else None,
        scaler=torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16),
        window=Sums(device),
        epoch_sums=Sums(device),
        frozen=frozen,
    )
