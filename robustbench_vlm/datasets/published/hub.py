"""Download datasets from the Hugging Face Hub as LAION's tar shards (clip-benchmark/wds_*)."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from robustbench_vlm.core.download import download
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.hub_access import hub_url
from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.datasets.published.base import PublishedDataset
from robustbench_vlm.datasets.published.staging import check_free, put_in_place, staging_folder
from robustbench_vlm.datasets.published.tar_shards import read_shards

_WANTED = re.compile(r"classnames\.txt|test/nshards\.txt|test/\d+\.tar")


def hub_folder(published: PublishedDataset, root: Path) -> Path:
    """Return the folder of a dataset's tar shards below the data root."""
    return root / "wds" / published.hub.rpartition("/")[2]


def fetch_from_hub(published: PublishedDataset, root: Path, on_progress: OnProgress) -> Path:
    """Download the current revision of a dataset's tar shards and return their folder.

    The size and sha256 of each shard are compared with the values on the Hub. If an earlier call downloaded files of
    this revision, they are kept. Raises UserError if the download fails.
    """
    revision, files = _listing(published.hub)
    staging = staging_folder(published, root)
    folder, goal = staging / f"hub-{revision}", hub_folder(published, root)
    for other in staging.glob("hub-*"):
        if other != folder:
            shutil.rmtree(other)
    total = sum(size for size, _ in files.values())
    here = sum((folder / name).stat().st_size for name in files if (folder / name).exists())
    check_free(goal, total - here)
    done = 0
    for name, (size, sha256) in files.items():

        def of_all_files(progress: Progress, before: int = done) -> None:
            on_progress(Progress(before + progress.done, total))

        url = hub_url(f"datasets/{published.hub}", name, revision)
        download(url, folder / name, sha256=sha256, size=size or None, on_progress=of_all_files)
        done += size
        on_progress(Progress(done, total))
    read_shards(folder, published.name)
    return put_in_place(folder, goal, staging, f"{published.hub} at {revision}")


def _listing(repository: str) -> tuple[str, dict[str, tuple[int, str]]]:
    """Return the current revision of a repository, and a dict from the name of each shard to its size and sha256.

    The sha256 is "" for small files, because the Hub does not list their sha256.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        info = api.dataset_info(repository, files_metadata=True, timeout=30)
    # huggingface_hub raises its own exceptions, exceptions of its HTTP library, and parsing errors.
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"cannot list the files of {repository} on the Hub: {reason[0] if reason else type(error).__name__}"
        ) from error
    found = {file.rfilename: file for file in info.siblings or () if _WANTED.fullmatch(file.rfilename)}
    if not info.sha or "test/nshards.txt" not in found:
        raise UserError(f"the Hub repository {repository} lacks test/nshards.txt, which a dataset of tar shards needs")
    if not re.fullmatch(r"[0-9a-f]{7,64}", info.sha):
        raise UserError(
            f"the Hub reports the revision {info.sha!r} of {repository}, expected a commit hash: check HF_ENDPOINT"
        )
    return info.sha, {name: (found[name].size or 0, _digest(found[name])) for name in sorted(found)}


def _digest(file: Any) -> str:
    return str(file.lfs.sha256) if file.lfs else ""
