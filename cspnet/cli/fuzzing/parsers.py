"""Everything in this project that reads files of strangers, as it is used, for `cspnet.cli.fuzzing.watch`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from cspnet.cli.compare_runs import read_records
from cspnet.cli.flags import FlagParser, read_overrides
from cspnet.cli.fuzzing import cfgs, indexes, lists, pictures, recipes, tars, weights, zips
from cspnet.cli.fuzzing.watch import Parser
from cspnet.cli.resume import check_checkpoint, restore
from cspnet.cli.run_folder import Start
from cspnet.cli.train import create_parser
from cspnet.cli.validate_job import ValidateJob, run_validate_job
from cspnet.cli.weight_flags import AskedWeights
from cspnet.data.decode import UnreadableImageError, open_picture
from cspnet.data.index import open_index
from cspnet.data.inspection import inspect_picture
from cspnet.data.samples import SampleIndex
from cspnet.errors import UserError
from cspnet.models import create_model
from cspnet.models.darknet_cfg import DarknetCfgNet
from cspnet.recipe.load import load_recipe, recipe_to_yaml
from cspnet.reporting.console import Console
from cspnet.reporting.metrics_file import MetricsFile, SummaryFile
from cspnet.runtime.distributed import World
from cspnet.training.checkpoint import check_parts, read_checkpoint
from cspnet.weights.load import load_weights

__all__ = ["PARSERS"]

_SMALL_PARAMS = 1_000_000
_MOST_PARAMS = 2**30


def _read_recipe(folder: Path) -> None:
    """A recipe with its base chain; what is taken has to be written and read back."""
    recipe = load_recipe(folder / "recipe.yaml").recipe
    (folder / "written.yaml").write_text(recipe_to_yaml(recipe), encoding="utf-8")
    again = load_recipe(folder / "written.yaml").recipe
    if again != recipe:
        raise AssertionError("a recipe is another one when it is written and read back")


@functools.cache
def _parser_of_train() -> FlagParser:
    return create_parser()


def _read_command_line(folder: Path) -> None:
    """The command line of train.py, and what the recipe makes of it."""
    text = (folder / "arguments.txt").read_bytes().decode("utf-8", "surrogateescape").replace("\0", "")
    load_recipe(None, read_overrides(_parser_of_train().parse_all(text.split("\n"))))


def _read_samples(index: SampleIndex) -> None:
    for i in range(len(index))[:50]:
        index.path(i)
        try:
            index.read(i)
        except UnreadableImageError:
            continue


def _read_list(folder: Path) -> None:
    """A list beside a data set; nothing outside of the two may be named by it."""
    root = folder / "data"
    root.mkdir(exist_ok=True)
    index = open_index(folder / "lists" / "list.txt", root=str(root), cache_dir=None)
    inside = (os.path.realpath(root), os.path.realpath(folder / "lists"))
    for i in range(len(index)):
        path = os.path.realpath(index.path(i))
        if not path.startswith(tuple(f"{start}{os.sep}" for start in inside)):
            raise AssertionError(f"an entry leads out of the data set: {index.path(i)!r}")


def _read_tar(folder: Path) -> None:
    _read_samples(open_index(folder / "a.tar", root=str(folder), cache_dir=None))


def _read_shard_index(folder: Path) -> None:
    """Shards with an index beside them; nothing but the shards may be read by it."""
    for shard in folder.glob("*.tar"):
        os.utime(shard, (indexes.SHARD_TIME_S, indexes.SHARD_TIME_S))
    index = open_index(folder / "*.tar", root=str(folder), cache_dir=None)
    for file in getattr(index, "files", ()):
        if os.path.realpath(file) not in (os.path.realpath(shard) for shard in folder.glob("*.tar")):
            raise AssertionError(f"the index leads out of its folder: {file!r}")
    _read_samples(index)


def _read_kept_index(folder: Path) -> None:
    """A list whose index is kept already."""
    (folder / "a.jpg").touch()
    (folder / "list.txt").write_text("a.jpg 0\n")
    for file in (folder / "list.txt", folder):
        os.utime(file, (indexes.SHARD_TIME_S, indexes.SHARD_TIME_S))
    kept = folder / "kept"
    open_index(folder / "list.txt", root=str(folder), cache_dir=str(kept))
    (file,) = kept.iterdir()
    file.write_bytes((folder / "index.npz").read_bytes())
    _read_samples(open_index(folder / "list.txt", root=str(folder), cache_dir=str(kept)))


def _read_cfg(folder: Path) -> None:
    """A cfg as a network: built without memory first, and run there; in earnest if it is small."""
    text = (folder / "net.cfg").read_bytes().decode("utf-8", "replace")
    name = f"cfg/{folder / 'net.cfg'}"
    with torch.device("meta"):
        net = create_model(name, 5)
    assert isinstance(net, DarknetCfgNet)
    params = sum(parameter.numel() for parameter in net.parameters())
    if params > _MOST_PARAMS:
        raise AssertionError(f"a network of {params:,} parameters was taken")
    with torch.inference_mode():
        net.eval()(torch.zeros(1, net.in_chs, net.input_px, net.input_px, device="meta"))
    if params <= _SMALL_PARAMS:
        create_model(name, 5, text=text)


def _read_weights(folder: Path) -> None:
    load_weights(weights.build_net(), folder / "net.weights")


def _resume(path: Path) -> None:
    """As a run goes on from a checkpoint."""
    checkpoint, start = read_checkpoint(path), Start(None, path)
    check_parts(path, checkpoint)
    recipe, state = weights.build_fresh_state()
    load_recipe(None, {}, [(str(path), checkpoint["recipe"])])
    splits = _Splits(weights.NUM_CLASSES)
    check_checkpoint(checkpoint, recipe, splits, start)  # type: ignore[arg-type]
    restore(state, checkpoint, recipe.train.seed, World(), start, Console(1))


class _Splits:
    """What a checkpoint is compared with."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes


