"""Darknet's .weights: written and read back for every network, against the cfg interpreter, and by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cspnet
from cspnet.errors import CheckpointError
from cspnet.models.rows import darknet_cfgs
from cspnet.models.zoo import ZOO
from cspnet.weights.darknet import darknet_bytes
from cspnet.weights.load import load_weights
from cspnet.weights.match import match_weights, read_weight_file
from cspnet.weights.preprocessing import Preprocessing
from tests.models.darknet_cfgs import CFGS
from tests.weights.scrambled import build_scrambled, check_equal, copy_state, create_blank, relative_difference

# Bytes of a file with 1000 classes and a header of 20: computed from the authors' cfg files.
SIZES = {
    "csdarknet53": 110_710_068,
    "csresnet50": 86_592_180,
    "csresnext50": 82_459_316,
    "csmobilenet_v2": 10_273_812,
    "resnet10": 20_995_764,
    "csdarknet53_elastic": 76_468_020,
    "csresnet50_elastic": 119_600_820,
    "csresnext50_elastic": 67_894_964,
}
SIZES |= {f"{name}_omega": SIZES[name] for name in ("csdarknet53", "csresnet50", "csresnext50")}
HEADER = struct.pack("<3iQ", 0, 2, 5, 0)


def write(model: nn.Module, file: Path, seen: int = 0) -> bytes:
    data = darknet_bytes(model, str(file), seen)
    file.write_bytes(data)
    return data


# Every network


@pytest.fixture(scope="module", params=darknet_cfgs.ROWS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, nn.Module, Path]:
    """A network's name, the network, and its file. Read only."""
    file = tmp_path_factory.mktemp("darknet") / f"{request.param}.weights"
    model = build_scrambled(request.param, seed=1)
    write(model, file, seen=102_400_000)
    return request.param, model, file


def test_there_and_back_is_bit_equal(written: tuple[str, nn.Module, Path]) -> None:
    name, model, file = written
    copy = create_blank(name)
    report = load_weights(copy, file)
    counters = {key for key in model.state_dict() if key.endswith("num_batches_tracked")}
    state = model.state_dict()
    check_equal(
        {key: value for key, value in copy.state_dict().items() if key not in counters},
        {key: value for key, value in state.items() if key not in counters},
    )
    assert set(report.matched) == set(state) - counters
    assert (report.layout, report.new_head, report.leftover, report.warnings) == ("darknet", (), {}, ())
    assert darknet_bytes(copy, "again", seen=102_400_000) == file.read_bytes()


def test_size(written: tuple[str, nn.Module, Path]) -> None:
    """The listed ones to the byte; all: the parameters, two statistics for each BatchNorm channel, the header."""
    name, model, file = written
    statistics = sum(2 * module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert file.stat().st_size == 20 + 4 * (ZOO[name].params + statistics)
    assert file.stat().st_size == SIZES.get(name, file.stat().st_size)


def test_the_cfg_interpreter_reads_the_same_network(written: tuple[str, nn.Module, Path]) -> None:
    """The same bytes in the file order of a cfg text that knows nothing of our networks: the same logits."""
    name, _, file = written
    interpreter = create_blank(f"cfg/{name}", text=CFGS[name]())
    report = load_weights(interpreter, file)
    assert report.layout == "darknet"
    native = create_blank(name)
    load_weights(native, file)
    assert relative_difference(native, interpreter) < 1e-9
    interpreter.float()
    assert darknet_bytes(interpreter, "again", seen=102_400_000) == file.read_bytes()


@pytest.mark.parametrize(
    ("name", "options", "cfg"),
    [("cspdarknet53", {"leaky_slope": 0.1}, "csdarknet53"), ("cspdarknet53_mish", {}, "csdarknet53_omega")],
)
def test_timms_order_of_concatenation(tmp_path: Path, name: str, options: dict[str, float], cfg: str) -> None:
    """csdarknet53's file in timm's graph, whose transitions read (cross, block)."""
    theirs = build_scrambled(cfg, seed=2)
    data = write(theirs, tmp_path / "theirs.weights")
    interpreter = create_blank(f"cfg/{cfg}", text=CFGS[cfg]())
    load_weights(interpreter, tmp_path / "theirs.weights")
    ours = create_blank(name, **options)
    report = load_weights(ours, tmp_path / "theirs.weights")
    assert report.warnings == ()
    assert darknet_bytes(ours, "back") == data
    assert relative_difference(ours, interpreter) < 1e-9


def test_another_leaky_slope_is_a_warning(tmp_path: Path) -> None:
    write(build_scrambled("csdarknet53", seed=2, num_classes=2), tmp_path / "theirs.weights")
    report = load_weights(create_blank("cspdarknet53", 2), tmp_path / "theirs.weights")
    (warning,) = report.warnings
    assert "leaky_slope=0.1" in warning
    assert warning in str(report)


GEOMETRY = {"csmobilenet_v2": 224, "resnet10": 256}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("csmobilenet_v2", {"activation": "leaky_relu", "leaky_slope": 0.1}, "activation=relu"),
        ("csdarknet53", {"activation": "silu"}, "activation=leaky_relu, leaky_slope=0.1"),
        ("csdarknet53", {"activation": "mish"}, None),
        ("csdarknet53_omega", {"activation": "leaky_relu", "leaky_slope": 0.1}, None),
    ],
)
def test_the_activation_is_one_of_those_that_darknet_has(
    tmp_path: Path, name: str, options: dict[str, Any], said: str | None
) -> None:
    write(create_blank(name), tmp_path / "x.weights")
    warnings = load_weights(create_blank(name, **options), tmp_path / "x.weights").warnings
    assert [said in warning for warning in warnings] == [True] * (said is not None)


