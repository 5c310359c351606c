"""Where a value comes from, what is refused and how it is said, and that a saved recipe reads back as it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from cspnet.cli.flags import read_overrides
from cspnet.cli.train import create_parser
from cspnet.errors import RecipeError
from cspnet.recipe.aliases import ALIASES, CONSTANT_FLAGS
from cspnet.recipe.load import (
    COMMAND_LINE,
    DEFAULT,
    field_table,
    format_recipe,
    list_differences,
    load_recipe,
    recipe_to_values,
    recipe_to_yaml,
)
from cspnet.recipe.schema import Recipe

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("**/*.yaml"))

# Every field, with a text for the command line and the value it stands for: not the default, if there is another.
OTHER_VALUES: dict[str, tuple[str, Any]] = {
    "model.name": ("cspresnet50", "cspresnet50"),
    "model.num_classes": ("7", 7),
    "model.options": ("{drop_rate: 0.2, activation: mish}", {"drop_rate": 0.2, "activation": "mish"}),
    "model.pretrained": ("weights.pth", "weights.pth"),
    "model.pretrained_source": ("timm", "timm"),
    "model.pretrained_classes": ("7", 7),
    "data.root": ("/data/imagenet", "/data/imagenet"),
    "data.format": ("list", "list"),
    "data.train": ("my_train", "my_train"),
    "data.val": ("null", None),
    "model.freeze": ("backbone", "backbone"),
    "data.outside_root": ("true", True),
    "data.cache_dir": ("/tmp/cache", "/tmp/cache"),
    "data.train_px": ("96", 96),
    "data.val_px": ("128", 128),
    "data.start_px": ("64", 64),
    "data.ramp_epochs": ("[3, 7]", (3, 7)),
    "data.train_crop": ("random_pad", "random_pad"),
    "data.train_scale": ("[0.25, 0.75]", (0.25, 0.75)),
    "data.train_aspect": ("[0.5, 2]", (0.5, 2.0)),
    "data.pad_px": ("0", 0),
    "data.pad_with": ("reflect", "reflect"),
    "data.flip": ("alternate", "alternate"),
    "data.flip_prob": ("0", 0.0),
    "data.train_interpolation": ("bicubic", "bicubic"),
    "data.val_interpolation": ("bicubic", "bicubic"),
    "data.crop_ratio": ("1", 1.0),
    "data.mean": ("[0.5, 0.5, 0.25]", (0.5, 0.5, 0.25)),
    "data.std": ("[0.5, 0.5, 0.25]", (0.5, 0.5, 0.25)),
    "data.exif": ("ignore", "ignore"),
    "data.decoder": ("pillow", "pillow"),
    "data.shrink": ("false", False),
    "data.bad_images": ("raise", "raise"),
    "data.workers": ("0", 0),
    "data.prefetch": ("2", 2),
    "data.timeout_s": ("30.5", 30.5),
    "mix.cutmix_alpha": ("1.0", 1.0),
    "darknet.min_crop_px": ("100", 100),
    "darknet.max_crop_px": ("500", 500),
    "darknet.angle_deg": ("3", 3.0),
    "darknet.aspect": ("0.5", 0.5),
    "darknet.hue": ("0.05", 0.05),
    "darknet.saturation": ("0.6", 0.6),
    "darknet.exposure": ("1", 1.0),
    "augment.policy": ("rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5-inc1"),
    "augment.color_jitter": ("0.3", 0.3),
    "augment.erase_prob": ("0.25", 0.25),
    "augment.erase_count": ("3", 3),
    "augment.repeats": ("2", 2),
    "mix.mixup_alpha": ("0.2", 0.2),
    "mix.prob": ("0.5", 0.5),
    "mix.switch_prob": ("0.25", 0.25),
    "mix.off_epoch": ("8", 8),
    "mix.darknet": ("mosaic", "mosaic"),
    "mix.blur_px": ("15", 15),
    "loss.name": ("bce", "bce"),
    "loss.smoothing": ("0.1", 0.1),
    "loss.smoothing_over": ("others", "others"),
    "loss.bce_threshold": ("0.2", 0.2),
    "adversarial.lr": ("1", 1.0),
    "optim.name": ("lamb", "lamb"),
    "optim.lr": ("2e-1", 0.2),
    "optim.lr_base_size": ("256", 256),
    "optim.momentum": ("0.5", 0.5),
    "optim.nesterov": ("true", True),
    "optim.alpha": ("0.95", 0.95),
    "optim.betas": ("[0.8, 0.99]", (0.8, 0.99)),
    "optim.eps": ("1e-5", 0.00001),
    "optim.weight_decay": ("5e-4", 0.0005),
    "optim.decay_norm_and_bias": ("false", False),
    "optim.layer_decay": ("0.75", 0.75),
    "optim.clip_norm": ("5", 5.0),
    "schedule.name": ("cosine", "cosine"),
    "schedule.step_epochs": ("2.5", 2.5),
    "schedule.milestones_epochs": ("[30, 60.5]", (30.0, 60.5)),
    "schedule.gamma": ("0.5", 0.5),
    "schedule.power": ("2", 2.0),
    "schedule.min_lr": ("1e-5", 0.00001),
    "schedule.warmup_epochs": ("5", 5.0),
    "schedule.warmup_steps": ("100", 100),
    "schedule.warmup_lr": ("1e-6", 0.000001),
    "schedule.warmup_power": ("4", 4.0),
    "schedule.decay_from": ("warmup_end", "warmup_end"),
    "ema.decay": ("0.999", 0.999),
    "ema.warmup": ("true", True),
    "train.batch_size": ("16", 16),
    "train.accumulate": ("4", 4),
    "train.global_batch": ("256", 256),
    "train.max_skipped": ("4", 4),
    "train.micro_batch": ("auto", "auto"),
    "train.compile": ("true", True),
    "train.compile_mode": ("max-autotune", "max-autotune"),
    "train.deterministic": ("true", True),
    "train.epochs": ("3", 3),
    "train.steps": ("500", 500),
    "train.device": ("cpu", "cpu"),
    "train.precision": ("fp32", "fp32"),
    "train.channels_last": ("false", False),
    "train.grad_checkpointing": ("true", True),
    "train.sync_bn": ("true", True),
    "train.timeout_s": ("30", 30.0),
    "train.seed": ("7", 7),
    "eval.batch_size": ("500", 500),
    "eval.every_epochs": ("2", 2),
    "log.every_steps": ("10", 10),
    "log.tensorboard": ("false", False),
    "log.pictures": ("0", 0),
    "log.histograms": ("true", True),
    "log.graph": ("true", True),
    "checkpoint.every_steps": ("0", 0),
    "checkpoint.keep": ("9", 9),
    "checkpoint.keep_best": ("4", 4),
    "checkpoint.max_failures": ("7", 7),
}

# What a setting makes sense with; it comes from a layer below.
NEEDS: dict[str, dict[str, Any]] = {
    "data.start_px": {"data.ramp_epochs": [0, 5]},
    "data.ramp_epochs": {"data.start_px": 64},
    "loss.bce_threshold": {"loss.name": "bce"},
    "optim.eps": {"optim.name": "adamw"},
}


def write_recipe(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def error_of(path: Path | None, overrides: dict[str, Any] | None = None) -> str:
    """The message of the RecipeError, which must be one line."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides or {})
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


