"""Download datasets with the classes of torchvision.datasets."""

import contextlib
import errno
import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustbench_vlm.core.download import download
from robustbench_vlm.core.download_speed import OnSlow
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.datasets.published.base import DownloadSource, PublishedDataset
from robustbench_vlm.datasets.published.staging import check_free, check_goal, put_in_place, staging_folder

_ARCHIVES = (".tar", ".tgz", ".gz", ".zip")


def fetch_from_torchvision(
    published: PublishedDataset, source: DownloadSource, root: Path, on_progress: OnProgress, on_slow: OnSlow
) -> Path:
    """Download a dataset with torchvision and return its folder; raise UserError if the host or the files fail.

    `on_slow` is called if the download is slow (see `core.download`).
    """
    import torchvision

    staging, origin = staging_folder(published, root), f"torchvision {torchvision.__version__} {source.name}"
    # Remove the files of an interrupted call, because torchvision would accept a partly unpacked dataset as complete.
    unpacked, goal = staging / "unpacked", root / published.folder
    shutil.rmtree(unpacked, ignore_errors=True)
    check_goal(goal)
    goal.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            _torchvision_downloads(staging / "downloads", on_progress, on_slow),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            getattr(torchvision.datasets, source.name)(str(unpacked), download=True)
    except UserError:
        raise
    # torchvision does not catch exceptions of the archive readers, and these exceptions have many types.
    except Exception as error:
        if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            shutil.rmtree(staging / "downloads", ignore_errors=True)
        raise UserError(f"torchvision fails with {type(error).__name__}: {error}") from error
    folder = unpacked / published.folder
    for archive in (staging / "downloads").iterdir():
        if archive.name.endswith(_ARCHIVES):
            (folder / archive.name).unlink(missing_ok=True)
    published.read(folder)
    return put_in_place(folder, goal, staging, origin)


@contextlib.contextmanager
def _torchvision_downloads(folder: Path, on_progress: OnProgress, on_slow: OnSlow) -> Iterator[None]:
    """Replace torchvision's download function by this package's `download`, which writes into `folder`.

    Downloads can then be resumed, report progress, refuse web pages and never use plain http. Archives cannot write
    outside their folder.
    """
    from torchvision.datasets import utils

    def retrieve(url: str, filename: str | Path, *options: Any) -> None:
        path = folder / Path(filename).name
        address = re.sub(r"^http://(?!127\.|localhost)", "https://", url)
        download(address, path, on_progress=_with_room(path, on_progress), on_slow=on_slow)
        Path(filename).unlink(missing_ok=True)
        try:
            os.link(path, filename)
        # Some file systems do not support hard links. On these, the file is copied.
        except OSError:
            shutil.copyfile(path, filename)

    with (
        _replaced(utils, "_urlretrieve", retrieve),
        _replaced(utils, "_get_redirect_url", lambda url, **options: url),
        _replaced(tarfile.TarFile, "extraction_filter", staticmethod(tarfile.data_filter)),
    ):
        yield


def _with_room(path: Path, on_progress: OnProgress) -> OnProgress:
    """Return a function that calls `on_progress` and checks the free disk space once, when the file's size is known.

    The disk must have space for an archive and its unpacked files at the same time. The unpacked files have about the
    size of the archive, because the images in it are already compressed.
    """
    is_checked = not path.name.endswith(_ARCHIVES)

    def report(progress: Progress) -> None:
        nonlocal is_checked
        if not is_checked and progress.total is not None:
            check_free(path, 2 * progress.total - progress.done)
            is_checked = True
        on_progress(progress)

    return report


@contextlib.contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
