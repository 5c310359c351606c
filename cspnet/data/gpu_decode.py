"""Training pictures decoded on the GPU: data.decoder gpu. Not yet run on a GPU.

A reading process reads the bytes and draws the area, as it does for the CPU; the GPU decodes whole batches of JPEGs
(nvJPEG, by torchvision: this file is the door to it), cuts the areas out and resizes them in float.
Whatever is not a plain JPEG is decoded in the process as always; a JPEG that the GPU refuses, damaged or of a kind it
does not know, is decoded by the main process, and replaced if it is damaged. The pixels are not the CPU's: nvJPEG is
another decoder, and there is no decoding at less than the full size (data.shrink).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from cspnet.data.decode import UnreadableImageError, open_picture
from cspnet.data.feed import BadImage, Batch
from cspnet.data.loader import TrainLoader, TrainPictures, start_reading
from cspnet.data.sampler import BatchAddress
from cspnet.data.shared import create_shared
from cspnet.data.signs import Signs
from cspnet.data.transforms import RandomResizedView
from cspnet.errors import DeviceError
from cspnet.runtime.random import generator_at

__all__ = ["Area", "Decode", "EncodedBatch", "EncodedPictures", "GpuDecodingLoader", "create_gpu_decoder", "cut_out"]

Decode = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""JPEGs, each (bytes,) uint8 on the host -> pictures, each (3, height, width) uint8 on the device; RuntimeError if one
of them cannot be decoded."""


class Area(NamedTuple):
    """Where a JPEG of a batch goes, and what is shown of it."""

    row: int
    start: int
    end: int
    """Of its bytes."""
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class EncodedBatch:
    """A training batch on the host, of which some rows are still JPEGs; `batch` has the others, and all but the pixels
    of these."""

    address: BatchAddress
    batch: Batch
    jpegs: Tensor
    """(bytes,) uint8: one file after the other."""
    areas: list[Area]

    def pin_memory(self) -> EncodedBatch:
        """With its pixels in memory that a GPU can copy from by itself; torch's DataLoader calls this."""
        return replace(self, batch=self.batch.pin_memory())


@dataclass(frozen=True)
class EncodedPictures(Dataset[EncodedBatch]):
    """Training batches by address, with JPEGs left as they are."""

    pictures: TrainPictures

    def __getitem__(self, address: BatchAddress) -> EncodedBatch:
        reader = self.pictures.reader
        images = create_shared(self.pictures.shape_at(address), torch.uint8)
        targets = create_shared((len(address.samples),), torch.int64)
        flipped = create_shared((len(address.samples),), torch.bool)
        pixels, labels, flips = images.numpy(), targets.numpy(), flipped.numpy()
        bad: list[BadImage] = []
        areas: list[Area] = []
        files: list[bytes | memoryview] = []
        end = 0
        for i, (position, sample) in enumerate(zip(address.positions.tolist(), address.samples.tolist(), strict=True)):
            if jpeg := self._find_jpeg(sample, address.epoch, position):
                file, box, flips[i] = jpeg
                files.append(file)
                areas.append(Area(i, end, end + len(file), box))
                end += len(file)
                labels[i] = reader.index.labels[sample]
                continue
            found = self.pictures.show(sample, address.epoch, position, pixels[i], bad)
            if found is None:
                nothing = Batch(images[:0].clone(), targets[:0].clone(), flipped[:0].clone(), bad)
                return EncodedBatch(address, nothing, torch.empty(0, dtype=torch.uint8), [])
            shown, flips[i] = found
            labels[i] = reader.index.labels[shown]
        jpegs = create_shared((end,), torch.uint8)
        for area, file in zip(areas, files, strict=True):
            jpegs[area.start : area.end].numpy()[:] = np.frombuffer(file, dtype=np.uint8)
        return EncodedBatch(address, Batch(images, targets, flipped, bad), jpegs, areas)

    def _find_jpeg(
        self, sample: int, epoch: int, position: int
    ) -> tuple[bytes | memoryview, tuple[int, int, int, int], bool] | None:
        """The file, the area and whether to mirror it; None if the picture is not a plain JPEG."""
        try:
            picture = self.pictures.reader.open(sample)
        except UnreadableImageError:
            return None
        if picture.jpeg is None:
            return None
        rng = generator_at(self.pictures.seed, "augment", epoch, position)
        box, drawn = _view_of(self.pictures).draw(rng, picture.width, picture.height)
        return picture.jpeg, box, self.pictures.is_mirrored(sample, epoch, drawn)


