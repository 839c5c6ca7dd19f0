"""Disputes: anyone hands in adversarial images, and one forward pass shows which samples they break."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from robustbench_vlm.analysis.adversarial_files import read_images
from robustbench_vlm.analysis.verdict import judge
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import write_whole
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress
from robustbench_vlm.core.records import SampleResult
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.evidence import Evidence
from robustbench_vlm.leaderboard.counterexamples import are_too_many, images_file, images_path
from robustbench_vlm.leaderboard.entry import Counterexample, Entry, Event, write_entry
from robustbench_vlm.leaderboard.entry_records import read_evidence
from robustbench_vlm.leaderboard.rebuild import rebuild, reference_of

BREAKS = "breaks"
OUTCOMES = {
    BREAKS: "break a sample that the entry holds robust",
    "known": "break what is broken on record already",
    "right": "classified correctly",
    "wrong-clean": "of samples that are wrong without an attack",
    "outside": "outside the ball, or of another size",
    "foreign": "of no sample of the entry",
}
"""What may become of an image, in words."""


@dataclass(frozen=True)
class Dispute:
    """What became of the images that were handed in, and the entry as it stands afterwards."""

    entry: Entry
    counts: Mapping[str, int]
    """By outcome, a key of `OUTCOMES`."""
    found: tuple[Counterexample, ...] = ()
    images: bytes = b""
    """A file of the images that broke something, which lies beside the entry under its digest."""

    def write(self, path: Path) -> Path:
        """Write the entry to `path` and the images beside it, if they broke anything; return where these lie."""
        kept = images_path(path.parent, self.found[0].source)
        assert kept is not None
        write_whole(kept, lambda partial: partial.write_bytes(self.images))
        write_entry(self.entry, path)
        return kept


def dispute(
    entry: Entry,
    folder: Path,
    images: Path,
    *,
    date: str,
    model: str = "",
    data: Path | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Dispute:
    """Judge the adversarial images of a file against an entry, and return it with what they break.

    Raises UserError where the file is none, or of another track, or this machine lacks weights or data.
    """
    handed, _ = read_images(images)
    if handed.track != entry.track:
        raise UserError(f"{images} is of the track {handed.track!r}, and the entry of {entry.track!r}")
    evidence = read_evidence(entry, folder)
    concerned = [each for each in evidence if each.score.dataset in {name for name, _ in handed.samples}]
    if not concerned:
        raise UserError(f"{images} has no sample of a dataset of the entry of {entry.model!r}")
    plan, numbers = rebuild(concerned, model or reference_of(entry), data=data)
    judged = _Judged(concerned, [plan.cells[number] for number in numbers], entry, plan.request.resources.device)
    counts: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
    broken: list[tuple[Counterexample, Tensor]] = []
    for number, ((dataset, sample), image) in enumerate(zip(handed.samples, handed.images, strict=True)):
        outcome, example = judged(dataset, sample, image)
        counts[outcome] += 1
        broken += [(example, image)] if example else []
        on_progress(Progress(number + 1, len(handed.samples), label=dataset))
    if not broken:
        return Dispute(entry, dict(counts))
    source, content = images_file(entry.track, broken)
    found = tuple(dataclasses.replace(example, source=source) for example, _ in broken)
    return Dispute(_lowered(entry, evidence, found, date), dict(counts), found, content)


def _lowered(entry: Entry, evidence: Sequence[Evidence], found: Sequence[Counterexample], date: str) -> Entry:
    """Return the entry with more counterexamples, disputed if they are more than an honest entry may have."""
    after = entry.with_counterexamples(found)
    status = "disputed" if are_too_many(after.counterexamples, evidence) else entry.status
    what = f"{len(found)} samples that it held robust were broken"
    return after.after(Event(date, status, what, {"images": found[0].source}))


@dataclass(frozen=True)
class _Judged:
    """Judges images against the cells of an entry."""

    evidence: list[Evidence]
    cells: list[Cell]
    entry: Entry
    device: str

    def __call__(self, dataset: str, sample: str, image: Tensor) -> tuple[str, Counterexample | None]:
        """Return what became of an image, and the counterexample that it is, still without a source."""
        own = [n for n, each in enumerate(self.evidence) if each.score.dataset == dataset]
        positions = {result.sample_id: at for n in own[:1] for at, result in enumerate(self.evidence[n].results)}
        if sample not in positions:
            return "foreign", None
        position = positions[sample]
        threats = sorted({self.evidence[n].threat for n in own}, key=lambda threat: threat.eps)
        found = judge(self.cells[own[0]], position, image, threats, device=self.device)
        if found is None:
            return "outside", None
        threat, size, prediction = found
        rows = [(n, self.evidence[n].results[position]) for n in own if self.evidence[n].threat.eps >= threat.eps]
        if rows[0][1].broken_by == "clean":
            return "wrong-clean", None
        if prediction == rows[0][1].label:
            return "right", None
        if not any(_holds(result) for _, result in rows) or self._is_known(dataset, sample, threat.norm, size):
            return "known", None
        return BREAKS, Counterexample(dataset, sample, threat.norm, size, prediction, "")

    def _is_known(self, dataset: str, sample: str, norm: str, size: float) -> bool:
        return any(
            (each.dataset, each.sample_id, each.norm) == (dataset, sample, norm) and each.distance <= size
            for each in self.entry.counterexamples
        )


def _holds(result: SampleResult) -> bool:
    return result.broken_by == ""
