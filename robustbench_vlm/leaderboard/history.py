"""Append-only history of an entry: events in a hash chain, and the digests to which each event is bound.

Each event has the digest of the event before it, so a changed or removed event breaks the chain. Each event also has
the digests of the weights, the protocol and the records at its time, so it does not count for other results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field

from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.core.records import CLEAN, UNFINISHED
from robustbench_vlm.core.strict_json import STRICT

MAX_TEXT = 2000
"""Largest number of characters in a text of an entry, such as a note or a link."""
MAX_LISTED = 200
"""Largest number of samples that an attestation lists. The counts in it cover all samples."""


def _limit_texts(value: Any) -> Any:
    """Return a JSON value unchanged. Raise ValueError if a text or key in it has more than `MAX_TEXT` characters."""
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ValueError(f"texts must have at most {MAX_TEXT} characters, got {len(value)}")
    if isinstance(value, dict | list):
        for each in (*value, *value.values()) if isinstance(value, dict) else value:
            _limit_texts(each)
    return value


Name = Annotated[str, Field(min_length=1, max_length=120)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=10**12)]
JsonObject = Annotated[Mapping[str, Any], AfterValidator(_limit_texts)]


@dataclass(frozen=True)
class Subject:
    """Digests of the results that an event is about. All are sha256 digests, 64 hexadecimal digits."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    weights: Digest
    """Digest of the architecture and the weights."""
    protocol: Digest
    records: Digest
    """Digest of the fingerprints, per-sample records and warnings of all cells."""


@dataclass(frozen=True)
class Disagreement:
    """A stored record that differs from the recomputed record."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    attack: Name
    dataset: Name
    eps: Annotated[str, Field(max_length=40)]
    sample_id: Annotated[str, Field(max_length=400)]
    stored: Annotated[str, Field(max_length=120)]
    """The field `broken_by` of the stored record."""
    found: Annotated[str, Field(max_length=120)]
    """The field `broken_by` of the recomputed record."""
    reason: Annotated[str, Field(max_length=200)]
    """The reason why rounding cannot explain the difference, or "" if rounding can explain it."""

    @property
    def is_favourable(self) -> bool:
        """True if no stage breaks the sample in the stored record, and one does in the recomputed record.

        Such samples make the stored accuracy too high.
        """
        return self.stored in ("", UNFINISHED) and self.found not in ("", CLEAN)


@dataclass(frozen=True)
class AttestedPart:
    """Numbers of recomputed records under one attack at one radius."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    attack: Name
    eps: Annotated[str, Field(max_length=40)]
    samples: Count
    """Number of records of the part."""
    robust: Count
    """Number of samples that are robust in the records."""
    first: Count
    """Number of robust samples that were attacked with the first stage of the attack."""
    nearest: Count
    """Number of robust samples that were attacked with the second stage, because their margin is smallest after the
    first stage."""
    drawn: Count
    """Number of robust samples that were drawn at random and attacked with all stages."""
    broken: Count
    """Number of other samples that were attacked again: samples that are broken in the records, up to the recorded
    stage, and samples that an estimated run did not finish, with the first stage."""
    wrong: Count
    """Number of recomputed verdicts that differ from the records."""
    too_high: Count
    """Number of samples that are robust in the records and misclassified in the recomputed records."""
    bound: Share
    """Upper limit of the share of samples that are robust in the records and that the full attack breaks, with 95 %
    confidence. The share is of all samples of the part."""


@dataclass(frozen=True)
class Attestation:
    """The result of one verification on one machine."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    outcome: Literal["confirmed", "contradicted"]
    is_full: bool
    """True if all samples were attacked again in full."""
    bound: Share
    """Upper limit of the share of wrong verdicts among the verdicts that the rank depends on, with 95 % confidence."""
    datasets: Annotated[tuple[Name, ...], Field(min_length=1)]
    """The datasets whose samples were recomputed."""
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    """The random seed of the draws. The verifier draws it after the entry is written."""
    attempt: Annotated[int, Field(ge=1, le=10**6)]
    """1 for the first verification of a submission, 2 for the second, and so on."""
    machine: Annotated[str, Field(pattern="^([0-9a-f]{32})?$")]
    """A random identifier of the machine, or "" if it is unknown."""
    environment: JsonObject
    """The versions of packages and the device."""
    parts: tuple[AttestedPart, ...]
    disagreements: Annotated[tuple[Disagreement, ...], Field(max_length=MAX_LISTED)]
    problems: tuple[Text, ...]
    """Sentences that say how the entry contradicts its records or the results on the machine."""


KINDS = ("submission", "migration", "counterexamples", "attestation", "earlier")
"""Kinds of events. "earlier" is an event of a format without digests."""


@dataclass(frozen=True)
class Event:
    """One event in the history of an entry, such as its submission, a verification or a dispute."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    date: Annotated[str, Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]
    """Date in UTC, such as "2026-01-31"."""
    kind: Annotated[str, Field(pattern=f"^({'|'.join(KINDS)})$")]
    what: Text
    """A sentence that describes the event."""
    facts: JsonObject
    """Numbers and texts that describe the event."""
    subject: Subject
    """The digests of the entry at the time of the event."""
    previous: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
    """Digest of the event before, or "" for the first event."""
    attestation: Attestation | None
    """The result of a verification. It is None for other kinds of events."""
    signature: Text
    """An SSH signature of `attestation.statement_bytes`, or ""."""

    @property
    def digest(self) -> str:
        """sha256 digest of the event, 64 hexadecimal digits."""
        return fingerprint(plain(self))


def broken_link(history: Sequence[Event]) -> int | None:
    """Return the index of the first event that does not have the digest of the event before it, or None."""
    digests = ["", *(event.digest for event in history)]
    return next((n for n, event in enumerate(history) if event.previous != digests[n]), None)
