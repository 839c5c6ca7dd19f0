"""Which images a cell has: the protocol's choice, read once, with the digest of every image."""

from collections.abc import Sequence

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.base import Dataset, Source, UnreadableImage, image_sha256
from robustbench_vlm.datasets.prepared import PreparedSource
from robustbench_vlm.engine.cell import Samples
from robustbench_vlm.protocols.base import Protocol

_AT_ONCE = 256
"""Images held in memory while their digests are taken."""


def choose_samples(dataset: Dataset, protocol: Protocol, *, skip_unreadable: bool) -> Samples:
    """Return the protocol's samples of a dataset; the unreadable ones are left out if `skip_unreadable`.

    Raises UnreadableImage otherwise, and UserError where nothing is left or the dataset breaks its own word.
    """
    source = dataset.open()
    _check(dataset, source)
    chosen = _chosen(source, protocol)
    digests: list[str | None] = []
    for start in range(0, len(chosen), _AT_ONCE):
        digests += _digests(source, chosen[start : start + _AT_ONCE], skip_unreadable)
    kept = [(index, digest) for index, digest in zip(chosen, digests, strict=True) if digest is not None]
    if not kept:
        raise UserError(f"the dataset {dataset.name!r} has no readable image: give another folder or dataset")
    indices = tuple(index for index, _ in kept)
    return Samples(
        indices=indices,
        ids=tuple(source.ids[index] for index in indices),
        labels=tuple(int(source.labels[index]) for index in indices),
        image_digests=tuple(digest for _, digest in kept),
        unreadable=tuple(source.ids[i] for i, digest in zip(chosen, digests, strict=True) if digest is None),
    )


def _chosen(source: Source, protocol: Protocol) -> list[int]:
    """Return the protocol's samples; prepared ones stand in the standard order already, by their original labels."""
    if isinstance(source, PreparedSource):
        return list(range(len(source.ids)))[: protocol.samples]
    return protocol.select(source.ids, source.labels)


def _check(dataset: Dataset, source: Source) -> None:
    if len(set(source.ids)) != len(source.ids):
        raise UserError(f"the dataset {dataset.name!r} gives one id to several samples: its source must name each one")
    wrong = sorted({label for label in source.labels if not 0 <= label < len(dataset.classes)})
    if wrong:
        raise UserError(
            f"the dataset {dataset.name!r} has the label {wrong[0]}, but {len(dataset.classes)} classes:"
            f" labels lie between 0 and {len(dataset.classes) - 1}"
        )


def _digests(source: Source, indices: Sequence[int], skip_unreadable: bool) -> list[str | None]:
    if isinstance(source, PreparedSource):
        known = source.digests(indices)
        if not all(known) and not skip_unreadable:
            source.read([indices[known.index("")]])
        return [digest or None for digest in known]
    try:
        return [image_sha256(image) for image in source.read(indices)]
    except UnreadableImage:
        if not skip_unreadable:
            raise
    digests: list[str | None] = []
    for index in indices:
        try:
            digests.append(image_sha256(source.read([index])[0]))
        except UnreadableImage:
            digests.append(None)
    return digests
