#!/usr/bin/env python3
"""Train a recipe through timm's own parts: its data set, loader, transforms, Mixup, losses, optimizer and schedule.

    python3 scripts/train_with_timm.py --recipe FILE --data-path DIR --output-dir DIR [--seed 1] [--epochs 5]

The network and the settings are the recipe's; everything between the pictures and the weights is timm's. It is there
to compare our parts with theirs (scripts/repeat_runs.py --with-timm), so it knows plain recipes only (crops, flips,
CutMix, Mixup, smoothing, SGD, cosine), one process, and no checkpoints. A setting it does not know is an error.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cspnet.runtime.signals import leaving_at_signals

with leaving_at_signals({signal.SIGINT: 130}, "train_with_timm.py"):  # these take seconds
    import torch
    from torch import Tensor, nn

    from cspnet.cli.flags import FlagParser, add_recipe_flags, non_empty_path, read_overrides, run_door
    from cspnet.data.index import find_split
    from cspnet.errors import EXIT_DONE, DataError, UserError
    from cspnet.models import create_model
    from cspnet.recipe.batch import settled_size
    from cspnet.recipe.load import list_differences, load_recipe
    from cspnet.recipe.schema import Recipe
    from cspnet.runtime.device import choose_amp_dtype, choose_device
    from cspnet.runtime.files import write_atomically

KNOWN = {
    "model.name",
    "model.num_classes",
    "model.options",
    "data.root",
    "data.train",
    "data.val",
    "data.cache_dir",
    "data.train_px",
    "data.val_px",
    "data.train_scale",
    "data.train_aspect",
    "data.flip_prob",
    "data.crop_ratio",
    "data.mean",
    "data.std",
    "data.workers",
    "mix.cutmix_alpha",
    "mix.mixup_alpha",
    "mix.prob",
    "mix.switch_prob",
    "loss.smoothing",
    "optim.lr",
    "optim.momentum",
    "optim.nesterov",
    "optim.weight_decay",
    "optim.decay_norm_and_bias",
    "schedule.name",
    "schedule.min_lr",
    "schedule.warmup_epochs",
    "schedule.warmup_steps",
    "schedule.warmup_lr",
    "train.batch_size",
    "train.epochs",
    "train.device",
    "train.precision",
    "train.channels_last",
    "train.seed",
    "eval.batch_size",
    "eval.every_epochs",
    "log.every_steps",
    "log.tensorboard",
}
"""Settings that are followed, and those of our own files and screen, which change no result."""


def check_recipe(recipe: Recipe) -> None:
    """Raises UserError for a setting that timm's parts would not follow here."""
    for key, _, value in list_differences({}, recipe):
        if key not in KNOWN:
            raise UserError(f"{key}: {value}: is not among the settings that are compared with timm")
    if recipe.schedule.name != "cosine":
        raise UserError(f"schedule.name: {recipe.schedule.name}: only cosine is compared with timm")
    if recipe.data.val is None:
        raise UserError("data.val: a comparison needs a validation split")
    if recipe.train.batch_size == "auto":
        raise UserError("train.batch_size: auto: give a number, so that both train with the same batches")


def create_loader(recipe: Recipe, split: str, device: torch.device, batch_size: int) -> Any:
    """timm's loader of a split; what it yields is (N, 3, H, W) float32, (N,) int64."""
    from timm.data import create_dataset
    from timm.data import create_loader as timm_loader

    data = recipe.data
    assert data.root is not None and data.val is not None
    is_training = split == "train"
    path = find_split(data.root, split, data.train if is_training else data.val, data.format)
    if not path.is_dir():
        raise DataError(f"{path}: only folders of class folders are compared with timm")
    return timm_loader(
        create_dataset("", root=str(path)),
        input_size=data.train_px if is_training else data.val_px or data.train_px,
        batch_size=batch_size,
        is_training=is_training,
        scale=data.train_scale,
        ratio=data.train_aspect,
        hflip=data.flip_prob,
        color_jitter=0.0,
        interpolation=data.train_interpolation if is_training else data.val_interpolation,
        mean=data.mean,
        std=data.std,
        num_workers=2 if data.workers is None else data.workers,
        crop_pct=data.crop_ratio,
        pin_memory=device.type == "cuda",
        use_prefetcher=False,
        persistent_workers=bool(data.workers is None or data.workers),
    )