@pytest.mark.parametrize("name", GEOMETRY)
def test_preprocessing(tmp_path: Path, name: str) -> None:
    write(build_scrambled(name, seed=2), tmp_path / "theirs.weights")
    expected = Preprocessing(GEOMETRY[name], 1.0, "bilinear", (0, 0, 0), (1, 1, 1))
    for model in (create_blank(name), create_blank("cfg/x", text=CFGS[name]())):
        assert load_weights(model, tmp_path / "theirs.weights").preprocessing == expected


# By hand

CFG = """
[net]
height=8
width=8
channels=3
[convolutional]
batch_normalize=1
filters=4
size=3
pad=1
activation=leaky
[convolutional]
filters={classes}
activation=linear
[avgpool]
[softmax]
"""


def create_tiny(classes: int = 5) -> nn.Module:
    return cspnet.create_model("cfg/tiny", classes, text=CFG.format(classes=classes))


@pytest.mark.parametrize("header", [HEADER, struct.pack("<3iQ", 0, 2, 0, 2**40), struct.pack("<3iI", 0, 1, 0, 7)])
def test_a_file_written_by_hand(tmp_path: Path, header: bytes) -> None:
    rng = np.random.default_rng(0)
    shift, scale, mean = (rng.normal(size=4).astype("<f4") for _ in range(3))
    variance = rng.uniform(0.5, 1.5, size=4).astype("<f4")
    kernel = rng.normal(size=(4, 3, 3, 3)).astype("<f4")
    bias, matrix = rng.normal(size=5).astype("<f4"), rng.normal(size=(5, 4, 1, 1)).astype("<f4")
    numbers = (shift, scale, mean, variance, kernel, bias, matrix)
    (tmp_path / "hand.weights").write_bytes(header + b"".join(values.tobytes() for values in numbers))
    model = create_tiny()
    load_weights(model, tmp_path / "hand.weights")
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x = F.conv2d(images, torch.from_numpy(kernel), padding=1)
        tensors = (torch.from_numpy(values) for values in (mean, variance, scale, shift))
        x = F.leaky_relu(F.batch_norm(x, *tensors, eps=1e-5), 0.1)
        logits = F.conv2d(x, torch.from_numpy(matrix), torch.from_numpy(bias)).mean((2, 3))
        assert torch.allclose(model.eval()(images), logits, atol=1e-5)
    assert darknet_bytes(model, "back")[20:] == (tmp_path / "hand.weights").read_bytes()[len(header) :]


def test_pictures_seen_are_kept_in_the_header() -> None:
    data = darknet_bytes(create_tiny(), "tiny", seen=2**33 + 1)
    assert struct.unpack_from("<3iQ", data) == (0, 2, 5, 2**33 + 1)


WNIDS = Path(cspnet.__file__).parent / "weights" / "darknet_imagenet_wnids.txt"


