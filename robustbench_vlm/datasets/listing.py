"""List the files and sub-folders of a folder in a fixed order, without hidden files and folders."""

import os
from collections.abc import Iterator
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import check_utf8


def folders(path: Path) -> list[str]:
    """Return the sorted names of the sub-folders of a folder, except hidden sub-folders.

    Raises UserError if the folder does not exist.
    """
    if not path.is_dir():
        raise UserError(f"there is no folder {path}: --images takes a folder with one sub-folder per class")
    return _checked(sorted(entry.name for entry in _entries(path) if _is_folder(entry)), path)


def files(path: Path) -> list[str]:
    """Return the sorted names of the files of a folder, except hidden files."""
    return _checked(sorted(entry.name for entry in _entries(path) if _is_file(entry)), path)


def files_below(top: Path) -> list[str]:
    """Return the paths of all files in `top` and its sub-folders, except hidden files. Paths are relative to `top`.

    Broken links are also listed, so that an error message can name them.
    """
    return [
        name if place == "." else f"{place}/{name}"
        for place, names in walk(top)
        for name in _checked(names, top / place)
    ]


def walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield pairs (path relative to `top`, sorted file names) for `top` and each folder below it, sorted by path.

    Hidden files and folders are left out. Links to folders are followed, except links to a parent folder. Each folder
    is read only once.
    """
    found: dict[str, list[str]] = {}
    seen = {_identity(parent) for parent in (*top.absolute().parents, *top.resolve().parents)}
    # Links to folders are followed last, so a folder that can also be reached without a link gets the path without a
    # link.
    pending, links = [""], list[str]()
    while pending or links:
        place = pending.pop() if pending else links.pop(0)
        identity = _identity(top / place)
        if identity in seen:
            continue
        seen.add(identity)
        names = found[place] = list[str]()
        for entry in sorted(_entries(top / place), key=lambda entry: entry.name):
            if _is_folder(entry):
                (links if entry.is_symlink() else pending).append((Path(place) / entry.name).as_posix())
            elif _is_file(entry) or entry.is_symlink():
                names.append(entry.name)
    for place in sorted(found):
        yield Path(place).as_posix(), found[place]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    # `is_dir` raises an OSError for a link that points to itself.
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _identity(path: Path) -> tuple[int, int]:
    """Return the device number and the inode of a folder. Both are the same for a folder and all links to it."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _entries(path: Path) -> list["os.DirEntry[str]"]:
    """Return the entries of a folder, except hidden entries; raise UserError if the folder cannot be read."""
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read the folder {path}: {error.strerror}; check its permissions") from error


def _checked(names: list[str], folder: Path) -> list[str]:
    for name in names:
        check_utf8(name, folder)
    return names
