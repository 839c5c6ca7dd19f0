"""Make a submission from a run: the entry, its records file, and the text of a pull request."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustbench_vlm.attacks import is_registered
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.numbers import percent, percent_interval
from robustbench_vlm.core.records import CLEAN
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.engine.cell_records import CellRecords, complete_cells, manifests, no_records
from robustbench_vlm.engine.manifest import read_manifest
from robustbench_vlm.engine.results import mean_of
from robustbench_vlm.leaderboard.entry import Entry, read_entry, write_entry
from robustbench_vlm.leaderboard.entry_records import make_entry, read_entry_records, write_records
from robustbench_vlm.leaderboard.estimated_runs import read_unfinished
from robustbench_vlm.leaderboard.estimates import draws_of_evidence, estimate_group, weaker_conditions
from robustbench_vlm.leaderboard.ranking import datasets_without_standard_attack
from robustbench_vlm.leaderboard.rebuild import rebuild, scores_with_warnings
from robustbench_vlm.leaderboard.validate import check_entry
from robustbench_vlm.models import card_names
from robustbench_vlm.models.card import ModelCard, bundled_names, find_card
from robustbench_vlm.models.in_memory import DIGEST_PREFIXES
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.test_time.defended_model import checked_reference
from robustbench_vlm.tracks import TRACKS, Track


@dataclass(frozen=True)
class Submission:
    """An entry made from a run, and the content of its records file. `write` writes both files."""

    entry: Entry
    content: bytes
    """Content of the records file."""
    remarks: tuple[str, ...]
    """Sentences that list missing information for the reviewer."""
    pull_request: str
    """Text of the pull request, in Markdown."""

    def write(self, folder: Path) -> Path:
        """Write the entry and its records below a folder of leaderboards. Return the path of the entry."""
        path = folder / self.entry.track / f"{self.entry.model}.json"
        write_records(self.content, path.parent / self.entry.records.file)
        write_entry(self.entry, path)
        # The leaderboard runs the same check. It is also run here, so that submitters see errors before
        # they submit the entry.
        check_entry(self.entry, path.parent)
        return path


def make_submission(
    run: Path,
    *,
    date: str,
    model: str = "",
    links: Mapping[str, str] | None = None,
    note: str = "",
    records: str = "",
    board: Path | None = None,
    data: Path | None = None,
) -> Submission:
    """Make an entry from a run folder, runs/<track>/<model>.

    The entry has the records of the protocol that the board requires. If the board already has an entry of the model,
    the history of that entry is kept. If weights and protocol have not changed, earlier records are kept too, unless
    the run replaces them. Submitters therefore cannot raise the accuracy by leaving out attacks or datasets.

    Args:
        run: The run folder.
        date: The date of the submission in UTC, such as "2026-01-31".
        model: The reference that loads the model. It is needed only if the name does not load the model.
        links: URLs with the keys "code" and "contact".
        note: A sentence that the leaderboard shows.
        records: The https URL of the records file, if it will not be in the repository.
        board: The folder of leaderboards that may have an earlier entry of the model.
        data: The folder of prepared datasets.

    Raises:
        UserError: The records were made with another model, other data or another protocol than on this machine.
    """
    track = _track_of_run(run)
    found = (*complete_cells(run), *read_unfinished(run, track, model=model, data=data))
    evidence = _cells_of_board_protocol(found, track, run, model)
    evidence, of_files = _without_attack_files(evidence, run)
    path = (board or Path()) / track.name / f"{evidence[0].score.model}.json"
    earlier = read_entry(path) if board is not None and path.is_file() else None
    weaker = _weaker_cells(evidence, earlier)
    evidence = [each for each in evidence if each not in weaker]
    kept = _cells_to_keep(evidence, earlier, path.parent)
    # The cells are sorted, so that the entry does not depend on the order of the submitted runs.
    evidence = sorted([*evidence, *kept], key=lambda each: _order(each, track))
    reference = model or evidence[0].score.model
    plan, numbers = rebuild(evidence, reference, data=data)
    scores = scores_with_warnings([plan.cells[number] for number in numbers], evidence)
    evidence = [dataclasses.replace(each, score=score) for each, score in zip(evidence, scores, strict=True)]
    card = find_card(str(checked_reference(reference).model), track.name)
    fields = {key: value for key, value in plain(card).items() if key != "folder"}
    environment = [*_environment(run, evidence), *_environment_of(kept, earlier)]
    entry, content = make_entry(evidence, fields, environment, plan.protocol.identity)
    if records and not records.startswith("https://"):
        raise UserError(f"the URL of the records must begin with https://, got {records!r}: give an https address")
    named = dataclasses.replace(entry.records, url=records)
    entry = dataclasses.replace(entry, links=links or {}, note=note, records=named)
    entry = _submitted(entry, earlier, evidence, date)
    remarks = (*_remarks(evidence, track, card), *_left_out(weaker), *of_files, *_to_upload(entry))
    return Submission(entry, content, remarks, _pull_request(entry, evidence, track, remarks))


def _track_of_run(run: Path) -> Track:
    """Return the track of a run folder. Raises UserError for a folder without a run that can be submitted."""
    found = [read_manifest(path) for path in manifests(run)]
    if not found:
        raise no_records(run)
    cells = [cell for manifest in found for cell in manifest.cells.values()]
    if any(str(cell.identity["weights"]).startswith(DIGEST_PREFIXES) for cell in cells):
        raise UserError(
            f"{run} has records of a model in the memory of a Python process, which other users cannot load. Save"
            " its state dict with torch.save, write a card with `vlmbench convert FILE --base NAME`, run the card,"
            " and submit that run"
        )
    track: Track = TRACKS.load(found[0].track)
    return track


def _cells_of_board_protocol(found: Sequence[CellRecords], track: Track, run: Path, model: str) -> list[CellRecords]:
    if len({each.score.model for each in found}) > 1:
        raise UserError(f"{run} has several models: give the folder of one model, runs/<track>/<model>")
    label = PROTOCOLS.load(track.leaderboard_protocol).label
    kept = [each for each in found if each.protocol == label and each.score.dataset in track.datasets]
    if not kept:
        known = [read_manifest(path) for path in manifests(run)]
        name = known[0].model
        reference = model or (name if name in card_names(track.name) else "path/to/card.json")
        had = sorted({cell.protocol for manifest in known for cell in manifest.cells.values()})
        if not found and had in ([], [label]):
            raise no_records(run)
        raise UserError(
            f"the board of {track.name!r} accepts only records under the protocol {label} on the track's datasets,"
            f" but {run} has {', '.join(had)}: run `vlmbench run --track {track.name} --model {reference}"
            f" --protocol {track.leaderboard_protocol}`"
        )
    return kept


def _without_attack_files(evidence: Sequence[CellRecords], run: Path) -> tuple[list[CellRecords], list[str]]:
    """Return the records of registered attacks, and a sentence for each other attack.

    Other users do not have the attack files of a submitter, so they cannot verify records of these attacks. Raises
    UserError if no records are left.
    """
    kept = [each for each in evidence if is_registered(each.score.attack)]
    others = sorted({each.score.attack for each in evidence} - {each.score.attack for each in kept})
    if not kept:
        raise UserError(
            f"{run} has only records of {', '.join(others)}, but an entry needs an attack that everyone can repeat: run"
            " an attack of `vlmbench list attacks`"
        )
    return kept, [
        f"the records of {name} were left out, because `vlmbench list attacks` does not have this attack: if it breaks"
        " more samples, add its images to the entry with `vlmbench dispute`"
        for name in others
    ]


def _is_continued(earlier: Entry, evidence: Sequence[CellRecords]) -> bool:
    """Return whether the earlier entry has the weights and the protocol of the run."""
    first = evidence[0].identity
    return (earlier.weights, earlier.protocol.identity) == (first["weights"], first["protocol"])


def _weaker_cells(evidence: Sequence[CellRecords], earlier: Entry | None) -> list[CellRecords]:
    """Return the estimates of a run that must not replace a number of the earlier entry.

    Raises UserError if the run has no other number.
    """
    if not earlier or not _is_continued(earlier, evidence):
        return []
    weaker = weaker_conditions(draws_of_evidence(evidence), earlier)
    if len(weaker) == len(evidence):
        raise UserError(
            f"the entry of {earlier.model!r} already has a full number, or an estimate with more draws, for every"
            " number of the run: there is nothing to submit. To replace an estimate, run the command again without"
            " --half-width or with a smaller one"
        )
    return [each for each in evidence if each.condition in weaker]


def _cells_to_keep(evidence: Sequence[CellRecords], earlier: Entry | None, folder: Path) -> list[CellRecords]:
    """Return the records of an earlier entry in `folder` that the run does not replace.

    Returns an empty result if the earlier entry has other weights or another protocol.
    """
    if not earlier or not _is_continued(earlier, evidence):
        return []
    replaced = {each.condition for each in evidence}
    if all(cell.condition in replaced for cell in earlier.cells):
        # The new run replaces all earlier records, so the file with the earlier records is not needed
        # and may be missing.
        return []
    return [each for each in read_entry_records(earlier, folder) if each.condition not in replaced]


def _order(evidence: CellRecords, track: Track) -> tuple[str, str, Fraction, int]:
    threat = evidence.threat
    return evidence.score.attack, threat.norm, threat.eps, track.datasets.index(evidence.score.dataset)


def _environment_of(kept: Sequence[CellRecords], earlier: Entry | None) -> list[Mapping[str, Any]]:
    attacks = {each.score.attack for each in kept}
    return [each for each in earlier.environment if each["attack"] in attacks] if earlier else []


def _environment(run: Path, evidence: Sequence[CellRecords]) -> list[Mapping[str, Any]]:
    """Return the software versions, machine and git commit for each attack. Paths and host names are removed."""
    attacks = {each.score.attack for each in evidence}
    found: list[Mapping[str, Any]] = []
    for path in manifests(run):
        manifest = read_manifest(path)
        if manifest.attack in attacks:
            found.append({key: getattr(manifest, key) for key in ("attack", "versions", "machine", "git_commit")})
    return found


def _submitted(entry: Entry, earlier: Entry | None, evidence: Sequence[CellRecords], date: str) -> Entry:
    """Return the submitted entry with the history and the counterexamples of the earlier entry, and a new event.

    Counterexamples follow the model. They are kept if the weights change, until `verify` classifies their images with
    the new weights. A counterexample is dropped if its sample is misclassified without an attack.
    """
    what = "submitted"
    if earlier:
        what = "submitted again" if earlier.weights == entry.weights else "submitted again with other weights"
        right = {
            (each.score.dataset, row.sample_id): row.label
            for each in evidence
            for row in each.results
            if row.broken_by != CLEAN
        }
        kept = tuple(
            example
            for example in earlier.counterexamples
            if right.get((example.dataset, example.sample_id), example.prediction) != example.prediction
        )
        entry = dataclasses.replace(entry, history=earlier.history, counterexamples=kept)
    facts = {"cells": len(evidence), "samples": sum(each.score.n for each in evidence)}
    return entry.after(date, "submission", what, facts)


def _remarks(evidence: Sequence[CellRecords], track: Track, card: ModelCard) -> Iterable[str]:
    if absent := datasets_without_standard_attack(evidence, track):
        where = ", ".join(absent) if len(absent) < len(track.datasets) else "every dataset"
        eps = Threat(track.norm, track.standard_eps).eps_text
        yield (
            f"records of {track.attack} at {eps} are missing for {where}: without them, the model does not get a rank"
        )
    own = [weights.file for weights in (card.image, card.text) if weights and weights.is_bundled]
    if own and card.name not in bundled_names(track.name):
        yield (
            f"the weights {own[0]} are only on your machine: publish them and add their https URL to the card as"
            " url, because a model without public weights cannot be verified"
        )
    if not card.paper:
        yield "the card does not name a paper: add the URL of the paper to the card as paper"


def _left_out(weaker: Sequence[CellRecords]) -> Iterable[str]:
    for attack, eps in dict.fromkeys((each.score.attack, each.score.eps) for each in weaker):
        yield (
            f"the estimate of {attack} at {eps} was left out: the entry already has a full number or an estimate with"
            " more draws"
        )


def _to_upload(entry: Entry) -> list[str]:
    if not entry.records.url:
        return []
    return [f"do not commit {entry.records.file}, but upload it to {entry.records.url}"]


def _pull_request(entry: Entry, evidence: Sequence[CellRecords], track: Track, remarks: Sequence[str]) -> str:
    """Return the text of the pull request. Its paths are those in the repository, not on this machine."""
    path = f"leaderboards/{entry.track}/{entry.model}.json"
    lines = [f"Add {entry.model} to the leaderboard {entry.track}", "", f"* Entry: `{path}`"]
    lines += [f"* Records: `leaderboards/{entry.track}/{entry.records.file}`, sha256 `{entry.records.sha256}`"]
    lines += [f"* Protocol: {entry.protocol.label}", "", "| attack | eps | clean | robust | samples |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    groups: dict[tuple[str, str], list[CellRecords]] = {}
    for each in evidence:
        if each.score.dataset not in track.training_datasets:
            groups.setdefault((each.score.attack, each.score.eps), []).append(each)
    for (attack, eps), some in groups.items():
        mean = mean_of([each.score for each in some])
        assert mean is not None, "a group has a score"
        if any(each.stages for each in some):
            estimate = estimate_group(some, track.training_datasets).mean
            mean = dataclasses.replace(mean, robust=estimate.value)
        count = sum(each.score.n for each in some)
        lines.append(f"| {attack} | {eps} | {percent(mean.clean)} | {percent(mean.robust)} | {count} |")
    lines += ["", *_estimate_lines(entry)] if entry.estimates else []
    lines += ["", f"To check the entry in a clone of the repository, run `vlmbench verify {path}`."]
    return "\n".join([*lines, *(f"To do: {remark}." for remark in remarks)]) + "\n"


def _estimate_lines(entry: Entry) -> Iterable[str]:
    """Yield a line of the pull request for each estimated mean."""
    for mean in entry.estimates:
        each = mean.estimate
        eps = Threat(mean.threat.norm, parse_eps(mean.threat.eps)).eps_text
        yield (
            f"{mean.attack} at {eps} is {each.text}. The result of the full attack is in"
            f" {percent_interval(*each.full_attack)} with 95 % confidence; other samples:"
            f" {percent_interval(*mean.robust_interval)}."
        )