def test_class_order_against_a_slow_loop(tmp_path: Path) -> None:
    """Numbers in the classifier say which of Darknet's classes they were."""
    model = create_tiny(1000)
    state = copy_state(model)
    name = "layers.1.conv"
    rest = [state[f"layers.0.bn.{key}"] for key in ("bias", "weight", "running_mean", "running_var")]
    rest.append(state["layers.0.conv.weight"])
    matrix = torch.arange(4000.0).view(1000, 4)
    numbers = [*rest, torch.arange(1000.0), matrix]
    data = HEADER + b"".join(value.numpy().tobytes() for value in numbers)
    (tmp_path / "classes.weights").write_bytes(data)
    load_weights(model, tmp_path / "classes.weights")
    state = copy_state(model)
    theirs = WNIDS.read_text().split()
    assert len(set(theirs)) == 1000
    for i, wnid in enumerate(sorted(theirs)):
        for j, other in enumerate(theirs):
            if other == wnid:
                assert state[f"{name}.bias"][i] == j
                assert torch.equal(state[f"{name}.weight"][i].flatten(), matrix[j])
    # Known from the labels' file: it begins with n02119789, and n01440764, first of the sorted ones, is number 448.
    assert theirs[:3] == ["n02119789", "n02100735", "n02110185"]
    assert sorted(theirs)[0] == "n01440764"
    assert state[f"{name}.bias"][0] == 448
    assert darknet_bytes(model, "back") == data


def test_a_native_classifier_is_permuted_alike(tmp_path: Path) -> None:
    """The linear layer of a native network against the 1x1 convolution of the interpreter."""
    write(build_scrambled("resnet10", seed=4), tmp_path / "theirs.weights")
    native, interpreter = create_blank("resnet10"), create_blank("cfg/x", text=CFGS["resnet10"]())
    for model in (native, interpreter):
        load_weights(model, tmp_path / "theirs.weights")
    other = interpreter.get_submodule(interpreter.classifier_name)
    assert torch.equal(native.head.fc.weight, other.weight.flatten(1))
    assert torch.equal(native.head.fc.bias, other.bias)


def test_other_numbers_of_classes_keep_their_order(tmp_path: Path) -> None:
    model = create_tiny(999)
    data = write(model, tmp_path / "w.weights")
    copy = create_tiny(999)
    load_weights(copy, tmp_path / "w.weights")
    assert torch.equal(copy.get_parameter("layers.1.conv.bias"), model.get_parameter("layers.1.conv.bias"))
    assert data.endswith(model.get_parameter("layers.1.conv.weight").detach().numpy().tobytes())


@pytest.mark.parametrize("create", [create_tiny, lambda n: build_scrambled("resnet10", 3, n)], ids=["cfg", "native"])
def test_another_number_of_classes_replaces_the_head(tmp_path: Path, create: Callable[[int], nn.Module]) -> None:
    theirs, ours = create(7), create(5)
    write(theirs, tmp_path / "seven.weights")
    fresh = copy_state(ours)
    with pytest.raises(CheckpointError, match=r"with 5 classes or .* too few .* with 1000 classes; .* size with 7: "):
        load_weights(ours, tmp_path / "seven.weights")
    check_equal(copy_state(ours), fresh)
    report = load_weights(ours, tmp_path / "seven.weights", num_classes=7)
    assert len(report.new_head) == 2
    for key, value in ours.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, fresh[key] if key in report.new_head else theirs.state_dict()[key]), key
    assert all("7 classes, the model has 5" in text for text in report.leftover.values())
    assert "7 classes, the model has 5" in str(report)


def test_imagenets_classes_need_not_be_said(tmp_path: Path) -> None:
    write(create_tiny(1000), tmp_path / "imagenet.weights")
    report = load_weights(create_tiny(), tmp_path / "imagenet.weights")
    assert all("1000 classes, the model has 5" in text for text in report.leftover.values())


# What is refused


def negative_variance(data: bytes) -> bytes:
    return data[: 20 + 12 * 4] + struct.pack("<f", -1.0) + data[20 + 13 * 4 :]


