"""Leaderboard entries: the data of one model on one track, and functions that read and write entry files.

The entry `leaderboards/<track>/<model>.json` names everything that its numbers depend on: model card, weights,
protocol, attacks and data. The file `records/<model>.parquet` next to it has one row for each attacked sample.
`vlmbench submit` writes both files. The dataclasses define the file format. `read_entry` validates entries with the
dataclasses. `entry_schema` derives the JSON schema from the dataclasses.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import package_folder, write_text
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.core.records import estimate_text
from robustbench_vlm.core.strict_json import STRICT, json_schema, read_json, validate
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell_records import Condition
from robustbench_vlm.leaderboard.entry_status import status_of
from robustbench_vlm.leaderboard.history import (
    Attestation,
    Count,
    Digest,
    Event,
    JsonObject,
    Name,
    Share,
    Subject,
    Text,
)
from robustbench_vlm.leaderboard.tolerance import exceeds_tolerance

_ROUNDING = 1e-7
"""Tolerance for the size of a perturbation, for pixels in [0, 1]."""
FORMAT: Final = 3
MAX_BYTES = 2**24
"""Largest size of an entry file. The class names and prompts of a thousand classes take a few megabytes."""
_MAX_DEPTH = 15
"""Largest nesting depth of an entry's JSON. Normal entries need about half of this depth."""
_ADVICE = "`vlmbench submit` writes entries"


