"""Checksums of a downloaded dataset. They are written after the download, and compared later to find changed files."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import sha256_of, write_text

_NAME = ".vlmbench.json"
_FORMAT = 1


def write_checksums(folder: Path, source: str) -> None:
    """Write the checksums and the source of the files in a folder to one file in this folder.

    Call this function when all files are complete.
    """
    entry = {"format": _FORMAT, "source": source, "folders": _contents(folder)}
    write_text(folder / _NAME, json.dumps(entry, indent=1) + "\n")


def changed_folders(folder: Path) -> list[str]:
    """Return one sentence for each sub-folder with changed files. Return [] if `folder` has no file of checksums."""
    path = folder / _NAME
    if not path.exists():
        return []
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["format"] != _FORMAT:
            raise ValueError(f"the format of the file is {entry['format']}, expected {_FORMAT}")
        before: dict[str, dict[str, Any]] = entry["folders"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot read the checksums {path}: {error}; remove this file to check the dataset without checksums"
        ) from error
    after = _contents(folder)
    return [
        f"{folder / name} has changed since the download: it has {_summary(after.get(name))}, expected"
        f" {_summary(before.get(name))}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _contents(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the number of files, total bytes and digest of each sub-folder, by its path. Hidden files are left out."""
    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(place) / name for name in sorted(names) if not name.startswith(".")]
        if paths:
            listing = "".join(f"{sha256_of(path)}  {path.name}\n" for path in paths)
            found[Path(place).relative_to(folder).as_posix()] = {
                "files": len(paths),
                "bytes": sum(path.stat().st_size for path in paths),
                "sha256": hashlib.sha256(listing.encode()).hexdigest(),
            }
    return found


def _summary(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "no files"
    return f"{entry['files']} files with {entry['bytes']} bytes and the digest {str(entry['sha256'])[:12]}"
