"""Read the per-sample records of models from entry files, run folders, or a track's leaderboard."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from robustbench_vlm.comparison.align import ModelRecords
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import user_path
from robustbench_vlm.core.registry import unknown
from robustbench_vlm.engine.cell_records import manifests, read_run
from robustbench_vlm.engine.manifest import MANIFEST
from robustbench_vlm.engine.store import safe_name
from robustbench_vlm.leaderboard.entry import board_folder, entry_paths, read_entry
from robustbench_vlm.leaderboard.entry_records import read_entry_records
from robustbench_vlm.models.reference import ModelName, parse_reference
from robustbench_vlm.tracks import TRACKS

_ADVICE = "An entry file (path/to/entry.json) or a run folder (runs/<track>/<model>) can be given too."


def read_sources(
    references: Sequence[str], track: str, *, attack: str = "", runs: Path | None = None
) -> tuple[ModelRecords, ...]:
    """Return the records of each reference, in the same order.

    A reference is an entry file, a run folder, or a name. A name is looked up in the entries of the package first. If
    no entry has this name and `runs` is given, the run folder `runs`/<track>/<name> is read. If a run contains
    `attack`, only the records of this attack are read. If several models have the same name, their references are added
    to the names in the result. Raises UserError for a reference that is unknown or repeated, and for records of another
    track. For an unknown reference, the message lists similar names.
    """
    TRACKS.load(track)
    if repeated := [reference for reference, count in Counter(references).items() if count > 1]:
        raise UserError(f"{repeated[0]!r} is given twice: give each model once")
    found = [_read(reference, track, attack, runs) for reference in references]
    for reference, source in zip(references, found, strict=True):
        if others := {each.track for each in source.evidence} - {track}:
            raise UserError(f"{reference} is of the track {min(others)!r}, not {track!r}: give --track {min(others)}")
    counts = Counter(source.name for source in found)
    return tuple(
        source if counts[source.name] == 1 else replace(source, name=f"{source.name} ({reference})")
        for reference, source in zip(references, found, strict=True)
    )


def _read(reference: str, track: str, attack: str, runs: Path | None) -> ModelRecords:
    path = user_path(reference)
    if path.suffix == ".json":
        return _of_entry(path)
    if _has_runs(path) or ("/" in reference and isinstance(parse_reference(reference).model, ModelName)):
        return _of_run(path, attack)
    entry = board_folder(track) / f"{reference}.json"
    if entry.is_file():
        return _of_entry(entry)
    places = f"the leaderboard of {track!r}"
    known = {path.stem for path in entry_paths(board_folder(track))}
    if runs is not None:
        folder = runs / safe_name(track)
        if _has_runs(folder / safe_name(reference)):
            return _of_run(folder / safe_name(reference), attack)
        places += f" and the folder {folder}"
        known |= {path.name for path in folder.glob("*") if _has_runs(path)}
    raise UserError(f"{unknown('result', reference, sorted(known))} The name was looked up in {places}. {_ADVICE}")


def _has_runs(folder: Path) -> bool:
    return bool(manifests(folder))


def _of_entry(path: Path) -> ModelRecords:
    entry = read_entry(path)
    notes = []
    if entry.status == "disputed":
        notes.append(f"the entry of {entry.model} is disputed: {entry.history[-1].what}")
    if count := len(entry.counterexamples):
        notes.append(f"recorded counterexamples against {entry.model}: {count}; this comparison does not count them")
    evidence = read_entry_records(entry, path.parent)
    finished = tuple(each for each in evidence if not each.stages)
    for attack, eps in dict.fromkeys((each.score.attack, each.score.eps) for each in evidence if each.stages):
        notes.append(
            f"{attack} at {eps} of {entry.model} is estimated: some of its samples are not finished, so this comparison"
            " does not use it"
        )
    return ModelRecords(entry.model, finished, tuple(notes))


def _of_run(folder: Path, attack: str) -> ModelRecords:
    own = folder / safe_name(attack)
    evidence = read_run(own if attack and (own / MANIFEST).is_file() else folder)
    return ModelRecords(evidence[0].score.model, evidence)