def _card_fields(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if absent := [key for key in ("name", "architecture") if key not in value]:
        raise ValueError(f"the card must have the field {absent[0]!r}")
    return value


Norm = Annotated[str, Field(pattern="^(Linf|L2)$")]
Links = Annotated[
    Mapping[Annotated[str, Field(pattern="^(code|contact)$")], Text],
    Field(json_schema_extra={"additionalProperties": False}),
]
"""The URL of the code, and a contact. The URL of the paper is in the card."""
Card = Annotated[
    Mapping[str, Any],
    AfterValidator(_card_fields),
    Field(json_schema_extra={"type": "object", "required": ["name", "architecture"]}),
]


@dataclass(frozen=True)
class EntryThreat:
    """The norm and radius of a threat model."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    norm: Norm
    eps: Annotated[str, Field(pattern="^[0-9]+(/[1-9][0-9]*)?$", max_length=40)]
    """Radius as a fraction of the pixel range, such as "1/51"."""


@dataclass(frozen=True)
class EntryScore:
    """The accuracies for one attack, dataset and radius.

    The fields are the fields of `Score`, except model, attack and dataset.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    classes: Annotated[int, Field(ge=2)]
    eps: Annotated[str, Field(max_length=40)]
    n: Annotated[int, Field(ge=1)]
    clean: Share
    robust: Share
    clean_interval: tuple[Share, Share]
    robust_interval: tuple[Share, Share]
    warnings: tuple[Annotated[str, Field(max_length=200)], ...]


@dataclass(frozen=True)
class EntryEstimate:
    """Counts and the design interval of an estimated robust accuracy."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    survivors: Count
    """The number of samples that survive the first phase of the attack and can be drawn."""
    drawn: Count
    """The number of survivors that the second phase attacked."""
    broken: Count
    """The number of drawn survivors that the second phase broke."""
    passes: Count
    """The number of forward and backward passes."""
    passes_full: Count
    """Estimated number of passes of the full attack."""
    full_attack: tuple[Share, Share]
    """The design interval: the 95 % interval of the accuracy that the full attack gives on these samples."""

    @property
    def text(self) -> str:
        """The sentence that marks a number as an estimate."""
        return f"estimated: {estimate_text(self.drawn, self.survivors, self.passes_full / max(self.passes, 1))}"


@dataclass(frozen=True)
class MeanEstimate:
    """The estimated mean robust accuracy under one attack at one radius, without datasets for training."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    attack: Name
    threat: EntryThreat
    robust: Share
    robust_interval: tuple[Share, Share]
    """The 95 % interval for other samples of the same datasets."""
    estimate: EntryEstimate


@dataclass(frozen=True)
class EntryCell:
    """The scores for one attack, dataset and radius, with two digests: `fingerprint` and `content`."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    attack: Name
    dataset: Name
    threat: EntryThreat
    fingerprint: Digest
    content: Digest
    """sha256 digest of the per-sample records, computed from their JSON text in a standard form."""
    score: EntryScore
    estimate: EntryEstimate | None = None
    """If some samples are not finished, the estimate. The robust accuracy in `score` is then an estimate, and its
    interval is the interval for other samples."""

    @property
    def condition(self) -> Condition:
        """The attack, dataset, norm and eps. No two cells of an entry have the same combination of these."""
        return self.attack, self.dataset, self.threat.norm, Fraction(self.threat.eps)


@dataclass(frozen=True)
class EntryDataset:
    """The classes, prompts and samples of a dataset."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    classes: Annotated[tuple[Text, ...], Field(min_length=2)]
    prompts: Annotated[tuple[Text | tuple[Text, ...], ...], Field(min_length=2)]
    """One prompt or a list of prompts for each class. The embeddings of the prompts in a list are averaged."""
    data: Digest
    """Digest of the samples."""


@dataclass(frozen=True)
class EntryProtocol:
    """The protocol of all scores of an entry."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    label: Name
    """Name and version, such as "mini/1"."""
    identity: JsonObject


@dataclass(frozen=True)
class RecordsFile:
    """The file of the per-sample records."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    file: Annotated[str, Field(pattern="^records/[A-Za-z0-9][A-Za-z0-9._+@-]{0,79}[.]parquet$")]
    """Path of the file, relative to the folder of the entry."""
    sha256: Digest
    url: Annotated[str, Field(pattern="^(https://.*)?$", max_length=2000)]
    """URL of the records file. It is "" if the file is in the repository."""


@dataclass(frozen=True)
class Counterexample:
    """A sample with a known adversarial image, which the model misclassifies.

    Each image was checked by one forward pass before it was recorded.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    dataset: Name
    sample_id: Annotated[str, Field(max_length=400)]
    norm: Norm
    distance: Annotated[float, Field(ge=0, le=100000)]
    """Size of the perturbation in the norm `norm`, for pixels in [0, 1]."""
    prediction: Annotated[int, Field(ge=0)]
    source: Text
    """The sha256 digest of the file with the image. If no such file is stored, it is the command that found the image.
    """


@dataclass(frozen=True)
class Entry:
    """The entry of one model on one track.

    It has the scores under one protocol, everything that they depend on, and the history.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    format: Literal[3]
    track: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
    model: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._+@-]{0,79}$")]
    card: Card
    """The model card as JSON."""
    weights: Digest
    """Digest of the architecture and the weights."""
    protocol: EntryProtocol
    datasets: Annotated[Mapping[str, EntryDataset], Field(min_length=1)]
    attacks: Annotated[Mapping[str, Annotated[tuple[JsonObject, ...], Field(min_length=1)]], Field(min_length=1)]
    """The stages of each attack, with their parameters. The keys are attack names."""
    cells: Annotated[tuple[EntryCell, ...], Field(min_length=1)]
    records: RecordsFile
    environment: tuple[JsonObject, ...]
    """The software versions, the machine and the git commit of the run, one object for each attack."""
    history: Annotated[tuple[Event, ...], Field(min_length=1)]
    counterexamples: tuple[Counterexample, ...]
    links: Links
    note: Text
    estimates: tuple[MeanEstimate, ...] = ()
    """The mean of each attack and radius with an estimated cell."""

    @property
    def subject(self) -> Subject:
        """The digests of the results. Evidence counts only for an entry with the same digests."""
        cells = sorted([cell.fingerprint, cell.content, list(cell.score.warnings)] for cell in self.cells)
        return Subject(self.weights, fingerprint(self.protocol.identity), fingerprint(cells))

    @property
    def status(self) -> str:
        """The status, computed from the digests, the history and the counterexamples. `status_of` explains it."""
        return status_of(self.subject, tuple(self.datasets), self.history, is_refuted=self.is_refuted)

    @property
    def is_refuted(self) -> bool:
        """True if the entry has more counterexamples than the tolerance allows.

        The allowed number depends on the number of robust samples. The numbers of all datasets are added. If a dataset
        was attacked several times, its largest number of robust samples is used.
        """
        if not self.counterexamples:
            return False
        robust: dict[str, int] = {}
        for cell in self.cells:
            robust[cell.dataset] = max(round(cell.score.robust * cell.score.n), robust.get(cell.dataset, 0))
        count = len(self.counterexamples)
        return exceeds_tolerance(count, max(sum(robust.values()), count))

    def after(
        self,
        date: str,
        kind: str,
        what: str,
        facts: Mapping[str, Any] | None = None,
        *,
        attestation: Attestation | None = None,
        signature: str = "",
    ) -> "Entry":
        """Return a copy of the entry with one more event, which has the digests of the entry and of the last event."""
        previous = self.history[-1].digest if self.history else ""
        event = Event(date, kind, what, facts or {}, self.subject, previous, attestation, signature)
        return dataclasses.replace(self, history=(*self.history, event))

    def continues(self, earlier: "Entry") -> bool:
        """Return whether `earlier` has the same weights and protocol as this entry.

        If so, the records of `earlier` are also valid for this entry.
        """
        return (self.weights, self.protocol) == (earlier.weights, earlier.protocol)

    def with_counterexamples(self, more: Iterable[Counterexample]) -> "Entry":
        """Return the entry with more counterexamples.

        For each sample and norm, only the counterexample with the smallest perturbation is kept.
        """
        nearest: dict[tuple[str, str, str], Counterexample] = {}
        for each in sorted((*self.counterexamples, *more), key=lambda example: example.distance):
            nearest.setdefault((each.dataset, each.sample_id, each.norm), each)
        return dataclasses.replace(self, counterexamples=tuple(nearest.values()))