def _validate(path: Path) -> None:
    """As a file is validated, up to the data set, which is not there."""
    overrides = {"data.root": str(path.parent / "none"), "train.device": "cpu", "data.workers": 0}
    try:
        run_validate_job(ValidateJob((AskedWeights(path, overrides),)))
    except UserError as error:
        if "no such folder" not in str(error):
            raise


def _read_checkpoint(folder: Path) -> None:
    """A file as weights to start from, to be validated, and to go on from."""
    (path,) = (path for path in folder.iterdir() if path.suffix != ".sha256")
    refusal = None
    readers: tuple[Callable[[Path], object], ...] = (
        lambda path: load_weights(weights.build_net(), path),
        _validate,
        *([_resume] if path.suffix == ".pt" else []),
    )
    for read in readers:
        try:
            read(path)
        except UserError as error:
            refusal = refusal or error
    if refusal:
        raise refusal


def _read_picture(folder: Path) -> None:
    """A picture as a whole and in part, by both ways; and as it is inspected."""
    (path,) = folder.iterdir()
    data = path.read_bytes()
    inspect_picture(data, path.name)
    refusal = None
    for exif, decoder in (("apply", "fast"), ("ignore", "pillow")):
        try:
            picture = open_picture(data, exif, decoder)  # type: ignore[arg-type]
            width, height = picture.width, picture.height
            box = (0, 0, max(1, width // 2), max(1, height // 3))
            pixels = picture.crop_resize(box, (16, 16), "bilinear", shrink=decoder == "fast")
            assert pixels.shape == (16, 16, 3)
            rgb = picture.rgb()
            assert (rgb.mode, rgb.size) == ("RGB", (width, height))
        except UnreadableImageError as error:
            refusal = refusal or error
    if refusal:
        raise refusal


def _read_records(folder: Path) -> None:
    """What a run has written, as another one goes on from step 4, and as runs are compared."""
    read_records(folder)
    MetricsFile(folder / "metrics.jsonl", 4).close()
    SummaryFile(folder / "summary.csv", 1)


_PICTURE = Parser(
    "jpeg",
    _read_picture,
    pictures.jpeg_seeds,
    pictures.jpeg_traps,
    pictures.JPEG_WORDS,
    trap_share=0.03,  # those that are not refused at once take seconds
    refusals=(UnreadableImageError,),
    memory_mib=2048,
)
PARSERS = {
    parser.name: parser
    for parser in (
        Parser("recipe", _read_recipe, recipes.recipe_seeds, recipes.recipe_traps, recipes.YAML_WORDS),
        Parser(
            "command-line",
            _read_command_line,
            recipes.command_line_seeds,
            recipes.command_line_traps,
            recipes.YAML_WORDS,
        ),
        Parser("list", _read_list, lists.list_seeds, lists.list_traps, lists.LIST_WORDS),
        Parser("cfg", _read_cfg, cfgs.cfg_seeds, cfgs.cfg_traps, cfgs.CFG_WORDS),
        Parser("weights", _read_weights, weights.weight_seeds, weights.weight_traps, weights.WEIGHT_WORDS),
        Parser("tar", _read_tar, tars.tar_seeds, tars.tar_traps, tars.TAR_WORDS, tars.repair_tar),
        Parser(
            "shard-index",
            _read_shard_index,
            indexes.index_seeds,
            indexes.index_traps,
            indexes.INDEX_WORDS,
            inside=zips.change_member,
        ),
        Parser(
            "kept-index",
            _read_kept_index,
            indexes.cache_seeds,
            indexes.cache_traps,
            indexes.INDEX_WORDS,
            inside=zips.change_member,
        ),
        Parser(
            "checkpoint",
            _read_checkpoint,
            weights.checkpoint_seeds,
            weights.checkpoint_traps,
            weights.CHECKPOINT_WORDS,
            inside=weights.change_weights,
        ),
        _PICTURE,
        replace(
            _PICTURE,
            name="picture",
            seeds=pictures.picture_seeds,
            traps=pictures.picture_traps,
            words=pictures.PICTURE_WORDS,
            repair=pictures.repair_png,
        ),
        Parser("records", _read_records, lists.record_seeds, lists.record_traps, lists.RECORD_WORDS),
    )
}
"""By name."""
