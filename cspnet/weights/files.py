"""Reading tensor files: nothing but tensors and built-in types, checked against the checksum beside them."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from pathlib import Path
from typing import IO, Any

import torch

from cspnet.errors import CheckpointError

__all__ = ["checksum_file", "hash_file", "read_tensors", "verify_checksum"]


def read_tensors(path: Path) -> dict[str, Any]:
    """The dictionary in a .pt, .pth, .pth.tar or .safetensors file, on the CPU. No code in it is ever run.

    Raises:
        CheckpointError: missing, damaged, or holding more than tensors and built-in types.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    verify_checksum(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        with warnings.catch_warnings():  # of pickles that are refused in the next moment
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = "holds objects other than tensors and built-in types, which are not loaded"
        if "Unsupported global" not in str(error) and "Unsupported class" not in str(error):
            what = "not a checkpoint, or damaged"
        raise CheckpointError(f"{path}: {what}") from error
    # A damaged archive fails in many ways inside torch and safetensors; all of them mean the same to the user.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint, or damaged ({reason})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found a {type(content).__name__}")
    return content


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


def verify_checksum(path: Path) -> None:
    """Compare a file with the checksum beside it, if there is one.

    Raises:
        CheckpointError: they differ.
    """
    try:
        lines = checksum_file(path).read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{checksum_file(path)}: cannot read the checksum") from error
    if hash_file(path) not in [line.split(" ")[0] for line in lines]:
        raise CheckpointError(f"{path}: damaged: its checksum is not the one in {checksum_file(path).name}")
