"""What one field of a recipe cannot say alone: settings that contradict each other."""

from __future__ import annotations

import re

from cspnet.recipe.schema import Recipe

__all__ = ["check_recipe"]

_RANDAUGMENT = re.compile(r"rand(-((m|n|mmax|inc)\d+|(p|mstd)\d+(\.\d+)?))*")  # timm passes over what it does not know
_OWN_ARGUMENTS = {"name", "num_classes", "features_only", "out_indices", "model_name", "pretrained"}


def check_recipe(recipe: Recipe) -> tuple[str, str] | None:
    """What cannot be said by one field alone: (key, problem), or None when all is well."""
    if taken := _OWN_ARGUMENTS & recipe.model.options.keys():
        return "model.options", f"{taken.pop()} is not an option of the network; it is set elsewhere"
    if recipe.schedule.warmup_epochs and recipe.schedule.warmup_steps:
        return "schedule.warmup_steps", "the warm-up has a length in epochs as well; set one of the two to 0"
    if recipe.schedule.min_lr > recipe.optim.lr:
        return "schedule.min_lr", f"{recipe.schedule.min_lr} is above optim.lr, {recipe.optim.lr}"
    return _check_optim(recipe) or _check_schedule(recipe) or _check_pictures(recipe) or _check_mix(recipe)


def _check_optim(recipe: Recipe) -> tuple[str, str] | None:
    cfg = recipe.optim
    if cfg.nesterov and cfg.name != "sgd":
        return "optim.nesterov", f"{cfg.name} has no such form; use sgd"
    if cfg.nesterov and not cfg.momentum:
        return "optim.nesterov", "needs optim.momentum above 0"
    if cfg.eps is not None and cfg.name == "sgd":
        return "optim.eps", "sgd has no such term; leave it out"
    return None


def _check_schedule(recipe: Recipe) -> tuple[str, str] | None:
    cfg = recipe.schedule
    if cfg.name == "multistep" and not cfg.milestones_epochs:
        return "schedule.name", "multistep needs schedule.milestones_epochs, such as [30, 60, 90]"
    if list(cfg.milestones_epochs) != sorted(set(cfg.milestones_epochs)):
        return "schedule.milestones_epochs", "expected rising numbers"
    if cfg.name == "darknet_poly":
        for key, value, default in (
            ("warmup_lr", cfg.warmup_lr, 0.0),
            ("min_lr", cfg.min_lr, 0.0),
            ("decay_from", cfg.decay_from, "start"),
            ("warmup_power", cfg.warmup_power, 1.0),
        ):
            if value != default:
                return f"schedule.{key}", "darknet_poly has no such setting; leave it out or use poly"
    return None


def _check_pictures(recipe: Recipe) -> tuple[str, str] | None:
    data, darknet, augment = recipe.data, recipe.darknet, recipe.augment
    if darknet.min_crop_px > darknet.max_crop_px:
        return "darknet.min_crop_px", f"{darknet.min_crop_px} is above darknet.max_crop_px, {darknet.max_crop_px}"
    if data.start_px is not None and data.start_px > data.train_px:
        return "data.start_px", f"{data.start_px} is above data.train_px, {data.train_px}"
    if data.start_px is None and data.ramp_epochs != (0, 0):
        return "data.ramp_epochs", "needs data.start_px, the size at the start"
    policy = augment.policy
    if policy not in (None, "3a", "trivial") and not _RANDAUGMENT.fullmatch(str(policy)):
        return "augment.policy", f"{policy!r}: expected such as rand-m9-n2-mstd0.5-inc1, or 3a, or trivial"
    return None


def _check_mix(recipe: Recipe) -> tuple[str, str] | None:
    cfg = recipe.mix
    if cfg.darknet != "none" and (cfg.cutmix_alpha or cfg.mixup_alpha):
        return "mix.darknet", f"{cfg.darknet} comes instead of CutMix and Mixup; set the alphas of these to 0"
    # Smaller kernels are not what the formula gives in OpenCV, which Darknet blurs with, but fixed tables.
    if cfg.blur_px > 1 and (cfg.blur_px < 9 or cfg.blur_px % 2 == 0):
        return "mix.blur_px", f"{cfg.blur_px}: expected 0, 1 (which means 15), or an odd number from 9 on"
    smallest_px = recipe.data.start_px or recipe.data.train_px
    if (15 if cfg.blur_px == 1 else cfg.blur_px) // 2 >= smallest_px:
        return "mix.blur_px", f"{cfg.blur_px} is too large for pictures of {smallest_px} px"
    if recipe.loss.bce_threshold is not None and recipe.loss.name != "bce":
        return "loss.bce_threshold", "is for loss.name bce"
    return None
