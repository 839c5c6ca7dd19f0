"""Write files of tensors atomically, and check these files for damage when they are read."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import write_whole


def save_tensors(path: Path, content: Any) -> None:
    """Write nested lists and dicts of tensors, numbers and texts to a file atomically.

    Raises UserError if the file cannot be written, such as on a full disk.
    """

    def save(partial: Path) -> None:
        # The file is opened here, because an exception of torch does not contain the error number of the OSError.
        with partial.open("wb") as file:
            torch.save(content, file)

    write_whole(path, save)


def load_tensors(path: Path, kind: str, *, mmap: bool = False) -> Any:
    """Return the content of a file that `save_tensors` wrote. The tensors are on the CPU.

    `kind` says in error messages what the file contains. If `mmap` is true, tensors are read from the disk when they
    are used. Raises UserError if the file cannot be read or is damaged. The check detects even a single changed bit.
    """
    try:
        with zipfile.ZipFile(path) as file:
            # torch does not check the checksums in the file, so they are checked here.
            if damaged := file.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        return torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    except OSError as error:
        raise UserError(f"cannot read the {kind} {path}: {error.strerror}; make it readable or remove it") from error
    # zipfile and the unpickler raise many types of errors for damaged files.
    except Exception as error:
        raise damaged_file(path, kind, error) from error


def damaged_file(path: Path, kind: str, error: Exception) -> UserError:
    """Return the UserError for a damaged or incomplete file. `kind` names the expected content."""
    return UserError(
        f"{path} is not a complete {kind} ({type(error).__name__}): remove it and repeat the command, or give another"
        " folder by --out"
    )
