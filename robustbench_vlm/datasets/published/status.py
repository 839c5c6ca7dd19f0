"""The library of published datasets on this machine: what is there, how it is obtained, and whether it is sound."""

import csv
import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder
from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.prepared import prepared_rows, unreadable, verify_prepared
from robustbench_vlm.datasets.published import ORIGINALS
from robustbench_vlm.datasets.published.fetch import fetch, locate, verify
from robustbench_vlm.datasets.published.local_copy import data_root, is_there, located, ready
from robustbench_vlm.datasets.published.original import MissingData, Original


@dataclass(frozen=True)
class Shelf:
    """What is known of one dataset here."""

    name: str
    samples: int
    """Of the whole split."""
    here: int
    """Samples that are there; 0 where none are."""
    download_bytes: int
    prepared: int
    """Samples that are decoded and resized already, by the protocol that has most."""
    where: str
    """Where its images are looked for, or what to do where they are not there."""


def shelf(name: str, data: Path | None) -> Shelf:
    """Return what of a published dataset is below `data_root(data)`; raise UserError for another dataset."""
    original, root = _original(name), data_root(data)
    try:
        here, where = len(locate(original, root).ids), f"below {root}"
    except MissingData:
        here, where = 0, f"vlmbench data prepare {name}" if original.fetchable else original.by_hand
    except UserError as error:
        # One damaged folder hides nothing of the others.
        here, where = 0, f"damaged: {error}"
    rows = max(map(prepared_rows, _prepared_folders(name)), default=0)
    return Shelf(name, original.samples, here, original.download_bytes, rows, where)


@dataclass(frozen=True)
class Prepared:
    """A dataset that is ready for a protocol."""

    folder: str
    samples: int
    """How many the protocol takes of it."""
    list_digest: str
    """sha256 of the sample list: the same samples anywhere have the same."""
    sample_list: str
    """The samples' ids and labels in their order, as CSV."""
    unreadable: Mapping[str, str]
    """Why, by id, those of them have no image that could not be decoded."""


def obtain(
    name: str,
    adapt: Callable[[Dataset], Dataset],
    count: int | None,
    data: Path | None,
    on_progress: OnProgress,
    *,
    download: bool,
) -> Prepared:
    """Fetch a dataset where it is missing and prepare its first `count` samples (None: all).

    `adapt` gives the dataset its protocol. Raises UserError where it cannot be fetched, with what to do by hand.
    """
    original, root = _original(name), data_root(data)
    located.cache_clear()
    if download and not is_there(DATASETS.load(name), data):

        def in_bytes(progress: Progress) -> None:
            total = progress.total or original.download_bytes
            on_progress(Progress(progress.done, total, label=f"fetching {name}"))

        fetch(original, root, in_bytes)
    dataset = ready(adapt(DATASETS.load(name)), count, data, on_progress)
    source = dataset.open()
    chosen = list(zip(source.ids, source.labels, strict=True))[:count]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("id", "label"), *chosen])
    digest = hashlib.sha256(text.getvalue().encode()).hexdigest()
    folder = Path(dataset.options["folder"])
    return Prepared(str(folder), len(chosen), digest, text.getvalue(), unreadable(folder, len(chosen)))


def check(name: str, data: Path | None, *, missing_is_wrong: bool) -> list[str] | None:
    """Return a sentence for everything that is wrong with a dataset; None where it is not there and need not be."""
    original, root = _original(name), data_root(data)
    located.cache_clear()
    if not missing_is_wrong and not is_there(DATASETS.load(name), data):
        return None
    return verify(original, root) + [
        sentence for folder in _prepared_folders(name) for sentence in verify_prepared(folder)
    ]


def _original(name: str) -> Original:
    dataset: Dataset = DATASETS.load(name)
    if not dataset.original:
        raise UserError(
            f"{name} comes with this package, so there is nothing to fetch; published datasets are"
            f" {', '.join(ORIGINALS)}"
        )
    return ORIGINALS[dataset.original]


def _prepared_folders(name: str) -> list[Path]:
    return [path.parent for path in (cache_folder() / "prepared" / name).glob("*/index.json")]
