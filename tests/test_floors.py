"""Who may import whom: floors, rooms, and one door for each third-party package."""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "cspnet").rglob("*.py"))

# A module may import from lower floors and from its own room. cspnet/__init__.py is a door: the library's; so is
# cspnet/timm_models.py: timm's.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("models", "recipe", "runtime"),
    ("data", "optim", "weights", "reporting", "evaluation"),
    ("training", "export"),
    ("cli", "timm_models"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

EVERYWHERE = {"torch", "numpy"}
DOORS = {
    "yaml": ("cspnet/recipe/",),
    "pydantic": ("cspnet/recipe/",),
    "tensorboard": ("cspnet/reporting/",),
    "torch.utils.tensorboard": ("cspnet/reporting/",),
    "tqdm": ("cspnet/reporting/",),
    # foreign.py: timm's networks in our table. timm_models.py: ours in timm's; nothing in the package imports it.
    # policies.py, optimizers.py: its augmentation and its optimizers.
    "timm": (
        "cspnet/models/foreign.py",
        "cspnet/timm_models.py",
        "cspnet/data/policies.py",
        "cspnet/optim/optimizers.py",
    ),
    "torchvision": (
        "cspnet/models/foreign.py",
        "cspnet/models/layers.py",
        "cspnet/data/policies.py",
        "cspnet/data/darknet_mixing.py",
        "cspnet/data/gpu_decode.py",
    ),
    "PIL": (
        "cspnet/data/decode.py",
        "cspnet/data/encode.py",
        "cspnet/data/gpu_decode.py",
        "cspnet/data/inspection.py",
        "cspnet/data/transforms.py",
        "cspnet/data/darknet.py",
        "cspnet/data/policies.py",
        "cspnet/cli/fuzzing/pictures.py",
        "cspnet/reporting/contact_sheet.py",
    ),
    "matplotlib": ("cspnet/reporting/plots.py",),
    "shtab": ("cspnet/cli/completion.py",),
    "safetensors": ("cspnet/weights/",),
    "onnx": ("cspnet/export/",),
    "onnxruntime": ("cspnet/export/",),
    "simplejpeg": ("cspnet/data/jpeg.py",),
}


def room_of(module: str) -> str:
    """cspnet.data.index -> data; cspnet itself is part of the doors."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "cli"


def module_of(path: str) -> str:
    """cspnet/data/index.py -> cspnet.data.index; cspnet/data/__init__.py -> cspnet.data"""
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def read_imports(path: str, source: str) -> Iterator[str]:
    """Every module that a file imports, wherever the import stands; `from cspnet import x` counts as cspnet.x."""
    package = path.split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                is_module = (ROOT / module.replace(".", "/") / alias.name).is_dir() or (
                    ROOT / module.replace(".", "/") / f"{alias.name}.py"
                ).is_file()
                yield f"{module}.{alias.name}" if is_module or module == "torch.utils" else module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                yield str(node.args[0].value)


def find_offences(path: str, source: str) -> list[str]:
    """What a file imports and must not."""
    own_room = room_of(module_of(path))
    offences = []
    for module in sorted(set(read_imports(path, source))):
        top = module.split(".")[0]
        if top == "cspnet":
            room = room_of(module)
            if room not in FLOOR_OF or own_room not in FLOOR_OF:
                offences.append(f"{path}: {module}: a room without a floor")
            elif FLOOR_OF[room] > FLOOR_OF[own_room]:
                offences.append(f"{path}: {module}: up")
            elif FLOOR_OF[room] == FLOOR_OF[own_room] and room != own_room:
                offences.append(f"{path}: {module}: sideways")
            continue
        door = next((name for name in DOORS if module == name or module.startswith(f"{name}.")), None)
        if door is not None:
            if not path.startswith(DOORS[door]):
                offences.append(f"{path}: {module}: not through its door")
        elif top not in sys.stdlib_module_names and top not in EVERYWHERE:
            offences.append(f"{path}: {module}: a package without a door")
    return offences


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 20
    rooms = {room_of(module_of(path)) for path in FILES}
    assert rooms <= set(FLOOR_OF)
    imports = [module for path in FILES for module in read_imports(path, (ROOT / path).read_text())]
    assert sum(module.startswith("cspnet.") for module in imports) > 50
    assert {"yaml", "tqdm", "timm", "torchvision", "safetensors.torch"} <= set(imports)


@pytest.mark.parametrize("path", FILES)
def test_imports_keep_the_floors(path: str) -> None:
    assert find_offences(path, (ROOT / path).read_text(encoding="utf-8")) == []


def test_no_circle() -> None:
    modules = {module_of(path): path for path in FILES}
    graph = {
        module: {found for found in read_imports(path, (ROOT / path).read_text()) if found in modules}
        for module, path in modules.items()
    }
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


CAUGHT = {
    "up from the ground": ("cspnet/errors.py", "from cspnet.runtime.files import replacing", "up"),
    "up one floor": ("cspnet/recipe/load.py", "import cspnet.training.loop", "up"),
    "up to the doors": ("cspnet/training/loop.py", "from cspnet.cli import build", "up"),
    "up to the library's door": ("cspnet/models/zoo.py", "import cspnet", "up"),
    "up inside a function": ("cspnet/data/index.py", "def f():\n    from cspnet.training import step", "up"),
    "up for types only": ("cspnet/data/index.py", "if TYPE_CHECKING:\n    from cspnet.training.step import x", "up"),
    "up, relative": ("cspnet/data/index.py", "from ..training import step", "up"),
    "up, by name": ("cspnet/data/index.py", "importlib.import_module('cspnet.training.step')", "up"),
    "up, room by name": ("cspnet/data/index.py", "from cspnet import training", "up"),
    "sideways: a model sees a recipe": ("cspnet/models/zoo.py", "from cspnet.recipe.schema import Recipe", "sideways"),
    "sideways: data sees weights": ("cspnet/data/loader.py", "import cspnet.weights.load as w", "sideways"),
    "sideways, relative": ("cspnet/optim/optimizers.py", "from ..data import index", "sideways"),
    "yaml elsewhere": ("cspnet/cli/train.py", "import yaml", "door"),
    "up to timm's door": ("cspnet/models/zoo.py", "import cspnet.timm_models", "up"),
    "timm in another file": ("cspnet/models/zoo.py", "def f():\n    import timm.models", "door"),
    "torchvision in data": ("cspnet/data/transforms.py", "from torchvision.transforms import v2", "door"),
    "PIL in another file": ("cspnet/data/loader.py", "from PIL import Image", "door"),
    "tensorboard in training": ("cspnet/training/loop.py", "from torch.utils.tensorboard import SummaryWriter", "door"),
    "tensorboard by its folder": ("cspnet/training/loop.py", "from torch.utils import tensorboard", "door"),
    "safetensors in cli": ("cspnet/cli/build.py", "import safetensors.torch", "door"),
    "onnx in cli": ("cspnet/cli/export_job.py", "def f():\n    import onnx", "door"),
    "training sees exporting": ("cspnet/training/loop.py", "from cspnet.export import network", "sideways"),
    "tqdm in training": ("cspnet/training/loop.py", "from tqdm import tqdm", "door"),
    "pydantic in models": ("cspnet/models/spec.py", "import pydantic", "door"),
    "a package nobody agreed on": ("cspnet/cli/build.py", "import requests", "without a door"),
    "a room nobody agreed on": ("cspnet/cli/build.py", "from cspnet.utils import things", "without a floor"),
}


@pytest.mark.parametrize("case", CAUGHT)
def test_the_checker_catches(case: str) -> None:
    path, source, said = CAUGHT[case]
    offences = find_offences(path, source)
    assert len(offences) == 1
    assert offences[0].endswith(said)


ALLOWED = {
    "own room": ("cspnet/data/loader.py", "from cspnet.data.index import SampleIndex"),
    "own room, relative": ("cspnet/data/loader.py", "from .index import SampleIndex\nfrom . import index"),
    "down": ("cspnet/training/loop.py", "from cspnet.recipe.schema import Recipe\nfrom cspnet.data import loader"),
    "ground": ("cspnet/models/zoo.py", "from cspnet.errors import ModelError"),
    "its door": ("cspnet/recipe/load.py", "import yaml\nfrom pydantic import Field"),
    "torch and the standard library": (
        "cspnet/errors.py",
        "import torch.nn\nimport os.path\nfrom torch.utils import data",
    ),
    "the version": ("cspnet/cli/train_job.py", "import cspnet"),
    "the library's door": ("cspnet/__init__.py", "from cspnet.models import create_model\nfrom cspnet import weights"),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_the_checker_allows(case: str) -> None:
    assert find_offences(*ALLOWED[case]) == []
