"""Migrate entry and card files of earlier formats to the current format. Their fingerprints are checked first.

A fingerprint is the digest of an identity, a JSON object. The identities of version 0.1 contain import paths and names
that were changed later. The migration changes only names. It does not change records, verdicts and weights. A new
fingerprint is computed only if the old fingerprint is correct.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import write_text
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.core.strict_json import read_json
from robustbench_vlm.leaderboard.entry import FORMAT, MAX_BYTES, RecordsFile
from robustbench_vlm.leaderboard.entry_records import read_rows, records_path
from robustbench_vlm.leaderboard.history_migration import with_digests
from robustbench_vlm.models.reference import parse_reference

_ALGORITHMS = {
    "robustbench_vlm.attacks.apgd:apgd": "apgd",
    "robustbench_vlm.attacks.fab:fab": "fab",
    "robustbench_vlm.attacks.gradient:pgd": "pgd",
    "robustbench_vlm.attacks.square:square": "square",
    "robustbench_vlm.attacks.official:official": "pyautoattack",
    "robustbench_vlm.attacks.library:torchattacks_stage": "torchattacks",
}
"""Current name of each algorithm. The keys are the import paths of version 0.1. After the migration, the version of
each algorithm is 1.
"""
_PARAMETERS = {
    "fab": {"overshoot": "eta", "backward": "beta", "pull": "alpha_max"},
    "square": {"share": "p_init"},
    "pgd": {"keep": "iterate"},
}
_PROTOCOL = {
    "side": "image_size",
    "keep": "iterate",
    "verdicts": "verdict_precision",
    "logits": "logit_precision",
    "wording": "prompt_source",
    "small": "small_transform",
    "absent": "missing_datasets",
}
_TRAINING = {
    "pictures": "images",
    "pictures_digest": "images_digest",
    "side": "image_size",
    "rate": "lr",
    "batch": "batch_size",
    "decay": "weight_decay",
}
_NOT_IDENTITY = ("track", "seconds", "fingerprint")
"""Keys of a card's "training" object that the training fingerprint does not cover."""
_ADVICE = "give an entry or card file of version 0.1, or an entry of format 2"


