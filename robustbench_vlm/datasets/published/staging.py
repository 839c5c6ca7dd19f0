"""The staging folder of a download. Files are moved from it to the final folder when the download is complete."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import exclusive_lock, explained
from robustbench_vlm.datasets.published.base import PublishedDataset
from robustbench_vlm.datasets.published.checksums import write_checksums


def staging_folder(published: PublishedDataset, root: Path) -> Path:
    """Return the staging folder of a dataset. Functions that read datasets never use this folder."""
    return root / ".fetching" / published.name


@contextlib.contextmanager
def exclusive(staging: Path) -> Iterator[None]:
    """Create the staging folder and lock it, so that only one process downloads the dataset at a time.

    Raises UserError if the folder cannot be written.
    """
    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {staging}: {error.strerror}; give a writable folder with --data DIR or VLMBENCH_DATA"
        ) from error
    with explained(staging), exclusive_lock(staging.with_suffix(".lock"), wait=True):
        yield


def check_goal(goal: Path) -> None:
    """Raise UserError if the final folder of a download, `goal`, exists.

    A folder with the complete dataset needs no download, so callers use this function only for other folders. Their
    files are never overwritten.
    """
    if goal.exists():
        raise UserError(
            f"{goal} exists, but it does not have the complete dataset: move or remove this folder, then run the same"
            " command again"
        )


def check_free(goal: Path, needed: int) -> None:
    """Raise UserError if the disk of the folder `goal` does not have `needed` free bytes."""
    goal.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(goal.parent).free
    if needed > free:
        raise UserError(
            f"the download needs {needed / 1e9:.2f} GB, and the disk of {goal.parent} has {free / 1e9:.2f} GB free:"
            " free some space, or give a folder on a larger disk with --data DIR or VLMBENCH_DATA"
        )


def put_in_place(folder: Path, goal: Path, staging: Path, source: str) -> Path:
    """Write the checksums of a complete dataset, move it to `goal`, remove `staging`, and return `goal`."""
    write_checksums(folder, source)
    folder.rename(goal)
    shutil.rmtree(staging)
    return goal
