"""Weights from a file into a model: all of them or none, whatever they are wrapped in, and never any code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import cspnet
from cspnet.errors import CheckpointError
from cspnet.weights.darknet import darknet_bytes
from cspnet.weights.files import read_tensors
from cspnet.weights.load import load_weights
from cspnet.weights.match import extract_state_dict

MODEL = "cspdarknet_tiny"
State = dict[str, Tensor]


def build(seed: int, num_classes: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    model = cspnet.create_model(MODEL, num_classes=num_classes)
    for buffer in model.buffers():  # statistics that are not the fresh ones
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
        else:
            buffer.fill_(seed)
    return model


def copy_state(model: nn.Module) -> State:
    return {key: value.clone() for key, value in model.state_dict().items()}


def check_equal(model: nn.Module, expected: State, but_for: tuple[str, ...] = ()) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for key, value in state.items():
        if key not in but_for:
            assert torch.equal(value, expected[key]), key


def head_keys(model: nn.Module) -> set[str]:
    (name,) = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {f"{name}.weight", f"{name}.bias"}


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


# Wrappers and prefixes

WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "state_dict_ema": lambda state: {"state_dict_ema": state},
    "no average kept": lambda state: {"state_dict": state, "state_dict_ema": None},
    "module.": lambda state: prefixed(state, "module."),
    "_orig_mod.": lambda state: prefixed(state, "_orig_mod."),
    "module._orig_mod.": lambda state: prefixed(state, "module._orig_mod."),
    "_orig_mod.module.": lambda state: prefixed(state, "_orig_mod.module."),
    "wrapped and prefixed": lambda state: {"state_dict": prefixed(state, "module.")},
    "with other things": lambda state: {"state_dict": {**state, "_metadata": {"version": 1}}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappers_and_prefixes_are_taken_off(tmp_path: Path, wrapping: str) -> None:
    expected = copy_state(build(1))
    torch.save(WRAPPINGS[wrapping](expected), tmp_path / "weights.pth")
    model = build(2)
    report = load_weights(model, tmp_path / "weights.pth")
    check_equal(model, expected)
    assert report.num_loaded == len(expected)
    assert report.new_head == ()


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.pth.tar", "weights.bin"])
def test_the_name_of_the_file_does_not_matter(tmp_path: Path, name: str) -> None:
    expected = copy_state(build(1))
    torch.save(expected, tmp_path / name)
    model = build(2)
    load_weights(model, str(tmp_path / name))
    check_equal(model, expected)


def test_safetensors(tmp_path: Path) -> None:
    expected = copy_state(build(1))
    save_file(expected, tmp_path / "weights.safetensors")
    model = build(2)
    load_weights(model, tmp_path / "weights.safetensors")
    check_equal(model, expected)


def test_half_precision_weights_become_the_models_own(tmp_path: Path) -> None:
    state = {key: value.half() if value.is_floating_point() else value for key, value in copy_state(build(1)).items()}
    torch.save(state, tmp_path / "half.pt")
    model = build(2)
    load_weights(model, tmp_path / "half.pt")
    check_equal(model, {key: value.float() if value.is_floating_point() else value for key, value in state.items()})


def test_weights_of_old_files_without_batch_counters(tmp_path: Path) -> None:
    expected = copy_state(build(1))
    torch.save({k: v for k, v in expected.items() if not k.endswith("num_batches_tracked")}, tmp_path / "old.pt")
    model = build(2)
    load_weights(model, tmp_path / "old.pt")
    check_equal(model, expected, but_for=tuple(key for key in expected if key.endswith("num_batches_tracked")))


def test_timm_weights_fit(tmp_path: Path) -> None:
    import timm

    theirs = timm.create_model("cspresnet50", num_classes=6)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "timm.pth.tar")
    ours = cspnet.create_model("cspresnet50", num_classes=6)
    report = cspnet.load_weights(ours, tmp_path / "timm.pth.tar")
    check_equal(ours, dict(theirs.state_dict()))
    assert report.new_head == ()


# Which weights


@pytest.mark.parametrize(("which", "seed"), [("auto", 2), ("ema", 2), ("raw", 1)])
def test_which(tmp_path: Path, which: str, seed: int) -> None:
    content = {"state_dict": copy_state(build(1)), "state_dict_ema": copy_state(build(2))}
    torch.save(content, tmp_path / "both.pt")
    model = build(3)
    load_weights(model, tmp_path / "both.pt", which=which)
    check_equal(model, copy_state(build(seed)))


@pytest.mark.parametrize("which", ["auto", "raw"])
def test_which_without_an_average(tmp_path: Path, which: str) -> None:
    torch.save({"state_dict": copy_state(build(1)), "state_dict_ema": None}, tmp_path / "raw.pt")
    model = build(3)
    load_weights(model, tmp_path / "raw.pt", which=which)
    check_equal(model, copy_state(build(1)))


@pytest.mark.parametrize("content", [{"state_dict": {"w": torch.zeros(1)}}, {"w": torch.zeros(1)}])
def test_an_average_that_is_not_there(content: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="no moving average"):
        extract_state_dict(content, which="ema")


def test_unknown_choices(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="raw"):
        load_weights(build(1), tmp_path / "w.pt", which="best")
    with pytest.raises(ValueError, match="mmpretrain"):
        load_weights(build(1), tmp_path / "w.pt", source="keras")


# Another number of classes


def test_head_of_another_number_of_classes_stays_fresh_and_is_reported(tmp_path: Path) -> None:
    theirs = copy_state(build(1, num_classes=7))
    torch.save(theirs, tmp_path / "seven.pt")
    model = build(2, num_classes=5)
    fresh = copy_state(model)
    report = load_weights(model, tmp_path / "seven.pt")
    head = head_keys(model)
    assert set(report.new_head) == head
    assert report.num_loaded == len(theirs) - len(head)
    check_equal(model, {key: fresh[key] if key in head else theirs[key] for key in theirs})
    assert all(key in str(report) for key in head)
    assert str(tmp_path / "seven.pt") in str(report)


# What is refused


def without(state: State, key: str) -> State:
    return {k: v for k, v in state.items() if k != key}


def reshaped(state: State, key: str) -> State:
    return {**state, key: torch.zeros(*state[key].shape, 1)}


FIRST = "stem.conv1.conv.weight"
WRONG: dict[str, tuple[Callable[[State], Any], tuple[str, ...]]] = {
    "missing": (lambda state: without(state, FIRST), (FIRST, "lacks")),
    "head missing": (lambda state: {k: v for k, v in state.items() if not k.startswith("head")}, ("head", "lacks")),
    "left over": (lambda state: {**state, "extra.weight": torch.zeros(1)}, ("extra.weight",)),
    "another shape": (lambda state: reshaped(state, FIRST), (FIRST, "[16, 3, 3, 3, 1]", "[16, 3, 3, 3]")),
    "another shape at the end": (
        lambda state: reshaped(state, [key for key in state if key.endswith("running_mean")][-1]),
        ("running_mean",),
    ),
    "another model": (lambda state: {"conv.weight": torch.zeros(3)}, ("another model",)),
    "no tensors": (lambda state: {"epoch": 3}, ("no weights",)),
    "empty": (lambda state: {}, ("no weights",)),
    "a list": (lambda state: [state[FIRST]], ("dictionary", "list")),
    "a tensor": (lambda state: state[FIRST], ("dictionary", "Tensor")),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_weights_are_refused_and_the_model_is_untouched(tmp_path: Path, case: str) -> None:
    change, said = WRONG[case]
    state = copy_state(build(1))
    assert FIRST in state
    torch.save(change(state), tmp_path / "wrong.pt")
    model = build(2)
    before = copy_state(model)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "wrong.pt")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in ("wrong.pt", *said):
        assert part in message
    check_equal(model, before)


def test_a_model_of_another_width_is_refused(tmp_path: Path) -> None:
    torch.save(cspnet.create_model("cspresnet_cifar", num_classes=5).state_dict(), tmp_path / "wide.pt")
    model = build(2)
    before = copy_state(model)
    with pytest.raises(CheckpointError, match="another model"):
        load_weights(model, tmp_path / "wide.pt")
    check_equal(model, before)


BYTES = {
    "empty.pt": b"",
    "noise.pt": bytes(range(256)) * 8,
    "text.pt": b"hello\n",
    "zip.pt": b"PK\x03\x04" + bytes(100),
    "empty.safetensors": b"",
    "noise.safetensors": bytes(range(256)) * 8,
}


@pytest.mark.parametrize("name", BYTES)
def test_files_that_are_no_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BYTES[name])
    with pytest.raises(CheckpointError) as caught:
        load_weights(build(2), tmp_path / name)
    assert name in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, name: str, share: float) -> None:
    state = copy_state(build(1))
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    model = build(2)
    before = copy_state(model)
    with pytest.raises(CheckpointError, match=name):
        load_weights(model, tmp_path / name)
    check_equal(model, before)


@pytest.mark.parametrize(
    ("make", "said"), [(Path.mkdir, "is a folder"), (lambda path: None, "no such file")], ids=["folder", "missing"]
)
def test_no_file(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    make(tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=said):
        load_weights(build(2), tmp_path / "weights.pt")


def test_a_runs_folder_is_answered_with_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.pt").touch()
    for folder in ("run", "run/checkpoints"):
        with pytest.raises(CheckpointError, match=r"such as .*/run/checkpoints/last\.pt$"):
            read_tensors(tmp_path / folder)


def test_checksum_beside_the_file_is_compared(tmp_path: Path) -> None:
    import hashlib

    file = tmp_path / "weights.pt"
    torch.save({"w": torch.arange(1000)}, file)
    beside = tmp_path / "weights.pt.sha256"
    beside.write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  weights.pt\n")
    assert torch.equal(read_tensors(file)["w"], torch.arange(1000))
    beside.write_text(f"{hashlib.sha256(b'another').hexdigest()}  weights.pt\n")
    with pytest.raises(CheckpointError, match="checksum"):
        read_tensors(file)
    beside.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="checksum"):
        read_tensors(file)


def test_a_flipped_byte_is_found_without_a_checksum_beside_the_file(tmp_path: Path) -> None:
    """torch.load passes over the archive's own checksums."""
    file = tmp_path / "flipped.pth"
    torch.save(build(2).state_dict(), file)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    assert torch.load(file, weights_only=True).keys() == build(2).state_dict().keys()
    model = build(5)
    before = copy_state(model)
    with pytest.raises(CheckpointError, match=r"flipped\.pth: damaged: .* does not have its checksum"):
        load_weights(model, file)
    check_equal(model, before)


