"""The place where a dataset is put together before it appears whole."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import explained
from robustbench_vlm.datasets.published.base import PublishedDataset
from robustbench_vlm.datasets.published.checksums import write_checksums


def staging_folder(published: PublishedDataset, root: Path) -> Path:
    """Return the folder where a dataset is put together; no reader looks there."""
    return root / ".fetching" / published.name


@contextlib.contextmanager
def exclusive(staging: Path) -> Iterator[None]:
    """Make the folder where a dataset is put together, and let one process at a time work in it.

    Raises UserError where it cannot be written.
    """
    from filelock import FileLock

    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = FileLock(staging.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"cannot write {staging}: {error.strerror}; name a folder of yours by --data DIR or VLMBENCH_DATA"
        ) from error
    try:
        with explained(staging):
            yield
    finally:
        lock.release()


def check_free(goal: Path, needed: int) -> None:
    """Raise UserError unless nothing is in the way of a dataset and the disk has room for it."""
    if goal.exists():
        raise UserError(f"{goal} is there and not whole: move it away, and the same command puts the whole one there")
    goal.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(goal.parent).free
    if needed > free:
        raise UserError(
            f"it needs {needed / 1e9:.2f} GB, and the disk of {goal.parent} has {free / 1e9:.2f} GB free: free some"
            " space, or name a folder on a larger disk by --data DIR or VLMBENCH_DATA"
        )


def put_in_place(folder: Path, goal: Path, staging: Path, source: str) -> Path:
    """Move a whole dataset to its place, sealed, and return the place."""
    write_checksums(folder, source)
    folder.rename(goal)
    shutil.rmtree(staging)
    return goal
