"""Files of tensors: written in one step, and checked for damage when they are read."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import write_whole


def save_tensors(path: Path, content: Any) -> None:
    """Write nested lists and dicts of tensors, numbers and texts to a file in one step.

    Raises UserError if the file cannot be written, such as on a full disk.
    """

    def save(partial: Path) -> None:
        # torch loses the number of an OSError if it opens the file itself.
        with partial.open("wb") as file:
            torch.save(content, file)

    write_whole(path, save)


def load_tensors(path: Path, kind: str, *, mmap: bool = False) -> Any:
    """Return the content of a file of `save_tensors`; the tensors are on the CPU.

    `kind` names the content in messages. With `mmap` tensors are read from the disk when they are used. Raises
    UserError if the file cannot be read or is damaged. A single changed bit is found.
    """
    try:
        with zipfile.ZipFile(path) as file:
            # torch does not compare checksums.
            if damaged := file.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        return torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    except OSError as error:
        raise UserError(f"cannot read the {kind} {path}: {error.strerror}; make it readable or remove it") from error
    # zipfile and the unpickler raise many types of errors for damaged files.
    except Exception as error:
        raise damaged_file(path, kind, error) from error


def damaged_file(path: Path, kind: str, error: Exception) -> UserError:
    """Return the error for a file whose content is not that of its kind."""
    return UserError(
        f"{path} is not a complete {kind} ({type(error).__name__}): remove it and repeat the command, or give another"
        " folder by --out"
    )