def broken_samples(counterexamples: Iterable[Counterexample], dataset: str, threat: Threat) -> set[str]:
    """Return the ids of the samples of a dataset that have a counterexample within a threat, up to rounding errors."""
    return {
        each.sample_id
        for each in counterexamples
        if (each.dataset, each.norm) == (dataset, threat.norm) and each.distance <= float(threat.eps) + _ROUNDING
    }


def entry_schema() -> dict[str, Any]:
    """Return the JSON schema of entry files."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **json_schema(Entry)}


def read_entry(path: Path) -> Entry:
    """Read an entry file.

    Raises UserError if the file is missing, is not strict JSON, has another format, or does not have the fields of an
    entry. The message names the first problem and its place in the file.
    """
    values = read_json(path, "the entry", max_bytes=MAX_BYTES, max_depth=_MAX_DEPTH, advice=_ADVICE)
    if isinstance(values, dict) and values.get("format") in (1, 2):
        raise UserError(
            f"the entry {path} has format {values['format']}, but format {FORMAT} is expected: run"
            f" `vlmbench leaderboard migrate {path}`"
        )
    return validate(Entry, values, f"the entry {path}", advice=_ADVICE)


def write_entry(entry: Entry, path: Path) -> None:
    """Write an entry as indented JSON with ASCII characters only."""
    document = plain(entry)
    # Entries without estimates do not mention them.
    document["cells"] = [{key: value for key, value in cell.items() if value is not None} for cell in document["cells"]]
    if not entry.estimates:
        del document["estimates"]
    write_text(path, json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n")


def board_folder(track: str) -> Path:
    """Return the folder of a track's entries in the installed package."""
    return package_folder("leaderboards") / track


def entry_paths(folder: Path) -> list[Path]:
    """Return the entry files of a folder, sorted by name."""
    return sorted(folder.glob("*.json"))
