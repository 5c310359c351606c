"""Run under torchrun by test_exact_count.py: validates data sets of several sizes and writes the counts as JSON.

usage: count_all_sizes.py OUTPUT DATA_SET...
"""

import json
import sys
from pathlib import Path

import torch

from cspnet.cli.build import build_model, build_validation
from cspnet.data.index import open_index
from cspnet.recipe.load import recipe_from_values
from cspnet.runtime.distributed import join_world, read_world
from tests.evaluation.sizes import BATCH_SIZE

output, *roots = sys.argv[1:]
world, device = read_world(), torch.device("cpu")
recipe = recipe_from_values(
    {
        "model.name": "cspdarknet_tiny",
        "data.train_px": 32,
        "data.workers": 0,
        "train.batch_size": BATCH_SIZE,
        "train.channels_last": False,
    },
    "test",
)
results = []
with join_world(world):
    for root in roots:
        index = open_index(Path(root) / "val", root=root, cache_dir=f"{output}.cache-{world.rank}")
        validate = build_validation(
            recipe, index, world=world, device=device, amp_dtype=torch.float32, report_bad=lambda bad: None
        )
        results.append(validate(build_model(recipe, 3, device)).to_dict())
if world.is_main:
    Path(output).write_text(json.dumps(results))
