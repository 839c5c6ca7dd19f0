"""Ways in: a folder that is there, torchvision's download, the hub's tar shards; never a half of a dataset."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.progress import OnProgress, ignore_progress
from robustbench_vlm.datasets.published.checksums import changes
from robustbench_vlm.datasets.published.decode import Files
from robustbench_vlm.datasets.published.hub import by_hub, hub_folder
from robustbench_vlm.datasets.published.original import MissingData, Original, Pictures
from robustbench_vlm.datasets.published.staging import alone, staging_folder
from robustbench_vlm.datasets.published.tar_shards import read_shards
from robustbench_vlm.datasets.published.torchvision import by_torchvision


def locate(original: Original, root: Path) -> Pictures:
    """Return the images of a dataset below the data root.

    They lie where torchvision puts them, `root`/<its folder> (or `root` is that folder), or else in `root`/wds/<name of
    the hub's dataset>. Raises MissingData where they do not, and UserError where they are damaged.
    """
    return _found(original, root)[1]


def verify(original: Original, root: Path) -> list[str]:
    """Return a sentence for everything that is wrong with a dataset's files; none where all is well.

    A dataset that was fetched is compared, byte by byte, with what it was then; one that a person put there must have
    all samples of its split, and all images that its lists name.
    """
    try:
        folder, pictures = _found(original, root)
        wrong = changes(folder)
    except UserError as error:
        return [str(error)]
    is_other_split = original.hub_split and folder == hub_folder(original, root)
    if original.samples and not is_other_split and len(pictures.ids) != original.samples:
        wrong.append(f"{folder} has {len(pictures.ids)} samples, and the whole split {original.samples}")
    if isinstance(pictures, Files):
        absent = [path for path in pictures.paths if not (pictures.root / path).is_file()]
        if absent:
            wrong.append(f"{len(absent)} images that its lists name are not there, as {pictures.root / absent[0]}")
    return wrong


def fetch(original: Original, root: Path, on_progress: OnProgress = ignore_progress) -> Path:
    """Fetch a dataset below the data root and return its folder; what is there already is kept.

    `on_progress` counts bytes. A dataset appears whole or not at all; a later call continues a download that broke off.
    Raises UserError where no way in works, with what to do by hand.
    """
    if not original.fetchable:
        return _found(original, root)[0]
    ways = [way for way, name in ((by_torchvision, original.torchvision), (by_hub, original.hub)) if name]
    failures = []
    with alone(staging_folder(original, root)):
        with contextlib.suppress(MissingData):
            folder = _found(original, root)[0]
            shutil.rmtree(staging_folder(original, root), ignore_errors=True)
            return folder
        for way in ways:
            try:
                return way(original, root, on_progress)
            except UserError as error:
                failures.append(str(error))
    raise UserError(
        f"cannot fetch {original.title}: {'; then: '.join(failures)}. By hand: {original.by_hand or original.origin},"
        f" as the folder {root / original.folder}"
    )


def _found(original: Original, root: Path) -> tuple[Path, Pictures]:
    """Return the folder of a dataset and its images."""
    places: list[tuple[Path, Callable[[Path], Pictures]]] = [(root / original.folder, original.read)]
    if root.resolve().name == original.folder:
        places.append((root, original.read))
    if original.hub:
        places.append((hub_folder(original, root), lambda folder: read_shards(folder, original.name)))
    tried = []
    for folder, read in places:
        try:
            if not folder.is_dir():
                raise MissingData(f"there is no folder {folder}")
            return folder, read(folder)
        except MissingData as error:
            tried.append(str(error))
    raise MissingData(
        f"{original.title} is not below {root}: {'; '.join(tried)}. If it is elsewhere, name the folder around its own"
        f" by --data DIR or VLMBENCH_DATA; else {_todo(original, root)}"
    )


def _todo(original: Original, root: Path) -> str:
    if not original.fetchable:
        return f"by hand: {original.by_hand}"
    staging = staging_folder(original, root)
    begun = staging.is_dir() and any(staging.iterdir())
    command = f"`vlmbench data prepare {original.name}`"
    return f"{command} goes on with the download that was begun" if begun else f"{command} fetches it"
