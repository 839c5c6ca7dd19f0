"""The standard order of a dataset's samples: classes take turns, each by the hash of its sample ids."""

import hashlib
from collections.abc import Sequence


def standard_order(ids: Sequence[str], strata: Sequence[int]) -> list[int]:
    """Return all indices in their fixed order, of which every selection is a beginning.

    Each stratum gives its samples in the order of their ids' hashes, and the strata take turns; in what order the
    samples come makes no difference.
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
