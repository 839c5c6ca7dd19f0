"""Leaderboard entries: the data of one model on one track, and the reading and writing of entry files.

`leaderboards/<track>/<model>.json` names everything that its numbers depend on. `records/<model>.parquet` next to it
has a row for each attacked sample. `vlmbench submit` writes both. The dataclasses here are the description of the file
format: `read_entry` validates by them, and `entry_schema` derives the JSON schema from them.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import package_folder, write_text
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.strict_json import read_json, validate
from robustbench_vlm.engine.cell_records import Condition

FORMAT: Final = 2
STATUSES = ("claimed", "reproduced", "verified", "disputed")
"""A submitter claims a number. It is reproduced if a random part of its samples was attacked again, verified if all
were, and disputed if a finding contradicts it."""
MAX_TEXT = 2000
"""Characters of a text, such as a note, a link or a fact."""
MAX_BYTES = 2**25
"""The class names and prompts of a thousand classes need some megabytes."""
_MAX_DEPTH = 15
"""Levels of JSON; entries need about half."""
_ADVICE = "`vlmbench submit` writes entries"
_STRICT: ConfigDict = {"extra": "forbid", "use_attribute_docstrings": True}


def _limit_texts(value: Any) -> Any:
    """Return a JSON value whose texts, keys included, have at most `MAX_TEXT` characters; raise ValueError if not."""
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ValueError(f"texts must have at most {MAX_TEXT} characters, got {len(value)}")
    if isinstance(value, dict | list):
        for each in (*value, *value.values()) if isinstance(value, dict) else value:
            _limit_texts(each)
    return value


def _card_fields(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if absent := [key for key in ("name", "architecture") if key not in value]:
        raise ValueError(f"the card must have the field {absent[0]!r}")
    return value


Name = Annotated[str, Field(min_length=1, max_length=120)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Norm = Annotated[str, Field(pattern="^(Linf|L2)$")]
Status = Annotated[str, Field(pattern=f"^({'|'.join(STATUSES)})$")]
Share = Annotated[float, Field(ge=0, le=1)]
JsonObject = Annotated[Mapping[str, Any], AfterValidator(_limit_texts)]
Links = Annotated[
    Mapping[Annotated[str, Field(pattern="^(code|contact)$")], Text],
    Field(json_schema_extra={"additionalProperties": False}),
]
"""The URL of the code, and a contact; the paper is in the card."""
Card = Annotated[
    Mapping[str, Any],
    AfterValidator(_card_fields),
    Field(json_schema_extra={"type": "object", "required": ["name", "architecture"]}),
]


@dataclass(frozen=True)
class EntryThreat:
    """The threat of a cell, as in the cell's identity."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    norm: Norm
    eps: Annotated[str, Field(pattern="^[0-9]+(/[1-9][0-9]*)?$", max_length=40)]
    """A fraction in pixel scale, such as "1/51"."""


@dataclass(frozen=True)
class EntryScore:
    """The accuracies of a cell: the fields of `Score` except model, attack and dataset."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    classes: Annotated[int, Field(ge=2)]
    eps: Annotated[str, Field(max_length=40)]
    n: Annotated[int, Field(ge=1)]
    clean: Share
    robust: Share
    clean_interval: tuple[Share, Share]
    robust_interval: tuple[Share, Share]
    warnings: tuple[Annotated[str, Field(max_length=200)], ...]


@dataclass(frozen=True)
class EntryCell:
    """One number of an entry, and the digests that bind it to its records."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    attack: Name
    dataset: Name
    threat: EntryThreat
    fingerprint: Digest
    content: Digest
    """sha256 of the cell's records in canonical JSON."""
    score: EntryScore

    @property
    def condition(self) -> Condition:
        """Attack, dataset, norm and eps; an entry has one cell of each."""
        return self.attack, self.dataset, self.threat.norm, Fraction(self.threat.eps)


@dataclass(frozen=True)
class EntryDataset:
    """The classes, prompts and samples of a dataset."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    classes: Annotated[tuple[Text, ...], Field(min_length=2)]
    prompts: Annotated[tuple[Text | tuple[Text, ...], ...], Field(min_length=2)]
    """One prompt, or an ensemble of them, for each class."""
    data: Digest
    """The digest of the samples."""


@dataclass(frozen=True)
class EntryProtocol:
    """The protocol of all cells."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    label: Name
    """Name and version, "mini/1"."""
    identity: JsonObject


