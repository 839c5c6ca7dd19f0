"""The way in through the Hugging Face hub: LAION's builds of the datasets as tar shards (clip-benchmark/wds_*)."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from robustbench_vlm.core.download import download, hub_url
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.datasets.published.base import PublishedDataset
from robustbench_vlm.datasets.published.staging import check_free, put_in_place, staging_folder
from robustbench_vlm.datasets.published.tar_shards import read_shards

_WANTED = re.compile(r"classnames\.txt|test/nshards\.txt|test/\d+\.tar")


def hub_folder(published: PublishedDataset, root: Path) -> Path:
    """Return where a dataset's tar shards lie below the data root."""
    return root / "wds" / published.hub.rpartition("/")[2]


def fetch_from_hub(published: PublishedDataset, root: Path, on_progress: OnProgress) -> Path:
    """Fetch the present revision of a dataset's tar shards and return their folder; raise UserError where that fails.

    Each shard has the size and sha256 that the hub names; what an earlier call fetched of this revision is kept.
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
    """Return the hub's present revision of a dataset, and size and sha256 ("" for small ones) of the files wanted."""
    from huggingface_hub import HfApi

    try:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        info = api.dataset_info(repository, files_metadata=True, timeout=30)
    # The client has exceptions of its own, of its HTTP library, and of what it makes of an answer.
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"the hub has no list of {repository}: {reason[0] if reason else type(error).__name__}"
        ) from error
    found = {file.rfilename: file for file in info.siblings or () if _WANTED.fullmatch(file.rfilename)}
    if not info.sha or "test/nshards.txt" not in found:
        raise UserError(f"the hub's {repository} is no dataset of tar shards: it has no test/nshards.txt")
    if not re.fullmatch(r"[0-9a-f]{7,64}", info.sha):
        raise UserError(f"the hub names the revision {info.sha!r} of {repository}, which is none")
    return info.sha, {name: (found[name].size or 0, _digest(found[name])) for name in sorted(found)}


def _digest(file: Any) -> str:
    return str(file.lfs.sha256) if file.lfs else ""
