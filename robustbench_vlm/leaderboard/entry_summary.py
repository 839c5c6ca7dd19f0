"""Summaries of checked entries: all that a board shows and all that a rank depends on, in a few kilobytes each.

A board of a thousand entries keeps the summaries in memory and never more than one entry's records. Summaries are also
stored in the cache, so a second build reads the records of changed entries only. The cache can be deleted at any time.
"""

import contextlib
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import package_folder, sha256_of, write_text
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.leaderboard.board import BoardRow
from robustbench_vlm.leaderboard.entry import entry_paths
from robustbench_vlm.tracks import Track

if TYPE_CHECKING:
    from numpy import bool_
    from numpy.typing import NDArray

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_BYTES = 2**24
"""Largest size of a summary in the cache. A summary of 13 datasets has about 15 kB."""


@dataclass(frozen=True)
class EntrySummary:
    """A checked entry without its records."""

    row: BoardRow
    """The row of the board. Ranks are missing, because they depend on the other entries."""
    weights: str
    """Digest of the architecture and the weights."""
    data: Mapping[str, str]
    """Digests of the samples of each dataset."""
    submitted: str
    """Date of the first event in the history, such as "2026-01-31"."""
    robust: Mapping[str, str]
    """For each dataset, one bit per sample in hexadecimal digits: 1 if no known adversarial image breaks the sample. If
    some samples are not finished, the mean is at the lower end of the design interval."""
    robust_most: Mapping[str, str]
    """The same as `robust`, with the mean at the upper end of the design interval."""
    is_ranked: bool
    """True if the track's attack was run on every dataset of the track, the entry is not disputed, and it does not need
    a stronger attack (`needs_stronger_attack`)."""


def pack_verdicts(verdicts: Sequence[bool]) -> str:
    """Return verdicts as hexadecimal digits, one bit per sample. A verdict is True for a robust sample."""
    import numpy

    return numpy.packbits(numpy.array(verdicts, dtype=bool)).tobytes().hex()


def verdict_matrix(
    summaries: Sequence[EntrySummary], dataset: str, field: Literal["robust", "robust_most"] = "robust"
) -> "NDArray[bool_]":
    """Return the verdicts of M entries on the N samples of a dataset, bool [M, N]."""
    import numpy

    count = summaries[0].row.datasets[dataset]["robust"].n
    packed = numpy.frombuffer(
        bytes.fromhex("".join(getattr(each, field)[dataset] for each in summaries)), dtype=numpy.uint8
    )
    return numpy.unpackbits(packed.reshape(len(summaries), -1), axis=1, count=count).astype(bool)


class SummaryCache:
    """Summaries of the entries in one folder, stored in the cache. A summary is used if no byte it depends on changed.

    It depends on the entry, on the track, on the code of this package, and on every file in a subfolder that is named
    after the entry (such as its records) or after a sha256 digest in the entry (such as images of counterexamples).
    """

    def __init__(self, cache: Path, folder: Path, track: Track) -> None:
        """Open the cache of the entries in `folder`. `cache` is the folder for the caches of all boards."""
        self._cache = cache / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self._folder = folder
        self._basis = fingerprint([code_digest(), plain(track, other=repr)])
        self._files: dict[str, list[Path]] = {}
        for path in sorted(folder.glob("*/*")):
            self._files.setdefault(path.stem, []).append(path)
        self._digests = {name for name in self._files if _DIGEST.fullmatch(name)}

    def read(self, path: Path) -> EntrySummary | None:
        """Return the stored summary of the entry in the file `path`, or None if it has to be made."""
        try:
            if self._stored(path).stat().st_size > _MAX_BYTES:
                return None
            key, _, text = self._stored(path).read_text(encoding="utf-8").partition("\n")
            found = _SUMMARY.validate_json(text) if key == self._key(path) else None
        except (OSError, UnicodeDecodeError, ValidationError):
            return None
        return found

    def write(self, path: Path, summary: EntrySummary) -> None:
        """Store the summary of the entry in the file `path`."""
        # A cache that cannot be written makes the next build slower, but changes no result.
        with contextlib.suppress(UserError, OSError, PydanticSerializationError):
            # The order of keys is kept, so that pages from a stored summary are equal to those from the entry.
            write_text(self._stored(path), f"{self._key(path)}\n{_SUMMARY.dump_json(summary).decode()}")

    def prune(self) -> None:
        """Remove the stored summaries of entries that are not in the folder any more."""
        names = {path.stem for path in entry_paths(self._folder)}
        with contextlib.suppress(OSError):
            for path in self._cache.glob("*.json"):
                if path.stem not in names:
                    path.unlink()

    def _key(self, path: Path) -> str:
        content = path.read_bytes()
        # Digests are whole texts of the JSON document, so they are between quotation marks.
        names = [path.stem, *sorted(self._digests.intersection(content.decode(errors="replace").split('"')))]
        files = [each for name in names for each in self._files.get(name, ()) if each.is_file()]
        digests = [[f"{each.parent.name}/{each.name}", sha256_of(each)] for each in files]
        return fingerprint([self._basis, hashlib.sha256(content).hexdigest(), digests])

    def _stored(self, path: Path) -> Path:
        return self._cache / f"{path.stem}.json"


_SUMMARY = TypeAdapter(EntrySummary)


@functools.cache
def code_digest() -> str:
    """Return the sha256 digest of all Python files, templates and model cards of this package."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in _sorted_files(root, ("*.py", "*.html", "*.css", "*.js")):
        digest.update(f"{path.relative_to(root)} {sha256_of(path)}\n".encode())
    for path in _sorted_files(package_folder("model_zoo"), ("*.json",)):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _sorted_files(root: Path, patterns: Sequence[str]) -> Iterator[Path]:
    return (path for pattern in patterns for path in sorted(root.rglob(pattern)))
