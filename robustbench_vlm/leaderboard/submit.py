"""Submissions: a run becomes an entry, its records, and the text of a pull request."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.evidence import Evidence, manifests, read_manifest, read_run
from robustbench_vlm.engine.results import mean_of
from robustbench_vlm.leaderboard.entry import Entry, Event, read_entry, write_entry
from robustbench_vlm.leaderboard.entry_records import make_entry, read_evidence, write_records
from robustbench_vlm.leaderboard.rebuild import rebuild, rescored
from robustbench_vlm.leaderboard.validate import check_entry
from robustbench_vlm.models.card import ModelCard, bundled_names, find_card
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.test_time.defended_model import checked_reference
from robustbench_vlm.tracks import TRACKS, Track


@dataclass(frozen=True)
class Submission:
    """What a run becomes; nothing is written before `write`."""

    entry: Entry
    content: bytes
    """Of the records file."""
    remarks: tuple[str, ...]
    """What reviewers will ask for, in sentences."""
    pull_request: str
    """Its text, in Markdown."""

    def write(self, folder: Path) -> Path:
        """Write the entry and its records below a folder of leaderboards, and return the entry's path."""
        path = folder / self.entry.track / f"{self.entry.model}.json"
        write_records(self.content, path.parent / self.entry.records.file)
        write_entry(self.entry, path)
        # What the board would refuse is told now.
        check_entry(self.entry, path.parent)
        return path