def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(build(2).state_dict(), tmp_path / "secret.pth")

    as_usual = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.suffix == ".pth":
            raise PermissionError(13, "Permission denied")
        return as_usual(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(CheckpointError, match=r"secret\.pth: .*Permission denied"):
        read_tensors(tmp_path / "secret.pth")


def test_an_archive_without_checksums_is_taken(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(build(2).state_dict(), tmp_path / "plain.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    model = build(5)
    load_weights(model, tmp_path / "plain.pth")
    check_equal(model, copy_state(build(2)))


@pytest.mark.parametrize(
    ("ending", "wrong", "said"),
    [
        (".safetensors", ".pth", "looks like safetensors"),
        (".pth", ".safetensors", "let it end in .pth"),
        (".weights", ".bin", "--source darknet"),
    ],
)
def test_a_wrong_ending_is_guessed(tmp_path: Path, ending: str, wrong: str, said: str) -> None:
    right, file = tmp_path / f"right{ending}", tmp_path / f"wrong{wrong}"
    if ending == ".safetensors":
        save_file(build(2).state_dict(), right)
    elif ending == ".pth":
        torch.save(build(2).state_dict(), right)
    else:
        right.write_bytes(darknet_bytes(cspnet.create_model("resnet10", 3), "x"))
    right.rename(file)
    with pytest.raises(CheckpointError) as error:
        load_weights(build(5), file)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_report_says_whether_it_is_the_average(tmp_path: Path) -> None:
    torch.save({"state_dict": build(2).state_dict(), "state_dict_ema": build(3).state_dict()}, tmp_path / "both.pth")
    for which, is_average in (("auto", True), ("ema", True), ("raw", False)):
        report = load_weights(build(5), tmp_path / "both.pth", which=which)
        assert report.is_average is is_average
        assert ("of the moving average" in str(report)) is is_average


class Hostile:
    """A pickle that makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def save_zip(content: Any, file: Path) -> None:
    torch.save(content, file)


def save_legacy(content: Any, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def save_pickle(content: Any, file: Path) -> None:
    file.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
def test_hostile_pickle_is_refused_and_not_executed(tmp_path: Path, save: Callable[[Any, Path], None]) -> None:
    mark, file = tmp_path / "executed", tmp_path / "hostile.pt"
    save({"state_dict": {}, "payload": Hostile(mark)}, file)
    model = build(2)
    before = copy_state(model)
    with pytest.raises(CheckpointError, match=r"hostile\.pt"):
        load_weights(model, file)
    assert not mark.exists()
    check_equal(model, before)
    if save is save_pickle:  # it would have worked
        pickle.loads(file.read_bytes())
        assert mark.exists()


def test_a_network_without_a_linear_layer_is_refused_in_words(tmp_path: Path) -> None:
    """SqueezeNet classifies by a convolution: another class count is an error, not a crash."""
    saved = cspnet.create_model("torchvision/squeezenet1_1", 5).state_dict()
    torch.save(saved, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="weights of another model"):
        cspnet.load_weights(cspnet.create_model("torchvision/squeezenet1_1", 3), tmp_path / "weights.pth")


@pytest.mark.parametrize("out_indices", [None, (1, 2)])
def test_a_backbone_takes_a_classifiers_file(tmp_path: Path, out_indices: tuple[int, ...] | None) -> None:
    torch.manual_seed(0)
    classifier = cspnet.create_model("cspdarknet_tiny", num_classes=7)
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "whole.pth")
    backbone = cspnet.create_model("cspdarknet_tiny", features_only=True, out_indices=out_indices)
    report = cspnet.load_weights(backbone, tmp_path / "whole.pth")
    weights = classifier.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in backbone.state_dict().items())
    assert set(report.matched) == set(backbone.state_dict())
    assert set(report.leftover) == set(weights) - set(backbone.state_dict()) >= {"head.fc.weight", "head.fc.bias"}
    assert "behind the model's outputs" in str(report)


def test_a_network_without_a_classifier_leaves_it_out(tmp_path: Path) -> None:
    torch.save(cspnet.create_model("cspdarknet_tiny").state_dict(), tmp_path / "whole.pth")
    report = cspnet.load_weights(cspnet.create_model("cspdarknet_tiny", num_classes=0), tmp_path / "whole.pth")
    assert set(report.leftover) == {"head.fc.weight", "head.fc.bias"}


def test_a_backbone_refuses_another_networks_file(tmp_path: Path) -> None:
    torch.save(cspnet.create_model("csmobilenet_v2").state_dict(), tmp_path / "other.pth")
    backbone = cspnet.create_model("cspdarknet_tiny", features_only=True)
    with pytest.raises(CheckpointError, match="weights of another model"):
        cspnet.load_weights(backbone, tmp_path / "other.pth")


IMPOSSIBLE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "meta": lambda state: {**state, KEY: torch.empty_like(state[KEY], device="meta")},
    "sparse": lambda state: {**state, KEY: state[KEY].to_sparse()},
    "whole numbers": lambda state: {**state, KEY: state[KEY].to(torch.int8)},
    "complex": lambda state: {**state, KEY: state[KEY].to(torch.complex64)},
    "not a number": lambda state: {**state, KEY: state[KEY].clone().fill_(float("nan"))},
    "negative variances": lambda state: {**state, VARIANCE: -1 - state[VARIANCE]},
    "keys that are no names": lambda state: {1: torch.ones(2), **state},
    "a classifier of two sizes": lambda state: {**state, "head.fc.bias": torch.zeros(3)},
    "a classifier with a short bias": lambda state: {
        **state,
        "head.fc.weight": torch.zeros(2, state["head.fc.weight"].shape[1]),
    },
}
KEY, VARIANCE = "stages.0.conv_exp.conv.weight", "stages.0.conv_exp.bn.running_var"


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_no_weight_can_be_is_refused_and_nothing_is_loaded(tmp_path: Path, case: str) -> None:
    torch.save(IMPOSSIBLE[case](dict(build(5).state_dict())), tmp_path / "odd.pth")
    model = build(2)
    before = copy_state(model)
    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        load_weights(model, tmp_path / "odd.pth")
    check_equal(model, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_formats_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    source = build(2)
    torch.save(
        {key: v.to(dtype) if v.is_floating_point() else v for key, v in source.state_dict().items()}, tmp_path / "x.pth"
    )
    model = build(2)
    load_weights(model, tmp_path / "x.pth")
    assert all(
        torch.equal(value, source.state_dict()[key].to(dtype).to(value.dtype))
        for key, value in model.state_dict().items()
    )
