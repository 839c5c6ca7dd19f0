"""The standard order of a dataset's samples: the classes take turns, and within a class, samples are sorted by hash."""

import hashlib
from collections.abc import Sequence


def standard_order(ids: Sequence[str], strata: Sequence[int]) -> list[int]:
    """Return the indices of all samples in the standard order. A run with n samples uses the first n samples.

    `strata[i]` is the class of the sample `ids[i]`. Within a class, samples are sorted by the sha256 of their id. The
    standard order has the first sample of each class, then the second sample of each class, and so on. The result does
    not depend on the order of `ids`.
    """
    by_stratum: dict[int, list[int]] = {}
    for index in sorted(range(len(ids)), key=lambda index: _hash(ids[index])):
        by_stratum.setdefault(strata[index], []).append(index)
    turns = [
        (turn, _hash(f"class {stratum}"), index)
        for stratum, members in by_stratum.items()
        for turn, index in enumerate(members)
    ]
    return [index for _, _, index in sorted(turns)]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
