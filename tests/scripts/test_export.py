"""scripts/export.py: files that run without us, and what they say of themselves."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import cspnet
from cspnet.cli.export_job import ExportJob, run_export_job
from cspnet.cli.predict_job import predict
from cspnet.cli.subject import read_subject
from cspnet.cli.train import main as train
from cspnet.cli.weight_flags import AskedWeights
from cspnet.data.decode import open_picture
from cspnet.data.transforms import EvalTransform
from cspnet.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxruntime or onnxscript is not installed")


@pytest.fixture(scope="module")
def checkpoint(picture_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes, a moving average, validated once."""
    folder = tmp_path_factory.mktemp("trained")
    words = [
        "--data-path",
        picture_tree,
        "--output-dir",
        folder / "run",
        "--model",
        "cspdarknet_tiny",
        "--img-size",
        32,
    ]
    words += ["--workers", 0, "--batch-size", 8, "--steps", 2, "--device", "cpu", "--ema.decay", 0.5, "--lr", 0.01]
    words += ["--data.cache_dir", folder / "cache", "--mean", "0.5,0.4,0.3", "--crop-pct", 0.8]
    assert train([str(word) for word in words]) == 0
    return folder / "run" / "checkpoints" / "last.pt"


@pytest.fixture
def export(checkpoint: Path, fork_script: Run) -> Run:
    """export.py with the checkpoint; it has to work, and quietly."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        done = fork_script("scripts/export.py", "--checkpoint", checkpoint, *words)
        assert (done.returncode, done.stderr) == (0, "")
        return done

    return run


@pytest.fixture(scope="module")
def jpeg(picture_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that lies on its side, as its EXIF data say."""
    file = tmp_path_factory.mktemp("picture") / "cat.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(min((picture_tree / "val").rglob("*.jpg"))) as image:
        image.resize((61, 45)).save(file, exif=exif)
    return file


def answer(checkpoint: Path, jpeg: Path) -> np.ndarray:
    """Logits by the network as the checkpoint has it, with nothing folded, of the pixels that predict.py sees."""
    content = torch.load(checkpoint, weights_only=True)
    model = cspnet.create_model("cspdarknet_tiny", 4).eval()
    model.load_state_dict(content["state_dict_ema"])
    see = content["eval_cfg"]
    transform = EvalTransform(32, see["crop_ratio"], see["interpolation"])
    pixels = torch.from_numpy(transform(open_picture(jpeg.read_bytes(), "apply")).copy())
    images = (pixels / 255 - torch.tensor(see["mean"])) / torch.tensor(see["std"])
    with torch.no_grad():
        return np.asarray(model(images.permute(2, 0, 1)[None])[0])


ALONE = """
import sys
assert not {"torch", "cspnet", "torchvision", "onnx"} & set(sys.modules), "it is not alone"
json.dump({"logits": logits[0].tolist(), "classes": json.loads(about["classes"])}, open("out.json", "w"))
"""