def parse_flags(*argv: str) -> dict[str, Any]:
    return read_overrides(create_parser().parse_all(argv))


# The default recipe and the shipped ones


def test_defaults_are_the_cspdarknet53_recipe() -> None:
    recipe = load_recipe(None).recipe
    assert recipe.model.name == "cspdarknet53"
    assert (recipe.optim.momentum, recipe.optim.lr) == (0.9, 0.1)
    assert recipe.data.train_px == 224
    assert recipe.data.val_px in (None, 224)
    assert recipe.schedule.name == "step"
    assert recipe == Recipe()


def test_recipes_are_shipped() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_loads(path: Path) -> None:
    resolved = load_recipe(path)
    assert any(source.startswith(str(path.parent)) for source in resolved.sources.values()), "all from the defaults"


# Layers


def test_last_layer_wins_and_is_named(tmp_path: Path) -> None:
    grandparent = write_recipe(
        tmp_path / "shared" / "deep" / "grandparent.yaml",
        "optim: {lr: 0.2, momentum: 0.2, weight_decay: 0.2}\ntrain: {epochs: 2}\n",
    )
    parent = write_recipe(
        tmp_path / "shared" / "parent.yaml",
        "base: deep/grandparent.yaml\noptim: {lr: 0.3, momentum: 0.3, weight_decay: 0.3}\n",
    )
    child = write_recipe(
        tmp_path / "mine" / "child.yaml", "base: ../shared/parent.yaml\noptim: {lr: 0.4, momentum: 0.4}\n"
    )
    resolved = load_recipe(child, {"optim.lr": 0.5})
    expected = {
        "optim.lr": (0.5, COMMAND_LINE),
        "optim.momentum": (0.4, child),
        "optim.weight_decay": (0.3, parent),
        "train.epochs": (2, grandparent),
        "train.seed": (42, DEFAULT),
    }
    values = recipe_to_values(resolved.recipe)
    for key, (value, source) in expected.items():
        assert values[key] == value, key
        named = resolved.sources[key]
        assert named == source if isinstance(source, str) else Path(named).resolve() == source.resolve(), key
    assert set(resolved.sources) == set(field_table())


