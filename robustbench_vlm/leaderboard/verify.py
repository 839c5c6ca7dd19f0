"""Verify an entry: check its records, attack random samples again, and compare the new and the stored verdicts.

The clean predictions of all samples are also recomputed, with one forward pass for each sample.
"""

import dataclasses
import random
import secrets
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from robustbench_vlm.analysis.verdict import clean_predictions
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.engine.backends import ENGINES, Engine
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.cell_records import CellRecords, Unsound
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import packed_groups, run_group
from robustbench_vlm.leaderboard.counterexamples import refuted_counterexamples
from robustbench_vlm.leaderboard.entry import MAX_TEXT, Counterexample, Entry, Event
from robustbench_vlm.leaderboard.rebuild import rebuild, reference_of, scores_with_warnings
from robustbench_vlm.leaderboard.tolerance import (
    PARTS,
    Disagreement,
    RecomputedPart,
    RecomputedSample,
    exceeds_tolerance,
    missing_warnings,
    summarize_part,
)
from robustbench_vlm.leaderboard.validate import check_definitions, check_entry
from robustbench_vlm.tracks import TRACKS, Track

REPRODUCED = 0.05
"""An entry gets the status "reproduced" if at most this share of its verdicts is wrong, with 95 % confidence."""
_CLOSE_MARGIN = 1e-3
"""Largest margin at which rounding on another machine may change a prediction. The margin is the cosine similarity of
the predicted class minus the second-highest cosine similarity."""


@dataclass(frozen=True)
class Verification:
    """Findings of a verification, and the entry with its new status."""

    entry: Entry
    is_confirmed: bool
    """True if the verification found nothing that contradicts the entry."""
    problems: tuple[str, ...] = ()
    """Sentences that describe how the entry contradicts its records or the results on this machine."""
    parts: tuple[RecomputedPart, ...] = ()
    """Counts of recomputed verdicts for each of the two parts of the entry. `tolerance.PARTS` explains the parts."""
    seed: int = 0
    disagreements: tuple[Disagreement, ...] = ()
    removed_counterexamples: tuple[Counterexample, ...] = ()
    """Counterexamples that were removed from the entry, because their images failed the check on this machine."""


