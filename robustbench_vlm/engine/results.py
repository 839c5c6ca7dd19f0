"""Results of a run: a score for every cell, and a table for every combination of model, attack and eps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.core.records import CLEAN, Accuracy, SampleResult, Score, Verdict, wilson
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.eps_curve import CurvePoint, curve_of
from robustbench_vlm.engine.fresh_draws import TableDraws
from robustbench_vlm.engine.store import cell_folder_name, read_cell
from robustbench_vlm.engine.warnings import cell_warnings

if TYPE_CHECKING:
    from pandas import DataFrame

_ACCURACIES = ("clean_accuracy", "robust_accuracy")
_ABOUT = ("model", "attack", "dataset", "eps")
_COLUMNS = (
    *(*_ABOUT, "n", "clean", "clean_low", "clean_high", "robust", "robust_low", "robust_high", "warnings"),
    *("classes", "norm", "track", "protocol", "fingerprint"),
)


@dataclass(frozen=True)
class TableEstimate:
    """Counts and intervals for one table of an estimated run.

    The intervals are design intervals: the 95 % intervals of the accuracy that the full attack gives on these samples.
    They are valid for any rule that decides when the run stops.
    """

    survivors: int
    """The number of samples that survive the first phase of the attack."""
    drawn: int
    """The number of these survivors that the second phase attacked."""
    broken: int
    """The number of drawn survivors that are misclassified after the second phase."""
    passes_full: int
    """Estimated number of passes of the full attack. The estimate assumes that all survivors need as many passes as the
    drawn survivors."""
    scores: tuple[tuple[float, float], ...]
    """The design interval of the robust accuracy on each dataset, in the order of the table's scores."""
    mean: tuple[float, float] | None
    """The design interval of `ScoreTable.mean`. None if the table does not have this mean."""
    mean_as_published: tuple[float, float] | None
    """The design interval of `ScoreTable.mean_as_published`. None if the table does not have this mean."""


@dataclass(frozen=True)
class Mean:
    """Unweighted mean accuracies over datasets, in [0, 1]."""

    clean: float
    robust: float
    clean_interval: tuple[float, float]
    """The 95 % confidence interval (low, high) of the mean. The function `core.records.mean_interval` computes it."""
    robust_interval: tuple[float, float]


@dataclass(frozen=True)
class ScoreTable:
    """The scores of one model under one attack at one eps, one score per dataset."""

    track: str
    protocol: str
    """Name and version, such as "mini-quick/1"."""
    model: str
    attack: str
    norm: str
    eps: str
    """Text such as "8/255"."""
    fingerprint: str
    """sha256 over the fingerprints of the cells."""
    scores: tuple[Score, ...]
    mean: Mean | None
    """Mean over the zero-shot datasets, on which no model of the track was trained. It is None if the table does not
    have a zero-shot dataset.
    """
    mean_as_published: Mean | None
    """Mean over all datasets of the protocol, as in papers. It is None if it is equal to `mean`, or if a dataset is
    missing.
    """
    seconds: float
    """Seconds of the run's wall time that are assigned to this table, in proportion to the passes for the table. It is
    0 if all records existed before.
    """
    passes: int
    """Number of forward and backward passes for the records of this table, including records from earlier runs."""
    folder: Path
    """The run folder runs/<track>/<model>/<attack>. It contains manifest.json and scores.csv."""
    fingerprints: tuple[str, ...]
    """Fingerprints of the cells. There is one cell for each score."""
    estimate: TableEstimate | None = None
    """The estimate of an estimated run. It is None if every sample was attacked in full. If it is given, the robust
    accuracies are estimates, and their intervals are for new samples of the same datasets."""
    draws: TableDraws | None = None
    """The accuracies over fresh draws. It is None if the protocol does not have draws. If it is given, a sample counts
    in `Score.clean` and `Score.robust` only if at least 99 % of the draws are correct."""

    def to_json(self) -> dict[str, Any]:
        """Return the table as a JSON document. Model and attack are not repeated for each score."""
        scores = [
            {name: value for name, value in plain(score).items() if name not in ("model", "attack")}
            for score in self.scores
        ]
        document = {**plain(self), "scores": scores}
        for name in ("estimate", "draws"):
            if document[name] is None:
                del document[name]
        return document

    def rows(self) -> list[dict[str, Any]]:
        """Return one mapping from column names to values for every score."""
        about = {name: getattr(self, name) for name in ("track", "protocol", "norm")}
        return [
            {
                **about,
                **{name: getattr(score, name) for name in (*_ABOUT, "classes", "n")},
                **score.clean_accuracy.columns("clean"),
                **score.robust_accuracy.columns("robust"),
                "warnings": " ".join(score.warnings),
                "fingerprint": own,
            }
            for score, own in zip(self.scores, self.fingerprints, strict=True)
        ]