def _view_of(pictures: TrainPictures) -> RandomResizedView:
    return cast(RandomResizedView, pictures.transform.view)  # recipe/checks.py lets no other one through


def cut_out(picture: Tensor, box: tuple[int, int, int, int], size_px: int, interpolation: str) -> Tensor:
    """An area of a picture, resized (antialiased), on the picture's device.

    Args:
        picture: (3, height, width) uint8.
        box: (left, top, right, bottom) in pixels, inside it.
        size_px: side of the result.
        interpolation: bilinear or bicubic.
    Returns:
        (size_px, size_px, 3) uint8, within one grey level of `Picture.crop_resize`.
    """
    left, top, right, bottom = box
    area = picture[None, :, top:bottom, left:right].float()  # a GPU has no antialiased resize of bytes
    image = F.interpolate(area, (size_px, size_px), mode=interpolation, antialias=True)[0]
    return image.round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)


@dataclass(frozen=True)
class GpuDecodingLoader(TrainLoader):
    """The training batches of one process, decoded on its GPU."""

    pictures: TrainPictures
    decode: Decode = field(kw_only=True)

    def start_at(self, epoch: int, sample: int) -> Iterator[Batch]:
        """Batches without end, on the device, from `sample` pictures into `epoch`; nothing before them is read."""
        encoded = start_reading(
            EncodedPictures(self.pictures),
            lambda: self.plan.addresses(self.rank, epoch, sample),
            self.workers,
            self.prefetch,
            self.device,
            Signs(self.workers, self.timeout_s, self.pictures.path),
        )
        return map(self._finish, encoded)

    def _finish(self, encoded: EncodedBatch) -> Batch:
        images, targets, flipped, bad = encoded.batch
        if not encoded.areas:
            return self._move(encoded.batch)
        address, interpolation = encoded.address, _view_of(self.pictures).interpolation
        finished = images.to(self.device, copy=True)
        decoded = self._decode_all([encoded.jpegs[area.start : area.end] for area in encoded.areas])
        for (row, _, _, box), picture in zip(encoded.areas, decoded, strict=True):
            if picture is not None:
                finished[row] = cut_out(picture, box, len(finished[row]), interpolation)
                continue
            sample, position = int(address.samples[row]), int(address.positions[row])
            found = self.pictures.show(sample, address.epoch, position, images[row].numpy(), bad)
            if found is None:
                return self._move(Batch(images[:0], targets[:0], flipped[:0], bad))
            shown, flipped[row] = found
            finished[row] = images[row].to(self.device)
            targets[row] = int(self.pictures.reader.index.labels[shown])
        return self._move(Batch(finished, targets, flipped, bad))

    def _move(self, batch: Batch) -> Batch:
        images, targets, flipped = (tensor.to(self.device) for tensor in batch[:3])
        return Batch(images, targets, flipped, batch.bad)

    def _decode_all(self, jpegs: Sequence[Tensor]) -> list[Tensor | None]:
        """The pictures of JPEGs; None for one that cannot be decoded."""
        try:
            return list(self.decode(jpegs))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # for all, whichever of them it was
            return [None] if len(jpegs) == 1 else [self._decode_all([jpeg])[0] for jpeg in jpegs]


def create_gpu_decoder(device: torch.device) -> Decode:
    """torchvision's batch decoder on a GPU, which has been tried on a small picture.

    Raises:
        DeviceError: the device is not a CUDA GPU, or torchvision cannot decode there.
    """
    if device.type != "cuda":
        raise DeviceError(f"data.decoder: gpu needs a CUDA GPU, and the device is {device.type}; use fast")
    sample = io.BytesIO()
    Image.new("RGB", (16, 16)).save(sample, "JPEG")
    if open_picture(sample.getvalue()).jpeg is None:
        raise DeviceError("data.decoder: gpu needs simplejpeg, for the JPEGs that the GPU refuses; install it")
    try:
        from torchvision.io import ImageReadMode, decode_jpeg

        def decode(jpegs: Sequence[Tensor]) -> Sequence[Tensor]:
            pictures: Any = decode_jpeg(list(jpegs), mode=ImageReadMode.RGB, device=device)
            return pictures

        decode([torch.frombuffer(bytearray(sample.getvalue()), dtype=torch.uint8)])
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DeviceError(
            f"data.decoder: gpu: this torchvision cannot decode JPEGs on {device}: {reason}; use fast"
        ) from error
    return decode
