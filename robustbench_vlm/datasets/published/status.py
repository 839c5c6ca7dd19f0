"""List, fetch, prepare and verify the published datasets: the functions behind `vlmbench data`."""

import csv
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder
from robustbench_vlm.core.hosts import Hosts
from robustbench_vlm.core.progress import OnProgress, Progress
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.prepared import prepared_rows, unreadable, verify_prepared
from robustbench_vlm.datasets.published import PUBLISHED
from robustbench_vlm.datasets.published.base import MissingData, PublishedDataset
from robustbench_vlm.datasets.published.fetch import address_of, by_hand, fetch
from robustbench_vlm.datasets.published.local_copy import (
    data_root,
    find_images,
    is_available,
    locate,
    prepare_dataset,
    verify,
)


@dataclass(frozen=True)
class DatasetStatus:
    """The state of one published dataset on this machine."""

    name: str
    samples: int
    """Number of samples of the complete split. 0 means that the number is unknown."""
    on_disk: int
    """Number of samples on disk. It is 0 if the dataset is missing."""
    download_bytes: int
    """Approximate size of the download in bytes. 0 means that the size is unknown."""
    prepared: int
    """Number of samples that are decoded and resized for a protocol. If several protocols have prepared samples, the
    largest number is used.
    """
    where: str
    """The folder of the images, or the next step if they are missing."""
    sources: tuple[str, ...]
    """The download sources in the order in which they are tried. An example is "hub clip-benchmark/wds_cars"."""
    by_hand: str
    """The instructions for a download by hand."""


def dataset_status(name: str, data: Path | None) -> DatasetStatus:
    """Return the state of a published dataset below `data_root(data)`. Raises UserError for other names."""
    published, root = _published(name), data_root(data)
    try:
        on_disk, where = len(locate(published, root)[1].ids), f"below {root}"
    except MissingData:
        on_disk, where = 0, f"vlmbench data prepare {name}" if published.fetchable else published.by_hand
    except UserError as error:
        # The error is shown in the list, so that the other datasets are still listed.
        on_disk, where = 0, f"damaged: {error}"
    rows = max(map(prepared_rows, _prepared_folders(name)), default=0)
    sources = () if published.licensed else tuple(f"{each.kind} {each.name}" for each in published.sources)
    return DatasetStatus(
        name, published.samples, on_disk, published.download_bytes, rows, where, sources, by_hand(published, root)
    )


def hosts_of(names: Sequence[str]) -> Hosts:
    """Return a `Hosts` object for the hosts from which the named datasets can be downloaded. No host is checked yet."""
    return Hosts(address_of(source) for name in names for source in _published(name).sources)


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset whose images are prepared for a protocol."""

    folder: str
    """The folder of the prepared pixels."""
    samples: int
    """Number of samples that the protocol uses."""
    list_digest: str
    """The sha256 of `sample_list`. If two machines have equal digests, they have equal samples."""
    sample_list: str
    """The samples' ids and labels in the standard order, as CSV."""
    unreadable: Mapping[str, str]
    """The samples that cannot be decoded, each with the reason. The keys are sample ids."""


def fetch_and_prepare(
    name: str,
    adapt: Callable[[Dataset], Dataset],
    count: int | None,
    data: Path | None,
    on_progress: OnProgress,
    *,
    hosts: Hosts | None,
) -> PreparedDataset:
    """Download a dataset if it is missing, and prepare its first `count` samples, or all samples if `count` is None.

    `adapt` is a function that returns the dataset with the prompts and image size of a protocol. `hosts` checks which
    hosts can be reached. If `hosts` is None, nothing is downloaded. If the dataset cannot be downloaded, UserError is
    raised. Its message has instructions for a download by hand.
    """
    published, root = _published(name), data_root(data)
    find_images.cache_clear()
    if hosts is not None and not is_available(DATASETS.load(name), data):

        def in_bytes(progress: Progress) -> None:
            total = progress.total or published.download_bytes
            on_progress(Progress(progress.done, total, label=f"fetching {name}"))

        fetch(published, root, in_bytes, hosts)
    dataset = prepare_dataset(adapt(DATASETS.load(name)), count, data, on_progress)
    source = dataset.open()
    chosen = list(zip(source.ids, source.labels, strict=True))[:count]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("id", "label"), *chosen])
    digest = hashlib.sha256(text.getvalue().encode()).hexdigest()
    folder = Path(dataset.options["folder"])
    return PreparedDataset(str(folder), len(chosen), digest, text.getvalue(), unreadable(folder, len(chosen)))


def verify_dataset(name: str, data: Path | None, *, missing_is_wrong: bool) -> list[str] | None:
    """Return one sentence for each problem of a dataset's files and prepared images.

    If the dataset is missing, the result depends on `missing_is_wrong`. If it is true, one sentence states that the
    dataset is missing. If it is false, the result is None.
    """
    published, root = _published(name), data_root(data)
    find_images.cache_clear()
    if not missing_is_wrong and not is_available(DATASETS.load(name), data):
        return None
    return verify(published, root) + [
        sentence for folder in _prepared_folders(name) for sentence in verify_prepared(folder)
    ]


def _published(name: str) -> PublishedDataset:
    dataset: Dataset = DATASETS.load(name)
    if not dataset.published:
        raise UserError(
            f"{name} is part of this package and needs no download; name a published dataset: {', '.join(PUBLISHED)}"
        )
    return PUBLISHED[dataset.published]


def _prepared_folders(name: str) -> list[Path]:
    return [path.parent for path in (cache_folder() / "prepared" / name).glob("*/index.json")]