def submission(
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
    """Make the entry of a run's folder, runs/<track>/<model>, out of the cells that the track's board takes.

    `model` is the reference that loads the model, if its name does not. An earlier entry below `board`, a folder of
    leaderboards, keeps its history, and where it is of the same weights and protocol, all that the run has not measured
    again: no number rises by handing in less. `records` is the https address where the records file will be, if not in
    the repository. Raises UserError where the records are not those of the model, data and protocol on this machine.
    """
    found = read_run(run)
    track: Track = TRACKS.load(found[0].track)
    evidence = _ranked(found, track, run)
    place = (board or Path()) / track.name / f"{evidence[0].score.model}.json"
    earlier = read_entry(place) if board is not None and place.is_file() else None
    kept = _not_measured_again(evidence, earlier, place.parent)
    evidence = sorted([*evidence, *kept], key=lambda each: _order(each, track))
    reference = model or evidence[0].score.model
    plan, numbers = rebuild(evidence, reference, data=data)
    scores = rescored([plan.cells[number] for number in numbers], evidence)
    evidence = [dataclasses.replace(each, score=score) for each, score in zip(evidence, scores, strict=True)]
    card = find_card(str(checked_reference(reference).model), track.name)
    event = Event(date, "claimed", "submitted", {"cells": len(evidence), "samples": sum(e.score.n for e in evidence)})
    said = {key: value for key, value in plain(card).items() if key != "folder"}
    environment = [*_environment(run, evidence), *_environment_of(kept, earlier)]
    entry, content = make_entry(evidence, said, environment, event, plan.protocol.identity)
    if records and not records.startswith("https://"):
        raise UserError(f"the address of the records must begin with https://, and {records!r} does not")
    named = dataclasses.replace(entry.records, url=records)
    entry = dataclasses.replace(entry, links=links or {}, note=note, records=named)
    if earlier:
        entry = _continued(entry, earlier)
    remarks = (*_remarks(evidence, track, card), *_to_upload(entry))
    return Submission(entry, content, remarks, _pull_request(entry, evidence, track, remarks))


def missing(evidence: Iterable[Evidence], track: Track) -> list[str]:
    """Return the datasets of a track on which the standard attack at the standard radius is not on record."""
    there = {
        each.score.dataset
        for each in evidence
        if each.score.attack == track.attack and (each.threat.norm, each.threat.eps) == (track.norm, track.standard_eps)
    }
    return [name for name in track.datasets if name not in there]


def _ranked(found: Sequence[Evidence], track: Track, run: Path) -> list[Evidence]:
    if len({each.score.model for each in found}) > 1:
        raise UserError(f"{run} has several models: give the folder of one, runs/<track>/<model>")
    label = PROTOCOLS.load(track.board).label
    kept = [each for each in found if each.protocol == label and each.score.dataset in track.datasets]
    if not kept:
        had = ", ".join(sorted({each.protocol for each in found}))
        raise UserError(
            f"the board of {track.name!r} takes records of the protocol {label} on the track's datasets, and {run} has"
            f" {had}: run `vlmbench run --track {track.name} --model {found[0].score.model} --protocol {track.board}`"
        )
    return kept


def _not_measured_again(evidence: Sequence[Evidence], earlier: Entry | None, folder: Path) -> list[Evidence]:
    """Return what an earlier entry of the same weights and protocol, in `folder`, has on record and the run has not."""
    first = evidence[0].identity
    if not earlier or (earlier.weights, earlier.protocol["identity"]) != (first["weights"], first["protocol"]):
        return []
    again = {each.condition for each in evidence}
    if all(cell.condition in again for cell in earlier.cells):
        # Nothing of it is needed then, whatever has become of its records.
        return []
    return [each for each in read_evidence(earlier, folder) if each.condition not in again]


def _order(evidence: Evidence, track: Track) -> tuple[str, str, Fraction, int]:
    """Return what cells are sorted by, so that runs handed in one by one give the entry that they give together."""
    threat = evidence.threat
    return evidence.score.attack, threat.norm, threat.eps, track.datasets.index(evidence.score.dataset)


def _environment_of(kept: Sequence[Evidence], earlier: Entry | None) -> list[Mapping[str, Any]]:
    attacks = {each.score.attack for each in kept}
    return [each for each in earlier.environment if each["attack"] in attacks] if earlier else []


def _environment(run: Path, evidence: Sequence[Evidence]) -> list[Mapping[str, Any]]:
    """Return what the records were made on, an attack each; paths and names of the machine stay out."""
    attacks = {each.score.attack for each in evidence}
    found: list[Mapping[str, Any]] = []
    for path in manifests(run):
        manifest = read_manifest(path)
        if manifest.get("attack") in attacks:
            found.append({key: manifest.get(key) for key in ("attack", "versions", "machine", "git_commit")})
    return found


def _continued(entry: Entry, earlier: Entry) -> Entry:
    """Return the entry with the history of the one that it replaces, and what is known against the same weights."""
    kept = earlier.counterexamples if earlier.weights == entry.weights else ()
    event = entry.history[0]
    is_same = earlier.weights == entry.weights
    what = "submitted again" if is_same else "submitted again, with other weights"
    if earlier.status == "disputed" and entry.repeats(earlier):
        # The same records do not become better by being handed in twice.
        event, what = dataclasses.replace(event, status="disputed"), "submitted again, with the same records"
    again = dataclasses.replace(entry, history=earlier.history, counterexamples=kept)
    return again.after(dataclasses.replace(event, what=what))


def _remarks(evidence: Sequence[Evidence], track: Track, card: ModelCard) -> Iterable[str]:
    if absent := missing(evidence, track):
        where = ", ".join(absent) if len(absent) < len(track.datasets) else "every dataset"
        eps = Threat(track.norm, track.standard_eps).eps_text
        yield f"{track.attack} at {eps} is missing on {where}: without it the model stands on the board without a rank"
    own = [weights.file for weights in (card.image, card.text) if weights and weights.is_bundled]
    if own and card.name not in bundled_names(track.name):
        yield (
            f"{own[0]} is only on your machine: publish it and put its https address into the card as url, since"
            " nobody can verify a model without its weights"
        )
    if not card.paper:
        yield "the card names no paper"


def _to_upload(entry: Entry) -> list[str]:
    if not entry.records.url:
        return []
    return [f"leave {entry.records.file} out of the commit, and put it at {entry.records.url}"]


def _pull_request(entry: Entry, evidence: Sequence[Evidence], track: Track, remarks: Sequence[str]) -> str:
    place = f"leaderboards/{entry.track}/{entry.model}.json"
    lines = [f"Add {entry.model} to the leaderboard {entry.track}", "", f"* Entry: `{place}`"]
    lines += [f"* Records: `leaderboards/{entry.track}/{entry.records.file}`, sha256 `{entry.records.sha256}`"]
    lines += [f"* Protocol: {entry.protocol['label']}", "", "| attack | eps | clean | robust | samples |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    groups: dict[tuple[str, str], list[Evidence]] = {}
    for each in evidence:
        if each.score.dataset not in track.seen:
            groups.setdefault((each.score.attack, each.score.eps), []).append(each)
    for (attack, eps), some in groups.items():
        mean = mean_of([each.score for each in some])
        assert mean is not None, "a group has a score"
        count = sum(each.score.n for each in some)
        lines.append(f"| {attack} | {eps} | {100 * mean.clean:.1f} | {100 * mean.robust:.1f} | {count} |")
    lines += ["", f"Anybody checks it by `vlmbench verify {place}`."]
    return "\n".join([*lines, *(f"To do: {remark}." for remark in remarks)]) + "\n"
