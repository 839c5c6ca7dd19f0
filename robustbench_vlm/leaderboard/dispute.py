"""Dispute an entry: classify submitted images, and record those of robust samples that are misclassified."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from robustbench_vlm.analysis.adversarial_images import read_images
from robustbench_vlm.analysis.verdict import judge_image
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import write_whole
from robustbench_vlm.core.progress import OnProgress, Progress, ignore_progress
from robustbench_vlm.core.records import CLEAN, Verdict
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.cell_records import CellRecords
from robustbench_vlm.leaderboard.counterexamples import images_file, images_path
from robustbench_vlm.leaderboard.entry import Counterexample, Entry, write_entry
from robustbench_vlm.leaderboard.entry_records import read_entry_records
from robustbench_vlm.leaderboard.rebuild import rebuild, reference_of

BREAKS = "breaks"
OUTCOMES = {
    BREAKS: "break a sample that the entry reports as robust",
    "known": "break a sample that is already broken in the records",
    "unfinished": "break a sample that an estimate has not attacked in full, so it is not reported as robust",
    "right": "are classified correctly",
    "wrong-clean": "belong to samples that are misclassified without an attack",
    "outside": "are outside the radius, or have another size than the image of the sample",
    "foreign": "do not belong to a sample of the entry",
}
"""The possible outcomes for a submitted image. The messages put "images that" before these texts."""


@dataclass(frozen=True)
class Dispute:
    """Outcomes of the submitted images, and the entry with its new status."""

    entry: Entry
    counts: Mapping[str, int]
    """Number of images for each outcome. `OUTCOMES` has the same keys."""
    found: tuple[Counterexample, ...] = ()
    images: bytes = b""
    """The content of a safetensors file with the images that broke a sample. `write` uses the sha256 digest of this
    content as the name of the file."""

    def write(self, path: Path) -> Path:
        """Write the entry to `path` and the images next to it, and return the path of the images.

        At least one image must have broken a sample.
        """
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
    """Classify the adversarial images in a file.

    Images that break samples are added to a copy of the entry as counterexamples. Each image costs one forward pass.
    Raises UserError if the file is not readable or belongs to another track, or if weights or data are missing on this
    machine.
    """
    submitted, _ = read_images(images)
    if submitted.track != entry.track:
        raise UserError(
            f"{images} has images of the track {submitted.track!r}, but the entry is on the track {entry.track!r}:"
            " give a file of the same track"
        )
    evidence = read_entry_records(entry, folder)
    concerned = [each for each in evidence if each.score.dataset in {name for name, _ in submitted.samples}]
    if not concerned:
        raise UserError(
            f"{images} has no image of a sample in the entry for {entry.model!r}: give images of samples in the entry"
        )
    plan, numbers = rebuild(concerned, model or reference_of(entry), data=data)
    judge_image = _ImageJudge(
        concerned, [plan.cells[number] for number in numbers], entry, plan.request.resources.device
    )
    counts: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
    broken: list[tuple[Counterexample, Tensor]] = []
    for number, ((dataset, sample), image) in enumerate(zip(submitted.samples, submitted.images, strict=True)):
        outcome, example = judge_image(dataset, sample, image)
        counts[outcome] += 1
        broken += [(example, image)] if example else []
        on_progress(Progress(number + 1, len(submitted.samples), label=dataset))
    if not broken:
        return Dispute(entry, dict(counts))
    source, content = images_file(entry.track, broken)
    found = tuple(dataclasses.replace(example, source=source) for example, _ in broken)
    what = (
        f"the images break {len(found)} {'sample' if len(found) == 1 else 'samples'} that the entry reported as robust"
    )
    after = entry.with_counterexamples(found).after(date, "counterexamples", what, {"images": source})
    return Dispute(after, dict(counts), found, content)


@dataclass(frozen=True)
class _ImageJudge:
    """A function that classifies an adversarial image and compares the prediction with the records of an entry."""

    evidence: list[CellRecords]
    cells: list[Cell]
    entry: Entry
    device: str

    def __call__(self, dataset: str, sample: str, image: Tensor) -> tuple[str, Counterexample | None]:
        """Return the outcome of an image (one of `OUTCOMES`). The image is float32 [3, H, W] in [0, 1].

        If the model misclassifies the image and the entry reports its sample as robust, also return the
        counterexample. Its field `source` is "" until `dispute` sets it to the digest of the image file.
        """
        own = [n for n, each in enumerate(self.evidence) if each.score.dataset == dataset]
        positions = {result.sample_id: at for n in own[:1] for at, result in enumerate(self.evidence[n].results)}
        if sample not in positions:
            return "foreign", None
        position = positions[sample]
        threats = sorted({self.evidence[n].threat for n in own}, key=lambda threat: threat.eps)
        found = judge_image(self.cells[own[0]], position, image, threats, device=self.device)
        if found is None:
            return "outside", None
        threat, size, prediction = found
        rows = [(n, self.evidence[n].results[position]) for n in own if self.evidence[n].threat.eps >= threat.eps]
        if rows[0][1].broken_by == CLEAN:
            return "wrong-clean", None
        if prediction == rows[0][1].label:
            return "right", None
        if self._is_known(dataset, sample, threat.norm, size):
            return "known", None
        verdicts = [result.verdict for _, result in rows]
        if Verdict.ROBUST not in verdicts:
            return ("unfinished" if Verdict.UNFINISHED in verdicts else "known"), None
        return BREAKS, Counterexample(dataset, sample, threat.norm, size, prediction, "")

    def _is_known(self, dataset: str, sample: str, norm: str, size: float) -> bool:
        return any(
            (each.dataset, each.sample_id, each.norm) == (dataset, sample, norm) and each.distance <= size
            for each in self.entry.counterexamples
        )