@dataclass(frozen=True)
class RunResult:
    """The result of a run: one table for every combination of model, attack and eps, in the order of the request."""

    tables: tuple[ScoreTable, ...]
    seconds: float
    """Wall time of this run in seconds."""
    passes: int
    """Number of forward and backward passes for all records, including records from earlier runs."""
    warnings: tuple[str, ...]
    """Sentences about the whole run, such as ignored files. Warnings about one score are in `Score.warnings`."""

    def to_pandas(self) -> "DataFrame":
        """Return a table with one row for every combination of model, attack, eps and dataset.

        `clean` and `robust` are accuracies in [0, 1] on `n` samples. `clean_low`, `clean_high`, `robust_low` and
        `robust_high` are the ends of their 95 % Wilson intervals. `warnings` has the codes of the warnings, separated
        by spaces. `eps` is a text such as "8/255". If a run is estimated, the column `estimated` is True for its rows,
        and `robust_full_attack_low` and `robust_full_attack_high` are the ends of the design interval: the 95 %
        interval of the accuracy that the full attack gives on these samples. They are missing for rows of other runs.
        by spaces. `eps` is a text such as "8/255". If a run is estimated, the column `estimated` is True for its rows.
        If the protocol has draws, the columns `clean_draws` and `robust_draws` have the mean accuracies over fresh
        draws, with the ends of their intervals.
        """
        import pandas

        rows = [row for table in self.tables for row in table.rows()]
        frame = pandas.DataFrame(rows, columns=list(_COLUMNS))
        if any(table.estimate for table in self.tables):
            frame["estimated"] = [table.estimate is not None for table in self.tables for _ in table.scores]
            unknown = (math.nan, math.nan)
            ends = [
                each
                for table in self.tables
                for each in (table.estimate.scores if table.estimate else [unknown] * len(table.scores))
            ]
            frame["robust_full_attack_low"], frame["robust_full_attack_high"] = zip(*ends, strict=True)
        drawn = [score.columns() for table in self.tables if table.draws for score in table.draws.scores]
        return frame.join(pandas.DataFrame(drawn)) if drawn else frame

    def samples(self) -> "DataFrame":
        """Read the records on disk and return a table with one row per sample and the fields of `SampleResult`.

        The first columns are model, attack, dataset and eps. Raises UserError if records are missing or damaged, or if
        the run is estimated. Other files in the folders are ignored with a warning.
        """
        import pandas

        if any(table.estimate for table in self.tables):
            raise UserError(
                "an estimated run has no verdict for every sample, so there is no table of samples: evaluate again"
                " without half_width, which attacks the remaining samples"
            )

        rows = [
            {**{name: row[name] for name in _ABOUT}, **vars(result)}
            for table in self.tables
            for row in table.rows()
            for result in read_cell(_cell_folder(table, row), row["fingerprint"], row["n"])
        ]
        return pandas.DataFrame(rows)

    def eps_points(self, radii: Sequence[str | Fraction] | None = None) -> list[CurvePoint]:
        """Return the robust accuracy at each radius, from the records of the attack `min-eps`.

        `radii` are texts such as "4/255" or fractions, for pixels in [0, 1]. If it is None, they are the multiples of
        1/255 up to the radius of the run, or ten equal parts of it. Raises UserError if the run has another attack, or
        if a radius is larger than the radius of the run.
        """
        return [
            point
            for table in self.tables
            for point in curve_of(
                table.model,
                table.attack,
                table.track,
                Threat(table.norm, parse_eps(table.eps)),
                {
                    row["dataset"]: read_cell(_cell_folder(table, row), row["fingerprint"], row["n"])
                    for row in table.rows()
                },
                radii,
            )
        ]

    def eps_curve(self, radii: Sequence[str | Fraction] | None = None) -> "DataFrame":
        """Return the points of `eps_points` as a table with one row for every model, dataset and radius.

        The rows of the dataset "mean" have the mean over the zero-shot datasets. `robust_low` and `robust_high` are the
        ends of the 95 % interval at this radius.
        """
        import pandas

        return pandas.DataFrame([point.columns() for point in self.eps_points(radii)])

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the table. If there are several tables, this is a sha256 over their fingerprints."""
        prints = [table.fingerprint for table in self.tables]
        return prints[0] if len(prints) == 1 else fingerprint(prints)

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON document.

        If there is one table, its document is returned. If there are several tables, the document has the list "runs",
        with one document per table, and "fingerprint". In both cases, "seconds", "passes" and "warnings" are for the
        whole run.
        """
        whole = {"seconds": self.seconds, "passes": self.passes, "warnings": list(self.warnings)}
        if len(self.tables) == 1:
            return {**self.tables[0].to_json(), **whole}
        return {"runs": [table.to_json() for table in self.tables], "fingerprint": self.fingerprint, **whole}


def _cell_folder(table: ScoreTable, row: Mapping[str, Any]) -> Path:
    return table.folder / cell_folder_name(row["dataset"], table.norm, table.eps, row["fingerprint"])


def mean_of(scores: Sequence[Score]) -> Mean | None:
    """Return the unweighted mean of scores, or None for an empty sequence."""
    if not scores:
        return None
    clean, robust = (Accuracy.mean([getattr(score, name) for score in scores]) for name in _ACCURACIES)
    return Mean(clean.value, robust.value, (clean.low, clean.high), (robust.low, robust.high))


def score(cell: Cell, results: Sequence[SampleResult], estimate: Accuracy | None = None) -> Score:
    """Return the score of a cell from its records, with the warnings that `cell_warnings` returns.

    If some samples are not finished, `estimate` is the estimated robust accuracy.
    """
    found = accuracies(results)
    if estimate is not None:
        found |= {"robust": estimate.value, "robust_interval": (estimate.low, estimate.high)}
    return Score(
        model=cell.model_name,
        attack=cell.attack.name,
        dataset=cell.dataset.name,
        classes=len(cell.dataset.classes),
        eps=cell.threat.eps_text,
        warnings=cell_warnings(cell, results, found["robust"]),
        **found,
    )


def accuracies(results: Sequence[SampleResult]) -> dict[str, Any]:
    """Return n, clean and robust accuracy and their 95 % intervals, as fields of `Score`.

    A sample is robust if its clean prediction is correct and no stage of the attack found a misclassified image. A
    sample that is not finished is not robust.
    """
    n = len(results)
    clean = sum(result.broken_by != CLEAN for result in results)
    robust = sum(result.verdict is Verdict.ROBUST for result in results)
    return {
        "n": n,
        "clean": clean / n,
        "robust": robust / n,
        "clean_interval": wilson(clean, n),
        "robust_interval": wilson(robust, n),
    }
