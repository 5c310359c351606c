"""Decoding on the GPU: everything but the GPU, with Pillow in its place, against the pictures of the CPU's way."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from cspnet.cli.train import main
from cspnet.data.decode import open_picture
from cspnet.data.gpu_decode import EncodedPictures, GpuDecodingLoader, create_gpu_decoder, cut_out
from cspnet.data.index import open_index
from cspnet.data.loader import Batch, Reader, TrainLoader, TrainPictures
from cspnet.data.sampler import BatchAddress, BatchPlan
from cspnet.data.samples import SampleIndex
from cspnet.data.transforms import build_train_transform
from cspnet.errors import DeviceError
from cspnet.recipe.schema import DataRecipe, Recipe

CPU = torch.device("cpu")
SEED = 4
SIDE = 48


def draw(seed: int, width: int, height: int) -> Image.Image:
    """Smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height), 3)
    return Image.fromarray((np.asarray(coarse) * 0.9 + rng.integers(0, 25, (height, width, 3))).astype(np.uint8))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


# Pictures that no other decoder may be trusted with, and how to write them.
ODD: dict[str, dict[str, Any]] = {
    "png.jpg": {"format": "PNG"},
    "turned.jpg": {"format": "JPEG", "exif": turned()},
    "rgb inside.jpg": {"format": "JPEG", "keep_rgb": True},
    "cmyk.jpg": {"format": "JPEG", "mode": "CMYK"},
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"quality": 90},
    "444": {"quality": 95, "subsampling": 0},
    "progressive": {"progressive": True},
    "grey": {"mode": "L"},
}


def write(file: Path, picture: Image.Image, *, mode: str = "RGB", **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.convert(mode).save(file, **{"format": "JPEG", **options})


@pytest.fixture
def index(tmp_path: Path) -> SampleIndex:
    """16 JPEGs of four kinds and many sizes, and the odd ones."""
    rng = np.random.default_rng(0)
    for number in range(16):
        kind = list(KINDS)[number % 4]
        picture = draw(number, *map(int, rng.integers(40, 200, 2)))
        write(tmp_path / "train" / f"class_{number % 3}" / f"{number:02d} {kind}.jpg", picture, **KINDS[kind])
    for name, options in ODD.items():
        write(tmp_path / "train" / "class_0" / name, draw(len(name), 90, 70), **options)
    return open_index(tmp_path / "train", root=str(tmp_path), cache_dir=None)


def decode_by_pillow(jpegs: Sequence[Tensor]) -> list[Tensor]:
    """As a GPU does: whole pictures, or an error for all."""
    pictures = []
    for jpeg in jpegs:
        try:
            with Image.open(io.BytesIO(jpeg.numpy().tobytes())) as image:
                pictures.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))
        except OSError as error:
            raise RuntimeError("one of them is damaged") from error
    return pictures


def create_loaders(
    index: SampleIndex, decode: Callable[[Sequence[Tensor]], Sequence[Tensor]], workers: int = 0, **data: Any
) -> tuple[TrainLoader, GpuDecodingLoader]:
    transform = build_train_transform(Recipe(data=DataRecipe(train_px=SIDE, shrink=False, **data)))
    pictures = TrainPictures(Reader(index, "apply", "fast"), transform, SEED)
    how = (BatchPlan(len(index), 5, 1, 1, SEED), 0, workers, 2, CPU)
    return TrainLoader(pictures, *how), GpuDecodingLoader(pictures, *how, decode=decode)


def take(loader: TrainLoader, sample: int = 0, count: int = 8) -> list[Batch]:
    return list(itertools.islice(loader.start_at(0, sample), count))


