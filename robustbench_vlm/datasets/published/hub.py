"""Download datasets from the Hugging Face Hub: LAION's tar files (shards) in the repositories clip-benchmark/wds_*."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustbench_vlm.core.download import download
from robustbench_vlm.core.download_speed import OnSlow
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.hub_access import hub_url
from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.datasets.published.base import DownloadSource, PublishedDataset
from robustbench_vlm.datasets.published.staging import check_free, check_goal, put_in_place, staging_folder
from robustbench_vlm.datasets.published.tar_shards import CLASS_NAMES, check_class_order, read_shards

_WANTED = re.compile(r"classnames\.txt|test/nshards\.txt|test/\d+\.tar")


_LIST_SECONDS = 10.0
"""Seconds to wait for the list of files of a repository."""


class NoAnswer(UserError):
    """Raised if the Hub accepts a connection but gives no valid answer. Later requests would also wait and fail."""


def hub_folder(source: DownloadSource, root: Path) -> Path:
    """Return the folder of a dataset's tar shards below the data root."""
    return root / "wds" / source.name.rpartition("/")[2]


def fetch_from_hub(
    published: PublishedDataset, source: DownloadSource, root: Path, on_progress: OnProgress, on_slow: OnSlow
) -> Path:
    """Download the current revision of a dataset's tar shards and return their folder.

    The size and sha256 of each shard are compared with the values on the Hub. The order of the classes and the number
    of samples are compared with the order and number that this package expects. If an earlier call downloaded files of
    this revision, they are kept. `on_slow` is called if the download is slow (see `core.download`). Raises UserError if
    the download fails or the samples are not those of the dataset.
    """
    revision, files = _listing(source.name)
    staging = staging_folder(published, root)
    folder, goal = staging / f"hub-{revision}", hub_folder(source, root)
    for other in staging.glob("hub-*"):
        if other != folder:
            shutil.rmtree(other)
    total = sum(size for size, _ in files.values())
    here = sum((folder / name).stat().st_size for name in files if (folder / name).exists())
    check_goal(goal)
    check_free(goal, total - here)
    done = 0
    for name, (size, sha256) in files.items():

        def of_all_files(progress: Progress, before: int = done) -> None:
            on_progress(Progress(before + progress.done, total))

        url = hub_url(f"datasets/{source.name}", name, revision)
        download(url, folder / name, sha256=sha256, size=size or None, on_progress=of_all_files, on_slow=on_slow)
        if name == CLASS_NAMES:
            with _refused_if_wrong(source, folder):
                check_class_order(folder / name, published.name)
        done += size
        on_progress(Progress(done, total))
    with _refused_if_wrong(source, folder):
        _check_count(published, source, folder)
    return put_in_place(folder, goal, staging, f"{source.name} at {revision}")


@contextlib.contextmanager
def _refused_if_wrong(source: DownloadSource, folder: Path) -> Iterator[None]:
    """Remove the folder if the `with` block raises UserError, so that a later call does not use its files."""
    try:
        yield
    except UserError as error:
        shutil.rmtree(folder)
        raise UserError(f"the files of {source.name} on the Hub are refused: {error}") from error


def _check_count(published: PublishedDataset, source: DownloadSource, folder: Path) -> None:
    """Raise UserError if the shards cannot be read, or do not have the number of samples of the dataset's split."""
    count = len(read_shards(folder, published.name).ids)
    if published.samples and not source.split and count != published.samples:
        raise UserError(
            f"they have {count} samples, expected the {published.samples} samples of the split {published.split!r}"
        )


def _listing(repository: str) -> tuple[str, dict[str, tuple[int, str]]]:
    """Return the current revision of a repository, and a dict from the name of each file to its size and sha256.

    The sha256 is "" for small files, because the Hub lists no sha256 for them.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        info = api.dataset_info(repository, files_metadata=True, timeout=_LIST_SECONDS)
    # huggingface_hub raises its own exceptions, exceptions of its HTTP library, and parsing errors.
    except Exception as error:
        reason = str(error).strip().splitlines()
        kind = UserError if isinstance(error, HfHubHTTPError) else NoAnswer
        raise kind(
            f"cannot list the files of {repository} on the Hub: {reason[0] if reason else type(error).__name__}"
        ) from error
    found = {file.rfilename: file for file in info.siblings or () if _WANTED.fullmatch(file.rfilename)}
    for name in ("test/nshards.txt", CLASS_NAMES):
        if name not in found:
            raise UserError(f"the Hub repository {repository} lacks {name}, which a dataset of tar shards needs")
    if not info.sha or not re.fullmatch(r"[0-9a-f]{7,64}", info.sha):
        raise UserError(
            f"the Hub reports the revision {info.sha!r} of {repository}, expected a commit hash: check HF_ENDPOINT"
        )
    return info.sha, {name: (found[name].size or 0, _digest(found[name])) for name in sorted(found)}


def _digest(file: Any) -> str:
    return str(file.lfs.sha256) if file.lfs else ""
