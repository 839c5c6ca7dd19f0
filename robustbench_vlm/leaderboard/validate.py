"""Static validation of an entry: path, digests, sample ids, scores, definitions, history and counterexamples.

The validation does not need weights or images. `vlmbench verify` runs further checks with weights and images.
"""

import datetime
import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from robustbench_vlm.core.addresses import check_address
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import CLEAN
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.cell_records import CellRecords, Condition, Unsound
from robustbench_vlm.leaderboard.attestation import statement_bytes
from robustbench_vlm.leaderboard.counterexamples import images_path, unnamed_images, with_images
from robustbench_vlm.leaderboard.entry import Counterexample, Entry, entry_paths, read_entry
from robustbench_vlm.leaderboard.entry_records import read_entry_records, records_name
from robustbench_vlm.leaderboard.estimates import check_estimates, draws_of_entry, weaker_conditions
from robustbench_vlm.leaderboard.history import broken_link
from robustbench_vlm.leaderboard.record_ranges import check_ranges
from robustbench_vlm.leaderboard.signature import check_signature, trusted_signer
from robustbench_vlm.models.card import ModelCard, parse_card
from robustbench_vlm.models.reference import parse_reference
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.tracks import TRACKS, Track


def read_entry_in_place(path: Path) -> Entry:
    """Read an entry and check that its path is <track>/<model>.json.

    Raises UserError if the file is not an entry. Raises Unsound if the path belongs to another track or model.
    """
    entry = read_entry(path)
    if path.name != f"{entry.model}.json" or path.resolve().parent.name != entry.track:
        raise misplaced(entry, path)
    return entry


def misplaced(entry: Entry, path: Path) -> Unsound:
    """Return the error for an entry with the path of another track or model."""
    expected = f"{entry.track}/{entry.model}.json"
    return Unsound(f"{path} is the entry of {entry.model!r} on the track {entry.track!r}: move it to {expected}")


def check_entry(entry: Entry, folder: Path) -> tuple[CellRecords, ...]:
    """Check an entry in `folder` and its records. Return the records of each cell (one attack, dataset and radius).

    Raises Unsound if digests, sample ids, fingerprints, accuracies or names contradict each other. The message names
    the first contradiction.
    """
    track: Track = TRACKS.load(entry.track)
    label = PROTOCOLS.load(track.leaderboard_protocol).label
    if entry.protocol.label != label:
        raise Unsound(
            f"the protocol of an entry on {track.name!r} must be {label}, got {entry.protocol.label}: run it with"
            f" --protocol {track.leaderboard_protocol}"
        )
    if entry.card["name"] != str(parse_reference(entry.model).model):
        raise Unsound(
            f"the name of the card must be that of the entry's model {entry.model!r}, got {entry.card['name']!r}:"
            " submit the run again"
        )
    if entry.records.file != records_name(entry.model):
        raise Unsound(
            f"the records file of {entry.model!r} must be {records_name(entry.model)}, got {entry.records.file}:"
            " rename the file"
        )
    if foreign := set(entry.datasets) - set(track.datasets):
        raise Unsound(f"{min(foreign)!r} is not a dataset of the track {track.name!r}: leave it out of the submission")
    try:
        _check_sources(parse_card(entry.card, f"the card of {entry.model!r}"))
    except UserError as error:
        raise Unsound(str(error)) from error
    evidence = read_entry_records(entry, folder)
    check_ranges(entry, evidence)
    # The seed is that of this package, so that an author cannot choose the order of the draws.
    seed = PROTOCOLS.load(track.leaderboard_protocol).seed
    check_estimates(entry, evidence, seed, track.training_datasets)
    check_history(entry)
    _check_counterexamples(entry.counterexamples, evidence, folder)
    return evidence


