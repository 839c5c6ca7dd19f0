"""The board of a track: its entries ranked by the worst number known of each, and beside them what papers report."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustbench_vlm.comparison.compare import CurvePoint
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.records import Accuracy

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Row:
    """A model on the board."""

    model: str
    rank: str
    """"1", or "2-4" where paired tests tell these places not apart; "" where the standard attack is not complete, and
    of disputed entries."""
    clean_rank: int
    rank_difference: int
    """Clean rank minus place by robust accuracy: positive where it does better than its clean accuracy says."""
    status: str
    defense: str
    fidelity: str
    training: str
    """Training data and radius, in words."""
    architecture: str
    paper: str
    licence: str
    note: str
    links: Mapping[str, str]
    clean: Accuracy
    robust: Accuracy
    """The worst known: a sample counts that no attack on record, and no counterexample, broke within the radius."""
    under: Mapping[str, Accuracy]
    """By attack: mean robust accuracy at the standard radius."""
    curve: tuple[CurvePoint, ...]
    datasets: Mapping[str, Mapping[str, Accuracy]]
    """By dataset: "clean" and "robust" (worst known)."""
    passes: int
    """Forward and backward passes through the network that its numbers took."""
    warnings: tuple[str, ...]
    """Codes of gates, "code" or "code:dataset, dataset"."""
    counterexamples: int
    history: tuple[Mapping[str, Any], ...]
    records: Mapping[str, str]
    """{"file", "sha256", "url"} of its per-sample records."""
    command: str
    """What anybody gives to measure it again."""


@dataclass(frozen=True)
class ReportedNumber:
    """A number that a paper reports: shown apart, never averaged with what was measured here."""

    method: str
    paper: str
    source: str
    """Address."""
    table: str
    architecture: str
    training: str
    attack: str
    """As its released code runs it."""
    eps: str
    steps: str
    dataset: str
    clean: float | None
    robust: float | None
    """Shares in [0, 1]."""
    confidence: str
    note: str
    warnings: tuple[str, ...]
    """Gates that it breaks, in words."""


@dataclass(frozen=True)
class Board:
    """All that views of a track's leaderboard are made of; ranked rows first, best first."""

    track: str
    description: str
    protocol: Mapping[str, Any]
    """{"label", "identity"} of the protocol that its numbers are made under."""
    attack: str
    norm: str
    eps: str
    datasets: tuple[str, ...]
    seen: tuple[str, ...]
    """Datasets that the zero-shot mean leaves out."""
    rows: tuple[Row, ...]
    absent: Mapping[str, str]
    """By model: why nobody can have the records of its entry now. Without them it has no row."""
    reported: tuple[ReportedNumber, ...]

    def to_pandas(self) -> "DataFrame":
        """Return a row for every model, in the board's order: means with their 95 % intervals, status and origin."""
        import pandas

        return pandas.DataFrame([_flat(row) for row in self.rows])

    def to_json(self) -> dict[str, Any]:
        """Return the board as a JSON document."""
        document: dict[str, Any] = plain(self)
        return document


def _flat(row: Row) -> dict[str, Any]:
    """Return what a table shows of a row, means as shares in [0, 1]."""
    means = {
        name + end: getattr(getattr(row, name), field)
        for name in ("clean", "robust")
        for end, field in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    about = (
        "status",
        "defense",
        "fidelity",
        "training",
        "architecture",
        "paper",
        "licence",
        "passes",
        "counterexamples",
    )
    return {
        **{"model": row.model, "rank": row.rank, "n": row.robust.n},
        **means,
        **{name: getattr(row, name) for name in about},
        "warnings": " ".join(row.warnings),
    }
