"""Checkpoints of any make, read as data: safetensors or weights_only, never code; plain words for all else."""

import re
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from robustbench_vlm.core.errors import UserError


class _PassedOver:
    """Stands in for numbers of numpy, such as the best accuracy beside the weights, which nobody here needs."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_NUMPY = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


def read_checkpoint(path: Path) -> Any:
    """Return what a file of weights holds, on the CPU; nothing in it is ever run.

    Raises UserError for a file that is damaged, holds code, or is something else, with what it seems to be.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"the weights {path} are no whole safetensors file: {error}{_guess(path)}") from error
    try:
        # Old pickles are warned of; ours is the refusal below.
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_PassedOver, name) for name in _NUMPY]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    # Of damaged bytes torch's readers raise almost anything, failed assertions among it.
    except Exception as error:
        raise UserError(f"the weights {path} {_refusal(path, error)}") from error


def _refusal(path: Path, error: Exception) -> str:
    if guess := _guess(path):
        return f"are no checkpoint{guess}"
    said = str(error)
    named = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:class|global) ([\w.]+)", said)
    # Torch's own advice is to let the code run.
    lines = [line for line in said.splitlines() if line.strip() and "weights_only" not in line]
    what = f"it names {named[1] or named[2]}" if named else lines[0] if lines else type(error).__name__
    return (
        f"are no plain tensors: {what}. A pickle may hold code, and nothing of it was run; fetch it anew if it may be"
        " cut short, or let its owner save the state dict alone, as safetensors"
    )


def _guess(path: Path) -> str:
    """Return what a file that is no checkpoint seems to be, with what to do about it; empty where nobody knows."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        return f": it cannot be read, {error.strerror}"
    if not start:
        return ": the file is empty; fetch it again"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return ": it is a web page that was saved under this name; open its address in a browser and fetch the file"
    if start.startswith(b"version https://git-lfs"):
        return ": it is a pointer of Git LFS; fetch the file behind it (git lfs pull, or the button Download)"
    if start.startswith(b"PK"):
        return _guess_archive(path)
    if tarfile.is_tarfile(path):
        return ": it is a tar archive; unpack it and name the file inside"
    return ""


def _guess_archive(path: Path) -> str:
    try:
        if not zipfile.is_zipfile(path):
            return ": it is cut short, its end is missing; fetch it again"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return ": it is a damaged archive; fetch it again"
    if any(name.endswith("constants.pkl") for name in names):
        return (
            ": it is a TorchScript program, as OpenAI publishes its own; take the same weights by their tag in"
            " open_clip, such as open_clip:ViT-B-32-quickgelu/openai"
        )
    if not any(name.endswith("data.pkl") for name in names):
        return ": it is a zip archive of other files; unpack it and name the file inside"
    return ""
