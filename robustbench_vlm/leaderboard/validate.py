"""Soundness: what can be told of an entry without computing anything, weights and images left aside."""

import dataclasses
import datetime
import math
from collections.abc import Sequence
from pathlib import Path

from robustbench_vlm.attacks import load_attack
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import package_folder
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.core.records import CLEAN
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.engine.evidence import Condition, Evidence, Unsound
from robustbench_vlm.leaderboard.counterexamples import are_too_many, images_path, with_images
from robustbench_vlm.leaderboard.entry import Counterexample, Entry, read_entry
from robustbench_vlm.leaderboard.entry_records import read_evidence, records_name
from robustbench_vlm.models import card_names
from robustbench_vlm.models.card import parse_card, read_card
from robustbench_vlm.models.reference import parse_reference
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.test_time.defended_model import checked_reference
from robustbench_vlm.tracks import TRACKS, Track

_LEFT_OUT = {"unreadable", "incomplete"}
"""Gates of datasets that have fewer samples than the protocol asks for."""
_PROSE = {"notes", "reported", "folder"}
"""Fields of a card that say nothing of the model that was measured."""


def read_placed(path: Path) -> Entry:
    """Read an entry that lies where its track and model say; raises UserError where it is none, Unsound elsewhere."""
    entry = read_entry(path)
    if path.name != f"{entry.model}.json" or path.resolve().parent.name != entry.track:
        raise Unsound(f"{path} is the entry of {entry.model!r} on {entry.track!r}: its place says otherwise")
    return entry


def check_entry(entry: Entry, folder: Path) -> tuple[Evidence, ...]:
    """Return the evidence of an entry in `folder` if digests, sample ids, fingerprints, accuracies and names agree.

    Raises Unsound that says what does not agree.
    """
    track: Track = TRACKS.load(entry.track)
    label = PROTOCOLS.load(track.board).label
    if entry.protocol["label"] != label:
        raise Unsound(f"the board of {track.name!r} takes the protocol {label}, not {entry.protocol['label']}")
    if entry.card["name"] != str(parse_reference(entry.model).model):
        raise Unsound(f"the card is of {entry.card['name']!r}, the entry of {entry.model!r}")
    if entry.records.file != records_name(entry.model):
        raise Unsound(f"the records of {entry.model!r} must be {records_name(entry.model)}, not {entry.records.file}")
    if entry.status != entry.history[-1].status:
        raise Unsound(f"the entry says {entry.status!r}, and its history ends in {entry.history[-1].status!r}")
    _check_dates(entry)
    if foreign := set(entry.datasets) - set(track.datasets):
        raise Unsound(f"{min(foreign)!r} is no dataset of the track {track.name!r}")
    try:
        parse_card(entry.card, f"the card of {entry.model!r}")
    except UserError as error:
        raise Unsound(str(error)) from error
    evidence = read_evidence(entry, folder)
    keys = {each.condition for each in evidence}
    if len(keys) < len(evidence):
        raise Unsound("the entry has two numbers for one attack, dataset and radius")
    _check_counterexamples(entry.counterexamples, evidence, folder)
    return evidence


def check_definitions(entry: Entry, evidence: Sequence[Evidence]) -> None:
    """Raise Unsound where an entry's card, protocol, attacks, classes, prompts or counts are not this package's.

    The attacks of a test-time defense depend on the model, so that only `verify` can tell.
    """
    _check_card(entry)
    protocol: Protocol = PROTOCOLS.load(TRACKS.load(entry.track).board)
    if not _same(entry.protocol["identity"], protocol.identity):
        raise Unsound(f"what the entry calls {protocol.label} is another protocol than this package has")
    has_defense = bool(checked_reference(entry.model).defense)
    for each in evidence:
        name, norm = each.score.attack, each.threat.norm
        stages = [stage.identity for stage in protocol.adapt_attack(load_attack(name), norm).stages]
        if not has_defense and not _same(each.identity["attack"]["stages"], stages):
            raise Unsound(f"what the entry calls {name} is another attack than this package has")
        dataset: Dataset = protocol.adapt_dataset(DATASETS.load(each.score.dataset))
        if not _same([each.identity["classes"], each.identity["prompts"]], [dataset.classes, dataset.prompts]):
            raise Unsound(f"the classes or prompts of {dataset.name} are not those of the protocol")
        gates = {warning.partition(":")[0] for warning in each.score.warnings}
        if protocol.samples is not None and each.score.n != protocol.samples and not gates & _LEFT_OUT:
            raise Unsound(f"{dataset.name} has {each.score.n} samples, and the protocol takes {protocol.samples}")


