"""Unchanged pages: entries that are read only for pages to be written, and a list of the pages of the last build."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import sha256_of, write_text
from robustbench_vlm.leaderboard.entry import Entry, read_entry

Key = tuple[str, str]
"""Track and model."""


class EntryFiles(Mapping[Key, Entry]):
    """The entries of models, each read from its file when it is needed, so that memory does not grow with them."""

    def __init__(self, paths: Mapping[Key, Path]) -> None:
        """Take the path of each entry file."""
        self._paths = dict(paths)

    def __getitem__(self, key: Key) -> Entry:
        """Read an entry. Raises KeyError for an unknown model, and the errors of `read_entry`."""
        return read_entry(self._paths[key])

    def __iter__(self) -> Iterator[Key]:
        """Iterate over the keys."""
        return iter(self._paths)

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._paths)

    def digest(self, key: Key) -> str:
        """Return the sha256 digest of an entry file."""
        return sha256_of(self._paths[key])


class WrittenPages:
    """The pages of the last build of a site, stored in the cache.

    For each page, it has a key, which is a digest of everything that the page depends on, and the digest of the page.
    """

    def __init__(self, cache: Path, site: Path) -> None:
        """Read the list for the folder `site`. A missing or damaged list is empty."""
        self._path = cache / f"site-{hashlib.sha256(str(site.resolve()).encode()).hexdigest()[:16]}.json"
        self._before: dict[str, list[str]] = {}
        self._now: dict[str, list[str]] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self._path.read_text(encoding="utf-8"))
            self._before = found if isinstance(found, dict) else {}

    def is_current(self, name: str, path: Path, key: str) -> bool:
        """Return whether the file `path` of a page is the one that the last build wrote for the same key."""
        before = self._before.get(name)
        if before is None or before[:1] != [key] or not path.is_file() or before[1:] != [sha256_of(path)]:
            return False
        self._now[name] = before
        return True

    def add(self, name: str, key: str, text: str) -> None:
        """Add a page that was written."""
        self._now[name] = [key, hashlib.sha256(text.encode()).hexdigest()]

    def save(self) -> None:
        """Store the list. A cache that cannot be written makes the next build slower, but changes no page."""
        with contextlib.suppress(OSError, UserError):
            write_text(self._path, json.dumps(self._now))
