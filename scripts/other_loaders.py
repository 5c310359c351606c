"""Training pictures by other people's programs, for scripts/benchmark_loader.py: the same area, size and flip as ours.

Each function makes ready whatever does not count, and returns what makes all pictures once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cspnet.cli.measure_loader import ASPECT, BATCH_SIZE, SCALE, Pass, Start, batch_size_for, chunks
from cspnet.data.decode import open_picture
from cspnet.data.packing import Encoding
from cspnet.data.samples import SampleIndex

__all__ = ["dali", "ffcv", "timm_loader", "timm_transform", "torchvision_reference"]

_LONG = 1_000_000
"""Pictures that timm's loader may give before its epoch ends, which would make it wait for its processes."""


def timm_transform(index: SampleIndex, size_px: int) -> Pass:
    """timm's transform to uint8, as its loader with the prefetcher uses it, and its collation."""
    from timm.data import create_transform
    from timm.data.loader import fast_collate

    transform: Any = create_transform(
        size_px, is_training=True, use_prefetcher=True, scale=SCALE, ratio=ASPECT, color_jitter=0.0,
        interpolation="bilinear",
    )  # fmt: skip

    def read(i: int) -> tuple[Any, int]:
        with open(index.path(i), "rb") as file:
            return transform(Image.open(file).convert("RGB")), 0

    def run(repeat: int) -> None:
        for samples in chunks(len(index)):
            fast_collate([read(int(i)) for i in samples])

    return run


class _OverAndOver:
    """The pictures again and again, as a data set of timm's loader, which puts its transform into `transform`."""

    def __init__(self, index: SampleIndex) -> None:
        self.index = index
        self.transform: Any = None

    def __len__(self) -> int:
        return _LONG

    def __getitem__(self, i: int) -> tuple[Any, int]:
        with open(self.index.path(i % len(self.index)), "rb") as file:
            return self.transform(Image.open(file).convert("RGB")), 0


def timm_loader(index: SampleIndex, size_px: int, workers: int, pin_memory: bool) -> Start:
    """timm's loader up to uint8 batches, as ours: without the normalisation, which both do on the device."""
    from timm.data import create_loader

    pictures: Any = _OverAndOver(index)  # timm asks for a class of its own, and uses it as any data set
    loader: Any = create_loader(
        pictures, size_px, batch_size_for(len(index)), is_training=True, scale=SCALE, ratio=ASPECT,
        color_jitter=0.0, interpolation="bilinear", num_workers=workers, persistent_workers=False,
        pin_memory=pin_memory, device=torch.device("cpu"),
    ).loader  # fmt: skip

    def start() -> Iterator[Tensor]:
        return (images for images, _ in loader)

    return start


def torchvision_reference(index: SampleIndex, size_px: int) -> Pass:
    """The transform of torchvision's references/classification, to normalised floats in the worker."""
    from torch.utils.data import default_collate
    from torchvision.transforms import v2

    transform = v2.Compose([
        v2.RandomResizedCrop(size_px, scale=SCALE, ratio=ASPECT, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
        v2.ToDtype(torch.float, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip

    def read(i: int) -> Any:
        with open(index.path(i), "rb") as file:
            return transform(Image.open(file).convert("RGB"))

    def run(repeat: int) -> None:
        for samples in chunks(len(index)):
            default_collate([read(int(i)) for i in samples])

    return run


def dali(index: SampleIndex, size_px: int) -> Pass:
    """DALI on the CPU: decoding fused with the random crop."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH_SIZE, num_threads=1, device_id=None, exec_async=False, exec_pipelined=False)  # type: ignore[untyped-decorator,unused-ignore]
    def create_pipeline() -> Any:
        files = [index.path(i) for i in range(len(index))]
        data, _ = fn.readers.file(files=files, labels=[0] * len(files), random_shuffle=False)
        images = fn.decoders.image_random_crop(data, random_area=SCALE, random_aspect_ratio=ASPECT)
        images = fn.resize(images, size=(size_px, size_px), interp_type=types.INTERP_LINEAR)
        return fn.flip(images, horizontal=fn.random.coin_flip())

    pipeline = create_pipeline()
    pipeline.build()

    def run(repeat: int) -> None:
        for _ in chunks(len(index)):
            (images,) = pipeline.run()
            images.as_array()

    return run


def ffcv(index: SampleIndex, size_px: int, encoding: Encoding, file: Path, times: int) -> Pass:
    """FFCV, from a file that it writes itself, where the pictures have the same largest side and quality as ours.

    It takes fresh memory for 20 batches at the start of an epoch: there are `times` of all pictures to one of them.
    """
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor
    from ffcv.writer import MIN_PAGE_SIZE, DatasetWriter

    field = RGBImageField(write_mode="jpg", max_resolution=encoding.max_side_px, jpeg_quality=encoding.quality)
    writer = DatasetWriter(str(file), {"image": field, "label": IntField()}, MIN_PAGE_SIZE, num_workers=1)
    with open(os.devnull, "w") as nowhere, _redirected(nowhere):  # it draws bars
        writer.from_indexed_dataset(_Rgb(index))
    decoder = RandomResizedCropRGBImageDecoder((size_px, size_px), scale=SCALE, ratio=ASPECT)
    pipelines = {"image": [decoder, RandomHorizontalFlip(), ToTensor()], "label": None}
    loader = Loader(
        str(file), BATCH_SIZE, num_workers=1, os_cache=True, order=OrderOption.SEQUENTIAL, pipelines=pipelines,
        indices=np.tile(np.arange(len(index)), times), drop_last=False,
    )  # fmt: skip

    def run(repeat: int) -> None:
        for _ in loader:
            pass

    return run


class _Rgb:
    """Pictures and labels in the form that FFCV's writer asks for."""

    def __init__(self, index: SampleIndex) -> None:
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return open_picture(self.index.read(i)).rgb(), 0


class _redirected:  # noqa: N801
    """Both outputs of this process and of its children into a file."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> None:
        sys.stdout.flush()
        self.saved = os.dup(1), os.dup(2)
        os.dup2(self.file.fileno(), 1)
        os.dup2(self.file.fileno(), 2)

    def __exit__(self, *error: object) -> None:
        for number, saved in zip((1, 2), self.saved, strict=True):
            os.dup2(saved, number)
            os.close(saved)
