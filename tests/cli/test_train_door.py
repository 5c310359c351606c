"""train.py from its command line: what a run leaves behind, and what it refuses without touching anything."""

from __future__ import annotations

import csv
import json
import math
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cspnet.cli.train import main
from cspnet.recipe.load import field_table, load_recipe

TIMM_SUMMARY_COLUMNS = ["epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr"]
STEPS = 6  # 48 pictures in steps of 8


def flags(data: Path, *more: object) -> list[str]:
    """The command line of a small run: one epoch of 6 steps."""
    small = ["--model", "cspdarknet_tiny", "--img-size", 32, "--workers", 0, "--batch-size", 8, "--epochs", 1]
    fixed = [
        "--precision",
        "fp32",
        "--device",
        "cpu",
        "--log.every_steps",
        2,
        "--data.cache_dir",
        data.parent / "cache",
    ]
    return [str(word) for word in ("--data-path", data, *small, *fixed, *more)]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Every file below a folder: time stamp and contents."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def read_records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(picture_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run. Read only: copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(flags(picture_tree, "--output-dir", folder)) == 0
    return folder


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


# What a run leaves behind


def test_a_run_beside_its_splits(picture_tree: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(picture_tree, tmp_path / "data"))
    for _ in range(2):
        assert main(flags(data, "--output-dir", data, "--steps", 1, "--resume", "auto")) == 0


