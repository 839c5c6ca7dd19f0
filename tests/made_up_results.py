"""Make cell records, entries and run folders without a model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustbench_vlm.attacks.phases import stages_passed
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.core.records import CLEAN, UNFINISHED, SampleResult, Score
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.engine.cell import Shard
from robustbench_vlm.engine.cell_records import CellRecords, checked, data_digest
from robustbench_vlm.engine.estimate import draw_order
from robustbench_vlm.engine.manifest import MANIFEST
from robustbench_vlm.engine.results import accuracies
from robustbench_vlm.engine.store import safe_name, write_shard
from robustbench_vlm.leaderboard.entry import Entry, write_entry
from robustbench_vlm.leaderboard.entry_records import make_entry, write_records
from robustbench_vlm.leaderboard.estimates import cell_estimates
from robustbench_vlm.leaderboard.history import Attestation

CLASSES = ("a", "b", "c")
PROTOCOL = {"name": "mini", "version": 1}


def samples(broken: Sequence[str], *, first: int = 0, classes: int = 3) -> tuple[SampleResult, ...]:
    """Return a record for each `broken_by` value ("clean", "" or a stage), with ids from `first` on."""
    return tuple(
        SampleResult(
            sample_id=f"{n:04d}",
            image_sha256=f"{n:064x}",
            label=n % classes,
            clean_prediction=(n + (stage == CLEAN)) % classes,
            adversarial_prediction=(n + (stage != "")) % classes,
            broken_by=stage,
            distance=0.0 if stage in ("", CLEAN) else 0.001,
            forward=7,
            backward=3,
            margin=-0.25 if stage == CLEAN else 0.25,
            warnings="",
        )
        for n, stage in enumerate(broken, first)
    )


def evidence(
    model: str,
    broken: Sequence[str],
    dataset: str = "shapes",
    *,
    attack: str = "autoattack",
    eps: str = "5/255",
    norm: str = "Linf",
    track: str = "mini",
    protocol: str = "mini/1",
    warnings: tuple[str, ...] = (),
    results: Sequence[SampleResult] = (),
    stages: Sequence[Any] = (),
    settings: Any = PROTOCOL,
    passed: tuple[str, ...] = (),
    **identity: Any,
) -> CellRecords:
    """Return the records of one cell with these `broken_by` values; `identity` replaces fields of its identity.

    `stages` has the identity of each stage of the attack, and `settings` is the identity of the protocol. The defaults
    are made up. `passed` is `CellRecords.stages`.
    """
    records = tuple(results) or samples(broken)
    threat = Threat(norm, parse_eps(eps))
    names = ["apgd-ce", "square"] + [attack] * (attack != "autoattack")
    stages = list(stages) or [{"name": name, "function": f"made:{name}", "params": {}} for name in names]
    said = {
        "weights": fingerprint(model),
        "dataset": dataset,
        "classes": list(CLASSES),
        "prompts": [f"a {name}" for name in CLASSES],
        "data": data_digest(records),
        "attack": {"name": attack, "stages": stages},
        "threat": plain(threat),
        "protocol": settings,
        **identity,
    }
    classes = len(said["classes"])
    score = Score(model, attack, dataset, classes, threat.eps_text, warnings=warnings, **accuracies(records))
    print_ = fingerprint({**said, "samples": [each.sample_id for each in records]})
    return checked(CellRecords(track, protocol, said, print_, score, records, passed))


def estimated(
    model: str, full: Mapping[str, Sequence[str]], drawn: int, *, order: Sequence[tuple[int, str]] = (), **about: Any
) -> list[CellRecords]:
    """Return the records of an estimated run that attacked the first `drawn` survivors in full.

    `full` has the `broken_by` values of the full attack for each dataset. `order` replaces the order of the protocol.
    """
    whole = {name: samples(broken) for name, broken in full.items()}
    survivors = [
        (number, name, len(rows), row.sample_id)
        for number, (name, rows) in enumerate(whole.items())
        for row in rows
        if row.broken_by not in (CLEAN, "apgd-ce")
    ]
    chosen = set((order or draw_order(0, survivors))[:drawn])
    identities = [{"name": "apgd-ce"}, {"name": "square"}]
    cells = []
    for number, (name, rows) in enumerate(whole.items()):
        open_ids = {sample for n, _, _, sample in survivors if n == number and (n, sample) not in chosen}
        found = [unfinished(row) if row.sample_id in open_ids else row for row in rows]
        stages = [stages_passed(identities, row.broken_by, both=(number, row.sample_id) in chosen) for row in found]
        own = tuple(stages) if open_ids else ()
        cells.append(evidence(model, (), name, results=found, passed=own, **about))
    return [
        replace(cell, score=replace(cell.score, robust=found.value, robust_interval=(found.low, found.high)))
        if found
        else cell
        for cell, found in zip(cells, cell_estimates(cells), strict=True)
    ]


def unfinished(row: SampleResult) -> SampleResult:
    """Return the record of a sample that survived the first phase and was not attacked in full."""
    return replace(row, broken_by=UNFINISHED, adversarial_prediction=row.label, distance=0.0, forward=2, backward=1)


def write_run(found: Sequence[CellRecords], out: Path) -> Path:
    """Write the records of one model as a run folder and return the folder of the model."""
    folder = out / found[0].track / safe_name(found[0].score.model)
    for attack in dict.fromkeys(each.score.attack for each in found):
        cells = {}
        for number, each in enumerate(each for each in found if each.score.attack == attack):
            name = f"{each.score.dataset}-{number}"
            shard = Shard(number, 0, len(each.results), each.fingerprint)
            write_shard(folder / attack / name, shard, each.results)
            identity = {**plain(each.identity), "samples": len(each.results)}
            cells[name] = {
                "fingerprint": each.fingerprint,
                "identity": identity,
                "protocol": each.protocol,
                "score": plain(each.score),
            }
        document = {"track": found[0].track, "model": found[0].score.model, "attack": attack, "cells": cells}
        (folder / attack / MANIFEST).write_text(json.dumps(document), encoding="utf-8")
    return folder


def attested(entry: Entry, outcome: str = "confirmed", *, date: str = "2026-01-01", **fields: Any) -> Entry:
    """Return the entry with an attestation of its current results; `fields` replaces fields of the attestation."""
    about: dict[str, Any] = {
        **{"is_full": False, "bound": 0.01, "datasets": tuple(entry.datasets), "seed": 1, "attempt": 1},
        **{"machine": "1" * 32, "environment": {}, "parts": (), "disagreements": (), "problems": ()},
    }
    attestation = Attestation(outcome, **{**about, **fields})
    return entry.after(date, "attestation", "made up", attestation=attestation)


def write_board_entry(
    found: Sequence[CellRecords], folder: Path, status: str = "claimed", *, date: str = "2026-01-01", **changes: Any
) -> Path:
    """Write an entry of one model with its records and return the path of the entry.

    `changes` replaces fields of the entry. If `status` is not "claimed", the entry has an attestation that gives it.
    """
    model = found[0].score.model
    card = {"name": model, "architecture": "mini"}
    entry, content = make_entry(found, card, (), found[0].identity["protocol"])
    entry = replace(entry.after(date, "submission", "made up"), **changes)
    if status != "claimed":
        outcome = "contradicted" if status == "disputed" else "confirmed"
        entry = attested(entry, outcome, date=date, is_full=status == "verified")
    write_records(content, folder / entry.records.file)
    write_entry(entry, folder / f"{model}.json")
    return folder / f"{model}.json"