@needs_onnx
def test_the_readmes_example_runs_alone(export: Run, checkpoint: Path, jpeg: Path) -> None:
    folder = jpeg.parent
    done = export(folder / "mine.onnx")
    assert re.search(r"mine\.onnx: ONNX, opset 18; in: images, batch x 3 x 32 x 32 float32; out: logits", done.stdout)
    assert re.search(r"checked \(onnxruntime\) .* at most \d\.\de-\d\d of the largest apart", done.stdout)
    section = (ROOT / "README.md").read_text().split("\n## Export\n")[1].split("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [sys.executable, "-c", example + ALONE]
    alone = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    assert (alone.returncode, alone.stderr) == (0, "")
    out = json.loads((folder / "out.json").read_text())
    expected = answer(checkpoint, jpeg)
    np.testing.assert_allclose(out["logits"], expected, rtol=0, atol=1e-3)
    subject = read_subject(AskedWeights(checkpoint, {"train.device": "cpu"}))
    (seen,) = predict(subject, [str(jpeg)], top=4, batch_size=1)
    assert out["classes"] == list(subject.classes) == [f"class_{i}" for i in range(4)]
    assert alone.stdout == f"class_{seen.classes[0]}\n" == f"class_{np.argmax(expected)}\n"
    probabilities = torch.tensor(out["logits"]).softmax(0)
    np.testing.assert_allclose(probabilities[list(seen.classes)], seen.probabilities, rtol=0, atol=1e-4)


def read_metadata(file: Path) -> dict[str, str]:
    """What a file says of itself, by the libraries that it is for."""
    if file.suffix == ".onnx":
        import onnxruntime

        return dict(onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map)
    if file.suffix == ".pt2":
        texts = dict.fromkeys(KEYS, "")
        torch.export.load(file, extra_files=texts)
        return texts
    with safe_open(file, framework="np") as opened:
        return dict(opened.metadata())


KEYS = ("model_name", "classes", "preprocessing", "output", "cspnet_version", "source_sha256", "source_step")
FORMATS = {"onnx": "mine.onnx", "torch": "mine.pt2", "safetensors": "mine.safetensors"}


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=needs_onnx), "torch", "safetensors"])
def test_what_it_says_of_itself(format: str, export: Run, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / FORMATS[format]
    export(out)
    texts = read_metadata(out)
    assert {**texts, "cspnet": "", "format": ""}.keys() == {*KEYS, "cspnet", "format"}
    assert json.loads(texts["classes"]) == [f"class_{i}" for i in range(4)]
    assert json.loads(texts["preprocessing"]) == {
        **{"size_px": 32, "resize_px": 40, "crop_ratio": 0.8, "interpolation": "bilinear", "exif": "apply"},
        **{"color_order": "RGB", "dtype": "float32", "layout": "NCHW"},
        **{"mean": [0.5, 0.4, 0.3], "std": [0.229, 0.224, 0.225]},
    }
    assert texts["source_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    known = {"model_name": "cspdarknet_tiny", "output": "logits", "source_step": "2"}
    assert {**texts, **known, "cspnet_version": cspnet.__version__} == texts
    parts = [out.read_bytes()]
    if zipfile.is_zipfile(out):
        with zipfile.ZipFile(out) as archive:
            parts = [archive.read(name) for name in archive.namelist()]
    folders = (str(ROOT).encode(), str(checkpoint.parent.parent).encode(), str(tmp_path).encode())
    assert not any(folder in part for folder in folders for part in parts), "it tells of this machine"


@needs_onnx
def test_pixels_in_and_probabilities_out(export: Run, checkpoint: Path, jpeg: Path, tmp_path: Path) -> None:
    import onnxruntime

    (tmp_path / "names.txt").write_text("one\ntwo\nthree\nfour\n")
    flags = ("--input", "uint8", "--softmax", "--opset", 20, "--no-fold-bn", "--classes", tmp_path / "names.txt")
    done = export(tmp_path / "a.onnx", *flags)
    assert "opset 20; in: images, batch x 32 x 32 x 3 uint8; out: probabilities, batch x 4 float32" in done.stdout
    assert "nothing folded" in done.stdout
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    about = session.get_modelmeta().custom_metadata_map
    see = json.loads(about["preprocessing"])
    assert (see["dtype"], see["layout"], see.get("mean"), about["output"]) == ("uint8", "NHWC", None, "probabilities")
    assert json.loads(about["classes"]) == ["one", "two", "three", "four"]
    pixels = EvalTransform(32, 0.8, "bilinear")(open_picture(jpeg.read_bytes(), "apply"))
    (got,) = session.run(["probabilities"], {"images": np.stack([pixels, pixels])})
    expected = torch.tensor(answer(checkpoint, jpeg)).softmax(0).numpy()
    np.testing.assert_allclose(got, [expected, expected], rtol=0, atol=1e-5)


def test_safetensors_go_on(export: Run, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    export(out, "--format", "safetensors", "--license", "CC-BY-4.0")
    content = torch.load(checkpoint, weights_only=True)
    with safe_open(out, framework="pt") as opened:
        state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    assert state.keys() == content["state_dict_ema"].keys()
    assert all(state[key].equal(value) for key, value in content["state_dict_ema"].items())
    subject = read_subject(AskedWeights(out))
    assert subject.recipe.optim.lr == 0.01
    assert (subject.recipe.data.val_px, subject.recipe.data.crop_ratio, subject.recipe.data.root) == (32, 0.8, None)
    assert subject.classes == tuple(content["classes"])
    assert subject.weights.seen == 16
    card = (tmp_path / "mine.md").read_text()
    ((step, acc1),) = content["progress"]["ranking"]
    assert f"| Acc@1 | {acc1:.3f} %, at 32 px" in card
    assert step == 2
    assert "| weights | moving average |" in card
    assert "| `optim.lr` | 0.01 |" in card
    assert "CC-BY-4.0" in card
    assert os.stat(out).st_mode == os.stat(tmp_path / "mine.md").st_mode
    export(out, "--format", "safetensors", "--no-ema", "--force")  # their accuracy is not in the checkpoint
    card = (tmp_path / "mine.md").read_text()
    assert "| Acc@1 | not in the source |" in card
    assert "| weights | raw |" in card


def test_a_strangers_words(checkpoint: Path, fork_script: Run, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["classes"] = ["a\ud800", "b\x1b[31m", "<script>", "d"]
    for i, progress in enumerate(({"step": "x", "ranking": 5}, {"step": 2, "ranking": [[2, "y"], 3, [2]]}, [7])):
        torch.save({**content, "progress": progress}, tmp_path / "odd.pt")
        words = ("--checkpoint", tmp_path / "odd.pt", tmp_path / f"{i}.safetensors", "--format", "safetensors")
        done = fork_script("scripts/export.py", *words)
        assert (done.returncode, done.stderr) == (0, "")
        card = (tmp_path / f"{i}.md").read_text()
        assert r"4: a\\ud800, b\\x1b\[31m, \<script\>, d" in card
        assert "| Acc@1 | not in the source |" in card


def test_weights_of_others(fork_script: Run, tmp_path: Path) -> None:
    torch.save(cspnet.create_model("cspdarknet_tiny", 3).state_dict(), tmp_path / "w.pth")
    words = ("--weights", tmp_path / "w.pth", "--model", "cspdarknet_tiny", "--img-size", 48, "--format", "torch")
    done = fork_script("scripts/export.py", *words, tmp_path / "w.pt2")
    assert (done.returncode, done.stderr) == (0, "")
    texts = {"classes": "", "source_step": ""}
    program = torch.export.load(tmp_path / "w.pt2", extra_files=texts)
    assert json.loads(texts["classes"]) == ["class 0", "class 1", "class 2"]
    assert texts["source_step"] == "", "nobody knows it"
    assert program.module()(torch.zeros(6, 3, 48, 48)).shape == (6, 3)


def test_what_is_there_stays_unless_forced(export: Run, fork_script: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_text("older")
    words = ("--checkpoint", checkpoint, tmp_path / "a.pt2", "--format", "torch")
    done = fork_script("scripts/export.py", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a.pt2: is there already; give another name, or --force" in done.stderr
    assert (tmp_path / "a.pt2").read_text() == "older"
    export(*words[2:], "--force")
    assert torch.export.load(tmp_path / "a.pt2")


WRONG: dict[str, tuple[list[Any], str]] = {
    "another ending": (["a.pt2", "--format", "onnx"], "--format onnx writes a file that ends in .onnx"),
    "no ending": (["a", "--format", "torch"], "writes a file that ends in .pt2"),
    "an ending of nothing": (["a.tflite"], "ends in .onnx, .pt2, .safetensors says what to write"),
    "another format": (["a.onnx", "--format", "tflite"], "invalid choice: 'tflite'"),
    "a folder that is not there": (["no/a.onnx"], "name a file in a folder that is there"),
    "a folder": (["folder.onnx"], "name a file in a folder that is there"),
    "a card that is there": (["b.safetensors", "--format", "safetensors"], "b.md: is there already"),
    "its own weights": (["w.safetensors", "--format", "safetensors", "--force", "--weights", "w.safetensors"], "holds"),
    "no such weights": (["a.pt2", "--format", "torch", "--weights", "gone.pt"], "gone.pt: no such file"),
    "no side": (["a.pt2", "--format", "torch", "--img-size", 0], "val_px"),
    "names of others": (["a.pt2", "--format", "torch", "--classes", "names"], "1 lines, but the network has 4"),
    "an opset of torch": (["a.pt2", "--format", "torch", "--opset", 18], "--opset is for --format onnx; leave it out"),
    "probabilities of weights": (["a.safetensors", "--format", "safetensors", "--softmax"], "--softmax is for"),
    "a card of ONNX": (["a.onnx", "--license", "MIT"], "--license is for --format safetensors"),
    "another model": (["a.pt2", "--format", "torch", "--model", "cspresnet50"], "holds cspdarknet_tiny"),
    "a flag": (["a.pt2", "--fromat", "torch"], "did you mean --format?"),
    "no file": ([], "required: OUT"),
}
WRONG_ONNX: dict[str, tuple[list[Any], str]] = {
    "an old opset": (["a.onnx", "--opset", 17], "--opset 17: use a number from 18"),
    "a future opset": (["a.onnx", "--opset", 99], "--opset 99: use a number from 18"),
}


@pytest.mark.parametrize("case", [*WRONG, *(pytest.param(case, marks=needs_onnx) for case in WRONG_ONNX)])
def test_wrong_things_end_in_one_line(case: str, fork_script: Run, checkpoint: Path, tmp_path: Path) -> None:
    words, said = {**WRONG, **WRONG_ONNX}[case]
    (tmp_path / "folder.onnx").mkdir()
    for name in ("b.md", "names", "w.safetensors"):
        (tmp_path / name).write_text("one\n")
    names = ("a", "b", "w", "no", "folder", "gone", "names")
    places = [tmp_path / word if str(word).split(".")[0].split("/")[0] in names else word for word in words]
    before = sorted(tmp_path.rglob("*"))
    done = fork_script("scripts/export.py", "--checkpoint", checkpoint, *places)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert said in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_size_that_a_network_does_not_take(fork_script: Run, tmp_path: Path) -> None:
    torch.save(cspnet.create_model("timm/test_vit", 3).state_dict(), tmp_path / "w.pth")
    words = ("--weights", tmp_path / "w.pth", "--model", "timm/test_vit", "--format", "torch", tmp_path / "w.pt2")
    done = fork_script("scripts/export.py", *words, "--img-size", 100)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot take RGB pictures of" in line


def test_without_onnx(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    job = ExportJob(
        **{"out": tmp_path / "a.onnx", "format": "onnx", "weights": AskedWeights(checkpoint)},
        **{"class_file": None, "opset": None, "softmax": False},
        **{"input_kind": "float32", "fold_bn": True, "license": "", "force": False},
    )
    with pytest.raises(UserError, match=r"needs .*onnxscript: pip install .*onnxscript$"):
        run_export_job(job)
    assert list(tmp_path.iterdir()) == []