def verify(
    entry: Entry,
    folder: Path,
    *,
    date: str,
    samples: int | None = 200,
    seed: int | None = None,
    model: str = "",
    data: Path | None = None,
    resources: Resources | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Verification:
    """Check an entry and attack randomly chosen samples again. Return the findings and the entry's new status.

    Args:
        entry: The entry.
        folder: The folder of the entry.
        date: Today's date in UTC, such as "2026-01-31".
        samples: Number of verdicts to recompute in each of the two parts of the entry. The first part has the verdicts
            that the rank depends on. The second part has all other verdicts. If None, all verdicts are recomputed.
        seed: Seed for the choice of samples. If it is None, the seed is random and secret, so that submitters cannot
            know the chosen samples in advance.
        model: Reference from which the model is loaded, such as the path of a model card. It is needed only if the
            model cannot be loaded by the name in the entry.
        data: The folder of prepared datasets.
        resources: Device, workers and batch size.
        on_progress: Called after each group of recomputed verdicts.

    Raises:
        UserError: Data or weights are missing on this machine.
    """
    seed = secrets.randbits(48) if seed is None else seed
    try:
        evidence = check_entry(entry, folder)
        check_definitions(entry, evidence)
        plan, numbers = rebuild(evidence, model or reference_of(entry), data=data, resources=resources)
    except Unsound as error:
        return _contradicted(entry, [str(error)], date)
    cells = [plan.cells[number] for number in numbers]
    device = plan.request.resources.device
    if problems := [*_wrong_predictions(cells, evidence, device), *_omitted_warnings(cells, evidence)]:
        return _contradicted(entry, problems, date)
    removed = refuted_counterexamples(entry.counterexamples, folder, evidence, cells, device)
    drawn = draw_samples(evidence, TRACKS.load(entry.track), samples, random.Random(seed))
    found = iter(recompute(plan, numbers, [*drawn[0], *drawn[1]], on_progress))
    parts = [[RecomputedSample(evidence[each.cell], each.position, next(found)) for each in part] for part in drawn]
    judged = _judged(_without(entry, removed, date), parts, date, seed, is_full=samples is None)
    return dataclasses.replace(
        judged, removed_counterexamples=removed, is_confirmed=judged.is_confirmed and not removed
    )


@dataclass(frozen=True)
class DrawnSample:
    """A sample of an entry that will be attacked again."""

    cell: int
    """Index of the sample's cell in the entry. A cell is one attack on one dataset at one radius."""
    position: int
    """Index of the sample within the records of its cell."""


def draw_samples(
    evidence: Sequence[CellRecords], track: Track, samples: int | None, generator: random.Random
) -> tuple[list[DrawnSample], list[DrawnSample]]:
    """Draw random samples from each of the two parts of an entry.

    The first part has the verdicts that the rank depends on: those under the track's attack at its standard radius. The
    second part has all other verdicts. `samples` is the number of samples to draw from each part, without replacement.
    If it is None, all samples are drawn. The two returned lists are sorted by cell and position. Each may be empty.
    """
    standard = track.attack, track.norm, track.standard_eps
    parts: tuple[list[DrawnSample], list[DrawnSample]] = [], []
    for n, each in enumerate(evidence):
        is_other = (each.score.attack, each.threat.norm, each.threat.eps) != standard
        parts[is_other].extend(DrawnSample(n, position) for position in range(len(each.results)))
    ranked, others = (_drawn(part, samples, generator) for part in parts)
    return ranked, others


def _drawn(part: list[DrawnSample], samples: int | None, generator: random.Random) -> list[DrawnSample]:
    if samples is None or samples >= len(part):
        return part
    return sorted(generator.sample(part, samples), key=lambda each: (each.cell, each.position))


def recompute(
    plan: Plan, cells: Sequence[int], drawn: Sequence[DrawnSample], on_progress: OnProgress
) -> list[SampleResult]:
    """Attack the samples in `drawn` again and return their new records, in the same order.

    A cell is one attack on one dataset at one radius. `cells` maps the index of a cell in the entry to its index in
    `plan`.
    """
    resources = plan.request.resources
    shards = _shards(plan, cells, drawn)
    groups = list(packed_groups(list(shards), plan.cells, resources))
    engine: Engine = ENGINES.load(resources.engine)
    found: dict[DrawnSample, SampleResult] = {}
    begun = time.monotonic()
    with closing(engine.run_jobs(partial(run_group, plan.cells, resources), groups, resources)) as answers:
        for group, answer in answers:
            for shard, results in zip(group.shards, answer, strict=True):
                found |= zip(shards[shard], results, strict=True)
            left = (time.monotonic() - begun) / len(found) * (len(drawn) - len(found))
            on_progress(Progress(len(found), len(drawn), left))
    return [found[each] for each in drawn]


def _shards(plan: Plan, cells: Sequence[int], drawn: Sequence[DrawnSample]) -> dict[Shard, list[DrawnSample]]:
    """Group the drawn samples into shards, the units of work.

    A shard has consecutive samples of one cell. Their number is at most the shard size.
    """
    runs: list[list[DrawnSample]] = []
    for each in drawn:
        last = runs[-1][-1] if runs else None
        follows = last is not None and (last.cell, last.position + 1) == (each.cell, each.position)
        if follows and len(runs[-1]) < plan.request.resources.shard_size:
            runs[-1].append(each)
        else:
            runs.append([each])
    found = {}
    for run in runs:
        cell = cells[run[0].cell]
        found[Shard(cell, run[0].position, run[-1].position + 1, plan.cells[cell].fingerprint)] = run
    return found


def _without(entry: Entry, removed: Sequence[Counterexample], date: str) -> Entry:
    if not removed:
        return entry
    kept = tuple(example for example in entry.counterexamples if example not in removed)
    what = f"counterexamples that break no sample on this machine were removed: {len(removed)}"
    return dataclasses.replace(entry, counterexamples=kept).after(Event(date, entry.status, what, {}))


def _contradicted(entry: Entry, problems: Sequence[str], date: str) -> Verification:
    event = Event(
        date, "disputed", "the check found contradictions", {"problems": [problem[:MAX_TEXT] for problem in problems]}
    )
    return Verification(entry.after(event), is_confirmed=False, problems=tuple(problems))


def _wrong_predictions(cells: Sequence[Cell], evidence: Sequence[CellRecords], device: str) -> list[str]:
    """Classify all clean samples again, and compare the predictions with the stored predictions.

    A cell is one attack on one dataset at one radius. Returns a sentence for each cell in which predictions differ.
    """
    known: dict[str, list[tuple[int, float]]] = {}
    problems = []
    for cell, each in zip(cells, evidence, strict=True):
        if cell.dataset.name not in known:
            known[cell.dataset.name] = clean_predictions(cell, device=device)
        here = known[cell.dataset.name]
        other = [lead for row, (found, lead) in zip(each.results, here, strict=True) if row.clean_prediction != found]
        # The margins are computed on this machine, because a submitter could store small margins
        # to hide wrong predictions.
        if max(other, default=0.0) > _CLOSE_MARGIN or exceeds_tolerance(len(other), len(here)):
            problems.append(
                f"{cell.label}: {len(other)} clean predictions in the records differ from those of the model"
            )
    return problems


def _omitted_warnings(cells: Sequence[Cell], evidence: Sequence[CellRecords]) -> list[str]:
    problems = []
    for cell, each, score in zip(cells, evidence, scores_with_warnings(cells, evidence), strict=True):
        if absent := set(score.warnings) - set(each.score.warnings):
            problems.append(f"{cell.label}: the entry lacks the warnings {', '.join(sorted(absent))}")
    return problems


def _judged(
    entry: Entry, parts: Sequence[Sequence[RecomputedSample]], date: str, seed: int, *, is_full: bool
) -> Verification:
    """Compare the recomputed and stored verdicts of each part of an entry. Return the findings and the new status."""
    counted = tuple(
        summarize_part(name, part, is_full=is_full) for name, part in zip(PARTS, parts, strict=True) if part
    )
    samples = [sample for part in parts for sample in part]
    wrong = [sample for sample in samples if sample.is_wrong]
    omitted = missing_warnings(samples)
    is_disputed = any(part.exceeds_tolerance for part in counted) or bool(omitted)
    bound = max(part.bound for part in counted)
    counts = {"verdicts": len(samples), "wrong": len(wrong), "too high": sum(part.too_high for part in counted)}
    facts = {**counts, "bound": round(bound, 4), "seed": seed} | ({"problems": list(omitted)} if omitted else {})
    status = _status(entry.status, bound, is_disputed=is_disputed, is_full=is_full)
    what = f"{len(samples)} of its verdicts were recomputed, {len(wrong)} differ"
    more = [sample.counterexample(f"vlmbench verify, seed {seed}") for sample in wrong if sample.is_broken]
    after = entry.after(Event(date, status, what, facts)).with_counterexamples(more)
    disagreements = tuple(sample.disagreement for sample in wrong)
    return Verification(after, not is_disputed, omitted, counted, seed, disagreements)


def _status(before: str, bound: float, *, is_disputed: bool, is_full: bool) -> str:
    """Return the status of an entry after a verification.

    `before` is the status before the verification. `bound` is an upper limit for the share of wrong verdicts.

    A partial verification never lowers the status. The status "disputed" remains until a new submission.
    """
    if is_disputed or before == "disputed":
        return "disputed"
    if is_full or before == "verified":
        return "verified"
    return "reproduced" if bound <= REPRODUCED else before
