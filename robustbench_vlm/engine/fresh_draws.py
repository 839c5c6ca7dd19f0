"""Evaluation of random models over fresh draws: the settings of a request, and the accuracies of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import Accuracy, DrawnResult, SampleResult
from robustbench_vlm.engine.request import Request
from robustbench_vlm.protocols.base import DEFAULT_EOT, Protocol

MOST_DRAWS = 100_000
_ADVICE = "give 100 for a resolution of 1 %"


@dataclass(frozen=True)
class DrawnScore:
    """The accuracies of one random draw on one dataset: means over all samples and draws."""

    dataset: str
    clean: Accuracy
    """The share of draws that classify the clean image correctly."""
    robust: Accuracy
    """The share of draws that classify the strongest image of the attack correctly."""

    def columns(self) -> dict[str, float]:
        """Return the accuracies and the ends of their intervals as table columns."""
        return {**self.clean.columns("clean_draws"), **self.robust.columns("robust_draws")}


@dataclass(frozen=True)
class TableDraws:
    """The accuracies of a table over fresh draws of a random model's random numbers."""

    draws: int
    """The number of fresh draws for each image."""
    eot: int
    """The number of draws of which the attacks take the mean gradient."""
    scores: tuple[DrawnScore, ...]
    """One score for each score of the table, in the same order."""
    mean: DrawnScore | None
    """The mean over the zero-shot datasets. It is None if the table does not have one."""


def with_requested_draws(protocol: Protocol, request: Request) -> Protocol:
    """Return the protocol with the draws of a request. Without requested draws, the protocol may fix them itself.

    Raises UserError for numbers of draws that are not allowed, and for options that do not work with draws.
    """
    if request.eot and not request.draws:
        raise UserError(
            f"--eot is the number of draws of each gradient and needs --draws, got --eot {request.eot}: add --draws 100"
        )
    if not request.draws and protocol.draws == 1:
        return protocol
    if request.half_width:
        source = "--draws" if request.draws else f"the draws of the protocol {protocol.name!r}"
        raise UserError(
            f"--half-width does not work with {source}, because it estimates verdicts that are robust or not: leave"
            " --half-width out"
        )
    if not request.draws:
        return protocol
    check_draw_counts(request.draws, request.eot)
    return protocol.with_draws(request.draws, request.eot or DEFAULT_EOT)


def check_draw_counts(draws: Any, eot: Any) -> None:
    """Raise UserError if numbers of draws are not allowed. An `eot` of 0 is the default number."""
    for name, count, least in (("draws", draws, 2), ("eot", eot, 0)):
        if isinstance(count, bool) or not isinstance(count, int) or not least <= count <= MOST_DRAWS:
            raise UserError(f"{name} must be an integer from {max(least, 1)} to {MOST_DRAWS}, got {count!r}: {_ADVICE}")


def table_draws(
    protocol: Protocol, records: Mapping[str, Sequence[SampleResult]], unseen: Sequence[str]
) -> TableDraws | None:
    """Return the accuracies over fresh draws from the records of each dataset of a table.

    `unseen` has the names of the zero-shot datasets. Without draws, return None.
    """
    if protocol.draws == 1:
        return None
    scores = tuple(_score(name, rows) for name, rows in records.items())
    of_mean = [each for each in scores if each.dataset in unseen]
    mean = None
    if len(of_mean) == 1:
        mean = DrawnScore("mean", of_mean[0].clean, of_mean[0].robust)
    elif of_mean:
        mean = DrawnScore(
            "mean", Accuracy.mean([each.clean for each in of_mean]), Accuracy.mean([each.robust for each in of_mean])
        )
    return TableDraws(protocol.draws, protocol.eot, scores, mean)


def _score(dataset: str, rows: Sequence[SampleResult]) -> DrawnScore:
    drawn = [row for row in rows if isinstance(row, DrawnResult)]
    assert len(drawn) == len(rows), "the records of a protocol with draws must have draws"
    clean, robust = (
        Accuracy.of_shares([getattr(row, name) / row.draws for row in drawn]) for name in ("clean_right", "right")
    )
    return DrawnScore(dataset, clean, robust)