def test_base_is_relative_to_the_file_not_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(tmp_path / "recipes" / "base.yaml", "train: {epochs: 5}\n")
    child = write_recipe(tmp_path / "recipes" / "child.yaml", "base: base.yaml\n")
    write_recipe(tmp_path / "elsewhere" / "base.yaml", "train: {epochs: 6}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_recipe(child).recipe.train.epochs == 5
    assert load_recipe(Path("../recipes/child.yaml")).recipe.train.epochs == 5


def test_layers_below_the_file(tmp_path: Path) -> None:
    file = write_recipe(tmp_path / "a.yaml", "optim: {lr: 0.3}\n")
    resolved = load_recipe(file, {}, [("a checkpoint", {"optim.lr": 0.2, "optim.momentum": 0.2})])
    assert (resolved.recipe.optim.lr, resolved.recipe.optim.momentum) == (0.3, 0.2)
    assert resolved.sources["optim.momentum"] == "a checkpoint"


@pytest.mark.parametrize("length", [1, 2, 3])
def test_base_cycle(tmp_path: Path, length: int) -> None:
    for i in range(length):
        write_recipe(tmp_path / f"{i}.yaml", f"base: {(i + 1) % length}.yaml\n")
    message = error_of(tmp_path / "0.yaml")
    assert "base" in message
    assert f"{length - 1}.yaml" in message


def test_the_same_base_twice_in_a_chain_of_different_folders_is_no_cycle(tmp_path: Path) -> None:
    write_recipe(tmp_path / "same.yaml", "train: {epochs: 3}\n")
    write_recipe(tmp_path / "sub" / "same.yaml", "base: ../same.yaml\n")
    assert load_recipe(tmp_path / "sub" / "same.yaml").recipe.train.epochs == 3


def test_missing_base_is_named(tmp_path: Path) -> None:
    message = error_of(write_recipe(tmp_path / "child.yaml", "base: nowhere.yaml\n"))
    assert "nowhere.yaml" in message
    assert "child.yaml: base: no such file" in message


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert "gone.yaml" in error_of(tmp_path / "gone.yaml")


@pytest.mark.parametrize("base", ["[a.yaml]", "3", "{a: b}", "true"])
def test_base_must_be_a_path(tmp_path: Path, base: str) -> None:
    assert "base: expected" in error_of(write_recipe(tmp_path / "child.yaml", f"base: {base}\n"))


# What is refused

UNKNOWN_KEYS = {
    "optim: {lerning_rate: 0.1}": ("optim.lerning_rate: unknown key", "did you mean optim.lr?"),
    "optim: {learning_rate: 0.1}": ("optim.learning_rate: unknown key", "did you mean optim.lr?"),
    "optim: {weight_decy: 0.1}": ("optim.weight_decy: unknown key", "did you mean optim.weight_decay?"),
    "train: {batchsize: 8}": ("train.batchsize: unknown key", "did you mean train.batch_size?"),
    "optim: {batch_size: 8}": ("optim.batch_size: unknown key", "batch_size?"),
    "optm: {lr: 0.1}": ("optm: unknown key", "optim"),
    "optim.lerning_rate: 0.1": ("optim.lerning_rate: unknown key", "did you mean optim.lr?"),
    "zzzzzzzz: {lr: 0.1}": ("zzzzzzzz: unknown key", "the sections are model, data"),
    "data: {base: x}": ("data.base: unknown key",),
}


@pytest.mark.parametrize("text", UNKNOWN_KEYS)
def test_unknown_key(tmp_path: Path, text: str) -> None:
    file = write_recipe(tmp_path / "a.yaml", text)
    message = error_of(file)
    assert message.startswith(f"{file}: ")
    for part in UNKNOWN_KEYS[text]:
        assert part in message


WRONG_VALUES = {
    # file text: (key, what must be said)
    "train: {epochs: true}": ("train.epochs", "integer"),
    "train: {epochs: 1.5}": ("train.epochs", "integer"),
    "train: {epochs: 2.0}": ("train.epochs", "integer"),
    "train: {epochs: '3'}": ("train.epochs", "integer"),
    "train: {epochs: null}": ("train.epochs", "integer"),
    "train: {epochs: [3]}": ("train.epochs", "integer"),
    "train: {epochs: 0}": ("train.epochs", "greater than or equal to 1"),
    "train: {seed: -1}": ("train.seed", "greater than or equal to 0"),
    "train: {steps: 0}": ("train.steps", "greater than or equal to 1"),
    "train: {steps: x}": ("train.steps", "integer"),
    "optim: {lr: '0.1'}": ("optim.lr", "number"),
    "optim: {lr: true}": ("optim.lr", "number"),
    "optim: {lr: fast}": ("optim.lr", "number"),
    "optim: {lr: 0}": ("optim.lr", "greater than 0"),
    "optim: {lr: -0.1}": ("optim.lr", "greater than 0"),
    "optim: {lr: .nan}": ("optim.lr", "nan"),
    "optim: {lr: .inf}": ("optim.lr", "finite"),
    "optim: {lr: 1e999}": ("optim.lr", "finite"),
    "optim: {clip_norm: .inf}": ("optim.clip_norm", "finite"),
    "optim: {weight_decay: .nan}": ("optim.weight_decay", "nan"),
    "optim: {momentum: 1}": ("optim.momentum", "less than 1"),
    "optim: {nesterov: 1}": ("optim.nesterov", "boolean"),
    "optim: {nesterov: 'true'}": ("optim.nesterov", "boolean"),
    "optim: {nesterov: on}": ("optim.nesterov", "boolean"),
    "optim: {nesterov: null}": ("optim.nesterov", "boolean"),
    "optim: {nesterov: true, momentum: 0}": ("optim.nesterov", "momentum"),
    "ema: {decay: .nan}": ("ema.decay", "nan"),
    "ema: {decay: 1.0}": ("ema.decay", "less than 1"),
    "loss: {smoothing: -0.1}": ("loss.smoothing", "greater than or equal to 0"),
    "mix: {prob: 1.1}": ("mix.prob", "less than or equal to 1"),
    "mix: {prob: .nan}": ("mix.prob", "nan"),
    "mix: {cutmix_alpha: .inf}": ("mix.cutmix_alpha", "finite"),
    "data: {crop_ratio: 0}": ("data.crop_ratio", "greater than or equal to 0.1"),
    "data: {train_px: 4}": ("data.train_px", "greater than or equal to 8"),
    "data: {root: 3}": ("data.root", "string"),
    "data: {root: [a]}": ("data.root", "string"),
    "data: {train: null}": ("data.train", "string"),
    "data: {train_crop: centre}": ("data.train_crop", "'random_pad'"),
    "data: {train_crop: 1}": ("data.train_crop", "'random_pad'"),
    "data: {train_crop: random_pad, train_px: 8, pad_px: 8, pad_with: reflect}": ("data.pad_px", "8 px of a picture"),
    "{data: {flip: alternate}, augment: {repeats: 2}}": ("data.flip", "use random"),
    "data: {mean: [0.1, 0.2]}": ("data.mean", "expected 3 values"),
    "data: {mean: [0.1, 0.2, 0.3, 0.4]}": ("data.mean", "expected 3 values"),
    "data: {mean: []}": ("data.mean", "expected 3 values"),
    "data: {mean: 0.5}": ("data.mean", "0.5"),
    "data: {mean: [a, b, c]}": ("data.mean", "number"),
    "data: {mean: [0.1, true, 0.3]}": ("data.mean", "number"),
    "data: {std: [0.1, 0, 0.3]}": ("data.std", "greater than 0"),
    "data: {std: [0.1, .inf, 0.3]}": ("data.std", "less than or equal to 1"),
    "data: {train_scale: [1.0, 0.1]}": ("data.train_scale", "[smallest, largest]"),
    "data: {train_scale: [0.1]}": ("data.train_scale", "expected 2 values"),
    "data: {train_scale: [.nan, 1.0]}": ("data.train_scale", "nan"),
    "model: {options: [drop_rate]}": ("model.options", "expected options such as {key: value}"),
    "model: {options: drop_rate}": ("model.options", "expected options such as {key: value}"),
    "model: {name: null}": ("model.name", "string"),
    "optim: 3": ("optim", "section"),
    "optim: [lr]": ("optim", "section"),
    "schedule: {name: linear}": ("schedule.name", "'cosine'"),
    "schedule: {gamma: 1.5}": ("schedule.gamma", "less than or equal to 1"),
    "schedule: {warmup_epochs: 1, warmup_steps: 10}": ("schedule.warmup_steps", "one of the two"),
    "schedule: {name: multistep}": ("schedule.name", "milestones_epochs"),
    "schedule: {name: multistep, milestones_epochs: [60, 30]}": ("schedule.milestones_epochs", "rising"),
    "schedule: {name: multistep, milestones_epochs: [30, 30]}": ("schedule.milestones_epochs", "rising"),
    "schedule: {name: plateau}": ("schedule.name", "'multistep'"),
    "schedule: {name: darknet_poly, warmup_lr: 0.01}": ("schedule.warmup_lr", "darknet_poly"),
    "schedule: {name: darknet_poly, min_lr: 0.01}": ("schedule.min_lr", "darknet_poly"),
    "schedule: {name: darknet_poly, decay_from: warmup_end}": ("schedule.decay_from", "darknet_poly"),
    "schedule: {name: darknet_poly, warmup_power: 2.0}": ("schedule.warmup_power", "darknet_poly"),
    "optim: {name: adamw, nesterov: true}": ("optim.nesterov", "adamw"),
    "optim: {eps: 1.0e-8}": ("optim.eps", "sgd"),
    "optim: {name: lamb, betas: [0.9, 1.0]}": ("optim.betas", "less than 1"),
    "darknet: {min_crop_px: 500}": ("darknet.min_crop_px", "448"),
    "darknet: {aspect: 0}": ("darknet.aspect", "greater than 0"),
    "darknet: {hue: 0.6}": ("darknet.hue", "less than or equal to 0.5"),
    "data: {start_px: 256}": ("data.start_px", "224"),
    "data: {ramp_epochs: [1, 2]}": ("data.ramp_epochs", "start_px"),
    "data: {start_px: 96, ramp_epochs: [2, 1]}": ("data.ramp_epochs", "[smallest, largest]"),
    "augment: {policy: randaugment}": ("augment.policy", "trivial"),
    "augment: {policy: rand-mfast}": ("augment.policy", "rand-m9"),
    "augment: {policy: rand-m9-z3}": ("augment.policy", "rand-m9"),
    "augment: {policy: rand-m99}": ("augment.policy", "rand-m9"),
    "augment: {policy: rand-m9-p7}": ("augment.policy", "rand-m9"),
    "augment: {policy: rand-n0}": ("augment.policy", "rand-m9"),
    "data: {mean: [123.675, 116.28, 103.53]}": ("data.mean", "less than or equal to 1"),
    "data: {std: [58.395, 57.12, 57.375]}": ("data.std", "less than or equal to 1"),
    "data: {train_scale: [2.0, 3.0]}": ("data.train_scale", "less than or equal to 1"),
    "augment: {policy: original}": ("augment.policy", "3a"),
    "mix: {darknet: mosaic, cutmix_alpha: 1.0}": ("mix.darknet", "alphas"),
    "mix: {blur_px: 10}": ("mix.blur_px", "odd"),
    "mix: {blur_px: 7}": ("mix.blur_px", "from 9 on"),
    "{mix: {blur_px: 31}, data: {train_px: 15}}": ("mix.blur_px", "15 px"),
    "loss: {bce_threshold: 0.2}": ("loss.bce_threshold", "bce"),
    "schedule: {min_lr: 0.2}": ("schedule.min_lr", "optim.lr"),
}


@pytest.mark.parametrize("text", WRONG_VALUES)
def test_wrong_value_names_file_key_and_what_was_expected(tmp_path: Path, text: str) -> None:
    file = write_recipe(tmp_path / "a.yaml", text)
    key, said = WRONG_VALUES[text]
    message = error_of(file)
    assert message.startswith(f"{file}: {key}: ")
    assert said in message.removeprefix(str(file))


def test_error_names_the_layer_the_value_came_from(tmp_path: Path) -> None:
    base = write_recipe(tmp_path / "base.yaml", "optim: {lr: fast}\n")
    child = write_recipe(tmp_path / "child.yaml", "base: base.yaml\ntrain: {epochs: 2}\n")
    assert error_of(child).startswith(f"{base}: optim.lr: ")
    assert error_of(child, {"optim.lr": "slow"}).startswith(f"{COMMAND_LINE}: optim.lr: ")
    assert load_recipe(child, {"optim.lr": 0.2}).recipe.optim.lr == 0.2  # a mended value is not complained about


@pytest.mark.parametrize("key", ["optim.lerning_rate", "optm.lr", "nonsense"])
def test_unknown_override(key: str) -> None:
    assert error_of(None, {key: 1}).startswith(f"{COMMAND_LINE}: {key}: unknown key")


# YAML

NUMBERS = {"1e-4": 0.0001, "1E-4": 0.0001, "1.5e-3": 0.0015, ".5": 0.5, "1.": 1.0, "5": 5.0, "+1e0": 1.0}


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_of_yaml_1_2(tmp_path: Path, text: str) -> None:
    file = write_recipe(tmp_path / "a.yaml", f"optim: {{lr: {text}}}\n")
    lr = load_recipe(file).recipe.optim.lr
    assert isinstance(lr, float)
    assert lr == NUMBERS[text]
    assert parse_flags("--optim.lr", text) == {"optim.lr": NUMBERS[text]}


def test_a_leading_zero_does_not_make_a_number_octal(tmp_path: Path) -> None:
    assert load_recipe(write_recipe(tmp_path / "a.yaml", "train: {seed: 010}\n")).recipe.train.seed == 10


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "1:30", "2020-01-01", "1_000", "0x10"])
def test_words_of_yaml_1_1_are_text(tmp_path: Path, word: str) -> None:
    file = write_recipe(tmp_path / "a.yaml", f"data: {{root: {word}}}\n")
    assert load_recipe(file).recipe.data.root == word