def test_what_will_not_come_out_well_is_told(
    picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class without validation, and an average that is mostly the first weights: 0.99 ** 6 is 94 %."""
    data = Path(shutil.copytree(picture_tree, tmp_path / "data"))
    shutil.rmtree(data / "val" / "class_1")
    quick = flags(data, "--dry-run", "--ema.decay")
    assert main([*quick, "0.99"]) == 0
    told = capsys.readouterr().err
    assert "warning: 1 of 4 classes have no pictures to validate (class_1)" in told
    assert "ema.decay: 0.99 is slow for 6 steps: at the end 94% of the moving average" in told
    assert main([*quick, "0.99", "--ema.warmup", "true"]) == 0
    assert main([*quick, "0.5"]) == 0
    assert "ema.decay" not in capsys.readouterr().err


def test_a_run_leaves_its_files(finished: Path) -> None:
    assert load_recipe(finished / "recipe.yaml").recipe.model.name == "cspdarknet_tiny"
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))
    names = {path.name for path in (finished / "checkpoints").iterdir()}
    assert {"last.pt", "best.pt", f"step-{STEPS:08d}.pt"} <= names
    assert not [name for name in names if name.endswith(".tmp")]


def test_metrics_records(finished: Path) -> None:
    records = read_records(finished)
    steps = [record for record in records if "train/loss" in record]
    assert [record["step"] for record in steps] == [2, 4, 6]
    for record in steps:
        assert record["epoch"] == 0
        assert math.isfinite(record["train/loss"])
        assert record["train/loss"] > 0
        assert record["train/lr"] == 0.1
        assert record["train/images_per_s"] > 0
        assert 0 <= record["train/data_wait_ratio"] <= 1
        assert record["train/compute_images_per_s"] >= record["train/images_per_s"]
        assert record["train/peak_memory_bytes"] > 2**20
        assert record["train/mfu"] > 0
    (epoch,) = (record for record in records if "val/acc1" in record)
    assert epoch["step"] == STEPS
    # 10 validation pictures and 4 classes: whole tenths, and always among the first five
    assert epoch["val/acc1"] in [10 * hits for hits in range(11)]
    assert epoch["val/acc5"] == 100
    assert epoch["train/epoch_loss"] == pytest.approx(sum(record["train/loss"] for record in steps) / 3)


def test_summary_has_timm_columns(finished: Path) -> None:
    with (finished / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == TIMM_SUMMARY_COLUMNS
    assert [row["epoch"] for row in rows] == ["0"]
    (epoch,) = (record for record in read_records(finished) if "val/acc1" in record)
    assert float(rows[0]["eval_top1"]) == epoch["val/acc1"]
    assert float(rows[0]["train_loss"]) == pytest.approx(epoch["train/epoch_loss"])


def test_checkpoint_says_what_it_is(finished: Path, picture_tree: Path) -> None:
    content = read_last(finished)
    assert content["arch"] == "cspdarknet_tiny"
    assert content["classes"] == sorted(path.name for path in (picture_tree / "train").iterdir())
    assert content["num_classes"] == len(content["classes"])
    assert content["eval_cfg"]["size_px"] == 32
    assert content["progress"]["step"] == STEPS
    assert content["progress"]["epoch"] == 1
    assert content["recipe"]["train.batch_size"] == 8


def list_types(value: Any) -> set[type]:
    """Every type in nested dictionaries and lists."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {type(value)}.union(*(list_types(item) for item in inner))


def test_checkpoint_holds_tensors_and_built_in_types_only(finished: Path) -> None:
    types = list_types(read_last(finished))
    assert torch.Tensor in types
    assert types <= {torch.Tensor, OrderedDict, dict, list, str, int, float, bool, type(None)}


def test_the_saved_recipe_repeats_the_run(finished: Path, tmp_path: Path) -> None:
    assert main(["--recipe", str(finished / "recipe.yaml"), "--output-dir", str(tmp_path / "again")]) == 0
    first, again = read_last(finished), read_last(tmp_path / "again")
    assert same_tensors(first["state_dict"], again["state_dict"])
    losses = [[r["train/loss"] for r in read_records(f) if "train/loss" in r] for f in (finished, tmp_path / "again")]
    assert losses[0] == losses[1]
    assert (finished / "recipe.yaml").read_text() == (tmp_path / "again" / "recipe.yaml").read_text()


def test_another_seed_is_another_run(finished: Path, tmp_path: Path) -> None:
    recipe = str(finished / "recipe.yaml")
    assert main(["--recipe", recipe, "--output-dir", str(tmp_path / "other"), "--seed", "43"]) == 0
    assert not same_tensors(read_last(finished)["state_dict"], read_last(tmp_path / "other")["state_dict"])


def test_without_output_dir_a_run_gets_a_folder_of_its_own(
    picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("log: {tensorboard: false}\n")
    for _ in range(2):
        assert main(flags(picture_tree, "--recipe", recipe, "--steps", 1)) == 0
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert folder.name.startswith("mine-")
        assert (folder / "checkpoints" / "last.pt").is_file()
        assert not (folder / "tensorboard").exists()
        assert str(folder.relative_to(tmp_path)) in capsys.readouterr().out or folder is not folders[0]


def test_dry_run_writes_nothing(picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(tmp_path)
    assert main(flags(picture_tree, "--dry-run", "--output-dir", tmp_path / "run")) == 0
    assert snapshot(tmp_path) == before
    out = capsys.readouterr().out
    assert "loss " in out
    assert "Acc@1" in out


def test_print_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("optim: {lr: 0.25}\n")
    before = snapshot(tmp_path)
    assert main(["--print-config", "--recipe", str(recipe), "--epochs", "3"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == set(field_table())
    assert lines["optim.lr"] == ["0.25", str(recipe)]
    assert lines["train.epochs"] == ["3", "command", "line"]
    assert snapshot(tmp_path) == before


def test_test_only_validates_and_writes_nothing(
    run_copy: Path, picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(tmp_path)
    checkpoint = run_copy / "checkpoints" / "best.pt"
    assert main(flags(picture_tree, "--test-only", "--resume", checkpoint)) == 0
    (epoch,) = (record for record in read_records(run_copy) if "val/acc1" in record)
    assert f" * Acc@1 {epoch['val/acc1']:.3f} Acc@5 {epoch['val/acc5']:.3f}" in capsys.readouterr().out
    assert snapshot(tmp_path) == before


def test_resume_auto_without_a_checkpoint_starts_from_scratch(
    picture_tree: Path, finished: Path, tmp_path: Path
) -> None:
    assert main(flags(picture_tree, "--output-dir", tmp_path / "new", "--resume", "auto")) == 0
    assert same_tensors(read_last(tmp_path / "new")["state_dict"], read_last(finished)["state_dict"])


def test_resume_auto_on_a_finished_run_changes_nothing(
    run_copy: Path, picture_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    assert main(flags(picture_tree, "--output-dir", run_copy, "--resume", "auto")) == 0
    for path, content in contents.items():
        assert path.read_bytes() == content, path
    output = capsys.readouterr()
    assert f"the run is finished: {STEPS} steps" in output.out
    assert output.err == ""


def test_a_finished_run_can_be_made_longer(run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # With a constant rate the first epoch of two is the same as the only one of one.
    recipe = str(run_copy / "recipe.yaml")
    assert main(["--recipe", recipe, "--epochs", "2", "--output-dir", str(tmp_path / "straight")]) == 0
    capsys.readouterr()
    assert main(["--output-dir", str(run_copy), "--resume", "auto", "--epochs", "2"]) == 0
    assert "train.epochs was 1" in capsys.readouterr().err
    longer, straight = read_last(run_copy), read_last(tmp_path / "straight")
    assert longer["progress"] == straight["progress"]
    assert same_tensors(longer["state_dict"], straight["state_dict"])
    assert [record["step"] for record in read_records(run_copy)] == [
        record["step"] for record in read_records(tmp_path / "straight")
    ]
    assert (run_copy / "summary.csv").read_text() == (tmp_path / "straight" / "summary.csv").read_text()


def test_a_continued_run_follows_the_recipe_of_today(picture_tree: Path, tmp_path: Path) -> None:
    """Decay and momentum are saved with an optimizer, but they are the recipe's to say."""
    straight, changed = tmp_path / "straight", tmp_path / "changed"
    words = ("--steps", STEPS, "--checkpoint.every_steps", 2, "--weight-decay", 0.01)
    assert main(flags(picture_tree, *words, "--output-dir", straight)) == 0
    middle = straight / "checkpoints" / "step-00000002.pt"
    words = (*words, "--weight-decay", 0.5, "--momentum", 0.1)
    assert main(flags(picture_tree, *words, "--output-dir", changed, "--resume", middle)) == 0
    (group,) = read_last(changed)["optimizer"]["param_groups"]
    assert (group["weight_decay"], group["momentum"]) == (0.5, 0.1)
    assert not same_tensors(read_last(changed)["state_dict"], read_last(straight)["state_dict"])


def test_a_checkpoint_with_a_key_of_old_goes_on(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = read_last(run_copy)
    content["recipe"]["mix.cutmix_prob"] = content["recipe"].pop("mix.prob")
    old = run_copy.parent / "old.pt"
    torch.save(content, old)
    assert main(["--output-dir", str(run_copy.parent / "longer"), "--resume", str(old), "--epochs", "2"]) == 0
    assert "mix" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--scale", "0.5", "1", "--data.train_crop", "random_pad"), "data.train_scale: does nothing here; it needs"),
        (("--darknet.angle_deg", "15"), "darknet.angle_deg: does nothing here; it needs data.train_crop darknet"),
        (("--opt", "adamw", "--lr", "0.001", "--momentum", "0.8"), "optim.momentum: does nothing here"),
        (("--decay-milestones", "1,2"), "schedule.milestones_epochs: does nothing here"),
        (("--mixup-prob", "0.5"), "mix.prob: does nothing here"),
        (("--torchcompile-mode", "max-autotune"), "train.compile_mode: does nothing here; it needs train.compile"),
        (("--data.pad_with", "reflect"), "data.pad_with: does nothing here; it needs data.train_crop random_pad"),
        (
            ("--data.flip", "alternate", "--hflip", "0.3"),
            "data.flip_prob: does nothing here; it needs data.flip random",
        ),
        (
            ("--data.start_px", "16", "--data.ramp_epochs", "[0, 9]"),
            "the pictures grow until epoch 10 and the run has 1",
        ),
        (("--cutmix", "1", "--batch-size", "1"), "a batch of one picture has no other"),
        (("--warmup-steps", "100"), "lr never gets to its peak"),
        (("--mixup", "0.2", "--mixup-prob", "0"), "mix.mixup_alpha: does nothing here; it needs mix.prob above 0"),
        (("--sched", "constant", "--min-lr", "0.01"), "schedule.min_lr: does nothing here"),
        (("--sched", "multistep", "--decay-milestones", "30"), "30 is not reached in a run of 1 epochs"),
        (("--mixup", "0.2", "--mixup-off-epoch", "5"), "mix.off_epoch: 5 is not reached"),
        (("--data.train_crop", "darknet"), "becomes 128 to 448 px, of which 32 px are seen"),
    ],
)
def test_a_wish_that_does_nothing_is_told(
    words: tuple[str, ...], said: str, picture_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(picture_tree, "--dry-run", *words)) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert sum(said in line for line in warnings) == 1, warnings


def test_what_a_base_says_in_vain_is_not_told(
    picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.yaml").write_text("data: {train_scale: [0.5, 1.0]}\n")
    (tmp_path / "own.yaml").write_text("base: base.yaml\ndata: {train_crop: random_pad}\n")
    assert main(flags(picture_tree, "--dry-run", "--recipe", tmp_path / "own.yaml")) == 0
    assert capsys.readouterr().err == ""


def test_an_older_checkpoint_goes_on_in_a_folder_of_its_own(picture_tree: Path, finished: Path, tmp_path: Path) -> None:
    """The run that went further keeps its checkpoints, and --resume auto finds what the new one saved."""
    first = tmp_path / "first"
    assert main(flags(picture_tree, "--epochs", 2, "--output-dir", first)) == 0
    older = first / "checkpoints" / f"step-{STEPS:08d}.pt"
    before = snapshot(first)
    branch = ("--output-dir", tmp_path / "branch", "--checkpoint.keep", 1)
    assert main(flags(picture_tree, *branch, "--resume", older, "--steps", STEPS + 2)) == 0
    assert main(flags(picture_tree, *branch, "--resume", "auto", "--steps", STEPS + 3)) == 0
    assert read_last(tmp_path / "branch")["progress"]["step"] == STEPS + 3
    assert snapshot(first) == before


def test_lists_train_the_same_run_as_folders(picture_tree: Path, finished: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(picture_tree, tmp_path / "data"))
    for split in ("train", "val"):
        classes = sorted(path.name for path in (data / split).iterdir())
        lines = [
            f"{file.relative_to(data)} {label}\n"
            for label, name in enumerate(classes)
            for file in sorted((data / split / name).iterdir())
        ]
        (data / f"{split}_list.txt").write_text("".join(lines))
    assert main(flags(data, "--data-format", "list", "--output-dir", tmp_path / "run")) == 0
    content = read_last(tmp_path / "run")
    assert content["num_classes"] == 4
    assert same_tensors(content["state_dict"], read_last(finished)["state_dict"])


def test_everything_at_once(picture_tree: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "all.yaml"
    recipe.write_text(
        "model: {options: {drop_rate: 0.2}}\n"
        "mix: {cutmix_alpha: 1.0, prob: 0.5}\n"
        "loss: {smoothing: 0.1}\n"
        "optim: {clip_norm: 1.0, nesterov: true, decay_norm_and_bias: false}\n"
        "schedule: {name: cosine, warmup_epochs: 1}\n"
        "ema: {decay: 0.5}\n"
    )
    small = ("--batch-size", 4, "--accumulate", 3, "--epochs", 2)
    for name in ("a", "b"):
        assert main(flags(picture_tree, "--recipe", recipe, *small, "--output-dir", tmp_path / name)) == 0
    a, b = read_last(tmp_path / "a"), read_last(tmp_path / "b")
    assert a["progress"]["step"] == 2 * 48 // (4 * 3)
    assert a["global_batch_size"] == 12
    assert all(tensor.isfinite().all() for tensor in a["state_dict"].values())
    assert a["state_dict"].keys() == a["state_dict_ema"].keys()
    assert not same_tensors(a["state_dict"], a["state_dict_ema"])
    assert same_tensors(a["state_dict"], b["state_dict"])
    assert same_tensors(a["state_dict_ema"], b["state_dict_ema"])
    records = read_records(tmp_path / "a")
    assert next(record["train/lr"] for record in records if "train/lr" in record) == pytest.approx(0.1 / 4)  # warm-up
    assert all("val_ema/acc1" in record for record in records if "val/acc1" in record)


def test_drop_rate_from_the_command_line_reaches_the_model(picture_tree: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(flags(picture_tree, "--model-kwargs", "{drop_rate: 0.5}", "--output-dir", folder)) == 0
    content = read_last(folder)
    assert content["recipe"]["model.options"] == {"drop_rate": 0.5}
    assert not same_tensors(content["state_dict"], read_last(finished)["state_dict"])


@pytest.mark.parametrize(("steps", "epochs"), [(4, 0), (STEPS, 1), (8, 1)])
def test_length_in_steps(picture_tree: Path, tmp_path: Path, steps: int, epochs: int) -> None:
    folder = tmp_path / "run"
    assert main(flags(picture_tree, "--steps", steps, "--epochs", 50, "--output-dir", folder)) == 0
    progress = read_last(folder)["progress"]
    assert (progress["step"], progress["epoch"]) == (steps, epochs)
    assert progress["samples_done"] == 8 * (steps % STEPS)
    records = read_records(folder)
    assert max(record["step"] for record in records) == steps
    assert [record["step"] for record in records if "val/acc1" in record][-1] == steps


def test_without_a_validation_split(picture_tree: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(picture_tree / "train", data / "train")
    folder = tmp_path / "run"
    assert main(flags(data, "--data.val", "null", "--output-dir", folder)) == 0
    assert not any(key.startswith("val") for record in read_records(folder) for key in record)
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert "last.pt" in names
    assert "best.pt" not in names


@pytest.mark.parametrize("model", ["torchvision/resnet18", "timm/resnet18"])
def test_foreign_models_train_a_step(model: str, picture_tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(flags(picture_tree, "--model", model, "--steps", 1, "--output-dir", folder)) == 0
    content = read_last(folder)
    assert content["arch"] == model
    assert content["state_dict"]["fc.weight"].shape == (4, 512)
    assert content["state_dict"]["bn1.num_batches_tracked"] == 1


def test_pretrained_starts_from_the_weights(picture_tree: Path, finished: Path, tmp_path: Path) -> None:
    weights = finished / "checkpoints" / "last.pt"
    folder = tmp_path / "run"
    # A rate this small moves no weight that is not tiny: only BatchNorm's statistics move.
    more = ("--pretrained", weights, "--lr", 1e-30, "--wd", 0, "--steps", 1, "--output-dir", folder)
    assert main(flags(picture_tree, *more)) == 0
    before, after = read_last(finished)["state_dict"], read_last(folder)["state_dict"]
    names = [key for key in before if key.endswith(("weight", "bias"))]
    assert len(names) > 20
    assert all(torch.equal(before[key], after[key]) for key in names)


@pytest.mark.parametrize("told", [True, False])
def test_a_test_says_when_the_pictures_are_not_those_of_the_weights(
    told: bool, finished: Path, picture_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = finished / "checkpoints" / "last.pt"
    size = ("--crop-pct", "0.5") if told else ()
    assert main(flags(picture_tree, "--test-only", "--pretrained", weights, *size)) == 0
    assert ("not those that the weights were made for" in capsys.readouterr().err) is told


def test_another_split_into_micro_batches_may_go_on(
    run_copy: Path, picture_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--batch-size", 4, "--accumulate", 2, "--epochs", 2, "--output-dir", run_copy, "--resume", "auto")
    assert main(flags(picture_tree, *more)) == 0
    assert read_last(run_copy)["progress"]["step"] == 2 * STEPS


def test_resume_auto_passes_over_a_damaged_checkpoint(
    picture_tree: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(flags(picture_tree, "--checkpoint.every_steps", 2, "--output-dir", folder)) == 0
    last = folder / "checkpoints" / f"step-{STEPS:08d}.pt"
    last.write_bytes(last.read_bytes()[:-100])
    for name in ("last.pt", "best.pt"):
        (folder / "checkpoints" / name).unlink()
    capsys.readouterr()
    assert main(flags(picture_tree, "--checkpoint.every_steps", 2, "--output-dir", folder, "--resume", "auto")) == 0
    output = capsys.readouterr()
    assert last.name in output.err
    assert "step 4 of 6" in output.out
    assert same_tensors(read_last(folder)["state_dict"], read_last(finished)["state_dict"])


# What is refused

Case = Callable[[Path, Path], list[str]]
"""(a folder to work in, which holds run/, and a copy of the pictures) -> the command line"""
BAD: dict[str, tuple[Case, tuple[str, ...]]] = {}


def refused(*said: str) -> Callable[[Case], Case]:
    """Add a case to the table; `said` must stand in the message."""

    def add(case: Case) -> Case:
        BAD[case.__name__.strip("_").replace("_", " ")] = (case, said)
        return case

    return add


def new(folder: Path) -> tuple[object, ...]:
    return "--output-dir", folder / "new"


def going_on(folder: Path) -> tuple[object, ...]:
    return "--output-dir", folder / "run", "--resume", "auto"


def resuming(file: Path, folder: Path) -> tuple[object, ...]:
    return "--output-dir", folder / "new", "--resume", file


def write_lists(data: Path, train: str) -> None:
    (data / "train_list.txt").write_text(train)
    (data / "val_list.txt").write_text("".join(f"{p.relative_to(data)} 0\n" for p in (data / "val").rglob("*.jpg")))


def all_but_last_line(data: Path) -> str:
    return "".join(f"{path.relative_to(data)} {i % 4}\n" for i, path in enumerate(sorted(data.glob("train/*/*.jpg"))))


@refused("data.root", "--data-path")
def _no_data_given(folder: Path, data: Path) -> list[str]:
    return ["--device", "cpu", *map(str, new(folder))]


@refused("nowhere", "no such folder")
def _data_folder_missing(folder: Path, data: Path) -> list[str]:
    return flags(folder / "nowhere", *new(folder))


@refused("train", "it is empty")
def _data_folder_empty(folder: Path, data: Path) -> list[str]:
    (folder / "empty").mkdir()
    return flags(folder / "empty", *new(folder))


@refused("val", "--val-split")
def _validation_folder_missing(folder: Path, data: Path) -> list[str]:
    shutil.rmtree(data / "val")
    return flags(data, *new(folder))


@refused("no class folders")
def _training_folder_without_classes(folder: Path, data: Path) -> list[str]:
    shutil.rmtree(data / "train")
    (data / "train").mkdir()
    return flags(data, *new(folder))


@refused("class_9", "no pictures")
def _class_folder_empty(folder: Path, data: Path) -> list[str]:
    (data / "train" / "class_9").mkdir()
    return flags(data, *new(folder))


@refused("class_9", "not among")
def _validation_class_unknown(folder: Path, data: Path) -> list[str]:
    (data / "val" / "class_0").rename(data / "val" / "class_9")
    return flags(data, *new(folder))


@refused("line 49", "train/class_0/gone.jpg")
def _list_with_a_missing_file(folder: Path, data: Path) -> list[str]:
    write_lists(data, all_but_last_line(data) + "train/class_0/gone.jpg 0\n")
    return flags(data, "--data-format", "list", *new(folder))


@refused("line 2", "path label")
def _list_with_a_word_as_label(folder: Path, data: Path) -> list[str]:
    lines = all_but_last_line(data).splitlines(keepends=True)
    write_lists(data, lines[0] + lines[1].replace(" 1", " one") + "".join(lines[2:]))
    return flags(data, "--data-format", "list", *new(folder))


@refused("line 1", "path label")
def _list_with_a_negative_label(folder: Path, data: Path) -> list[str]:
    write_lists(data, all_but_last_line(data).replace(" 0", " -1", 1))
    return flags(data, "--data-format", "list", *new(folder))


@refused("label 3", "out of range", "0 to 2")
def _label_out_of_range(folder: Path, data: Path) -> list[str]:
    write_lists(data, all_but_last_line(data))
    return flags(data, "--data-format", "list", "--num-classes", 3, *new(folder))


@refused("list is empty")
def _list_empty(folder: Path, data: Path) -> list[str]:
    write_lists(data, "\n")
    return flags(data, "--data-format", "list", *new(folder))


@refused("model.num_classes", "5", "4 class folders")
def _other_number_of_classes_than_the_data(folder: Path, data: Path) -> list[str]:
    return flags(data, "--num-classes", 5, *new(folder))


@refused("cspdarknet_tinny", "did you mean cspdarknet_tiny?")
def _model_unknown(folder: Path, data: Path) -> list[str]:
    return flags(data, "--model", "cspdarknet_tinny", *new(folder))


@refused("timm/no_such_net")
def _foreign_model_unknown(folder: Path, data: Path) -> list[str]:
    return flags(data, "--model", "timm/no_such_net", *new(folder))


@refused("drop_rat", "did you mean drop_rate?")
def _model_option_unknown(folder: Path, data: Path) -> list[str]:
    return flags(data, "--model-kwargs", "{drop_rat: 0.1}", *new(folder))


@refused("--bach-size", "did you mean --batch-size?")
def _flag_unknown(folder: Path, data: Path) -> list[str]:
    return flags(data, "--bach-size", 8, *new(folder))


@refused("--lr", "expected one argument")
def _flag_without_its_value(folder: Path, data: Path) -> list[str]:
    return flags(data, *new(folder), "--lr")


@refused("train.batch_size", "got 0")
def _batch_size_0(folder: Path, data: Path) -> list[str]:
    return flags(data, "--batch-size", 0, *new(folder))


@refused("optim.lr", "number", "'fast'")
def _rate_as_a_word(folder: Path, data: Path) -> list[str]:
    return flags(data, "--lr", "fast", *new(folder))


@refused("48 pictures", "--batch-size")
def _batch_larger_than_the_data(folder: Path, data: Path) -> list[str]:
    return flags(data, "--batch-size", 49, *new(folder))


@refused("48 pictures", "5 micro-batches")
def _micro_batches_larger_than_the_data(folder: Path, data: Path) -> list[str]:
    return flags(data, "--batch-size", 10, "--accumulate", 5, *new(folder))


@refused("mine.yaml", "optim.lerning_rate", "optim.lr?")
def _recipe_with_a_typo(folder: Path, data: Path) -> list[str]:
    (folder / "mine.yaml").write_text("optim: {lerning_rate: 0.1}\n")
    return flags(data, "--recipe", folder / "mine.yaml", *new(folder))


@refused("cuda", "no GPU")
def _gpu_absent(folder: Path, data: Path) -> list[str]:
    return flags(data, "--device", "cuda", *new(folder))


@refused("abacus", "unknown device")
def _device_unknown(folder: Path, data: Path) -> list[str]:
    return flags(data, "--device", "abacus", *new(folder))


@refused("fp16", "GPU")
def _fp16_on_the_cpu(folder: Path, data: Path) -> list[str]:
    return flags(data, "--precision", "fp16", *new(folder))


@refused("sync_bn", "GPU")
def _sync_bn_on_the_cpu(folder: Path, data: Path) -> list[str]:
    return flags(data, "--sync-bn", *new(folder))


@refused("already holds a run", "--resume auto")
def _output_folder_holds_a_run(folder: Path, data: Path) -> list[str]:
    return flags(data, "--output-dir", folder / "run")


@refused("is not a folder")
def _output_folder_is_a_file(folder: Path, data: Path) -> list[str]:
    (folder / "new").write_text("mine")
    return flags(data, *new(folder))


@refused("--output-dir")
def _resume_auto_without_output_dir(folder: Path, data: Path) -> list[str]:
    return flags(data, "--resume", "auto")


@refused("gone.pt", "no such file")
def _resume_missing_file(folder: Path, data: Path) -> list[str]:
    return flags(data, *resuming(folder / "gone.pt", folder))


@refused("last.pt", "checksum")
def _resume_truncated_file(folder: Path, data: Path) -> list[str]:
    file = folder / "run" / "checkpoints" / "last.pt"
    file.write_bytes(file.read_bytes()[:5000])
    return flags(data, *resuming(file, folder))


@refused("copy.pt", "damaged")
def _resume_truncated_file_without_checksum(folder: Path, data: Path) -> list[str]:
    content = (folder / "run" / "checkpoints" / "last.pt").read_bytes()
    (folder / "copy.pt").write_bytes(content[: len(content) // 2])
    return flags(data, *resuming(folder / "copy.pt", folder))


@refused("garbage.pt", "not a checkpoint")
def _resume_garbage(folder: Path, data: Path) -> list[str]:
    (folder / "garbage.pt").write_bytes(bytes(range(256)) * 10)
    return flags(data, *resuming(folder / "garbage.pt", folder))


@refused("empty.pt", "not a checkpoint")
def _resume_empty_file(folder: Path, data: Path) -> list[str]:
    (folder / "empty.pt").write_bytes(b"")
    return flags(data, *resuming(folder / "empty.pt", folder))


@refused("foreign.pt", "other than tensors")
def _resume_foreign_pickle(folder: Path, data: Path) -> list[str]:
    torch.save({"format": 1, "thing": Path("x")}, folder / "foreign.pt")
    return flags(data, *resuming(folder / "foreign.pt", folder))


@refused("plain.pkl")
def _resume_plain_pickle(folder: Path, data: Path) -> list[str]:
    (folder / "plain.pkl").write_bytes(pickle.dumps({"format": 1, "thing": Path("x")}))
    return flags(data, *resuming(folder / "plain.pkl", folder))


@refused("weights.pt", "--pretrained")
def _resume_weights_only(folder: Path, data: Path) -> list[str]:
    content = torch.load(folder / "run" / "checkpoints" / "last.pt", weights_only=True)
    torch.save({"state_dict": content["state_dict"]}, folder / "weights.pt")
    return flags(data, *resuming(folder / "weights.pt", folder))


@refused("next.pt", "format")
def _resume_another_format(folder: Path, data: Path) -> list[str]:
    content = torch.load(folder / "run" / "checkpoints" / "last.pt", weights_only=True)
    torch.save({**content, "format": content["format"] + 1}, folder / "next.pt")
    return flags(data, *resuming(folder / "next.pt", folder))


@refused("part.pt")
def _resume_a_dictionary_that_lacks_most(folder: Path, data: Path) -> list[str]:
    content = torch.load(folder / "run" / "checkpoints" / "last.pt", weights_only=True)
    torch.save({"format": content["format"], "state_dict": content["state_dict"]}, folder / "part.pt")
    return flags(data, *resuming(folder / "part.pt", folder))


@refused("checkpoints", "none of its")
def _resume_auto_with_damaged_checkpoints_only(folder: Path, data: Path) -> list[str]:
    for file in (folder / "run" / "checkpoints").glob("*.pt"):
        file.write_bytes(file.read_bytes()[:1000])
    return flags(data, *going_on(folder))


@refused("model", "cspdarknet_tiny", "cspresnet_cifar", "--pretrained")
def _resume_another_model(folder: Path, data: Path) -> list[str]:
    return flags(data, "--model", "cspresnet_cifar", *going_on(folder))


@refused("cspdarknet_tiny: takes pictures of 4 channels; those of a data set have 3")
def _another_number_of_colours(folder: Path, data: Path) -> list[str]:
    return flags(data, "--model-kwargs", "in_chs=4", *new(folder))


@refused("csresnet50_elastic", "cannot take RGB pictures of 96 px")
def _size_on_the_way_that_the_network_cannot_take(folder: Path, data: Path) -> list[str]:
    sizes = ("--data.start_px", 64, "--img-size", 128, "--data.ramp_epochs", "[0, 4]")
    return flags(data, "--model", "csresnet50_elastic", *sizes, *new(folder))


@refused("its optimizer is sgd, this run's is adamw", "--pretrained")
def _resume_with_another_optimizer(folder: Path, data: Path) -> list[str]:
    return flags(data, "--opt", "adamw", *going_on(folder))


@refused("schedule.min_lr", "above the peak of 0.005", "scaled to 8")
def _lowest_lr_above_the_scaled_peak(folder: Path, data: Path) -> list[str]:
    return flags(data, "--lr", "0.1", "--optim.lr_base_size", 160, "--min-lr", "0.01", *new(folder))


@refused("number of classes", "4", "3")
def _resume_another_number_of_classes(folder: Path, data: Path) -> list[str]:
    for split in ("train", "val"):
        shutil.rmtree(data / split / "class_3")
    return flags(data, *going_on(folder))


@refused("'false' and --data-path", "give one of them")
def _a_word_behind_a_flag_that_takes_none(folder: Path, data: Path) -> list[str]:
    return flags(data, "--model-ema", "false", *new(folder))


@refused("pictures.txt: not a folder", "--data-path")
def _a_file_as_the_data_set(folder: Path, data: Path) -> list[str]:
    (folder.parent / "pictures.txt").touch()
    return flags(folder.parent / "pictures.txt", *new(folder))


@refused("train: lies among the pictures of", "another --output-dir")
def _a_run_in_the_training_folder(folder: Path, data: Path) -> list[str]:
    return flags(data, "--output-dir", data / "train")


@refused("lies among the pictures of", "another --output-dir")
def _a_run_in_a_class_folder(folder: Path, data: Path) -> list[str]:
    return flags(data, "--output-dir", data / "val" / "class_1" / "run", "--resume", "auto")


@refused("another set of pictures", "with the class class_3")
def _resume_another_class(folder: Path, data: Path) -> list[str]:
    for split in ("train", "val"):
        (data / split / "class_3").rename(data / split / "class_4")
    return flags(data, *going_on(folder))


@refused("another set of pictures")
def _resume_another_data_set(folder: Path, data: Path) -> list[str]:
    shutil.copy(data / "train" / "class_0" / "0000.jpg", data / "train" / "class_0" / "0001.jpg")
    return flags(data, *going_on(folder))


@refused("another set of pictures")
def _resume_with_pictures_under_other_names(folder: Path, data: Path) -> list[str]:
    # As many pictures a class and names as long as before, but in another order.
    (data / "train" / "class_0" / "0000.jpg").rename(data / "train" / "class_0" / "9999.jpg")
    return flags(data, *going_on(folder))


@refused("8 pictures", "4", "--batch-size")
def _resume_with_another_global_batch(folder: Path, data: Path) -> list[str]:
    return flags(data, "--batch-size", 4, *going_on(folder))


@refused("decay_norm_and_bias")
def _resume_with_other_parameter_groups(folder: Path, data: Path) -> list[str]:
    return flags(data, "--optim.decay_norm_and_bias", "false", *going_on(folder))


@refused("newer checkpoints", "--output-dir")
def _resume_an_older_checkpoint_in_its_own_folder(folder: Path, data: Path) -> list[str]:
    run = folder / "two"
    assert main(flags(data, "--epochs", 2, "--output-dir", run)) == 0
    older = run / "checkpoints" / f"step-{STEPS:08d}.pt"
    return flags(data, "--epochs", 2, "--output-dir", run, "--resume", older)


@refused("gone.pth", "no such file")
def _pretrained_missing(folder: Path, data: Path) -> list[str]:
    return flags(data, "--pretrained", folder / "gone.pth", *new(folder))


@refused("other.pt", "another model")
def _pretrained_of_another_model(folder: Path, data: Path) -> list[str]:
    torch.save({"state_dict": {"conv.weight": torch.zeros(3)}}, folder / "other.pt")
    return flags(data, "--pretrained", folder / "other.pt", *new(folder))


@refused("--test-only", "--resume", "--pretrained")
def _test_only_without_weights(folder: Path, data: Path) -> list[str]:
    return flags(data, "--test-only")


def _profile_cases() -> None:
    for value in ("0", "-1", "1.5", "1001", "many", "", "\u0663"):

        @refused("--profile", repr(value), "from 1 to 1000")
        def _steps_to_profile(folder: Path, data: Path, value: str = value) -> list[str]:
            return flags(data, "--profile", value, *new(folder))

        BAD[f"profile {value!r}"] = BAD.pop("steps to profile")
    for other in ("--dry-run", "--test-only"):

        @refused("--profile", other)
        def _nowhere_to_profile(folder: Path, data: Path, other: str = other) -> list[str]:
            return flags(data, "--profile", 3, other, *new(folder))

        BAD[f"profile with {other}"] = BAD.pop("nowhere to profile")


_profile_cases()


def _unset_variables() -> None:
    for flag in ("--channels-last", "--epochs", "--decay-milestones", "--pretrained", "--train-interpolation"):

        @refused(flag, "an empty value", "variable unset?")
        def _empty_value(folder: Path, data: Path, flag: str = flag) -> list[str]:
            return flags(data, flag, "", *new(folder))

        BAD[f"{flag} of nothing"] = BAD.pop("empty value")


_unset_variables()


@refused("--profile", "expected one argument")
def _profile_without_steps(folder: Path, data: Path) -> list[str]:
    return [*flags(data, *new(folder)), "--profile"]


@refused("--test-only", "no validation split")
def _test_only_without_a_validation_split(folder: Path, data: Path) -> list[str]:
    return flags(data, "--test-only", "--val-split", "null", "--resume", folder / "run" / "checkpoints" / "last.pt")


# This one says something before it fails: every damaged file.
WARNED = {"resume auto with damaged checkpoints only"}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_touches_nothing(
    case: str,
    run_copy: Path,
    picture_tree: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    if case == "gpu absent" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    build, said = BAD[case]
    data = Path(shutil.copytree(picture_tree, tmp_path / "data"))
    argv = build(tmp_path, data)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    before = snapshot(tmp_path)
    assert main(argv) == 2
    after = snapshot(tmp_path)
    assert {path: entry for path, entry in after.items() if not path.startswith("cache")} == before
    *warnings, line = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: error: ")
    for part in said:
        assert part in line
    assert bool(warnings) == (case in WARNED), warnings
    assert not recwarn.list, recwarn.list[0].message  # Python's warnings go to stderr too


def test_the_log_tells_how_a_run_has_ended(
    picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(picture_tree, data)
    for file in (data / "train").rglob("*.jpg"):
        file.write_bytes(b"broken")
    assert main(flags(data, "--output-dir", run, "--data.bad_images", "raise")) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    *_, start, last = (run / "train.log").read_text().splitlines()
    assert start[20:].startswith("folder ")
    assert last[20:] == told.removeprefix("train.py: ")
