"""scripts/export.py behind its command line: weights in, a file that others can run or publish out."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cspnet
from cspnet.cli import build
from cspnet.cli.outputs import check_place
from cspnet.cli.subject import Subject, build_folded, name_classes, read_subject
from cspnet.cli.weight_flags import AskedWeights
from cspnet.errors import EXIT_DONE, UserError
from cspnet.export.metadata import Contents, InputKind
from cspnet.export.model_card import Trained, write_card
from cspnet.export.network import CHECKED_BATCHES, MOST_APART, Check, ExportedNet
from cspnet.export.torch_file import write_program
from cspnet.models.folding import FoldedNetwork
from cspnet.recipe.load import recipe_to_values
from cspnet.recipe.schema import Recipe
from cspnet.runtime.files import printable, write_atomically
from cspnet.weights.files import hash_file, write_safetensors
from cspnet.weights.load import load_state_dict
from cspnet.weights.preprocessing import Preprocessing

__all__ = ["ENDINGS", "ExportJob", "find_format", "run_export_job"]

ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
"""{format: how its files end}."""

_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_PATH_KEYS = ("model.pretrained", "data.root", "data.train", "data.val", "data.outside_root", "data.cache_dir")
"""Of the recipe: where things lay on the machine that trained says nothing to others, and is none of their business."""
_PICTURE_KEYS = ("data.val_px", "data.crop_ratio", "data.val_interpolation", "data.mean", "data.std", "data.exif")


@dataclass(frozen=True)
class ExportJob:
    """A parsed command line."""

    out: Path
    format: str
    """A key of ENDINGS."""
    weights: AskedWeights
    class_file: Path | None
    """A name a line, in the order of the classes."""
    opset: int | None
    """Of an ONNX file; None takes the default."""
    softmax: bool
    """Probabilities out instead of logits."""
    input_kind: InputKind
    fold_bn: bool
    license: str
    """Of the weights; empty if nobody has said."""
    force: bool
    """Whether files that are there may be replaced."""


def find_format(out: Path) -> str:
    """The format that a file's ending means.

    Raises:
        UserError: it means none.
    """
    for name, ending in ENDINGS.items():
        if out.suffix == ending:
            return name
    raise UserError(f"{out}: a name that ends in {', '.join(ENDINGS.values())} says what to write")


def run_export_job(job: ExportJob) -> int:
    """Export and check, and tell both; the exit code."""
    _check_flags(job)
    _check_out(job)
    opset = _settle_opset(job)
    subject = read_subject(job.weights)
    recipe = build.embed_cfg(subject.recipe)
    # As the file is to have it, and without what is for training alone.
    recipe = replace(recipe, train=replace(recipe.train, device="cpu", channels_last=False, grad_checkpointing=False))
    names = name_classes(job.class_file, subject)
    model = build.build_model(recipe, subject.num_classes, torch.device("cpu"))
    load_state_dict(model, subject.weights.state, where=str(job.weights.file))
    model.eval()
    trained = _read_training(subject)
    contents = _describe(job, subject, recipe, names, trained)
    kind = "moving average" if trained.is_average else "raw weights"
    num_params = sum(parameter.numel() for parameter in model.parameters())
    print(f"{recipe.model.name}, {kind}, {subject.num_classes} classes, {num_params:,} parameters")
    print(f"pictures: {build.build_geometry(recipe.data)}; from {subject.geometry_source}")
    for warning in subject.weights.warnings:
        print(f"warning: {printable(str(job.weights.file))}: {warning}", file=sys.stderr)
    try:
        if job.format == "safetensors":
            _write_weights(job, subject, recipe, model, contents, trained)
        else:
            _write_network(job, recipe, model, contents, opset)
    except OSError as error:
        raise UserError(f"{job.out}: cannot be written: {error.strerror or error}") from error
    return EXIT_DONE


def _check_flags(job: ExportJob) -> None:
    """Raises UserError for a flag that the format has no use for."""
    is_network = job.format != "safetensors"
    given = {
        "--opset": (job.opset is not None, job.format == "onnx", "onnx"),
        "--softmax": (job.softmax, is_network, "onnx and torch"),
        "--input uint8": (job.input_kind == "uint8", is_network, "onnx and torch"),
        "--no-fold-bn": (not job.fold_bn, is_network, "onnx and torch, as safetensors holds the weights as they are"),
        "--license": (bool(job.license), not is_network, "safetensors, for its model card"),
    }
    for flag, (is_given, is_meant, formats) in given.items():
        if is_given and not is_meant:
            raise UserError(f"{flag} is for --format {formats}; leave it out")


def _check_out(job: ExportJob) -> None:
    """Find out before the work whether the result can be written.

    Raises:
        UserError: it cannot, or something is there that would be lost.
    """
    out, ending = job.out, ENDINGS[job.format]
    if out.suffix != ending:
        raise UserError(f"{out}: --format {job.format} writes a file that ends in {ending}")
    check_place(out, str(out))
    for file in (out, _card_of(out)) if job.format == "safetensors" else (out,):
        if not os.path.lexists(file):
            continue
        if file.exists() and job.weights.file.exists() and file.samefile(job.weights.file):
            raise UserError(f"{file}: holds the weights that are to be exported; give another name")
        if file.is_dir():
            raise UserError(f"{file}: is a folder; give another name")
        if not job.force:
            raise UserError(f"{file}: is there already; give another name, or --force to replace it")


def _settle_opset(job: ExportJob) -> int:
    """The opset of an ONNX file; 0 for other formats.

    Raises:
        UserError: it cannot be written, or the packages are not installed.
    """
    if job.format != "onnx":
        return 0
    if missing := [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"--format onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")
    from cspnet.export.onnx_file import DEFAULT_OPSET, newest_opset

    opset = DEFAULT_OPSET if job.opset is None else job.opset
    if not DEFAULT_OPSET <= opset <= newest_opset():
        raise UserError(
            f"--opset {opset}: use a number from {DEFAULT_OPSET}, the lowest that PyTorch writes, "
            f"to {newest_opset()}, the highest that the installed onnx knows"
        )
    return opset


def _describe(job: ExportJob, subject: Subject, recipe: Recipe, names: Sequence[str], trained: Trained) -> Contents:
    data = build.build_geometry(recipe.data)
    return Contents(
        model_name=recipe.model.name,
        classes=tuple(names),
        pictures=Preprocessing(data.size_px, data.crop_ratio, data.interpolation, data.mean, data.std),
        exif=data.exif,
        input_kind=job.input_kind,
        output="probabilities" if job.softmax else "logits",
        cspnet_version=cspnet.__version__,
        source_sha256=hash_file(job.weights.file),
        source_step=trained.step,
    )


def _read_training(subject: Subject) -> Trained:
    """What the file says of its training; of a damaged or foreign one, nothing."""
    about = subject.about
    recipe: Mapping[str, Any] = about.get("recipe", {})
    progress = about.get("progress")
    if not isinstance(progress, dict):
        return Trained(recipe, subject.weights.is_average)
    step, epoch = (value if type(value := progress.get(key)) is int else None for key in ("step", "epoch"))
    ranking = progress.get("ranking")
    pairs = (
        [entry for entry in ranking if isinstance(entry, list) and len(entry) == 2] if isinstance(ranking, list) else []
    )
    found = [score for number, score in pairs if number == step]
    # What was validated is the moving average, where the run has one.
    is_theirs = subject.weights.is_average == bool(recipe.get("ema.decay"))
    acc1 = float(found[0]) if found and is_theirs and isinstance(found[0], float) else None
    return Trained(recipe, subject.weights.is_average, step, epoch, acc1, str(subject.weights.preprocessing or ""))


def _write_network(job: ExportJob, recipe: Recipe, model: nn.Module, contents: Contents, opset: int) -> None:
    folded = build_folded(recipe, model, torch.device("cpu")) if job.fold_bn else FoldedNetwork(model, 0, 0)
    print(f"BatchNorms folded: {folded.num_folded}, left: {folded.num_left}" if job.fold_bn else "nothing folded")
    if folded.refusal:
        print(f"warning: BatchNorms are not folded, which is slower: {folded.refusal}", file=sys.stderr)
    written, reference = (
        ExportedNet(network, contents.pictures, job.input_kind, softmax=job.softmax)
        for network in (folded.model, model)
    )
    about, name = contents.to_strings(), contents.model_name
    check: Check
    if job.format == "onnx":
        from cspnet.export.onnx_file import write_onnx

        check = write_onnx(job.out, written, reference, about, opset=opset, name=name)
        what, checker = f"ONNX, opset {opset}", "onnxruntime"
    else:
        check = write_program(job.out, written, reference, about, name=name)
        what, checker = f"torch.export of PyTorch {torch.__version__}", "read back"
    side = contents.pictures.size_px
    shape = f"{side} x {side} x 3" if job.input_kind == "uint8" else f"3 x {side} x {side}"
    print(
        f"{printable(str(job.out))}: {what}; in: images, batch x {shape} {job.input_kind}; out: {contents.output}, ",
        end="",
    )
    print(f"batch x {len(contents.classes)} float32; {job.out.stat().st_size:,} bytes")
    batches = " and ".join(map(str, CHECKED_BATCHES))
    print(f"checked ({checker}) against the network in float32, batches of {batches} random pictures: ", end="")
    print(f"at most {check.apart:.1e} of the largest apart, and {MOST_APART:g} is allowed")


def _card_of(out: Path) -> Path:
    return out.with_suffix(".md")


def _write_weights(
    job: ExportJob, subject: Subject, recipe: Recipe, model: nn.Module, contents: Contents, trained: Trained
) -> None:
    """The weights as they are, in our names, and the card beside them."""
    values = recipe_to_values(recipe)
    known = {*trained.recipe, "model.name", "model.options", *_PICTURE_KEYS} - {*_PATH_KEYS}
    about: dict[str, Any] = {
        "arch": recipe.model.name,
        "num_classes": subject.num_classes,
        "classes": list(contents.classes) if job.class_file else list(subject.classes),
        "recipe": {key: value for key, value in values.items() if key in known},
        "eval_cfg": {**asdict(contents.pictures), "exif": contents.exif},
        "seen": subject.weights.seen,
    }
    if trained.step is not None:
        about["progress"] = {"step": trained.step, "epoch": trained.epoch}
    state = {  # no two of them in the same memory, as tied weights are
        key: value.clone(memory_format=torch.contiguous_format) for key, value in model.state_dict().items()
    }
    write_safetensors(job.out, state, about, contents.to_strings())
    card = write_card(
        contents,
        trained,
        model,
        file=printable(job.out.name),
        source=printable(job.weights.file.name),
        options=recipe.model.options,
        license=job.license,
    )
    write_atomically(_card_of(job.out), card.encode("utf-8", "backslashreplace"))
    out, beside = (printable(str(file)) for file in (job.out, _card_of(job.out)))
    print(f"{out}: {len(state)} tensors, {job.out.stat().st_size:,} bytes; {beside}: its card")
