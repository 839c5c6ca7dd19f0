"""Verify an entry: check its records, attack samples again, and compare the new and the stored records.

The module `draws` chooses the samples, `recompute` attacks them, and `findings` compares the records. The clean
predictions and margins of all samples are also recomputed, with one forward pass for each sample.
"""

import dataclasses
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from robustbench_vlm.analysis.verdict import clean_predictions
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import write_whole
from robustbench_vlm.core.progress import OnProgress, ignore_progress, in_step
from robustbench_vlm.core.records import Verdict
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.cell_records import CellRecords, Unsound
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.leaderboard.attestation import environment, is_equal_machine, machine_id
from robustbench_vlm.leaderboard.counterexamples import images_file, images_path, refuted_counterexamples
from robustbench_vlm.leaderboard.definitions import check_definitions
from robustbench_vlm.leaderboard.draws import choose, choose_later, parts_of, with_stages
from robustbench_vlm.leaderboard.entry import Counterexample, Entry, broken_samples
from robustbench_vlm.leaderboard.findings import Comparison, contradictions, summarize
from robustbench_vlm.leaderboard.history import MAX_LISTED, MAX_TEXT, Attestation, AttestedPart
from robustbench_vlm.leaderboard.rebuild import rebuild, reference_of, scores_with_warnings
from robustbench_vlm.leaderboard.recompute import recompute
from robustbench_vlm.leaderboard.tolerance import exceeds_tolerance
from robustbench_vlm.leaderboard.validate import check_entry
from robustbench_vlm.tracks import TRACKS

SAMPLES = 40
"""Default number of robust samples to attack with all stages. If none of them is broken, at most 7.2 % of the robust
samples are wrong, with 95 % confidence."""
_CLEAN_MARGIN = 1e-3
"""Largest margin at which rounding on another machine may change a clean prediction, and largest difference of a clean
margin. A margin is a difference of cosine similarities."""
_MAX_SEED = 2**48


@dataclass(frozen=True)
class Verification:
    """Findings of a verification, and the entry with the attestation in its history."""

    entry: Entry
    attestation: Attestation
    images: Mapping[str, bytes] = field(default_factory=dict)
    """Content of files with the images of new counterexamples. The keys are sha256 digests."""
    removed_counterexamples: tuple[Counterexample, ...] = ()
    """Counterexamples that were removed from the entry, because their images failed the check on this machine."""

    @property
    def is_confirmed(self) -> bool:
        """True if the verification found nothing that contradicts the entry."""
        return self.attestation.outcome == "confirmed"

    def write_images(self, folder: Path) -> list[Path]:
        """Write the images of new counterexamples below `folder`, the folder of the entry, and return the paths."""
        paths = []
        for source, content in self.images.items():
            path = images_path(folder, source)
            assert path is not None
            write_whole(path, lambda partial, content=content: partial.write_bytes(content))  # type: ignore[misc]
            paths.append(path)
        return paths


@dataclass(frozen=True)
class Draw:
    """Options of a verification."""

    samples: int | None = SAMPLES
    """Number of robust samples to attack with all stages, for the verdicts that the rank depends on. If it is None, all
    samples are attacked with all stages."""
    seed: int | None = None
    """Seed of the draws. If it is None, the seed is random, so submitters cannot know the chosen samples in advance."""
    attempt: int = 1
    """Number of this verification among those of one submission. Later attempts draw more samples, so repeated
    submissions do not help a forger."""
    datasets: tuple[str, ...] = ()
    """The datasets to verify. () means all datasets of the entry."""


