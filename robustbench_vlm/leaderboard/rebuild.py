"""Rebuild the cells of an entry from local weights and images, and compare their fingerprints.

A cell is one attack on one dataset at one radius.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import cache_folder, write_text
from robustbench_vlm.core.fingerprint import fingerprint, plain
from robustbench_vlm.core.records import Score
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.cell_records import CellRecords, Condition, Unsound
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import Plan, resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.results import score
from robustbench_vlm.engine.store import safe_name
from robustbench_vlm.engine.warnings import with_comparisons
from robustbench_vlm.leaderboard.entry import Entry
from robustbench_vlm.leaderboard.estimates import cell_estimates
from robustbench_vlm.models import MODELS, card_names
from robustbench_vlm.models.card import read_card
from robustbench_vlm.models.reference import CardFile, ModelReference
from robustbench_vlm.test_time.defended_model import checked_reference

_DIFFERENCES = {
    "weights": "other weights",
    "classes": "other class names",
    "prompts": "other prompts",
    "data": "other images",
    "attack": "other attack parameters",
    "protocol": "another protocol",
}


def rebuild(
    evidence: Sequence[CellRecords], reference: str, *, data: Path | None = None, resources: Resources | None = None
) -> tuple[Plan, list[int]]:
    """Return a plan with the cells of an entry. `evidence` has the records of the entry.

    Also returns, for each item of `evidence`, the index of its cell in the plan.

    Raises Unsound if a cell and its records have different fingerprints. The message names the cause, such as other
    weights or other prompts. Raises UserError if only the images differ. Also raises the errors of `resolve`.
    """
    first = evidence[0]
    conditions = [each.condition for each in evidence]
    plan, found = plan_of(conditions, reference, first.track, first.protocol, data=data, resources=resources)
    for each, number in zip(evidence, found, strict=True):
        ids = [result.sample_id for result in each.results]
        if each.fingerprint != plan.cells[number].fingerprint and ids != list(plan.cells[number].samples.ids):
            raise Unsound(
                f"the records of {plan.cells[number].label} are not those of the protocol's samples: some samples are"
                " missing or are from other data"
            )
        expect_same(each.fingerprint, each.identity, plan.cells[number])
    return plan, found


def plan_of(
    conditions: Sequence[Condition],
    reference: str,
    track: str,
    protocol: str,
    *,
    data: Path | None = None,
    resources: Resources | None = None,
) -> tuple[Plan, list[int]]:
    """Return a plan with a cell for each condition, and for each condition the index of its cell in the plan.

    `protocol` is a name and version, such as "mini/1". Raises the errors of `resolve`, and UserError if the conditions
    have several norms.
    """
    norms = {norm for _, _, norm, _ in conditions}
    if len(norms) > 1:
        raise UserError(f"the records mix the norms {' and '.join(sorted(norms))}: use one run for each norm")
    request = Request(
        models=(reference,),
        attacks=tuple(dict.fromkeys(attack for attack, _, _, _ in conditions)),
        track=track,
        datasets=tuple(dict.fromkeys(dataset for _, dataset, _, _ in conditions)),
        eps=tuple(sorted({eps for _, _, _, eps in conditions})),
        norm=norms.pop(),
        protocol=protocol.partition("/")[0],
        data=data,
        resources=resources or Resources(workers=1),
    )
    plan = resolve(request)
    cells = enumerate(plan.cells)
    numbers = {(cell.attack.name, cell.dataset.name, cell.threat.norm, cell.threat.eps): n for n, cell in cells}
    return plan, [numbers[condition] for condition in conditions]


def reference_of(entry: Entry) -> str:
    """Return the model reference (a name or a path) that loads an entry's model.

    If the track or a plugin defines a model with the entry's model name, the reference is this name. If not, the
    entry's card is written to a file in the cache, and the reference is the path of this file. Raises UserError if the
    card gives no URL for the weights.
    """
    parsed = checked_reference(entry.model)
    name = str(parsed.model)
    if name in [*card_names(entry.track), *MODELS.names()]:
        return entry.model
    folder = cache_folder() / "cards" / fingerprint(entry.card)[:16]
    path = folder / f"{safe_name(name)}.json"
    write_text(path, json.dumps(entry.card))
    card = read_card(path)
    if any(weights and weights.is_bundled for weights in (card.image, card.text)):
        raise UserError(
            f"the weights of {entry.model!r} were never published: the card lacks a URL. Ask the authors for the"
            " weights and the card file, and give the card file by --model"
        )
    return str(ModelReference(CardFile(str(path)), parsed.defense))


def scores_with_warnings(cells: Sequence[Cell], evidence: Sequence[CellRecords]) -> list[Score]:
    """Return the score of each item of `evidence` with all its warnings.

    The warnings include those that depend on the scores of several attacks or radii.
    """
    estimates = cell_estimates(evidence)
    scores = [score(cell, each.results, found) for cell, each, found in zip(cells, evidence, estimates, strict=True)]
    bounds = [
        found.full_attack if found else (each.robust, each.robust)
        for each, found in zip(scores, estimates, strict=True)
    ]
    return with_comparisons(cells, scores, bounds)


def expect_same(stated: str, identity: Mapping[str, Any], cell: Cell) -> None:
    """Raise UserError if `stated` is not the fingerprint of a cell. The message names the cause.

    `identity` is the stated identity without the sample ids.
    """
    if stated == cell.fingerprint:
        return
    here = {key: plain(value) for key, value in cell.identity.items()}
    differ = [key for key, value in identity.items() if fingerprint(value) != fingerprint(here.get(key))]
    if differ == ["data"]:
        raise UserError(
            f"the images of {cell.dataset.name} on this machine differ from those in the records: they were"
            " decoded differently, or the data changed; run `vlmbench data verify` to check them"
        )
    raise Unsound(
        f"the records of {cell.label} were made with {' and '.join(_DIFFERENCES.get(key, key) for key in differ)}"
        " than this machine has under the same names"
    )