BAD_FILES = {
    "key twice": ("optim:\n  lr: 0.1\n  lr: 0.2\n", "line 3", "lr"),
    "section twice": ("optim:\n  lr: 0.1\ntrain:\n  epochs: 1\noptim:\n  lr: 0.2\n", "line 5", "optim"),
    "key twice in a nested mapping": ("model:\n  options:\n    a: 1\n    a: 2\n", "line 4", "a is given twice"),
    "open bracket": ("train:\n  epochs: 1\ndata:\n  mean: [0.1, 0.2\noptim:\n", "line 5", "not valid YAML"),
    "tab": ("train:\n\tepochs: 1\n", "line 2", "not valid YAML"),
    "no colon": ("train:\n  epochs: 1\n  seed 3\n", "line", "not valid YAML"),
    "code": ("train: !!python/object/apply:os.getcwd []\n", "line 1", "not valid YAML"),
    "number as key": ("optim:\n  1: 2\n", "line 2", "not text"),
    "list": ("- optim\n- train\n", "", "expected `section:`"),
    "text": ("optim\n", "", "expected `section:`"),
    "number": ("3\n", "", "expected `section:`"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_yaml_names_file_and_line(tmp_path: Path, case: str) -> None:
    text, line, said = BAD_FILES[case]
    file = write_recipe(tmp_path / "a.yaml", text)
    message = error_of(file)
    assert message.startswith(f"{file}:")
    assert line in message.removeprefix(str(file))
    assert said in message


@pytest.mark.parametrize("text", ["", "\n\n", "# a comment\n", "optim:\n  # lr: 0.1\n", "---\n"])
def test_empty_file_is_the_default_recipe(tmp_path: Path, text: str) -> None:
    assert load_recipe(write_recipe(tmp_path / "a.yaml", text)).recipe == Recipe()


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\x00\x00", b"\xff\xfe\x00\x00", bytes(range(128, 256))])
def test_binary_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.yaml").write_bytes(data)
    assert error_of(tmp_path / "a.yaml").startswith(f"{tmp_path / 'a.yaml'}: ")


def test_text_with_a_zero_byte(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"optim:\n  lr: 0.1\x00\n")
    assert error_of(tmp_path / "a.yaml").startswith(f"{tmp_path / 'a.yaml'}:")


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    assert error_of(tmp_path).startswith(f"{tmp_path}: ")


# Out and in again


def test_yaml_round_trip_of_every_field(tmp_path: Path) -> None:
    apart = ("schedule.warmup_steps", "optim.nesterov", "mix.darknet", "augment.repeats")  # each contradicts others
    values = {key: value for key, (_, value) in OTHER_VALUES.items() if key not in apart}
    recipe = load_recipe(None, values).recipe
    file = write_recipe(tmp_path / "recipe.yaml", recipe_to_yaml(recipe))
    resolved = load_recipe(file)
    assert resolved.recipe == recipe
    assert set(resolved.sources.values()) == {str(file)}  # the file is the whole recipe
    assert list_differences(recipe_to_values(recipe), resolved.recipe) == []
    assert load_recipe(None, recipe_to_values(recipe)).recipe == recipe


OPTIONS: list[dict[str, Any]] = [
    {},
    {"activation": "mish", "drop_rate": 0.2, "nothing": None, "yes": False, "list": [1, 2.5, "three", [4]]},
    {"inner": {"deep": [1e-7, 1e22, -3]}, "word": "true", "number": "0.5", "null": "null"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_yaml_round_trip_of_options(tmp_path: Path, options: dict[str, Any]) -> None:
    recipe = load_recipe(None, {"model.options": options}).recipe
    again = load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe_to_yaml(recipe))).recipe
    assert again.model.options == options
    assert again == recipe


@pytest.mark.parametrize(
    "root",
    [
        "data",
        "null",
        "yes",
        "3",
        "0.5",
        "1e5",
        "1e-4",
        "089",
        "0x10",
        "a: b",
        "a #b",
        "#a",
        " a ",
        "[a]",
        "Bilder/é",
        "'",
        '"',
    ]
    + ["a" * 300, "~", "*", "%", "-", "1:30", "{}", "a\\b"],
)
def test_yaml_round_trip_of_text(tmp_path: Path, root: str) -> None:
    recipe = load_recipe(None, {"data.root": root}).recipe
    assert load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe_to_yaml(recipe))).recipe.data.root == root


