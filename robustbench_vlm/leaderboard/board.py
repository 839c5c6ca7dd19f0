"""Data types of a track's leaderboard: the board, its rows, and the numbers that papers report."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustbench_vlm.comparison.compare import CurvePoint
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.records import Accuracy

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class BoardRow:
    """A model on the board."""

    model: str
    rank: str
    """"1", or "2-4" for models that paired tests do not distinguish; "" if the standard attack is incomplete or the
    entry is disputed."""
    clean_rank: int
    rank_difference: int
    """Clean rank minus robust rank, both without ties: positive if the robust rank is the better one."""
    status: str
    defense: str
    fidelity: str
    training: str
    """Training dataset and radius, such as "scenes, eps 6/255"."""
    architecture: str
    paper: str
    licence: str
    note: str
    links: Mapping[str, str]
    clean: Accuracy
    robust: Accuracy
    """Lowest known: a sample counts as robust if no recorded attack and no counterexample breaks it in the radius."""
    under: Mapping[str, Accuracy]
    """Mean robust accuracy at the standard radius, by attack."""
    curve: tuple[CurvePoint, ...]
    datasets: Mapping[str, Mapping[str, Accuracy]]
    """"clean" and "robust" (lowest known) accuracy, by dataset."""
    passes: int
    """Forward and backward passes of all attacks."""
    warnings: tuple[str, ...]
    """Codes of warnings, "code" or "code: dataset, dataset"."""
    counterexamples: int
    history: tuple[Mapping[str, Any], ...]
    records: Mapping[str, str]
    """{"file", "sha256", "url"} of its per-sample records."""
    command: str
    """The command that repeats the measurement."""


@dataclass(frozen=True)
class ReportedNumber:
    """A number that a paper reports: shown separately, never averaged with measured numbers."""

    method: str
    paper: str
    source: str
    """URL of the paper."""
    table: str
    architecture: str
    training: str
    attack: str
    """The attack as the paper's released code runs it."""
    eps: str
    steps: str
    dataset: str
    clean: float | None
    robust: float | None
    """Shares in [0, 1]."""
    confidence: str
    note: str
    warnings: tuple[str, ...]
    """Sentences on why the number may be too high."""


@dataclass(frozen=True)
class Board:
    """A track's leaderboard; ranked rows come first, best first."""

    track: str
    description: str
    protocol: Mapping[str, Any]
    """{"label", "identity"} of the protocol of all measured numbers."""
    attack: str
    norm: str
    eps: str
    datasets: tuple[str, ...]
    seen: tuple[str, ...]
    """Datasets that the zero-shot mean leaves out, because models were trained on them."""
    rows: tuple[BoardRow, ...]
    absent: Mapping[str, str]
    """Why an entry's records cannot be downloaded, by model; such an entry has no row."""
    reported: tuple[ReportedNumber, ...]

    def to_pandas(self) -> "DataFrame":
        """Return a data frame with a row for each model: means in [0, 1] with 95 % intervals, status and origin."""
        import pandas

        return pandas.DataFrame([_flat(row) for row in self.rows])

    def to_json(self) -> dict[str, Any]:
        """Return the board as a JSON document."""
        document: dict[str, Any] = plain(self)
        return document


def _flat(row: BoardRow) -> dict[str, Any]:
    """Return the columns of a row in `to_pandas`."""
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
        **row.clean.columns("clean"),
        **row.robust.columns("robust"),
        **{name: getattr(row, name) for name in about},
        "warnings": " ".join(row.warnings),
    }