def migrate_file(path: Path, *, date: str) -> bool:
    """Rewrite an entry or card file of an earlier format in place. Returns False if the file has the current format.

    Raises UserError if the file is not an entry or card, or if an old fingerprint does not match its identity. In these
    cases the file is not changed.
    """
    values = read_json(path, "the file", max_bytes=MAX_BYTES, advice=_ADVICE)
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object: {_ADVICE}")
    try:
        is_entry = "cells" in values
        migrated = _migrate_entry(values, path, date) if is_entry else migrate_card(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not have the fields of version 0.1 ({error!r}): {_ADVICE}") from error
    if migrated == values:
        return False
    write_text(path, json.dumps(migrated, indent=1 if is_entry else 2, ensure_ascii=True) + "\n")
    return True


def _migrate_entry(values: Mapping[str, Any], path: Path, date: str) -> dict[str, Any]:
    """Convert an entry of an earlier format to the current format."""
    if values["format"] == FORMAT:
        return dict(values)
    if values["format"] not in (1, 2):
        raise UserError(f"the entry has format {values['format']!r}, expected 1 or 2: {_ADVICE}")
    second = migrate_entry(values, path.parent, date=date) if values["format"] == 1 else values
    found: dict[str, Any] = plain(with_digests(second, f"the migrated entry {path}", date=date, advice=_ADVICE))
    return found


def migrate_entry(values: Mapping[str, Any], folder: Path, *, date: str) -> dict[str, Any]:
    """Convert an entry of format 1 to format 2, and add the migration to the entry's history.

    `values` is the JSON object of the entry, and `folder` is the folder of the entry file.
    """
    if parse_reference(values["model"]).defense:
        # In the current format, the weights digest of a test-time defense also covers the version of the defense. The
        # new digest cannot be computed here, because the weights are not loaded.
        raise UserError(
            f"{values['model']!r} is a test-time defense, whose entries cannot be migrated: run and submit it again"
        )
    path = records_path(RecordsFile(**values["records"]), folder, values["model"])
    found = read_rows(path, sum(cell["score"]["n"] for cell in values["cells"]))
    rows = {number: results for number, (results, _) in found.items()}
    attacks = {name: [_stage(stage) for stage in stages] for name, stages in values["attacks"].items()}
    protocol = {**values["protocol"], "identity": _renamed(values["protocol"]["identity"], _PROTOCOL)}
    cells = []
    for number, cell in enumerate(values["cells"]):
        about = f"{values['model']} / {cell['attack']} / {cell['dataset']} / {cell['threat']['eps']}"
        if fingerprint(rows.get(number, [])) != cell["content"]:
            raise UserError(
                f"{path} contains other records of {about} than the entry requires: the entry was not"
                " migrated; restore its records file"
            )
        ids = [row.sample_id for row in rows[number]]
        old = _identity(values, cell, values["attacks"], values["protocol"], ids)
        if fingerprint(old) != cell["fingerprint"]:
            raise UserError(
                f"the fingerprint of {about} does not match its identity: the entry was not migrated;"
                " restore the original file"
            )
        new = _identity(values, cell, attacks, protocol, ids)
        cells.append({**cell, "fingerprint": fingerprint(new)})
    event = {
        "date": date,
        "status": values["status"],
        "what": "The migration checked the fingerprints of version 0.1. Names and versions of algorithms then"
        " replaced import paths in the identities. Records and verdicts did not change",
        "facts": {"cells": len(cells), "from format": 1, "to format": 2, "old cells": _digest(values["cells"])},
    }
    return {
        **values,
        "format": 2,
        "card": migrate_card(values["card"]),
        "protocol": protocol,
        "attacks": attacks,
        "cells": cells,
        "history": [*values["history"], event],
    }


def migrate_card(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a card of version 0.1 with the current names and a new training fingerprint."""
    training = values.get("training", {})
    if not set(training) & {"pictures", "side", "batch"}:
        return dict(values)
    old = {key: value for key, value in training.items() if key not in _NOT_IDENTITY}
    if "fingerprint" in training and fingerprint(old) != training["fingerprint"]:
        raise UserError(
            f"the training fingerprint of {values.get('name')!r} does not match its card: the card was not"
            " migrated; restore the original file"
        )
    renamed: dict[str, Any] = {}
    for key, value in training.items():
        renamed[_TRAINING.get(key, key)] = _renamed(value, _TRAINING) if key == "schedule" else value
        if key == "defense":
            renamed["defense_version"] = 1
    if "fingerprint" in renamed:
        identity = {key: value for key, value in renamed.items() if key not in _NOT_IDENTITY}
        renamed["fingerprint"] = fingerprint(identity)
    return {**values, "training": renamed}


def _identity(
    entry: Mapping[str, Any],
    cell: Mapping[str, Any],
    attacks: Mapping[str, Any],
    protocol: Mapping[str, Any],
    ids: list[str],
) -> dict[str, Any]:
    return {
        "weights": entry["weights"],
        "dataset": cell["dataset"],
        **entry["datasets"][cell["dataset"]],
        "samples": ids,
        "attack": {"name": cell["attack"], "stages": attacks[cell["attack"]]},
        "threat": cell["threat"],
        "protocol": protocol["identity"],
    }


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    if stage["function"] not in _ALGORITHMS:
        raise UserError(f"the stage function {stage['function']!r} is unknown in version 0.1: run this attack again")
    algorithm = _ALGORITHMS[stage["function"]]
    parameters = _renamed(stage["parameters"], _PARAMETERS.get(algorithm, {}))
    return {"name": stage["name"], "algorithm": algorithm, "version": 1, "parameters": parameters}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in values.items()}


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