def test_values_are_of_built_in_types() -> None:
    for key, value in recipe_to_values(Recipe()).items():
        assert type(value) in (str, int, float, bool, list, dict, type(None)), key


def test_list_differences() -> None:
    old = recipe_to_values(Recipe())
    new = load_recipe(None, {"optim.lr": 0.2, "data.mean": [0.5, 0.5, 0.5]}).recipe
    assert {(key, after if key == "optim.lr" else tuple(after)) for key, _, after in list_differences(old, new)} == {
        ("optim.lr", 0.2),
        ("data.mean", (0.5, 0.5, 0.5)),
    }


def test_recipes_are_frozen() -> None:
    recipe = Recipe()
    for section in dataclasses.fields(Recipe):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(recipe, section.name, None)
        content = getattr(recipe, section.name)
        for field in dataclasses.fields(content):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(content, field.name, getattr(content, field.name))


def test_format_recipe_shows_every_value_and_its_source(tmp_path: Path) -> None:
    file = write_recipe(tmp_path / "a.yaml", "optim: {lr: 0.25}\n")
    lines = {line.split()[0]: line for line in format_recipe(load_recipe(file, {"train.epochs": 77})).splitlines()}
    assert set(lines) == set(field_table())
    assert lines["optim.lr"].split()[1] == "0.25"
    assert lines["optim.lr"].endswith(str(file))
    assert lines["train.epochs"].split()[1] == "77"
    assert lines["train.epochs"].endswith(COMMAND_LINE)
    assert lines["train.seed"].endswith(DEFAULT)