@dataclass(frozen=True)
class RecordsFile:
    """The file of the per-sample records."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    file: Annotated[str, Field(pattern="^records/[A-Za-z0-9][A-Za-z0-9._+@-]{0,79}[.]parquet$")]
    """Relative to the entry."""
    sha256: Digest
    url: Annotated[str, Field(pattern="^(https://.*)?$", max_length=2000)]
    """Address of the file if it is not in the repository, else ""."""


@dataclass(frozen=True)
class Counterexample:
    """A sample that an image breaks within a radius; the image was checked here in one forward pass."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    dataset: Name
    sample_id: Annotated[str, Field(max_length=400)]
    norm: Norm
    distance: Annotated[float, Field(ge=0, le=100000)]
    """Size of the perturbation, pixel scale."""
    prediction: Annotated[int, Field(ge=0)]
    source: Text
    """sha256 of the file of its image, see `leaderboard.counterexamples`, or the command that found it."""


@dataclass(frozen=True)
class Event:
    """An event in the history of an entry."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    date: Annotated[str, Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]
    """ISO date, UTC."""
    status: Status
    """The entry's status after the event, one of `STATUSES`."""
    what: Text
    """A sentence."""
    facts: JsonObject
    """Counts, bounds, seeds and the like."""


@dataclass(frozen=True)
class Entry:
    """One model on one track: its numbers under one protocol, how they were measured, and later findings."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    format: Literal[2]
    track: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
    model: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._+@-]{0,79}$")]
    card: Card
    """The model card as JSON."""
    weights: Digest
    """The digest of architecture and weights."""
    protocol: EntryProtocol
    datasets: Annotated[Mapping[str, EntryDataset], Field(min_length=1)]
    attacks: Annotated[Mapping[str, Annotated[tuple[JsonObject, ...], Field(min_length=1)]], Field(min_length=1)]
    """The stages of each attack with their parameters."""
    cells: Annotated[tuple[EntryCell, ...], Field(min_length=1)]
    records: RecordsFile
    environment: tuple[JsonObject, ...]
    """One object for each attack: versions, machine, git commit."""
    status: Status
    history: Annotated[tuple[Event, ...], Field(min_length=1)]
    counterexamples: tuple[Counterexample, ...]
    links: Links
    note: Text

    def after(self, event: Event) -> "Entry":
        """Return the entry with one more event, and the status of that event."""
        return dataclasses.replace(self, status=event.status, history=(*self.history, event))

    def continues(self, earlier: "Entry") -> bool:
        """Return whether an earlier entry has the same weights and protocol, so that its records remain valid."""
        return (self.weights, self.protocol) == (earlier.weights, earlier.protocol)

    def repeats(self, earlier: "Entry") -> bool:
        """Return whether this entry has all records of an earlier entry of the same weights, unchanged."""
        own = {(cell.condition, cell.content) for cell in self.cells}
        return self.weights == earlier.weights and own >= {(cell.condition, cell.content) for cell in earlier.cells}

    def with_counterexamples(self, more: Iterable[Counterexample]) -> "Entry":
        """Return the entry with more counterexamples; of each sample and norm the nearest is kept."""
        nearest: dict[tuple[str, str, str], Counterexample] = {}
        for each in sorted((*self.counterexamples, *more), key=lambda example: example.distance):
            nearest.setdefault((each.dataset, each.sample_id, each.norm), each)
        return dataclasses.replace(self, counterexamples=tuple(nearest.values()))


def entry_schema() -> dict[str, Any]:
    """Return the JSON schema of entry files."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(Entry).json_schema()}


def read_entry(path: Path) -> Entry:
    """Read an entry file.

    Raises UserError with the place of the first problem if the file is missing, not strict JSON, of another format, or
    does not have the fields of an entry.
    """
    values = read_json(path, "the entry", max_bytes=MAX_BYTES, max_depth=_MAX_DEPTH, advice=_ADVICE)
    if isinstance(values, dict) and values.get("format") == 1:
        raise UserError(f"the entry {path} has format 1 of version 0.1: run `vlmbench leaderboard migrate {path}`")
    return validate(Entry, values, f"the entry {path}", advice=_ADVICE)


def write_entry(entry: Entry, path: Path) -> None:
    """Write an entry as indented JSON in ASCII."""
    write_text(path, json.dumps(plain(entry), indent=1, ensure_ascii=True) + "\n")


def board_folder(track: str) -> Path:
    """Return the folder of a track's entries that came with the package."""
    return package_folder("leaderboards") / track


def entry_paths(folder: Path) -> list[Path]:
    """Return the entry files of a folder, sorted by name."""
    return sorted(folder.glob("*.json"))