def _check_sources(card: ModelCard) -> None:
    """Raise UserError if a card reads files outside its folder, or downloads from an address that is not public."""
    for weights in (card.image, card.text):
        if weights is None:
            continue
        path = PurePosixPath(weights.file.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise UserError(
                f"a file of {card.name!r} is {weights.file!r}, but it must be in the folder of the card: give the path"
                " relative to this folder"
            )
        if weights.url and not weights.url.startswith("hf:"):
            # The host is not looked up, so that the check gives the same result without a network.
            check_address(weights.url, resolve=False)
    # The property raises UserError for a card file outside the folder.
    _ = card.base_reference


def check_continuation(
    entry: Entry,
    earlier: Entry | None,
    folder: Path,
    *,
    evidence: Sequence[CellRecords] = (),
    allowed: Path | None = None,
) -> None:
    """Raise Unsound if a submission in `folder` removes data of the earlier entry, or adds evidence without proof.

    The history of the `earlier` entry must be kept. An attestation is accepted only with the signature of a trusted
    key, because anyone can write an attestation. If weights and protocol are the same, the earlier records must be
    kept. The counterexamples of the model are always kept, because only `verify` can judge them on new weights. New
    counterexamples must be submitted with their images.

    `evidence` has the records of the entry. `allowed` is a file of trusted keys, by default the one of the installed
    package.
    """
    known = earlier.history if earlier else ()
    if entry.history[: len(known)] != known:
        raise Unsound(
            "the history of the earlier entry must be the beginning of the new history: restore the"
            " events of the earlier entry"
        )
    for event in entry.history[len(known) :]:
        if event.kind in ("attestation", "earlier") and not (
            event.attestation and trusted_signer(statement_bytes(event), event.signature, allowed)
        ):
            raise Unsound(
                f"a submission must not add the event {event.what!r}: only an attestation with the signature of a"
                " trusted key may be added; remove the event"
            )
        if event.kind == "migration":
            raise Unsound("a submission must not add a migration: run and submit the model again")
    if earlier is None:
        _check_new_images(entry.counterexamples, folder)
        return
    if entry.continues(earlier) and not _conditions(earlier) <= _conditions(entry):
        raise Unsound(
            "records of the earlier entry are missing: keep them, because the weights and the protocol have not changed"
        )
    if entry.continues(earlier) and (weaker := weaker_conditions(draws_of_entry(entry), earlier)):
        attack, dataset, norm, eps = min(weaker)
        raise Unsound(
            f"{attack} / {dataset} / {Threat(norm, eps)} is an estimate, but the earlier entry has a full number or an"
            " estimate with more draws: keep the earlier records"
        )
    removed = _missing_counterexamples(entry, earlier, evidence)
    if removed and not any(event.attestation for event in entry.history[len(known) :]):
        raise Unsound(
            f"the counterexample {removed[0].dataset} / {removed[0].sample_id} of the earlier entry is missing: keep"
            " it, also if the weights have changed, because only `vlmbench verify` can judge it again"
        )
    _check_new_images([each for each in entry.counterexamples if each not in earlier.counterexamples], folder)


def _missing_counterexamples(entry: Entry, earlier: Entry, evidence: Sequence[CellRecords]) -> list[Counterexample]:
    """Return the counterexamples that a submission lacks.

    A counterexample may be replaced by a nearer one. With other weights, it may be left out if the records say that the
    sample is misclassified without an attack.
    """
    kept = {(each.dataset, each.sample_id, each.norm): each.distance for each in entry.counterexamples}
    wrong = {(each.score.dataset, row.sample_id) for each in evidence for row in each.results if row.broken_by == CLEAN}
    return [
        each
        for each in earlier.counterexamples
        if kept.get((each.dataset, each.sample_id, each.norm), math.inf) > each.distance
        and not (entry.weights != earlier.weights and (each.dataset, each.sample_id) in wrong)
    ]


def _check_new_images(examples: Sequence[Counterexample], folder: Path) -> None:
    for example in examples:
        path = images_path(folder, example.source)
        if path is None or not path.is_file():
            raise Unsound(
                f"the counterexample {example.dataset} / {example.sample_id} lacks an image: submit the file that"
                " `vlmbench dispute` or `vlmbench verify` writes next to the entry"
            )


def check_history(entry: Entry) -> None:
    """Raise Unsound if the history of an entry was changed, is not chronological, or has an invalid signature.

    Each event must have the digest of the event before it. The last submission or migration must have the digests of
    the entry, so results cannot be changed without an event. Signatures are checked if ssh-keygen is installed.
    """
    if (broken := broken_link(entry.history)) is not None:
        raise Unsound(
            f"the event {broken + 1} in the history of {entry.model!r} does not have the digest of the event before it:"
            " the history was changed; restore the events that `vlmbench` wrote"
        )
    if entry.history[-1].subject != entry.subject:
        raise Unsound(
            f"the last event in the history of {entry.model!r} has the digests of other results: the results were"
            " changed without an event; submit them with `vlmbench submit`"
        )
    for event in entry.history:
        if (event.kind == "attestation") != (event.attestation is not None):
            raise Unsound(
                f"the event {event.what!r} of {entry.model!r} must have an attestation exactly if its kind is"
                " 'attestation': restore the events that `vlmbench` wrote"
            )
        if event.signature:
            check_signature(statement_bytes(event) if event.attestation else b"", event.signature)
    _check_dates(entry)


def check_neighbours(entry: Entry, folder: Path) -> None:
    """Raise Unsound if an entry contradicts another entry in its folder, or if an image file belongs to no entry.

    The names of two entries may not differ only in upper and lower case. Two entries may not have the same weights.
    Other entries in the folder that are invalid are ignored.
    """
    others = [path for path in entry_paths(folder) if path.name != f"{entry.model}.json"]
    for path in others:
        if path.stem.casefold() == entry.model.casefold():
            raise Unsound(
                f"the entries {path.stem!r} and {entry.model!r} differ only in upper and lower case: rename"
                f" {entry.model!r}"
            )
        if _weights_of(path) == entry.weights:
            raise Unsound(
                f"the entries {path.stem!r} and {entry.model!r} have the same weights: one model has one entry, so"
                " remove one of them"
            )
    if unnamed := unnamed_images(folder):
        raise Unsound(
            f"no entry names {unnamed[0]} as the images of a counterexample: remove this file, or restore the entry"
            " that `vlmbench dispute` wrote"
        )


def _weights_of(path: Path) -> str:
    """Return the digest of the weights of an entry, or "" if the entry is invalid."""
    try:
        return read_entry(path).weights
    except UserError:
        return ""


def _check_dates(entry: Entry) -> None:
    dates = [event.date for event in entry.history]
    try:
        days = [datetime.date.fromisoformat(date) for date in dates]
    except ValueError as error:
        raise Unsound(f"the history of {entry.model!r} has an invalid date: {error}; expected YYYY-MM-DD") from error
    # The date may be one day after today, because the submitter may be in another time zone.
    if days != sorted(days) or days[-1] > datetime.date.today() + datetime.timedelta(days=1):
        raise Unsound(
            f"the history of {entry.model!r} is not in chronological order, or has a date in the future:"
            f" {', '.join(dates)}; give each event the date on which it happened"
        )


def _conditions(entry: Entry) -> set[Condition]:
    return {cell.condition for cell in entry.cells}


def _check_counterexamples(examples: Sequence[Counterexample], evidence: Sequence[CellRecords], folder: Path) -> None:
    """Raise Unsound if a counterexample has no image, or if its sample or its prediction does not fit the entry.

    The entry must have the sample, the model must classify the sample correctly without an attack, and the prediction
    for the counterexample must be wrong.
    """
    for _ in with_images(examples, folder):
        pass
    known = {(each.score.dataset, row.sample_id): row for each in evidence for row in each.results}
    for example in examples:
        row = known.get((example.dataset, example.sample_id))
        if row is None or row.broken_by == CLEAN or example.prediction == row.label:
            raise Unsound(f"the counterexample {example.dataset} / {example.sample_id} breaks no sample of the entry")
        if not (math.isfinite(example.distance) and example.distance > 0):
            raise Unsound(
                f"the counterexample {example.dataset} / {example.sample_id} needs a positive finite distance"
            )
