"""Local copies of published datasets: find the files, prepare the images and verify the files."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder, folder_of_variable, user_path
from robustbench_vlm.core.progress import OnProgress, ignore_progress
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.image_folder import FOLDER_SOURCE, FolderImages
from robustbench_vlm.datasets.prepare import prepare
from robustbench_vlm.datasets.prepared import PREPARED_SOURCE
from robustbench_vlm.datasets.published import PUBLISHED, MissingData, PublishedDataset, StoredImages
from robustbench_vlm.datasets.published.checksums import changed_folders
from robustbench_vlm.datasets.published.hub import hub_folder
from robustbench_vlm.datasets.published.image_files import ImageFiles
from robustbench_vlm.datasets.published.staging import staging_folder
from robustbench_vlm.datasets.published.tar_shards import TarShardImages, read_shards
from robustbench_vlm.datasets.transform import SquareFit


def data_root(given: Path | None = None) -> Path:
    """Return the folder that contains the datasets, called the data root.

    The data root is `given` if it is not None, or the folder in VLMBENCH_DATA if this variable is set, or else the
    folder "data" in the cache folder.
    """
    if given is not None:
        return user_path(given)
    return folder_of_variable("VLMBENCH_DATA") or cache_folder() / "data"


def locate(published: PublishedDataset, root: Path) -> tuple[Path, StoredImages]:
    """Return the folder of a dataset below the data root, and its images.

    Three folders are tried: `root`/<torchvision's folder name>, `root` if it has that name, and `root`/wds/<name of the
    Hub repository>. Raises MissingData if none of them has the dataset, and UserError if the dataset is damaged.
    """
    tried = []
    for folder, read in _places(published, root):
        try:
            if not folder.is_dir():
                raise MissingData(f"there is no folder {folder}")
            images = read(folder)
            if published.samples and len(images.ids) > published.samples:
                raise UserError(
                    f"{folder} has {len(images.ids)} samples, but the split {published.split!r} of {published.title}"
                    f" has {published.samples}: remove the files that are not part of the dataset, or fetch it again"
                )
            return folder, images
        except MissingData as error:
            tried.append(str(error))
    raise MissingData(
        f"{published.title} is not below {root}: {'; '.join(tried)}. If the dataset is in another folder, give the"
        f" parent of that folder with --data DIR or VLMBENCH_DATA. If not, {_next_step(published, root)}"
    )


def has_folder(published: PublishedDataset, root: Path) -> bool:
    """Return whether a folder for a dataset exists on this machine. The files in the folder are not read."""
    return any(folder.is_dir() for folder, _ in _places(published, root))


def _places(published: PublishedDataset, root: Path) -> list[tuple[Path, Callable[[Path], StoredImages]]]:
    """Return the folders that may have a dataset, each with the function that reads it."""
    places: list[tuple[Path, Callable[[Path], StoredImages]]] = [(root / published.folder, published.read)]
    if root.resolve().name == published.folder:
        places.append((root, published.read))
    if published.hub:
        places.append((hub_folder(published.hub, root), lambda folder: read_shards(folder, published.name)))
    return places


def _next_step(published: PublishedDataset, root: Path) -> str:
    if not published.fetchable:
        return f"fetch it by hand: {published.by_hand}"
    staging = staging_folder(published, root)
    command = f"`vlmbench data prepare {published.name}`"
    if staging.is_dir() and any(staging.iterdir()):
        return f"run {command}, which continues the interrupted download"
    return f"run {command}, which downloads it"


@functools.lru_cache(maxsize=32)
def find_images(name: str, root: Path) -> StoredImages:
    """Return the images of a published dataset. Raises the errors of `locate`.

    The result is cached, because a listing of the files in tar shards takes many seconds. If files have changed, for
    example after a download, call `find_images.cache_clear()`.
    """
    return locate(PUBLISHED[name], root)[1]


def is_available(dataset: Dataset, data: Path | None = None) -> bool:
    """Return whether the files of a dataset are on this machine, or the dataset does not need files."""
    try:
        if dataset.published:
            find_images(dataset.published, data_root(data))
    except MissingData:
        return False
    return True


def prepare_dataset(
    dataset: Dataset, count: int | None, data: Path | None = None, on_progress: OnProgress = ignore_progress
) -> Dataset:
    """Prepare the first `count` samples of a dataset with image files, and return the prepared dataset.

    If `count` is None, all samples are prepared. Published datasets and the datasets of `folder_dataset` have image
    files. A dataset without image files is returned unchanged. Raises MissingData if the files are not below
    `data_root(data)`, and UserError if they cannot be prepared.
    """
    if dataset.source == FOLDER_SOURCE:
        path, side, classes = (dataset.options[key] for key in ("path", "side", "classes"))
        stored = FolderImages(Path(path), classes)
        folder = prepare(dataset.name, stored, SquareFit(side), count, cache_folder(), on_progress, by_content=True)
        return dataclasses.replace(dataset, source=PREPARED_SOURCE, options={"folder": str(folder)})
    if not dataset.published:
        return dataset
    images = find_images(dataset.published, data_root(data))
    folder = prepare(dataset.name, images, dataset.transform, count, cache_folder(), on_progress)
    published = PUBLISHED[dataset.published]
    from_hub = isinstance(images, TarShardImages) and published.hub
    split = (from_hub and from_hub.split) or published.split
    return dataclasses.replace(dataset, split=split, options={"folder": str(folder), "merged": dataset.merged})


def is_incomplete(dataset: Dataset) -> bool:
    """Return whether the local copy of a prepared published dataset has fewer samples than the official split."""
    if not dataset.published or is_other_split(dataset):
        return False
    return len(dataset.open().ids) < PUBLISHED[dataset.published].samples


def is_other_split(dataset: Dataset) -> bool:
    """Return whether a prepared published dataset has the samples of the Hub's split instead of the official split."""
    return bool(dataset.published) and dataset.split != PUBLISHED[dataset.published].split


def verify(published: PublishedDataset, root: Path) -> list[str]:
    """Return one sentence for each problem of a dataset's files. Return [] if the files have no problems.

    If this package downloaded the dataset, its files are compared with the checksums of the download. For every
    dataset, the function also checks the number of samples and whether all listed images exist.
    """
    try:
        folder, images = locate(published, root)
        wrong = changed_folders(folder)
    except UserError as error:
        return [str(error)]
    hub = published.hub
    other_split = hub and hub.split and folder == hub_folder(hub, root)
    if published.samples and not other_split and len(images.ids) != published.samples:
        wrong.append(f"{folder} has {len(images.ids)} samples, expected {published.samples} (the complete split)")
    if isinstance(images, ImageFiles):
        absent = [path for path in images.paths if not (images.root / path).is_file()]
        if absent:
            wrong.append(f"{len(absent)} listed images are missing, for example {images.root / absent[0]}")
    return wrong