def not_a_number(data: bytes) -> bytes:
    return data[: 20 + 12 * 4] + struct.pack("<f", float("nan")) + data[20 + 13 * 4 :]


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "does not begin with a version"),
    "a part of the header": (lambda data: data[:15], "does not begin with a version"),
    "the header alone": (lambda data: data[:20], "cut short"),
    "text": (lambda data: b"<!DOCTYPE html> not found" * 20, "does not begin with a version"),
    "a zip file": (lambda data: b"PK\x03\x04" + data[4:], "does not begin with a version"),
    "a version of no Darknet": (lambda data: struct.pack("<3i", 7, 2, 0) + data[12:], "does not begin with a version"),
    "a negative version": (lambda data: struct.pack("<i", -1) + data[4:], "does not begin with a version"),
    "one byte short": (lambda data: data[:-1], "no whole number of float32"),
    "one number short": (lambda data: data[:-4], "4 too few"),
    "half": (lambda data: data[:300], "too few"),
    "one byte too many": (lambda data: data + b"\0", "no whole number of float32"),
    "one number too many": (lambda data: data + bytes(4), "4 too many"),
    "a class short": (lambda data: data[: -4 * 5], "20 too few"),
    "a class too many": (lambda data: data + bytes(4 * 5), "20 too many"),
    "three classes too many": (lambda data: data + bytes(4 * 15), "that is the size with 8: if the file is not"),
    "all classes short": (lambda data: data[: -4 * 25], "100 too few"),
    "the old header's length": (lambda data: struct.pack("<3iI", 0, 1, 0, 0) + data[16:], "4 too many"),
    "a variance below zero": (negative_variance, "running_var"),
    "a variance that is no number": (not_a_number, "running_var"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_files_are_refused_and_the_model_is_untouched(tmp_path: Path, case: str) -> None:
    damage, said = DAMAGES[case]
    model = create_tiny()
    (tmp_path / "bad.weights").write_bytes(damage(darknet_bytes(create_tiny(), "good")))
    before = copy_state(model)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "bad.weights")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "bad.weights" in message
    assert said in message
    check_equal(copy_state(model), before)


def test_every_other_networks_file_is_refused(written: tuple[str, nn.Module, Path]) -> None:
    name, _, file = written
    content = read_weight_file(file)
    for other in darknet_cfgs.ROWS:
        if name.removesuffix("_omega") != other.removesuffix("_omega"):
            with torch.device("meta"):
                model = cspnet.create_model(other)
            with pytest.raises(CheckpointError, match=r"too (many|few)|running_var"):
                match_weights(content, model, where=file.name)


def test_a_said_number_of_classes_is_the_only_one_taken(tmp_path: Path) -> None:
    model = create_tiny()
    write(create_tiny(), tmp_path / "five.weights")
    for number in (4, 6, 1000, 0, -1):
        with pytest.raises(
            CheckpointError, match=rf"too (many|few) for this network with {number} classes; .* with 5: "
        ):
            load_weights(model, tmp_path / "five.weights", num_classes=number)
    torch.save(model.state_dict(), tmp_path / "named.pt")
    with pytest.raises(CheckpointError, match=r"named\.pt: says its number of classes itself"):
        load_weights(model, tmp_path / "named.pt", num_classes=5)


def test_a_huge_file_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "huge.weights").open("wb") as file:
        file.write(HEADER)
        file.truncate(len(HEADER) + 4 * 1_000_000_007)  # a hole: it takes no room on the disk
    with pytest.raises(CheckpointError, match="too many for this network"):
        load_weights(create_tiny(), tmp_path / "huge.weights")


FOREIGN: dict[str, Callable[[], nn.Module]] = {
    "timm's graph": lambda: cspnet.create_model("cspresnet50"),
    "ours": lambda: cspnet.create_model("cspdarknet_tiny"),
    "an ablation": lambda: cspnet.create_model("csdarknet53", fusion="first"),
    "another library's": lambda: cspnet.create_model("torchvision/resnet18"),
    "without a classifier": lambda: cspnet.create_model("resnet10", 0),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_networks_that_darknet_does_not_have(tmp_path: Path, case: str) -> None:
    (tmp_path / "x.weights").write_bytes(HEADER + bytes(400))
    with torch.device("meta"):
        model = FOREIGN[case]()
    said = "bytes, .* too few" if case == "without a classifier" else "Darknet has no"
    with pytest.raises(CheckpointError, match=rf"x\.weights: .*{said}"):
        load_weights(model, tmp_path / "x.weights")
    with pytest.raises(CheckpointError, match=r"Darknet has no|has none"):
        darknet_bytes(model, "x.weights")


def test_there_is_no_average_and_no_file(tmp_path: Path) -> None:
    write(create_tiny(), tmp_path / "x.weights")
    with pytest.raises(CheckpointError, match="no moving average"):
        load_weights(create_tiny(), tmp_path / "x.weights", which="ema")
    with pytest.raises(CheckpointError, match="no such file"):
        load_weights(create_tiny(), tmp_path / "y.weights")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_weights(create_tiny(), tmp_path, source="darknet")


def test_the_source_can_be_said_instead_of_the_ending(tmp_path: Path) -> None:
    data = write(create_tiny(), tmp_path / "weights.bin")
    model = create_tiny()
    load_weights(model, tmp_path / "weights.bin", source="darknet")
    assert darknet_bytes(model, "back") == data
    with pytest.raises(CheckpointError, match=r"weights\.bin"):
        load_weights(model, tmp_path / "weights.bin")
