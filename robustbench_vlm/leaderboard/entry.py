"""Entries: one model on one track as a JSON file and a file of per-sample records; made by programs, never by hand.

`leaderboards/<track>/<model>.json` names everything that its numbers depend on, and `records/<model>.parquet` beside it
holds a row for every attacked sample.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import package_folder, write_text
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.engine.evidence import Condition

FORMAT = 2
_DEEPEST = 16
"""Levels of JSON, twice what entries have: deeper ones only make programs that read them fail."""
STATUSES = ("claimed", "reproduced", "verified", "disputed")
"""A number is claimed by who submits it, reproduced when a random part of its samples was run again, verified when all
were, and disputed when what was found speaks against it."""


@dataclass(frozen=True)
class EntryCell:
    """One number of an entry, and what ties it to its records."""

    attack: str
    dataset: str
    threat: Mapping[str, str]
    """{"norm": "Linf", "eps": "1/51"}, as in the identity."""
    fingerprint: str
    content: str
    """sha256 of the cell's records in canonical JSON."""
    score: Mapping[str, Any]
    """The fields of `Score` but for model, attack and dataset."""

    @property
    def condition(self) -> Condition:
        """What the number is of; an entry has each once."""
        return self.attack, self.dataset, self.threat["norm"], Fraction(self.threat["eps"])


@dataclass(frozen=True)
class RecordsFile:
    """Where the per-sample records are."""

    file: str
    """Relative to the entry."""
    sha256: str
    url: str = ""
    """Where the file can be had, if it is not in the repository."""


@dataclass(frozen=True)
class Counterexample:
    """A sample that somebody broke within a radius, by an image that was checked here in one forward pass."""

    dataset: str
    sample_id: str
    norm: str
    distance: float
    """Size of the perturbation, pixel scale."""
    prediction: int
    source: str
    """sha256 of the file of its image, see `boards.counterexamples`, or the command that found it."""


@dataclass(frozen=True)
class Event:
    """Something that happened to an entry."""

    date: str
    """ISO date, UTC."""
    status: str
    """The status that it had from then on, one of `STATUSES`."""
    what: str
    """A sentence."""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Counts, bounds, seeds and the like."""


@dataclass(frozen=True)
class Entry:
    """One model on one track: what was measured under one protocol, how, and what others found about it."""

    format: int
    track: str
    model: str
    card: Mapping[str, Any]
    """The model card as JSON."""
    weights: str
    """The digest of architecture and weights."""
    protocol: Mapping[str, Any]
    """{"label": "mini/1", "identity": {...}}."""
    datasets: Mapping[str, Mapping[str, Any]]
    """By name: classes, prompts, and the digest "data" of the samples."""
    attacks: Mapping[str, Any]
    """By name: the stages with their parameters."""
    cells: tuple[EntryCell, ...]
    records: RecordsFile
    environment: tuple[Mapping[str, Any], ...]
    """One an attack: command, versions, machine, seconds, passes."""
    status: str
    history: tuple[Event, ...]
    counterexamples: tuple[Counterexample, ...] = ()
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """"code" and "contact"; the paper stands in the card."""
    note: str = ""

    def after(self, event: Event) -> "Entry":
        """Return the entry with one more event, and the status that this brings."""
        return dataclasses.replace(self, status=event.status, history=(*self.history, event))

    def continues(self, earlier: "Entry") -> bool:
        """Say whether what is known of an earlier entry is known of this one: same weights, same protocol."""
        return (self.weights, self.protocol) == (earlier.weights, earlier.protocol)

    def repeats(self, earlier: "Entry") -> bool:
        """Say whether all records of an earlier entry of the same weights stand here unchanged."""
        own = {(cell.condition, cell.content) for cell in self.cells}
        return self.weights == earlier.weights and own >= {(cell.condition, cell.content) for cell in earlier.cells}

    def with_counterexamples(self, more: Iterable[Counterexample]) -> "Entry":
        """Return the entry with more counterexamples; of one sample and norm the nearest is kept."""
        nearest: dict[tuple[str, str, str], Counterexample] = {}
        for each in sorted((*self.counterexamples, *more), key=lambda example: example.distance):
            nearest.setdefault((each.dataset, each.sample_id, each.norm), each)
        return dataclasses.replace(self, counterexamples=tuple(nearest.values()))


@functools.cache
def schema() -> dict[str, Any]:
    """Return the JSON schema of entry files."""
    document: dict[str, Any] = json.loads((Path(__file__).parent / "entry.schema.json").read_text(encoding="utf-8"))
    return document


def read_entry(path: Path) -> Entry:
    """Read an entry file; raise UserError where it is missing, no JSON, or not of the schema, with the place."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the entry {path}: {error}; `vlmbench submit` writes entries") from error
    if _is_deep(values):
        raise UserError(f"the entry {path} is nested deeper than any entry; `vlmbench submit` writes entries")
    if problem := best_match(Draft202012Validator(schema()).iter_errors(values)):
        place = "/".join(map(str, problem.absolute_path)) or "the document"
        raise UserError(
            f"the entry {path} is not of the schema: {place}: {problem.message[:200]}; `vlmbench submit` writes entries"
        )
    return Entry(
        **{
            **values,
            "cells": tuple(EntryCell(**cell) for cell in values["cells"]),
            "records": RecordsFile(**values["records"]),
            "environment": tuple(values["environment"]),
            "history": tuple(Event(**event) for event in values["history"]),
            "counterexamples": tuple(Counterexample(**each) for each in values["counterexamples"]),
        }
    )


def _is_deep(values: Any) -> bool:
    level = [values]
    for _ in range(_DEEPEST):
        level = [
            each
            for value in level
            if isinstance(value, dict | list)
            for each in (value.values() if isinstance(value, dict) else value)
        ]
    return bool(level)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def write_entry(entry: Entry, path: Path) -> None:
    """Write an entry as readable JSON."""
    write_text(path, json.dumps(plain(entry), indent=1, ensure_ascii=True) + "\n")


def board_folder(track: str) -> Path:
    """Return the folder of a track's entries that came with the package."""
    return package_folder("leaderboards") / track


def entry_paths(folder: Path) -> list[Path]:
    """Return the entry files of a folder, sorted by name."""
    return sorted(folder.glob("*.json"))
