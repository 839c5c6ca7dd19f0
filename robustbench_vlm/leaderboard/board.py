"""Data types of a track's leaderboard: the board, its rows, and the numbers that papers report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from robustbench_vlm.comparison.compare import CurvePoint
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.records import Accuracy, EstimatedAccuracy
from robustbench_vlm.models.papers import Paper

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class BoardRow:
    """The row of one model on the board."""

    model: str
    rank: str
    """The rank, such as "1". If paired tests do not distinguish the models at ranks 2 to 4, these models have the rank
    "2-4". A disputed entry, or an entry without complete records of the standard attack, has the rank "".
    """
    clean_rank: int
    rank_difference: int
    """The rank by clean accuracy minus the rank by robust accuracy, both without ties. A positive number means that the
    model has a better place by robust accuracy."""
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
    """Lowest known robust accuracy. A sample counts as robust if the model classifies it correctly without an
    attack, and also after every recorded attack and in every counterexample within the radius."""
    under: Mapping[str, Accuracy]
    """Mean robust accuracy at the standard radius. The keys are attack names."""
    curve: tuple[CurvePoint, ...]
    datasets: Mapping[str, Mapping[str, Accuracy]]
    """Accuracies of each dataset. The keys are dataset names, and each value has the keys "clean" and "robust".
    "robust" is the lowest known robust accuracy."""
    passes: int
    """Total number of forward and backward passes in all attacks."""
    warnings: tuple[str, ...]
    """Warnings, each as "code" or "code: dataset, dataset"."""
    counterexamples: int
    history: tuple[Mapping[str, Any], ...]
    records: Mapping[str, str]
    """Path, digest and URL of the model's per-sample records. The keys are "file", "sha256" and "url"."""
    command: str
    """The shell command that repeats the measurement."""
    estimates: Mapping[str, EstimatedAccuracy] = field(default_factory=dict)
    """The numbers of the row that are estimates. The keys are "robust" for `robust`, "under_" and the attack for
    `under`, "curve_" and the eps for `curve`, and "robust_" and the dataset for `datasets`."""
    citation: Paper | None = None
    """Title, authors, venue and year of the paper, from the card. None if they are not known."""


@dataclass(frozen=True)
class ReportedNumber:
    """A number that a paper reports. It is shown separately and never averaged with measured numbers."""

    method: str
    paper: str
    source: str
    """URL of the paper."""
    table: str
    architecture: str
    training: str
    attack: str
    """The name of the attack in the paper's released code."""
    eps: str
    steps: str
    dataset: str
    clean: float | None
    robust: float | None
    """Accuracy in [0, 1]."""
    confidence: str
    note: str
    warnings: tuple[str, ...]
    """Sentences that say why the number may be too high."""


@dataclass(frozen=True)
class Board:
    """A track's leaderboard."""

    track: str
    description: str
    protocol: Mapping[str, Any]
    """The protocol of all measured numbers, as a mapping with the keys "label" and "identity"."""
    attack: str
    norm: str
    eps: str
    datasets: tuple[str, ...]
    seen: tuple[str, ...]
    """Datasets that models were trained on. They are left out of the zero-shot mean."""
    rows: tuple[BoardRow, ...]
    absent: Mapping[str, str]
    """Error messages for entries without a row, because their records cannot be downloaded. The keys are model
    names."""
    refused: Mapping[str, str]
    """Error messages for entries without a row, because they are invalid. The keys are the names of the entry files
    without ".json"."""
    reported: tuple[ReportedNumber, ...]

    def to_pandas(self) -> "DataFrame":
        """Return a data frame with one row for each model.

        Accuracies are means in [0, 1] with 95 % intervals. The other columns have the status and properties of the
        model.
        """
        import pandas

        return pandas.DataFrame([_flat(row) for row in self.rows])

    def to_json(self) -> dict[str, Any]:
        """Return the board as a JSON document."""
        document: dict[str, Any] = plain(self)
        return document


def estimated_text(row: BoardRow, key: str) -> str:
    """Return the text that marks a number as an estimate. Return "" for a full number.

    `key` is a key of `BoardRow.estimates`.
    """
    return row.estimates[key].text if key in row.estimates else ""


def _flat(row: BoardRow) -> dict[str, Any]:
    """Return one row of the data frame for `Board.to_pandas`. The keys are column names."""
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
        **row.estimates.get("robust", row.robust).columns("robust"),
        "estimated": estimated_text(row, "robust"),
        **{name: getattr(row, name) for name in about},
        "warnings": " ".join(row.warnings),
    }
