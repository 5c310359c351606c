"""What one field of a recipe cannot say alone: settings that contradict each other, or that wait for another one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields

from cspnet.recipe.schema import DarknetRecipe, Recipe

__all__ = ["check_recipe", "list_idle"]

_RANDAUGMENT = re.compile(  # timm passes over what it does not know, and clips a magnitude above 10
    r"rand(-(m([0-9]|10)|n[1-9]\d*|(mmax|inc)\d+|mstd\d+(\.\d+)?|p(0(\.\d+)?|1(\.0+)?)))*"
)
_OWN_ARGUMENTS = {"name", "num_classes", "features_only", "out_indices", "model_name", "pretrained"}


def check_recipe(recipe: Recipe) -> tuple[str, str] | None:
    """What cannot be said by one field alone: (key, problem), or None when all is well."""
    if taken := _OWN_ARGUMENTS & recipe.model.options.keys():
        return "model.options", f"{taken.pop()} is not an option of the network; it is set elsewhere"
    if recipe.schedule.warmup_epochs and recipe.schedule.warmup_steps:
        return "schedule.warmup_steps", "the warm-up has a length in epochs as well; set one of the two to 0"
    if recipe.optim.lr_base_size is None and recipe.schedule.min_lr > recipe.optim.lr:
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
    if data.start_px not in (None, data.train_px) and data.ramp_epochs[1] == 0:
        return "data.start_px", "needs data.ramp_epochs, the epochs in which the pictures grow, such as [0, 80]"
    smallest_px = data.start_px or data.train_px
    if data.train_crop == "random_pad" and data.pad_with == "reflect" and data.pad_px >= smallest_px:
        return "data.pad_px", f"{data.pad_px} px of a picture of {smallest_px} px cannot be mirrored; use less"
    if data.flip == "alternate" and augment.repeats > 1:
        return "data.flip", "alternate would show all copies of augment.repeats the same way; use random"
    policy = augment.policy
    if policy not in (None, "3a", "trivial") and not _RANDAUGMENT.fullmatch(str(policy)):
        return "augment.policy", f"{policy!r}: expected such as rand-m9-n2-mstd0.5-inc1, or 3a, or trivial"
    return _check_gpu_decoder(recipe)


def _check_gpu_decoder(recipe: Recipe) -> tuple[str, str] | None:
    """What works on the pixels in the reading processes has none there when the GPU decodes."""
    data, augment = recipe.data, recipe.augment
    if data.decoder != "gpu":
        return None
    for key, value, does in (
        ("data.train_crop", data.train_crop, data.train_crop == "random_resized"),
        ("data.train_interpolation", data.train_interpolation, data.train_interpolation in ("bilinear", "bicubic")),
        ("augment.policy", augment.policy, augment.policy is None),
        ("augment.color_jitter", augment.color_jitter, not augment.color_jitter),
    ):
        if not does:
            return "data.decoder", f"gpu does not do {key} {value}; use fast, or another {key.split('.')[1]}"
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
    if recipe.loss.bce_threshold == 0 and recipe.loss.smoothing:
        return "loss.bce_threshold", "with loss.smoothing every class has a share above 0, and would count as present"
    return None


def _has_warmup(recipe: Recipe) -> bool:
    return bool(recipe.schedule.warmup_steps or recipe.schedule.warmup_epochs)


# (keys, what they need to count, whether they have it)
_NEEDS: tuple[tuple[tuple[str, ...], str, Callable[[Recipe], bool]], ...] = (
    (
        tuple(f"darknet.{field.name}" for field in fields(DarknetRecipe)),
        "data.train_crop darknet",
        lambda recipe: recipe.data.train_crop == "darknet",
    ),
    (
        ("data.train_scale", "data.train_aspect"),
        "data.train_crop random_resized",
        lambda recipe: recipe.data.train_crop == "random_resized",
    ),
    (
        ("data.pad_px", "data.pad_with"),
        "data.train_crop random_pad",
        lambda recipe: recipe.data.train_crop == "random_pad",
    ),
    (("data.flip_prob",), "data.flip random", lambda recipe: recipe.data.flip == "random"),
    (
        ("data.train_interpolation",),
        "another data.train_crop than darknet",
        lambda recipe: recipe.data.train_crop != "darknet",
    ),
    (("train.accumulate",), "no train.global_batch beside it", lambda recipe: recipe.train.global_batch is None),
    (("augment.erase_count",), "augment.erase_prob", lambda recipe: recipe.augment.erase_prob > 0),
    (
        ("mix.prob",),
        "mix.cutmix_alpha or mix.mixup_alpha",
        lambda recipe: bool(recipe.mix.cutmix_alpha or recipe.mix.mixup_alpha),
    ),
    (
        ("mix.switch_prob",),
        "mix.cutmix_alpha and mix.mixup_alpha",
        lambda recipe: bool(recipe.mix.cutmix_alpha and recipe.mix.mixup_alpha),
    ),
    (("mix.off_epoch",), "mixing or mix.blur_px", lambda recipe: recipe.mix.is_on),
    (("loss.smoothing_over",), "loss.smoothing", lambda recipe: recipe.loss.smoothing > 0),
    (
        ("optim.momentum",),
        "optim.name sgd or rmsprop_tf",
        lambda recipe: recipe.optim.name in ("sgd", "rmsprop_tf"),
    ),
    (("optim.alpha",), "optim.name rmsprop_tf", lambda recipe: recipe.optim.name == "rmsprop_tf"),
    (("optim.betas",), "optim.name adamw or lamb", lambda recipe: recipe.optim.name in ("adamw", "lamb")),
    (
        ("schedule.step_epochs",),
        "schedule.name step or exponential",
        lambda recipe: recipe.schedule.name in ("step", "exponential"),
    ),
    (("schedule.milestones_epochs",), "schedule.name multistep", lambda recipe: recipe.schedule.name == "multistep"),
    (
        ("schedule.gamma",),
        "schedule.name step, multistep or exponential",
        lambda recipe: recipe.schedule.name in ("step", "multistep", "exponential"),
    ),
    (
        ("schedule.power",),
        "schedule.name poly or darknet_poly",
        lambda recipe: recipe.schedule.name in ("poly", "darknet_poly"),
    ),
    (("schedule.warmup_lr", "schedule.warmup_power"), "a warm-up", _has_warmup),
    (
        ("mix.cutmix_alpha", "mix.mixup_alpha"),
        "mix.prob above 0",
        lambda recipe: recipe.mix.prob > 0,
    ),
    (
        ("schedule.min_lr", "schedule.decay_from"),
        "another schedule.name than constant",
        lambda recipe: recipe.schedule.name != "constant",
    ),
    (
        ("log.pictures", "log.histograms", "log.graph"),
        "log.tensorboard",
        lambda recipe: recipe.log.tensorboard,
    ),
    (("train.compile_mode",), "train.compile", lambda recipe: recipe.train.compile),
    (("ema.warmup",), "ema.decay", lambda recipe: recipe.ema.decay > 0),
)


def list_idle(recipe: Recipe) -> list[tuple[str, str]]:
    """[(key, what it needs)] of the settings that differ from the default and do nothing in this recipe."""
    default = Recipe()

    def differs(key: str) -> bool:
        section, name = key.split(".")
        return bool(getattr(getattr(recipe, section), name) != getattr(getattr(default, section), name))

    return [(key, needs) for keys, needs, has in _NEEDS if not has(recipe) for key in keys if differs(key)]