def verify(
    entry: Entry,
    folder: Path,
    *,
    date: str,
    draw: Draw | None = None,
    model: str = "",
    data: Path | None = None,
    resources: Resources | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Verification:
    """Check an entry and attack samples again. Return the findings and the entry with an attestation.

    Args:
        entry: The entry.
        folder: The folder of the entry.
        date: Today's date in UTC, such as "2026-01-31".
        draw: Options of the draws.
        model: Reference from which the model is loaded, such as the path of a model card. It is needed only if the
            model cannot be loaded by the name in the entry.
        data: The folder of prepared datasets.
        resources: Device, workers and batch size.
        on_progress: Called after each group of recomputed samples.

    Raises:
        UserError: Data or weights are missing on this machine, or the entry does not have a dataset of `draw`.
    """
    draw = draw or Draw()
    draw = dataclasses.replace(draw, seed=secrets.randbelow(_MAX_SEED) if draw.seed is None else draw.seed)
    attested = _Attested(entry, date, draw)
    try:
        evidence = check_entry(entry, folder)
        check_definitions(entry, evidence)
        evidence = _of_datasets(evidence, draw.datasets)
        plan, numbers = rebuild(evidence, model or reference_of(entry), data=data, resources=resources)
    except Unsound as error:
        return attested.contradicted([str(error)], environment("cpu"))
    cells = [plan.cells[number] for number in numbers]
    device = plan.request.resources.device
    if problems := [*_wrong_predictions(cells, evidence, device), *_omitted_warnings(cells, evidence)]:
        return attested.contradicted(problems, environment(device))
    own = [each for each in entry.counterexamples if each.dataset in {cell.dataset.name for cell in cells}]
    removed = refuted_counterexamples(own, folder, evidence, cells, device)
    comparisons, parts, problems = _recomputed(entry, evidence, cells, plan, draw, on_progress)
    return attested.judged(comparisons, parts, problems, environment(device), removed)


def _of_datasets(evidence: Sequence[CellRecords], names: Sequence[str]) -> tuple[CellRecords, ...]:
    """Return the records of some datasets. Raises UserError if the entry does not have one of them."""
    known = {each.score.dataset for each in evidence}
    if absent := set(names) - known:
        raise UserError(
            f"the entry has no records of the dataset {min(absent)!r}: give some of {', '.join(sorted(known))}"
        )
    return tuple(each for each in evidence if not names or each.score.dataset in names)


def _recomputed(
    entry: Entry,
    evidence: Sequence[CellRecords],
    cells: Sequence[Cell],
    plan: Plan,
    draw: Draw,
    on_progress: OnProgress,
) -> tuple[list[Comparison], list[AttestedPart], list[str]]:
    """Attack samples again in two steps. Return the comparisons, the counts of each part, and contradictions."""
    generator = random.Random(draw.seed)
    samples = None if draw.samples is None else draw.samples * draw.attempt
    resources = plan.request.resources
    robust = {
        (n, at)
        for n, each in enumerate(evidence)
        for at, result in enumerate(each.results)
        if result.verdict is not Verdict.BROKEN
    }
    again = _found_before(entry, evidence)
    parts = parts_of(evidence, TRACKS.load(entry.track))
    choices = [choose(evidence, part, samples, generator, again) for part in parts]
    first = [task for choice in choices for task in (*choice.robust, *choice.others)]
    found = recompute(cells, first, robust, resources, in_step(on_progress, 1, 2))
    later = [choose_later(evidence, choice, found, generator) for choice in choices]
    second = {task for near, drawn in later for task in (*near, *drawn)} - found.keys()
    found |= recompute(cells, second, robust, resources, in_step(on_progress, 2, 2)) if second else {}
    comparisons, counts, problems = [], [], []
    for choice, (near, drawn) in zip(choices, later, strict=True):
        tasks = dict.fromkeys([*choice.robust, *choice.others, *near, *drawn])
        equal = _is_equal_machine(entry, evidence[choice.part.cells[0]], resources)
        own = [Comparison(evidence[task.cell], task, found[task], equal) for task in tasks]
        whole = drawn or [task for task in choice.robust if task == with_stages(evidence, task)]
        counts.append(summarize(own, [evidence[n] for n in choice.part.cells], set(whole), len(near)))
        problems += contradictions(own, counts[-1])
        comparisons += own
    return comparisons, counts, problems


def _is_equal_machine(entry: Entry, evidence: CellRecords, resources: Resources) -> bool:
    recorded = [each for each in entry.environment if each.get("attack") == evidence.score.attack]
    here = environment(resources.device)
    return bool(recorded) and all(is_equal_machine(each, here) for each in recorded)


def _found_before(entry: Entry, evidence: Sequence[CellRecords]) -> set[tuple[int, int]]:
    """Return the cells and positions of robust samples with a counterexample or with an earlier wrong verdict.

    An attack with all stages shows if the records are wrong, or if a stronger attack made the counterexample.
    """
    wrong = {
        (each.attack, each.dataset, each.eps, each.sample_id)
        for event in entry.history
        if event.attestation
        for each in event.attestation.disagreements
    }
    found = set()
    for n, each in enumerate(evidence):
        about = each.score.attack, each.score.dataset, each.score.eps
        doubtful = broken_samples(entry.counterexamples, each.score.dataset, each.threat)
        doubtful |= {sample for *where, sample in wrong if tuple(where) == about}
        rows = enumerate(each.results)
        found |= {(n, at) for at, row in rows if row.broken_by == "" and row.sample_id in doubtful}
    return found


@dataclass(frozen=True)
class _Attested:
    """Makes the result of a verification and adds its attestation to the history of the entry."""

    entry: Entry
    date: str
    draw: Draw

    def contradicted(self, problems: Sequence[str], about: Mapping[str, object]) -> Verification:
        """Return the result if the entry is contradicted before samples are attacked."""
        return self._with_event(self.entry, [], [], problems, about, (), {})

    def judged(
        self,
        comparisons: Sequence[Comparison],
        parts: Sequence[AttestedPart],
        problems: Sequence[str],
        about: Mapping[str, object],
        removed: tuple[Counterexample, ...],
    ) -> Verification:
        """Return the result from the recomputed samples. New counterexamples lower the numbers of the entry."""
        if removed:
            problems = [*problems, f"{len(removed)} counterexamples break no sample on this machine"]
        kept = tuple(example for example in self.entry.counterexamples if example not in removed)
        found, images = _counterexamples(self.entry.track, comparisons)
        entry = dataclasses.replace(self.entry, counterexamples=kept).with_counterexamples(found)
        return self._with_event(entry, comparisons, parts, problems, about, removed, images)

    def _with_event(
        self,
        entry: Entry,
        comparisons: Sequence[Comparison],
        parts: Sequence[AttestedPart],
        problems: Sequence[str],
        about: Mapping[str, object],
        removed: tuple[Counterexample, ...],
        images: Mapping[str, bytes],
    ) -> Verification:
        wrong = [each.disagreement for each in comparisons if each.is_wrong or each.reason]
        track = TRACKS.load(entry.track)
        eps = {cell.score.eps for cell in entry.cells if cell.condition[2:] == (track.norm, track.standard_eps)}
        ranked = [part.bound for part in parts if part.attack == track.attack and part.eps in eps]
        attestation = Attestation(
            outcome="contradicted" if problems else "confirmed",
            is_full=self.draw.samples is None and bool(parts),
            bound=max(ranked or [part.bound for part in parts] or [1.0]),
            datasets=self.draw.datasets or tuple(entry.datasets),
            seed=self.draw.seed or 0,
            attempt=self.draw.attempt,
            machine=machine_id(),
            environment=about,
            parts=tuple(parts),
            disagreements=tuple(dict.fromkeys(wrong))[:MAX_LISTED],
            problems=tuple(problem[:MAX_TEXT] for problem in problems),
        )
        count = sum(part.first + part.broken for part in parts)
        what = f"{count} samples were attacked again, {sum(part.wrong for part in parts)} verdicts differ"
        after = entry.after(self.date, "attestation", what, attestation=attestation)
        return Verification(after, attestation, images, removed)


def _counterexamples(track: str, comparisons: Sequence[Comparison]) -> tuple[list[Counterexample], dict[str, bytes]]:
    """Return new counterexamples, and the content of the files with their images.

    The images of one file have one size.
    """
    groups: dict[tuple[int, ...], list[tuple[Counterexample, torch.Tensor]]] = {}
    for each in comparisons:
        image, result = each.here.image, each.here.result
        if each.is_too_high and image is not None:
            about = each.evidence.score.dataset, result.sample_id, each.evidence.threat.norm
            example = Counterexample(*about, result.distance, result.adversarial_prediction, "")
            groups.setdefault(image.shape, []).append((example, torch.from_numpy(image)))
    found, images = [], {}
    for broken in groups.values():
        nearest = {(example.dataset, example.sample_id): (example, image) for example, image in reversed(broken)}
        source, content = images_file(track, list(nearest.values()))
        images[source] = content
        found += [dataclasses.replace(example, source=source) for example, _ in nearest.values()]
    return found, images


def _wrong_predictions(cells: Sequence[Cell], evidence: Sequence[CellRecords], device: str) -> list[str]:
    """Classify all clean samples again, and compare the predictions and margins with the records.

    A cell is one attack on one dataset at one radius. Returns sentences for the cells in which they differ.
    """
    known: dict[str, list[tuple[int, float]]] = {}
    problems = []
    for cell, each in zip(cells, evidence, strict=True):
        if cell.dataset.name not in known:
            known[cell.dataset.name] = clean_predictions(cell, device=device)
        here = list(zip(each.results, known[cell.dataset.name], strict=True))
        other = [lead for row, (found, lead) in here if row.clean_prediction != found]
        # The margins are computed on this machine, because a submitter could store small margins
        # to hide wrong predictions.
        if max(other, default=0.0) > _CLEAN_MARGIN or exceeds_tolerance(len(other), len(here)):
            problems.append(
                f"{cell.label}: {len(other)} clean predictions in the records differ from those of the model"
            )
        right = [abs(row.margin - lead) for row, (found, lead) in here if found == row.label == row.clean_prediction]
        if max(right, default=0.0) > _CLEAN_MARGIN:
            problems.append(
                f"{cell.label}: the margins of {sum(gap > _CLEAN_MARGIN for gap in right)} clean images in the records"
                " differ from those of the model"
            )
    return problems


def _omitted_warnings(cells: Sequence[Cell], evidence: Sequence[CellRecords]) -> list[str]:
    problems = []
    for cell, each, score in zip(cells, evidence, scores_with_warnings(cells, evidence), strict=True):
        if absent := set(score.warnings) - set(each.score.warnings):
            problems.append(f"{cell.label}: the entry lacks the warnings {', '.join(sorted(absent))}")
    return problems
