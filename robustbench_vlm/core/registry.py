"""Registries: tables from names to import paths "module:value". Other packages can add names with entry points."""

import difflib
import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from robustbench_vlm.core.errors import UserError

_SHOWN = 12
"""The largest number of allowed names that a message lists."""


@dataclass(frozen=True)
class Registry:
    """A registry of named objects of one kind, such as attacks.

    `table` lists the objects of this package. Other packages add objects with entry points in the group
    `robustbench_vlm.<kind>s`.
    """

    kind: str
    """The singular name of the kind, such as "attack"."""
    table: Mapping[str, str]
    """The objects of this package: a mapping from names to import paths "module:value"."""

    @property
    def group(self) -> str:
        """The entry-point group in which other packages register objects. Hyphens in `kind` become underscores."""
        return f"robustbench_vlm.{self.kind.replace('-', '_')}s"

    def names(self) -> list[str]:
        """Return all registered names, sorted. The objects are not imported."""
        return sorted({*self.table, *(point.name for point in _entry_points(self.group))})

    def load(self, name: str) -> Any:
        """Import and return the object with the name `name`.

        Raises UserError if the name is unknown or if several packages register it. Also raises UserError if the object
        is in another package and cannot be imported.
        """
        providers = self._providers(name)
        if not providers:
            raise UserError(unknown(self.kind, name, self.names(), f"vlmbench list {self.kind}s"))
        if len(providers) > 1:
            owners = " and ".join(point.value for point in providers)
            raise UserError(f"several packages provide the {self.kind} {name!r}: {owners}; uninstall all but one")
        if name in self.table:
            return providers[0].load()
        try:
            return providers[0].load()
        # The import of a plugin may raise any type of exception, so exceptions of all types are converted to a
        # UserError.
        except Exception as error:
            raise UserError(
                f"the {self.kind} {name!r} is from the plugin {providers[0].value!r}, which cannot be loaded:"
                f" {type(error).__name__}: {error}; update or uninstall that plugin"
            ) from error

    def _providers(self, name: str) -> list[EntryPoint]:
        ours = [EntryPoint(name, self.table[name], self.group)] if name in self.table else []
        # If a package is on two import paths, `entry_points` returns each of its entry points twice. Equal entry points
        # are therefore counted once.
        others = {point.value: point for point in _entry_points(self.group) if point.name == name}
        return ours + list(others.values())


def _entry_points(group: str) -> Iterable[EntryPoint]:
    return _found(entry_points, group, tuple((path, _changed(path)) for path in sys.path))


def _changed(path: str) -> int:
    """Return the time in nanoseconds at which a folder of packages changed, for example by an installation."""
    try:
        return Path(path or ".").stat().st_mtime_ns
    except OSError:
        return 0


@functools.cache
def _found(
    find: Callable[..., Iterable[EntryPoint]], group: str, paths: tuple[tuple[str, int], ...]
) -> tuple[EntryPoint, ...]:
    """Return `find(group=group)`. It reads a file of each installed package, so the result is kept for these paths.

    `paths` has the import paths with the times of their last changes.
    """
    return tuple(find(group=group))


def unknown(kind: str, name: str, allowed: Iterable[str], command: str = "") -> str:
    """Return the error message for a name that is not in `allowed`.

    The message suggests similar names and lists up to twelve allowed names. `command` is the command that lists all
    allowed names. "" means that there is no such command.
    """
    allowed = list(allowed)
    nearest = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(nearest)}?" if nearest else ""
    known = ", ".join(allowed[:_SHOWN]) or "none"
    if len(allowed) > _SHOWN:
        known += f" and {len(allowed) - _SHOWN} more" + (f"; `{command}` shows all {len(allowed)}" if command else "")
    return f"unknown {kind} {name!r}.{hint} Known: {known}."
