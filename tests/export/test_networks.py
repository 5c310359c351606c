"""Networks of each kind as ONNX and torch.export files, run at a batch size that nothing has seen before."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cspnet
from cspnet.errors import ModelError
from cspnet.export.network import ExportedNet, check_same, quietly
from cspnet.export.torch_file import write_program
from cspnet.models.folding import fold_batch_norm
from cspnet.weights.preprocessing import Preprocessing
from tests.models.darknet_small import ALL_KINDS

ABOUT = {"output": "logits", "cspnet_version": "0"}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

# Each kind of block and of cross stage; cfg is the interpreter of Darknet's files.
NETWORKS = {
    "cspresnet10": 64,
    "csmobilenet_v2": 64,
    "csppeleenet": 64,
    "cfg/all_kinds.cfg": 32,
}


def create(name: str) -> nn.Module:
    """A network whose BatchNorms do something, in evaluation mode."""
    torch.manual_seed(0)
    options = {"text": ALL_KINDS} if name.startswith("cfg/") else {"num_classes": 7}
    model = cspnet.create_model(name, **options)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            nn.init.normal_(layer.running_mean, 0, 0.1)
            nn.init.uniform_(layer.running_var, 0.8, 1.2)
    return model.eval()


def nets(name: str, side_px: int, **how: Any) -> tuple[ExportedNet, ExportedNet]:
    """What is written, and what it is compared with."""
    model = create(name)
    pictures = Preprocessing(side_px, 0.875, "bilinear", MEAN, STD)
    how = {"input_kind": "float32", "softmax": False, **how}
    reference = ExportedNet(model, pictures, **how)
    folded = fold_batch_norm(model, torch.randn(1, 3, side_px, side_px)).model
    return ExportedNet(folded, pictures, **how), reference


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx(name: str, tmp_path: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from cspnet.export.onnx_file import write_onnx

    side = NETWORKS[name]
    check = write_onnx(tmp_path / "a.onnx", *nets(name, side), ABOUT, opset=18, name=name)
    assert 0 < check.apart < 1e-4
    images = torch.randn(5, 3, side, side)
    with torch.no_grad():
        expected = create(name)(images).numpy()
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    (got,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    (given,) = session.get_inputs()
    assert (given.shape, given.type) == (["batch", 3, side, side], "tensor(float)")
    assert [list(output.shape) for output in session.get_outputs()] == [["batch", expected.shape[1]]]
    operations = {node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node}
    assert "Conv" in operations
    assert "BatchNormalization" not in operations


@pytest.mark.parametrize("name", ["cspresnet_cifar", "timm/test_efficientnet"])
def test_torch(name: str, tmp_path: Path) -> None:
    check = write_program(tmp_path / "a.pt2", *nets(name, 64), ABOUT, name=name)
    assert 0 < check.apart < 1e-4
    images = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        expected, got = create(name)(images), torch.export.load(tmp_path / "a.pt2").module()(images)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_pixels_in_and_probabilities_out(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from cspnet.export.onnx_file import write_onnx

    name, how = "cspdarknet_tiny", {"input_kind": "uint8", "softmax": True}
    about = {**ABOUT, "output": "probabilities"}
    write_onnx(tmp_path / "a.onnx", *nets(name, 32, **how), about, opset=18, name=name)
    write_program(tmp_path / "a.pt2", *nets(name, 32, **how), about, name=name)
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    images = (pixels.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    with torch.no_grad():
        expected = create(name).double()(images.permute(0, 3, 1, 2)).softmax(1).numpy()
    (got,) = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(["probabilities"], {"images": pixels.numpy()})
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        again = torch.export.load(tmp_path / "a.pt2").module()(pixels).numpy()
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-6)


def shift_slightly(net: ExportedNet) -> ExportedNet:
    """The network with another bias: a thousandth of its outputs."""
    with torch.no_grad():
        net.network.head.fc.bias += 1e-3 * net(net.draw(1, 0)).abs().max()  # type: ignore[operator, union-attr]
    return net


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_file_that_is_not_the_same_is_not_left_behind(format: str, tmp_path: Path) -> None:
    out = tmp_path / "a.file"
    out.write_text("older")
    written, reference = nets("cspdarknet_tiny", 32)
    with pytest.raises(ModelError, match=r"gives other outputs than the network, at a batch of 1: 0\.00"):
        if format == "torch":
            write_program(out, shift_slightly(written), reference, ABOUT, name="it")
        else:
            pytest.importorskip("onnx")
            pytest.importorskip("onnxruntime")
            pytest.importorskip("onnxscript")
            from cspnet.export.onnx_file import write_onnx

            write_onnx(out, shift_slightly(written), reference, ABOUT, opset=18, name="it")
    assert [path.name for path in tmp_path.iterdir()] == ["a.file"]
    assert out.read_text() == "older"


def test_what_the_comparison_refuses() -> None:
    net, same = nets("cspdarknet_tiny", 32)
    assert 0 <= check_same(same, same, "it").apart < 1e-6
    with pytest.raises(ModelError, match=r"instead of \(1, 7\)"):
        check_same(lambda images: net(images)[:, :3], same, "it")
    with pytest.raises(ModelError, match="it gives other outputs"):
        check_same(lambda images: net(images) * float("nan"), same, "it")
    with torch.no_grad():
        same.network.head.fc.bias[0] = float("nan")  # type: ignore[index, union-attr]
    with pytest.raises(ModelError, match="not finite"):
        check_same(same, same, "it")


def test_what_a_library_says_is_told_only_if_it_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with quietly("no way"):
        print("by the way")
        warnings.warn("beware", stacklevel=1)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ModelError, match=r"^no way: ZeroDivisionError: division by zero$"), quietly("no way"):
        print("by the way")
        1 / 0  # noqa: B018
    assert capfd.readouterr() == ("", "by the way\n")
