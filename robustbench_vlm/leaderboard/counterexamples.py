"""Counterexamples: read, write and check files of adversarial images. These files are stored next to the entries.

The name of each file is the sha256 digest of its content.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.cell_records import CellRecords, Unsound
from robustbench_vlm.leaderboard.entry import Counterexample, entry_paths, read_entry

if TYPE_CHECKING:
    from torch import Tensor

_DISTANCE_TOLERANCE = 1e-6
"""Tolerance for the size of a perturbation, for pixels in [0, 1]. Two machines may compute slightly different sizes for
the same perturbation.
"""


def images_path(folder: Path, source: str) -> Path | None:
    """Return the path of a counterexample's image file below `folder`, the folder of the entries.

    Returns None if the source of the counterexample is a command instead of a file. Images that a command found are not
    stored.
    """
    is_digest = len(source) == 64 and set(source) <= set("0123456789abcdef")
    return folder / "counterexamples" / f"{source}.safetensors" if is_digest else None


def images_file(track: str, broken: Sequence["tuple[Counterexample, Tensor]"]) -> tuple[str, bytes]:
    """Return the sha256 digest and the bytes of a safetensors file with the images of counterexamples.

    `broken` has each counterexample together with its image, float32 [3, H, W] in [0, 1].
    """
    import torch

    from robustbench_vlm.analysis.adversarial_images import AdversarialImages, images_bytes

    pairs = tuple((example.dataset, example.sample_id) for example, _ in broken)
    content = images_bytes(AdversarialImages(track, pairs, torch.stack([image for _, image in broken])))
    return hashlib.sha256(content).hexdigest(), content


def with_images(examples: Sequence[Counterexample], folder: Path) -> "Iterator[tuple[Counterexample, Tensor]]":
    """Yield each counterexample that has an image file below `folder`, together with its image.

    Images are float32 [3, H, W] in [0, 1]. Raises Unsound if the content of a file does not match the digest in its
    name, or if a file does not contain the image of its counterexample.
    """
    for source in dict.fromkeys(example.source for example in examples):
        path = images_path(folder, source)
        if path is None or not path.is_file():
            continue
        # torch is imported only for entries with stored images, because the import takes a second and 400 MB.
        from robustbench_vlm.analysis.adversarial_images import read_images

        try:
            found, digest = read_images(path)
        except UserError as error:
            raise Unsound(str(error)) from error
        if digest != source:
            raise Unsound(
                f"{path} does not match the digest in its name: restore the file that `vlmbench dispute` wrote"
            )
        images = dict(zip(found.samples, found.images, strict=True))
        for example in (example for example in examples if example.source == source):
            pair = (example.dataset, example.sample_id)
            if pair not in images:
                raise Unsound(
                    f"{path} has no image of {example.dataset} / {example.sample_id}, which the entry lists:"
                    " restore the file that `vlmbench dispute` wrote"
                )
            yield example, images[pair]


def unnamed_images(folder: Path) -> list[Path]:
    """Return the files below `folder`, the folder of the entries, that no entry names as the images of counterexamples.

    A file is also returned if its name is not a digest, or if it is a folder or a link.
    """
    place = folder / "counterexamples"
    if not place.is_dir():
        return []
    named = {images_path(folder, source) for path in entry_paths(folder) for source in _sources(path)}
    return sorted(path for path in place.iterdir() if path not in named or path.is_symlink() or not path.is_file())


def _sources(path: Path) -> list[str]:
    """Return the sources of the counterexamples in an entry file. An invalid entry names no images."""
    try:
        return [example.source for example in read_entry(path).counterexamples]
    except UserError:
        return []


def refuted_counterexamples(
    examples: Sequence[Counterexample],
    folder: Path,
    evidence: Sequence[CellRecords],
    cells: Sequence[Cell],
    device: str,
) -> tuple[Counterexample, ...]:
    """Return the counterexamples that fail the check on this machine. Each image costs one forward pass.

    A counterexample fails if the model classifies its image correctly, or if the image is too far from the clean image.
    """
    from robustbench_vlm.analysis.verdict import judge_image

    found = []
    for example, image in with_images(examples, folder):
        number = next(n for n, each in enumerate(evidence) if each.score.dataset == example.dataset)
        rows = evidence[number].results
        position = next(at for at, row in enumerate(rows) if row.sample_id == example.sample_id)
        threats = [each.threat for each in evidence if each.threat.norm == example.norm]
        outcome = judge_image(cells[number], position, image, threats, device=device)
        if outcome is None or outcome[1] > example.distance + _DISTANCE_TOLERANCE or outcome[2] == rows[position].label:
            found.append(example)
    return tuple(found)