def compare(ours: list[Batch], theirs: list[Batch]) -> int:
    """The largest difference of a pixel; everything else is the same."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.images.shape == b.images.shape
        assert a.images.dtype == torch.uint8
        assert a.targets.tolist() == b.targets.tolist()
        assert (a.flipped.dtype, a.flipped.tolist()) == (torch.bool, b.flipped.tolist())
        assert sorted(a.bad) == sorted(b.bad)
    return max(int((a.images.int() - b.images.int()).abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("interpolation", "flip"), [("bilinear", "random"), ("bicubic", "random"), ("bilinear", "alternate")]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_views_within_one_grey_level(index: SampleIndex, interpolation: str, flip: str, workers: int) -> None:
    seen: list[int] = []

    def decode(jpegs: Sequence[Tensor]) -> list[Tensor]:
        seen.append(len(jpegs))
        return decode_by_pillow(jpegs)

    cpu, gpu = create_loaders(index, decode, workers, train_interpolation=interpolation, flip=flip)
    assert compare(take(gpu), take(cpu)) <= 1
    assert sum(seen) == 2 * 16, "two epochs, in which all but the odd pictures are left to the GPU"
    assert len(seen) == 8, "a batch at a time"
    assert compare(take(gpu, 10, 2), take(cpu)[2:4]) <= 1


def test_what_the_gpu_refuses_is_what_the_cpu_shows(index: SampleIndex) -> None:
    def refuse(jpegs: Sequence[Tensor]) -> list[Tensor]:
        raise RuntimeError("no")

    cpu, gpu = create_loaders(index, refuse)
    assert compare(take(gpu), take(cpu)) == 0


@pytest.mark.parametrize("cut", [100, 0])
def test_damaged_files_are_replaced_and_named(index: SampleIndex, cut: int) -> None:
    """Cut off, which shows before decoding, and damaged inside, which only the decoder finds."""
    for sample in (3, 4, 11):
        file = Path(index.path(sample))
        content = bytearray(file.read_bytes())
        if cut:
            del content[-cut:]
        else:
            table = content.index(b"\xff\xc4") + 5
            content[table : table + 16] = b"\xff" * 16  # more codes than there can be
        file.write_bytes(content)
    cpu, gpu = create_loaders(index, decode_by_pillow)
    theirs = take(cpu)
    assert compare(take(gpu), theirs) <= 1
    assert {bad.path for batch in theirs for bad in batch.bad} == {index.path(sample) for sample in (3, 4, 11)}


def test_no_readable_picture_at_all(index: SampleIndex) -> None:
    for sample in range(len(index)):
        Path(index.path(sample)).write_bytes(b"")
    _, gpu = create_loaders(index, decode_by_pillow)
    (batch,) = take(gpu, count=1)
    assert len(batch.images) == len(batch.targets) == len(batch.flipped) == 0
    assert {bad.path for bad in batch.bad} == {index.path(sample) for sample in range(len(index))}


def test_memory_that_runs_out_is_no_damage(index: SampleIndex) -> None:
    def fill(jpegs: Sequence[Tensor]) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    _, gpu = create_loaders(index, fill)
    with pytest.raises(torch.OutOfMemoryError):
        take(gpu, count=1)


def test_cut_out_resizes_like_the_cpu() -> None:
    pixels = np.asarray(draw(1, 150, 110))
    picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    for box in ((0, 0, 150, 110), (10, 20, 58, 68), (140, 100, 150, 110)):
        reference = open_picture(data.getvalue()).crop_resize(box, (SIDE, SIDE), "bilinear")
        ours = cut_out(picture, box, SIDE, "bilinear").numpy()
        assert np.abs(ours.astype(int) - reference.astype(int)).max() <= 1


def test_it_needs_a_gpu(picture_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DeviceError, match="CUDA"):
        create_gpu_decoder(CPU)
    words = ["--data-path", picture_tree, "--device", "cpu", "--data.decoder", "gpu", "--output-dir", tmp_path / "run"]
    words += ["--model", "cspdarknet_tiny", "--img-size", "32", "--batch-size", "8"]
    assert main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data.decoder: gpu needs a CUDA GPU, and the device is cpu; use fast" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flag",
    ["--data.train_crop=darknet", "--aa=rand-m9-n2", "--color-jitter=0.4", "--data.train_interpolation=lanczos"],
)
def test_what_it_does_not_do_is_refused(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert main(["--print-config", "--data.decoder", "gpu", flag]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data.decoder: gpu does not do" in line
    assert flag.partition("=")[2] in line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu(index: SampleIndex) -> None:
    """nvJPEG is another decoder: a few grey levels on average, and no more in any picture's mean."""
    device = torch.device("cuda")
    cpu, gpu = create_loaders(index, create_gpu_decoder(device), 2)
    on_gpu = GpuDecodingLoader(gpu.pictures, gpu.plan, 0, 2, 2, device, decode=gpu.decode)
    for ours, theirs in zip(take(on_gpu), take(cpu), strict=True):
        assert {tensor.device.type for tensor in ours[:3]} == {"cuda"}
        assert ours.targets.tolist() == theirs.targets.tolist()
        assert ours.flipped.tolist() == theirs.flipped.tolist()
        assert ours.bad == theirs.bad == []
        differences = (ours.images.cpu().float() - theirs.images.float()).abs().mean((1, 2, 3))
        assert differences.max() < 4


def test_batches_are_pinned_by_torchs_loader(picture_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)  # there may be no GPU to pin it for
    index = open_index(picture_tree / "train", root=str(picture_tree), cache_dir=None)
    pictures = TrainPictures(Reader(index, "apply", "fast"), build_train_transform(Recipe()), 0)
    encoded = EncodedPictures(pictures)[BatchAddress(0, np.arange(2), np.arange(2))]
    pinned = pin_memory(encoded)
    for ours, before in zip(pinned.batch[:3], encoded.batch[:3], strict=True):
        assert torch.equal(ours, before + 1)
    assert (pinned.areas, pinned.jpegs.tolist()) == (encoded.areas, encoded.jpegs.tolist())