def create_criterion(recipe: Recipe, num_classes: int) -> tuple[Callable[..., Any] | None, nn.Module]:
    """timm's Mixup or None, and the loss that goes with it."""
    from timm.data import Mixup
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    mix, smoothing = recipe.mix, recipe.loss.smoothing
    if not (mix.cutmix_alpha or mix.mixup_alpha):
        return None, LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()
    mixup = Mixup(
        mixup_alpha=mix.mixup_alpha,
        cutmix_alpha=mix.cutmix_alpha,
        prob=mix.prob,
        switch_prob=mix.switch_prob,
        label_smoothing=smoothing,
        num_classes=num_classes,
    )
    return mixup, SoftTargetCrossEntropy()


@torch.inference_mode()
def validate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], forward: Callable[[Tensor], Tensor]) -> float:
    """Acc@1 in percent, by timm's count."""
    from timm.utils import AverageMeter, accuracy

    model.eval()
    meter = AverageMeter()
    for images, targets in batches:
        (acc1,) = accuracy(forward(images), targets.to(next(model.parameters()).device))
        meter.update(float(acc1), len(images))
    model.train()
    return float(meter.avg)


def train(recipe: Recipe) -> float:
    """The whole run; Acc@1 of its last weights, in percent."""
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import random_seed

    cfg = recipe.train
    device = choose_device(cfg.device, 0)
    amp_dtype = choose_amp_dtype(cfg.precision, device)
    random_seed(cfg.seed)
    batch_size = settled_size(cfg)
    loader = create_loader(recipe, "train", device, batch_size)
    val_loader = create_loader(recipe, "val", device, recipe.eval.batch_size or batch_size)
    num_classes = len(loader.dataset.reader.class_to_idx)
    memory_format = torch.channels_last if cfg.channels_last else torch.contiguous_format
    model = create_model(recipe.model.name, num_classes, **recipe.model.options)
    model = model.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    mixup, loss_fn = create_criterion(recipe, num_classes)
    optimizer = create_optimizer_v2(
        model,
        opt="sgd" if recipe.optim.nesterov else "momentum",
        lr=recipe.optim.lr,
        weight_decay=recipe.optim.weight_decay,
        momentum=recipe.optim.momentum,
        filter_bias_and_bn=not recipe.optim.decay_norm_and_bias,
    )
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=cfg.epochs * len(loader),
        lr_min=recipe.schedule.min_lr,
        warmup_t=recipe.schedule.warmup_steps or round(recipe.schedule.warmup_epochs * len(loader)),
        warmup_lr_init=recipe.schedule.warmup_lr,
        t_in_epochs=False,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16)

    def forward(images: Tensor) -> Tensor:
        images = images.to(device, memory_format=memory_format, non_blocking=True)
        with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not torch.float32):
            return model(images).float()

    step, started_s = 0, time.perf_counter()
    schedule.step_update(0)
    for epoch in range(cfg.epochs):
        for images, targets in loader:
            if mixup is not None:
                images, targets = mixup(images, targets)
            scaler.scale(loss_fn(forward(images), targets.to(device))).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            step += 1
            schedule.step_update(step)
        elapsed_s = time.perf_counter() - started_s
        print(f"epoch {epoch + 1}/{cfg.epochs}: {step * batch_size / elapsed_s:.0f} img/s", flush=True)
    return validate(model, val_loader, forward)


def main() -> int:
    """The command line."""
    parser = FlagParser(prog="train_with_timm.py", description=__doc__)
    parser.add_argument("--recipe", required=True, type=non_empty_path, metavar="FILE", help="recipe to train by")
    parser.add_argument("--output-dir", required=True, type=non_empty_path, metavar="DIR", help="gets metrics.jsonl")
    add_recipe_flags(parser)
    args = parser.parse_all(sys.argv[1:])
    recipe = load_recipe(args.recipe, read_overrides(args)).recipe
    check_recipe(recipe)
    if recipe.data.root is None:
        raise DataError("data.root: no data set given; name the folder that holds train/ and val/ with --data-path DIR")
    records = args.output_dir / "metrics.jsonl"
    if records.exists():
        raise UserError(f"{args.output_dir}: already holds a run; choose another folder")
    acc1 = train(recipe)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(records, (json.dumps({"epoch": recipe.train.epochs, "val/acc1": acc1}) + "\n").encode())
    print(f" * Acc@1 {acc1:.3f}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_door("train_with_timm.py", main))