# Flags


def test_the_table_of_other_values_is_complete_and_differs_from_the_defaults() -> None:
    assert set(OTHER_VALUES) == set(field_table())
    for key, value in recipe_to_values(Recipe()).items():
        if get_origin(field_table()[key].annotation) is Literal and len(get_args(field_table()[key].annotation)) == 1:
            continue
        other = OTHER_VALUES[key][1]
        assert value != (list(other) if isinstance(other, tuple) else other), key


@pytest.mark.parametrize("key", field_table())
def test_dotted_flag_sets_its_field(key: str) -> None:
    text, value = OTHER_VALUES[key]
    for argv in ([f"--{key}", text], [f"--{key}={text}"]):
        resolved = load_recipe(None, parse_flags(*argv), [("below", NEEDS.get(key, {}))])
        section, name = key.split(".")
        landed = getattr(getattr(resolved.recipe, section), name)
        assert landed == value
        assert type(landed) is type(value)
        assert [k for k, source in resolved.sources.items() if source == COMMAND_LINE] == [key]


@pytest.mark.parametrize("flag", ALIASES)
def test_alias_sets_its_keys(flag: str) -> None:
    text, value = OTHER_VALUES[ALIASES[flag][0]]
    resolved = load_recipe(None, parse_flags(flag, text), [("below", NEEDS.get(ALIASES[flag][0], {}))])
    values = recipe_to_values(resolved.recipe)
    assert {key for key, source in resolved.sources.items() if source == COMMAND_LINE} == set(ALIASES[flag])
    for key in ALIASES[flag]:
        assert values[key] == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize("flag", CONSTANT_FLAGS)
