"""The published datasets, by our wording and transform, and how one is made ready to be opened."""

import dataclasses
import functools
import os
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder
from robustbench_vlm.core.progress import OnProgress, ignore_progress
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.prepare import prepare
from robustbench_vlm.datasets.prompts import WORDINGS
from robustbench_vlm.datasets.prompts.base import Wording, texts_of
from robustbench_vlm.datasets.prompts.trusted import TRUSTED
from robustbench_vlm.datasets.published import ORIGINALS, MissingData, Pictures, class_names
from robustbench_vlm.datasets.published.tar_shards import Shards
from robustbench_vlm.datasets.transform import NATIVE, Transform


def data_root(given: Path | None = None) -> Path:
    """Return the folder of the datasets: the one given, VLMBENCH_DATA, or "data" in the cache."""
    if given is not None:
        return given
    return Path(os.environ["VLMBENCH_DATA"]) if os.environ.get("VLMBENCH_DATA") else cache_folder() / "data"


def is_small(dataset: Dataset) -> bool:
    """Say whether this is a published dataset whose images have one small size."""
    return bool(dataset.original) and ORIGINALS[dataset.original].native


def reworded(dataset: Dataset, wording: str) -> Dataset:
    """Return a published dataset with the class names and prompts of a wording.

    Raises UserError where the wording has none for it.
    """
    rows: Wording = WORDINGS.load(wording)
    if dataset.original not in rows:
        raise UserError(
            f"no prompts of the wording {wording!r} are known for {dataset.name}: name others of"
            f" {', '.join(sorted(rows))} by --dataset, or take --protocol trusted"
        )
    texts = texts_of(rows[dataset.original], class_names(dataset.original))
    return dataclasses.replace(dataset, classes=texts.classes, prompt=texts.prompt, merged=texts.merged)


@functools.lru_cache(maxsize=32)
def located(name: str, root: Path) -> Pictures:
    """Return the images of a published dataset, found once a process: to list shards takes many seconds.

    Whoever begins anew, after a download say, clears this cache. Raises what `fetch.locate` raises.
    """
    from robustbench_vlm.datasets.published.fetch import locate

    return locate(ORIGINALS[name], root)


def is_there(dataset: Dataset, data: Path | None = None) -> bool:
    """Say whether a dataset can be made ready: all but published ones can, and these if they are below the root."""
    try:
        if dataset.original:
            located(dataset.original, data_root(data))
    except MissingData:
        return False
    return True


def ready(
    dataset: Dataset, count: int | None, data: Path | None = None, on_progress: OnProgress = ignore_progress
) -> Dataset:
    """Return a dataset that can be opened, the first `count` of a published one's samples prepared (None: all).

    Raises MissingData where its files are not below `data_root(data)`, and UserError where they cannot be prepared.
    Datasets of other kinds come back as they are.
    """
    if not dataset.original:
        return dataset
    pictures = located(dataset.original, data_root(data))
    folder = prepare(dataset.name, pictures, dataset.transform, count, cache_folder(), on_progress)
    original = ORIGINALS[dataset.original]
    split = original.hub_split if original.hub_split and isinstance(pictures, Shards) else original.split
    return dataclasses.replace(dataset, split=split, options={"folder": str(folder), "merged": dataset.merged})


def is_incomplete(dataset: Dataset) -> bool:
    """Say whether a published dataset that was made ready has fewer samples than its split has."""
    if not dataset.original or is_other_split(dataset):
        return False
    return len(dataset.open().ids) < ORIGINALS[dataset.original].samples


def is_other_split(dataset: Dataset) -> bool:
    """Say whether a published dataset that was made ready has other samples than its split: the hub's own ones."""
    return bool(dataset.original) and dataset.split != ORIGINALS[dataset.original].split


def _row(name: str) -> Dataset:
    original = ORIGINALS[name]
    texts = texts_of(TRUSTED[name], class_names(name))
    return Dataset(
        name=name,
        classes=texts.classes,
        prompt=texts.prompt,
        source="robustbench_vlm.datasets.prepared:PreparedSource",
        split=original.split,
        description=original.title,
        origin=", ".join(filter(None, [original.origin, original.licence])),
        original=name,
        transform=NATIVE if original.native else Transform(224, 224),
        merged=texts.merged,
    )


CALTECH101, CALTECH256, CIFAR10, CIFAR100 = map(_row, ("caltech101", "caltech256", "cifar10", "cifar100"))
DTD, EUROSAT, FGVC_AIRCRAFT, FLOWERS102 = map(_row, ("dtd", "eurosat", "fgvc-aircraft", "flowers102"))
FOOD101, IMAGENET, OXFORD_PETS, PCAM = map(_row, ("food101", "imagenet", "oxford-pets", "pcam"))
STANFORD_CARS, STL10, SUN397 = map(_row, ("stanford-cars", "stl10", "sun397"))
TINY_IMAGENET, COUNTRY211, IMAGENET_R = map(_row, ("tiny-imagenet", "country211", "imagenet-r"))
IMAGENET_SKETCH, HATEFUL_MEMES = map(_row, ("imagenet-sketch", "hateful-memes"))
