"""Registries: one visible table per kind, name -> "module:value", open to other packages by entry points."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from robustbench_vlm.core.errors import UserError

_SHOWN = 12
"""Names that a message lists."""


@dataclass(frozen=True)
class Registry:
    """The named values of one kind: `table` is ours, the entry-point group `robustbench_vlm.<kind>s` is everybody's."""

    kind: str
    table: Mapping[str, str]

    @property
    def group(self) -> str:
        """The entry-point group in which other packages register values of this kind; it has no hyphens."""
        return f"robustbench_vlm.{self.kind.replace('-', '_')}s"

    def names(self) -> list[str]:
        """Return every registered name, sorted, without importing anything."""
        return sorted({*self.table, *(point.name for point in entry_points(group=self.group))})

    def load(self, name: str) -> Any:
        """Import and return the value `name`.

        Raises UserError for an unknown name (with the nearest ones), for two providers of it, and for a broken plugin.
        """
        providers = self._providers(name)
        if not providers:
            raise UserError(unknown(self.kind, name, self.names(), f"vlmbench list {self.kind}s"))
        if len(providers) > 1:
            owners = " and ".join(point.value for point in providers)
            raise UserError(f"two packages provide the {self.kind} {name!r}: {owners}; uninstall one of them")
        if name in self.table:
            return providers[0].load()
        try:
            return providers[0].load()
        except Exception as error:  # a plugin may fail in any way, and only for those who name it
            raise UserError(
                f"the {self.kind} {name!r} comes from the plugin {providers[0].value!r}, which failed to load: "
                f"{type(error).__name__}: {error}; update or uninstall that plugin"
            ) from error

    def _providers(self, name: str) -> list[EntryPoint]:
        ours = [EntryPoint(name, self.table[name], self.group)] if name in self.table else []
        # One package found on two import paths is listed twice: the same value is one provider.
        others = {point.value: point for point in entry_points(group=self.group) if point.name == name}
        return ours + list(others.values())


def unknown(kind: str, name: str, allowed: Iterable[str], command: str = "") -> str:
    """Return the message for a name that is not among `allowed`: the nearest names first, then at most twelve of all.

    `command` is the one that shows every allowed name, where there is one.
    """
    allowed = list(allowed)
    nearest = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(nearest)}?" if nearest else ""
    known = ", ".join(allowed[:_SHOWN]) or "none"
    if len(allowed) > _SHOWN:
        known += f" and {len(allowed) - _SHOWN} more" + (f"; `{command}` shows all {len(allowed)}" if command else "")
    return f"unknown {kind} {name!r}.{hint} Known: {known}."
