"""Download published datasets through torchvision or the Hugging Face Hub. Incomplete downloads are never used."""

import contextlib
import shutil
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import OnProgress, ignore_progress
from robustbench_vlm.datasets.published.base import MissingData, PublishedDataset
from robustbench_vlm.datasets.published.hub import fetch_from_hub
from robustbench_vlm.datasets.published.local_copy import locate
from robustbench_vlm.datasets.published.staging import exclusive, staging_folder
from robustbench_vlm.datasets.published.torchvision import fetch_from_torchvision


def fetch(published: PublishedDataset, root: Path, on_progress: OnProgress = ignore_progress) -> Path:
    """Download a dataset below the data root and return its folder. An existing copy is kept.

    `on_progress` counts bytes. A later call continues an interrupted download. Raises UserError with instructions
    for a download by hand if no source works.
    """
    if not published.fetchable:
        return locate(published, root)[0]
    sources = ((fetch_from_torchvision, published.torchvision), (fetch_from_hub, published.hub))
    failures = []
    with exclusive(staging_folder(published, root)):
        with contextlib.suppress(MissingData):
            folder = locate(published, root)[0]
            shutil.rmtree(staging_folder(published, root), ignore_errors=True)
            return folder
        for fetch_from_source, name in sources:
            try:
                if name:
                    return fetch_from_source(published, root, on_progress)
            except UserError as error:
                failures.append(str(error))
    by_hand = f"{published.by_hand or published.origin}, as the folder {root / published.folder}"
    raise UserError(f"cannot fetch {published.title}: {'; then: '.join(failures)}. To fetch it by hand: {by_hand}")