def _check_card(entry: Entry) -> None:
    """Raise Unsound where a model of our zoo is said to be of other weights, data, papers or licence than there."""
    name = entry.card["name"]
    if name not in card_names(entry.track):
        return
    ours = read_card(package_folder("model_zoo") / entry.track / f"{name}.json")
    said = {key: value for key, value in plain(ours).items() if key not in _PROSE}
    if ours.has_weights and (other := [key for key, value in said.items() if not _same(entry.card.get(key), value)]):
        raise Unsound(f"the card of {name!r} is another than in the zoo: {', '.join(other)}")


def check_continuation(entry: Entry, evidence: Sequence[Evidence], earlier: Entry | None, folder: Path) -> None:
    """Raise Unsound where a submitted entry, which lies in `folder`, says more than a submitter may.

    History, records and counterexamples of the `earlier` entry stay, the latter two as long as the weights do. Numbers
    that it had not are claimed: better statuses are given where `verify` is run. Who disputes hands in counterexamples
    with their images, which `verify` judges.
    """
    known = earlier.history if earlier else ()
    if entry.history[: len(known)] != known:
        raise Unsound("the history of the entry before is not the beginning of this one's")
    allowed = {"claimed", "disputed"} if are_too_many(entry.counterexamples, evidence) else {"claimed"}
    if earlier and (earlier.status == "disputed" or _is_same_claim(entry, earlier)):
        allowed.add(earlier.status)
    if earlier and earlier.status == "disputed" and entry.repeats(earlier):
        # The same records do not become better by being handed in twice.
        allowed = {"disputed"}
    added = [event.status for event in entry.history[len(known) :]]
    if any(status not in allowed for status in added):
        raise Unsound("a submission claims: other statuses are given by who verifies it")
    before = earlier.counterexamples if earlier and entry.weights == earlier.weights else ()
    if earlier and entry.continues(earlier) and not _conditions(earlier) <= _conditions(entry):
        raise Unsound("records of the entry before are missing, and weights and protocol are the same")
    if set(entry.with_counterexamples(before).counterexamples) != set(entry.counterexamples):
        raise Unsound("counterexamples of the entry before are missing, and the weights are the same")
    for example in set(entry.counterexamples) - set(before):
        path = images_path(folder, example.source)
        if path is None or not path.is_file():
            raise Unsound(
                f"the counterexample {example.dataset} / {example.sample_id} has no image: hand in the file that"
                " `vlmbench dispute` writes beside the entry"
            )


def _check_dates(entry: Entry) -> None:
    dates = [event.date for event in entry.history]
    try:
        days = [datetime.date.fromisoformat(date) for date in dates]
    except ValueError as error:
        raise Unsound(f"the history of {entry.model!r} has a date that is none: {error}") from error
    # Somebody east of here may be a day ahead.
    if days != sorted(days) or days[-1] > datetime.date.today() + datetime.timedelta(days=1):
        raise Unsound(f"the history of {entry.model!r} is not in the order of time: {', '.join(dates)}")


def _conditions(entry: Entry) -> set[Condition]:
    return {cell.condition for cell in entry.cells}


def _is_same_claim(entry: Entry, earlier: Entry) -> bool:
    found = dataclasses.replace(
        entry, status=earlier.status, history=earlier.history, counterexamples=earlier.counterexamples
    )
    return _same(found, earlier)


def _check_counterexamples(examples: Sequence[Counterexample], evidence: Sequence[Evidence], folder: Path) -> None:
    """Raise Unsound for counterexamples of no sample, and for images beside the entry that are not theirs."""
    for _ in with_images(examples, folder):
        pass
    known = {(each.score.dataset, row.sample_id): row for each in evidence for row in each.results}
    for example in examples:
        row = known.get((example.dataset, example.sample_id))
        if row is None or row.broken_by == CLEAN or example.prediction == row.label:
            raise Unsound(f"the counterexample {example.dataset} / {example.sample_id} breaks no sample of the entry")
        if not (math.isfinite(example.distance) and example.distance > 0):
            raise Unsound(f"the counterexample {example.dataset} / {example.sample_id} has no distance")


def _same(first: object, second: object) -> bool:
    return fingerprint(plain(first)) == fingerprint(plain(second))