def test_constant_flag_sets_its_value(flag: str) -> None:
    key, value, _ = CONSTANT_FLAGS[flag]
    resolved = load_recipe(None, parse_flags(flag))
    assert recipe_to_values(resolved.recipe)[key] == value
    assert resolved.sources[key] == COMMAND_LINE


@pytest.mark.parametrize("key", [key for key, (_, value) in OTHER_VALUES.items() if isinstance(value, bool)])
def test_switch_without_a_value_means_yes(key: str) -> None:
    assert parse_flags(f"--{key}") == {key: True}


def test_the_last_flag_wins() -> None:
    assert parse_flags("--lr", "0.1", "--optim.lr", "0.2") == {"optim.lr": 0.2}
    assert parse_flags("--img-size", "64", "--val-crop-size", "96") == {"data.train_px": 64, "data.val_px": 96}


@pytest.mark.parametrize("key", field_table())
def test_every_field_has_help(key: str) -> None:
    text = field_table()[key].help
    assert len(text) >= 5
    assert text.endswith((".", ")"))


@pytest.mark.parametrize(
    ("base", "flags", "expected"),
    [
        ("train: {steps: 500}", {"train.epochs": 3}, (3, None)),
        ("train: {epochs: 5}", {"train.steps": 70}, (120, 70)),
        ("train: {epochs: 5, steps: 9}", {}, (5, 9)),  # a saved recipe has both
        ("train: {epochs: 5, steps: 9}", {"train.epochs": 4, "train.steps": 8}, (4, 8)),
    ],
)
def test_a_later_length_replaces_an_earlier_one(
    tmp_path: Path, base: str, flags: dict[str, Any], expected: tuple[int, int | None]
) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "a.yaml", base), flags).recipe
    assert (recipe.train.epochs, recipe.train.steps) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--mean", "0.1", "0.2", "0.3"], {"data.mean": [0.1, 0.2, 0.3]}),
        (["--mean", "0.1,0.2,0.3"], {"data.mean": [0.1, 0.2, 0.3]}),
        (["--mean", "[0.1, 0.2, 0.3]"], {"data.mean": [0.1, 0.2, 0.3]}),
        (
            ["--model-kwargs", "activation=mish", "drop_rate=0.2"],
            {"model.options": {"activation": "mish", "drop_rate": 0.2}},
        ),
        (["--model-kwargs", "{drop_rate: 0.2}"], {"model.options": {"drop_rate": 0.2}}),
    ],
)
def test_lists_and_options_on_the_command_line(words: list[str], expected: dict[str, Any]) -> None:
    assert parse_flags(*words) == expected


