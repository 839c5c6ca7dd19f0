"""Checkpoint files: read their content without running code, and describe files that are not checkpoints."""

import re
import tarfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import sha256_of
from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.strict_json import read_json

_SAVED_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
"""Names of weights files in a folder that `save_pretrained` wrote. The first of these files that exists is read."""
_LARGEST_HEADER = 100_000_000
"""The largest header in bytes that the safetensors format allows."""
_LARGEST_INDEX = 2**26
"""The largest accepted size of the index of a checkpoint in several files, in bytes."""
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")


class _Ignored:
    """A placeholder for NumPy numbers in a pickle. Such a number, for example the best accuracy, is not a weight."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_NUMPY = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


@dataclass(frozen=True)
class CheckpointFile:
    """The files of one checkpoint."""

    path: Path
    """The checkpoint file, or the JSON index of a checkpoint that is split into several files (shards)."""
    shards: tuple[Path, ...] = ()
    """The shards that the index names, sorted. The list is empty if the checkpoint is one file."""

    @property
    def sha256(self) -> str:
        """The sha256 of the file, or a digest of the index and all shards."""
        if not self.shards:
            return sha256_of(self.path)
        return fingerprint({path.name: sha256_of(path) for path in (self.path, *self.shards)})


def find_checkpoint(path: Path) -> CheckpointFile:
    """Return the files of a checkpoint.

    `path` is a file, the JSON index of a checkpoint in several files (shards), or a folder that `save_pretrained`
    wrote. Raises UserError if the path does not exist, the folder lacks weights, or a shard is missing.
    """
    try:
        if path.is_dir():
            return find_checkpoint(_weights_in(path))
        exists = path.is_file()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error
    if not exists:
        raise UserError(
            f"no such file: {path}; give a checkpoint, such as a .pt, .pth, .pth.tar or .safetensors file, or a folder"
            " of save_pretrained"
        )
    if path.name.endswith(".index.json"):
        names = sorted(set(_weight_map(path).values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise UserError(
                f"{path} names {outside[0]!r}, but shards must be in the folder of the index: download the index again"
            )
        shards = tuple(path.parent / name for name in names)
        if missing := [shard.name for shard in shards if not shard.is_file()]:
            raise UserError(
                f"{path} names {len(shards)} files, but {len(missing)} of them are missing, first {missing[0]}:"
                " download them into the same folder"
            )
        return CheckpointFile(path, shards)
    if (shard := _SHARD.fullmatch(path.name)) and shard[2] != "00001":
        raise UserError(
            f"{path} is one of {int(shard[2])} shards of a checkpoint: give their index, such as"
            f" {shard[1]}{shard[3]}.index.json, or their folder"
        )
    return CheckpointFile(path)


def read_checkpoint(path: Path) -> Any:
    """Return the content of a checkpoint, with its tensors on the CPU. Code in the file is never run.

    The docstring of `find_checkpoint` lists the accepted paths. The file format is recognised from the content, not
    from the file name. Raises UserError if the file is damaged, contains code, or is not a checkpoint. The error
    message names the probable file type.
    """
    files = find_checkpoint(path)
    if not files.shards:
        return _read_file(files.path)
    expected, tensors = _weight_map(files.path), {}
    for shard in files.shards:
        content = _read_file(shard)
        named = [key for key, name in expected.items() if name == shard.name]
        wrong = sorted(set(named) ^ set(content)) if isinstance(content, dict) else named
        if wrong:
            raise UserError(
                f"{shard} does not have the tensors that {files.path.name} states, for example {wrong[0]}: download"
                " the checkpoint again"
            )
        tensors.update(content)
    return tensors


def _weights_in(folder: Path) -> Path:
    for name in _SAVED_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"the folder {folder} lacks weights, expected one of {', '.join(_SAVED_NAMES)}: give the checkpoint file"
    )


def _weight_map(index: Path) -> dict[str, str]:
    """Read the index of a checkpoint in several files; return a mapping from tensor names to file names."""
    values = read_json(index, "the index of shards", max_bytes=_LARGEST_INDEX)
    found = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise UserError(
            f"{index} must have a weight_map that maps tensors to files, but it does not: give the checkpoint"
            " itself, or download the index again"
        )
    return found


def _read_file(path: Path) -> Any:
    if _is_safetensors(path):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"the file {path} is not a complete safetensors file: {error}{_guess(path)}") from error
    try:
        # torch warns about old pickle files. The warning is hidden, because the error message
        # below explains the problem.
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_Ignored, name) for name in _NUMPY]):
            warnings.simplefilter("ignore")
            # torch.load gets an open file, so that it recognises the format from the content. For a path, torch.load
            # would use the file extension.
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    # If the bytes are damaged, torch may raise almost any type of exception, including AssertionError.
    except Exception as error:
        raise UserError(f"the file {path} {_problem(path, error)}") from error


def _is_safetensors(path: Path) -> bool:
    """Return whether a file is a safetensors file, which is decided by its header.

    If the header is not recognised, the file name is used instead.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        # The caller of this function cannot read the file either. It raises a UserError that explains the problem.
        return False
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _LARGEST_HEADER:
        return True
    is_torch = start.startswith((b"PK", b"\x80"))
    return path.suffix.lower() == ".safetensors" and not is_torch


def _problem(path: Path, error: Exception) -> str:
    if guess := _guess(path):
        return f"is not a checkpoint{guess}"
    message = str(error)
    named = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:class|global) ([\w.]+)", message)
    # torch's message advises users to turn off weights_only, which would run code from the file.
    # This advice is removed.
    lines = [line for line in message.splitlines() if line.strip() and "weights_only" not in line]
    found = f"the file refers to {named[1] or named[2]}" if named else lines[0] if lines else type(error).__name__
    return (
        f"does not contain only tensors: {found}. A pickle may contain code, so none of it was run; download the file"
        " again if the download may be incomplete, or ask its author for the state dict as safetensors"
    )


def _guess(path: Path) -> str:
    """Return the probable type of a file that is not a checkpoint, with advice. Return "" if no type fits."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        return f": the file cannot be read ({error.strerror}); check the path and its permissions"
    if not start:
        return ": the file is empty; download it again"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return ": the file is a web page; open its address in a browser and download the weights from there"
    if start.lstrip().startswith(b"{"):
        return ": the file is a JSON file; give the file with the weights, or the index of their shards (.index.json)"
    if start.startswith(b"version https://git-lfs"):
        return ": the file is a Git LFS pointer; download the real file (git lfs pull, or the Download button)"
    if start.startswith(b"PK"):
        return _guess_archive(path)
    if tarfile.is_tarfile(path):
        return ": the file is a tar archive; unpack it and give the checkpoint inside"
    return ""


def _guess_archive(path: Path) -> str:
    try:
        if not zipfile.is_zipfile(path):
            return ": the file is incomplete, because its end is missing; download it again"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return ": the file is a damaged archive; download it again"
    if any(name.endswith("constants.pkl") for name in names):
        return (
            ": the file is a TorchScript program, the format of OpenAI's releases; use the same weights by their"
            " open_clip tag, such as open_clip:ViT-B-32-quickgelu/openai"
        )
    if not any(name.endswith("data.pkl") for name in names):
        return ": the file is a zip archive of other files; unpack it and give the checkpoint inside"
    return ""
