"""Verification: what an entry says is held against its records, and a random part of these is computed again."""

import dataclasses
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustbench_vlm.analysis.verdict import clean_predictions
from robustbench_vlm.core.progress import OnProgress, ignore_progress
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.evidence import Evidence, Unsound
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.leaderboard.agreement import PARTS, Again, Disagreement, Part, erased_warnings, part_of
from robustbench_vlm.leaderboard.counterexamples import refuted
from robustbench_vlm.leaderboard.entry import Counterexample, Entry, Event
from robustbench_vlm.leaderboard.rebuild import rebuild, reference_of, rescored
from robustbench_vlm.leaderboard.recompute import attack_again, draw
from robustbench_vlm.leaderboard.tolerance import is_more_than_honest
from robustbench_vlm.leaderboard.validate import check_definitions, check_entry
from robustbench_vlm.tracks import TRACKS

REPRODUCED = 0.05
"""An entry counts as reproduced if at most this share of its verdicts can be wrong, with 95 % confidence."""
_NEAR = 1e-3
"""A lead of one class, as a cosine, so small that another machine's rounding may turn the prediction."""


@dataclass(frozen=True)
class Verification:
    """What a verification found, and the entry as it stands afterwards."""

    entry: Entry
    is_confirmed: bool
    """Whether nothing that was found here speaks against the entry."""
    problems: tuple[str, ...] = ()
    """What the entry says that its records, or the weights, images and attacks of its names, do not bear out."""
    parts: tuple[Part, ...] = ()
    """Those of which verdicts were computed again."""
    seed: int = 0
    disagreements: tuple[Disagreement, ...] = ()
    struck: tuple[Counterexample, ...] = ()
    """Counterexamples of the entry whose images break nothing here: it has them no more."""


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
    """Check an entry, attack samples of it again, and return it with its new status.

    These are `samples` of those that the rank rests on, and as many of the others; None: all of both. Without a `seed`
    they are drawn by one that nobody could know before. `model` is the reference that loads the model if its name does
    not. Raises UserError where this machine cannot tell: data or weights that are not there.
    """
    seed = secrets.randbits(48) if seed is None else seed
    try:
        evidence = check_entry(entry, folder)
        check_definitions(entry, evidence)
        plan, numbers = rebuild(evidence, model or reference_of(entry), data=data, resources=resources)
    except Unsound as error:
        return _unsound(entry, [str(error)], date)
    cells = [plan.cells[number] for number in numbers]
    device = plan.request.resources.device
    if problems := [*_wrong_predictions(cells, evidence, device), *_left_out(cells, evidence)]:
        return _unsound(entry, problems, date)
    struck = refuted(entry.counterexamples, folder, evidence, cells, device)
    picked = draw(evidence, TRACKS.load(entry.track), samples, random.Random(seed))
    found = iter(attack_again(plan, numbers, [*picked[0], *picked[1]], on_progress))
    parts = [[Again(evidence[pick.evidence], pick.position, next(found)) for pick in part] for part in picked]
    judged = _judged(_without(entry, struck, date), parts, date, seed, is_full=samples is None)
    return dataclasses.replace(judged, struck=struck, is_confirmed=judged.is_confirmed and not struck)


def _without(entry: Entry, struck: Sequence[Counterexample], date: str) -> Entry:
    if not struck:
        return entry
    kept = tuple(example for example in entry.counterexamples if example not in struck)
    what = f"counterexamples that break nothing were struck out: {len(struck)}"
    return dataclasses.replace(entry, counterexamples=kept).after(Event(date, entry.status, what))


def _unsound(entry: Entry, problems: Sequence[str], date: str) -> Verification:
    event = Event(date, "disputed", "checked, and it does not hold together", {"problems": list(problems)})
    return Verification(entry.after(event), is_confirmed=False, problems=tuple(problems))


def _wrong_predictions(cells: Sequence[Cell], evidence: Sequence[Evidence], device: str) -> list[str]:
    """Return what of the clean predictions on record the model does not say, of all samples: one pass each."""
    known: dict[str, list[tuple[int, float]]] = {}
    problems = []
    for cell, each in zip(cells, evidence, strict=True):
        if cell.dataset.name not in known:
            known[cell.dataset.name] = clean_predictions(cell, device=device)
        here = known[cell.dataset.name]
        other = [lead for row, (found, lead) in zip(each.results, here, strict=True) if row.clean_prediction != found]
        # By how much a prediction leads is this machine's word: a submitter would excuse anything by it.
        if max(other, default=0.0) > _NEAR or is_more_than_honest(len(other), len(here)):
            problems.append(f"{cell.label}: {len(other)} clean predictions are not the model's")
    return problems


def _left_out(cells: Sequence[Cell], evidence: Sequence[Evidence]) -> list[str]:
    problems = []
    for cell, each, score in zip(cells, evidence, rescored(cells, evidence), strict=True):
        if absent := set(score.warnings) - set(each.score.warnings):
            problems.append(f"{cell.label}: the entry leaves out the warnings {', '.join(sorted(absent))}")
    return problems


def _judged(entry: Entry, parts: Sequence[Sequence[Again]], date: str, seed: int, *, is_full: bool) -> Verification:
    counted = tuple(part_of(name, part, is_full=is_full) for name, part in zip(PARTS, parts, strict=True) if part)
    pairs = [pair for part in parts for pair in part]
    wrong = [pair for pair in pairs if pair.is_wrong]
    erased = erased_warnings(pairs)
    is_disputed = any(part.is_more_than_honest for part in counted) or bool(erased)
    bound = max(part.bound for part in counted)
    counts = {"verdicts": len(pairs), "wrong": len(wrong), "too high": sum(part.too_high for part in counted)}
    facts = {**counts, "bound": round(bound, 4), "seed": seed} | ({"problems": list(erased)} if erased else {})
    status = _status(entry.status, bound, is_disputed=is_disputed, is_full=is_full)
    what = f"{len(pairs)} of its verdicts were computed again, {len(wrong)} came out otherwise"
    more = [pair.counterexample(f"vlmbench verify, seed {seed}") for pair in wrong if pair.is_broken]
    after = entry.after(Event(date, status, what, facts)).with_counterexamples(more)
    disagreements = tuple(pair.disagreement for pair in wrong)
    return Verification(after, not is_disputed, erased, counted, seed, disagreements)


def _status(before: str, bound: float, *, is_disputed: bool, is_full: bool) -> str:
    """Return the status after a verification; a partial one lowers none, a dispute stands until a new submission."""
    if is_disputed or before == "disputed":
        return "disputed"
    if is_full or before == "verified":
        return "verified"
    return "reproduced" if bound <= REPRODUCED else before