def test_options_of_the_network_add_up_and_null_takes_one_away(tmp_path: Path) -> None:
    write_recipe(tmp_path / "base.yaml", "model: {options: {bn_momentum: 0.01, drop_rate: 0.2, activation: mish}}\n")
    child = write_recipe(tmp_path / "child.yaml", "base: base.yaml\nmodel: {options: {drop_rate: 0.1, init: timm}}\n")
    options = load_recipe(
        child, {"model.options": {"activation": None, "gamma": 0.25, "other": None}}
    ).recipe.model.options
    assert options == {"bn_momentum": 0.01, "drop_rate": 0.1, "init": "timm", "gamma": 0.25, "other": None}
    assert load_recipe(child).sources["model.options"] == str(child)
    again = write_recipe(tmp_path / "saved.yaml", recipe_to_yaml(load_recipe(child).recipe))
    assert load_recipe(again).recipe == load_recipe(child).recipe
    wrong = write_recipe(tmp_path / "wrong.yaml", "base: base.yaml\nmodel: {options: 3}\n")
    assert error_of(wrong).startswith(f"{wrong}: model.options: ")


# Found by scripts/fuzz.py, or while it was written


def laughs(width: int, depth: int) -> str:
    """Lists of lists …, which a few lines stand for."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth)]
    return "\n".join(lines) + "\n"


MUCH_FROM_LITTLE = {
    "a list of lists": (laughs(9, 40), "alias"),
    "in the options": ("model:\n  options:\n    " + laughs(9, 40).replace("\n", "\n    "), "alias"),
    "a list in itself": ("model: {name: &a [*a]}", "alias"),
    "a merged mapping": ("a: &a {b: 1}\nmodel: {!!merge <<: *a}", "alias"),
    "a nest": ("[" * 100_000, "not valid YAML"),
    "a large file": ("#" * 2_000_000, "more than 1,048,576 bytes"),
    "a number of 100,000 digits": ("train: {seed: " + "9" * 100_000 + "}", "not valid YAML"),
}


@pytest.mark.parametrize("case", MUCH_FROM_LITTLE)
def test_a_small_file_does_not_become_a_large_recipe(tmp_path: Path, case: str) -> None:
    text, said = MUCH_FROM_LITTLE[case]
    message = error_of(write_recipe(tmp_path / "a.yaml", text))
    assert said in message
    assert len(message) < 4000


@pytest.mark.parametrize("base", ["x" * 300, "x/" * 3000, '"a\\0b"', '"\\ud800"', "/dev/zero", "../" * 500 + "etc"])
def test_bases_that_no_file_can_be(tmp_path: Path, base: str) -> None:
    assert "no such file" in error_of(write_recipe(tmp_path / "a.yaml", f"base: {base}"))


def test_a_chain_without_an_end(tmp_path: Path) -> None:
    for i in range(1500):
        write_recipe(tmp_path / f"{i}.yaml", f"base: {i + 1}.yaml")
    write_recipe(tmp_path / "1500.yaml", "train: {seed: 3}")
    assert "leads through more than 32 files" in error_of(tmp_path / "0.yaml")
    assert load_recipe(tmp_path / "1480.yaml").recipe.train.seed == 3


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [touch canary]", "!!python/name:os.system ", "!x y"])
def test_tags_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert "could not determine a constructor" in error_of(write_recipe(tmp_path / "a.yaml", f"model: {{name: {tag}}}"))
    overrides = read_overrides(create_parser().parse_all(["--lr", tag]))
    assert overrides == {"optim.lr": tag}  # text, which is no number
    assert [file.name for file in tmp_path.iterdir()] == ["a.yaml"]


@pytest.mark.parametrize("value", ["[1, 2]", "{a: 1}", "a,b", "&a [*a]"])
def test_one_value_where_one_is_meant(value: str) -> None:
    with pytest.raises(RecipeError, match=r"optim\.lr: expected a valid number"):
        load_recipe(None, read_overrides(create_parser().parse_all(["--lr", value])))
