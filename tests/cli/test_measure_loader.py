"""What is measured in parts is the pipeline itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cspnet.cli.measure_loader import PARTS, chunks, show_in_parts
from cspnet.data.index import open_index
from cspnet.data.loader import Reader, TrainPictures
from cspnet.data.sampler import BatchAddress
from cspnet.data.transforms import build_train_transform
from cspnet.recipe.load import load_recipe


@pytest.mark.parametrize("decoder", ["fast", "pillow"])
def test_in_parts_the_pictures_are_the_loaders(picture_tree: Path, decoder: str) -> None:
    index = open_index(picture_tree / "train", root=str(picture_tree), cache_dir=None)
    recipe = load_recipe(None, {"data.train_px": 16, "data.decoder": decoder}).recipe
    pictures = TrainPictures(Reader(index, "apply", recipe.data.decoder), build_train_transform(recipe), 7)
    address = BatchAddress(3, np.arange(5, 15), np.arange(20, 10, -1))
    taken_ns: Counter[str] = Counter()
    images = show_in_parts(pictures, address, taken_ns)
    batch = pictures[address]
    assert 0 < batch.flipped.sum() < 10
    for image, seen, flip in zip(images, batch.images.numpy(), batch.flipped, strict=True):
        np.testing.assert_array_equal(image, seen[:, ::-1] if flip else seen)
    assert set(taken_ns) == set(PARTS)
    assert all(taken_ns[part] > 0 for part in PARTS)


@pytest.mark.parametrize("num_samples", [1, 63, 64, 65, 200])
def test_every_sample_is_in_one_batch(num_samples: int) -> None:
    batches = list(chunks(num_samples))
    assert np.concatenate(batches).tolist() == list(range(num_samples))
    assert all(len(batch) == 64 for batch in batches[:-1])
