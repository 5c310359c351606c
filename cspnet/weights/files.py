"""Tensor files: read without running any code and checked against the checksum beside them; written as a whole."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from cspnet.errors import CheckpointError
from cspnet.runtime.files import replacing
from cspnet.weights.pickles import RefusedError, check_file

__all__ = ["checksum_file", "hash_file", "is_plain", "read_tensors", "verify_checksum", "write_safetensors"]

_ABOUT = "cspnet"
_MOST_VALUES = 1 << 20
"""In what a file says beside its tensors; as lists in it may be in it many times, a small file may have any number."""


def read_tensors(path: Path) -> dict[str, Any]:
    """The dictionary in a .pt, .pth, .pth.tar or .safetensors file, on the CPU. No code in it is ever run.

    A .safetensors file of ours comes as {"state_dict": tensors, "arch": ..., ...}, like a checkpoint. Of all Python
    classes only argparse.Namespace is let through, a plain record that DeepSpark and torchvision keep under `args`.

    Raises:
        CheckpointError: missing, damaged, or holding more than tensors and built-in types.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file" if path.exists() else "no such file"
        inside = next((path / name for name in ("checkpoints/last.pt", "last.pt") if (path / name).is_file()), None)
        raise CheckpointError(f"{path}: {what}; name a file of weights" + (f", such as {inside}" if inside else ""))
    is_verified = verify_checksum(path)
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        check_file(path)
        if not is_verified:
            _verify_archive(path)
        # Warnings are of pickles that are refused in the next moment.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except RefusedError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except pickle.UnpicklingError as error:
        what = "holds objects other than tensors and built-in types, which are not loaded"
        if not any(word in str(error).lower() for word in ("unsupported global", "unsupported class")):
            what = f"not a checkpoint, or damaged{_guess_kind(path)}"
        raise CheckpointError(f"{path}: {what}") from error
    # A damaged archive fails in many ways inside torch and safetensors; all of them mean the same to the user.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = _guess_kind(path) or f" ({reason})"
        raise CheckpointError(f"{path}: not a checkpoint, or damaged{hint}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found a {type(content).__name__}")
    return content


def is_plain(value: object) -> bool:
    """Whether something holds text, numbers, lists and dictionaries with text for keys, and not too many of them."""
    waiting, num_values = [value], 0
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict) and all(isinstance(key, str) for key in inner):
            inner = list(inner.values())
        if isinstance(inner, list | tuple):
            num_values += len(inner)
            if num_values > _MOST_VALUES:
                return False
            waiting += inner
        elif not isinstance(inner, str | int | float | None):
            return False
    return True


def _guess_kind(path: Path) -> str:
    """What a file looks like that is not what its ending says; empty if it looks like nothing known."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return ""
    if path.suffix != ".safetensors" and start[8:9] == b"{" and start[5:8] == bytes(3):
        return "; it looks like safetensors: give it that ending"
    if path.suffix == ".safetensors" and start[:2] == b"PK":
        return "; it looks like PyTorch's: let it end in .pth"
    if start[:4] == bytes(4) and start[4:5] in (b"\1", b"\2") and start[5:8] == bytes(3):
        return "; it looks like Darknet's: say --source darknet, or let it end in .weights"
    return ""


def _verify_archive(path: Path) -> None:
    """Compare the records of a PyTorch archive with their checksums, which torch.load passes over.

    Raises:
        CheckpointError: some differ. An archive in which all do was written without them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if entry.file_size and not entry.compress_type]
            damaged = [name for name in names if not _is_whole(archive, name)]
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError):
        return  # no archive, or one that is not PyTorch's: torch.load says what is wrong with it
    if damaged and len(damaged) < len(names):
        raise CheckpointError(f"{path}: damaged: {damaged[0]} in it does not have its checksum")


def _is_whole(archive: zipfile.ZipFile, name: str) -> bool:
    try:
        with archive.open(name) as record:
            while record.read(1 << 20):
                pass
    except (zipfile.BadZipFile, EOFError, zlib.error):
        return False
    return True


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dictionary)
        about = json.loads((file.metadata() or {}).get(_ABOUT, "{}"))
    return {**about, "state_dict": tensors} if about else tensors


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], texts: Mapping[str, str] | None = None
) -> None:
    """Write a .safetensors file of ours; it is complete or absent.

    Args:
        tensors: contiguous, and none of them shares its memory with another.
        about: what a checkpoint says beside its weights (arch, num_classes, classes, recipe, eval_cfg), of types that
            JSON has; it is kept in the file's header, where other readers pass over it.
        texts: more for the header, for other readers.
    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    header = {**(texts or {}), "format": "pt", _ABOUT: json.dumps(dict(about))}
    with replacing(path) as temporary:
        # As bytes: its own way to a file has errors of its own, and leaves a file that nobody else may read.
        temporary.write_bytes(save(dict(tensors), metadata=header))


def checksum_file(path: Path) -> Path:
    """Where the checksum of a file is kept: beside it, in the format of sha256sum."""
    return path.with_name(path.name + ".sha256")


def hash_file(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def verify_checksum(path: Path) -> bool:
    """Compare a file with the checksum beside it; whether there is one.

    Raises:
        CheckpointError: they differ.
    """
    beside = checksum_file(path)
    if not os.path.lexists(beside):
        return False
    try:
        if not beside.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{beside}: cannot read the checksum: it is no file")
        lines = beside.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{beside}: cannot read the checksum") from error
    try:
        digest = hash_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read it: {error.strerror}") from error
    if digest not in [line.split(" ")[0] for line in lines]:
        raise CheckpointError(f"{path}: damaged: its checksum is not the one in {beside.name}")
    return True
