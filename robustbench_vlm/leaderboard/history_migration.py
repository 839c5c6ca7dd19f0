"""Convert the history of format 2, which has no digests, to events in a hash chain.

Format 2 stored the status of an entry. In the current format, the status follows from attestations. If the last status
came from a verification, the migration writes an attestation with the bound that the verification found. It is bound to
the digests of the entry, because a later submission would have changed the status.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.strict_json import validate
from robustbench_vlm.leaderboard.entry import FORMAT, Entry
from robustbench_vlm.leaderboard.history import Attestation

_NO_SUBJECT = {"weights": "0" * 64, "protocol": "0" * 64, "records": "0" * 64}
"""The subject of the placeholder event of an entry whose digests are not known yet."""


def with_digests(values: Mapping[str, Any], what: str, *, date: str, advice: str) -> Entry:
    """Return the entry of format 3 for the JSON object of an entry of format 2.

    The old events keep their dates, texts and facts. `what` names the file in error messages. `date` is today's date.
    Raises UserError if the object does not have the fields of an entry.
    """
    kept = {key: value for key, value in values.items() if key != "status"}
    placeholder = {
        **{"date": date, "kind": "earlier", "what": "", "facts": {}, "subject": _NO_SUBJECT},
        **{"previous": "", "attestation": None, "signature": ""},
    }
    entry = validate(Entry, {**kept, "format": FORMAT, "history": [placeholder]}, what, advice=advice)
    entry = dataclasses.replace(entry, history=())
    for event in values["history"]:
        facts = {**event["facts"], "status": event["status"]}
        entry = entry.after(event["date"], "earlier", event["what"], facts)
    text = "The events before have no digests. They were bound to the current records, weights and protocol"
    entry = entry.after(date, "migration", text, {"from format": 2, "to format": FORMAT, "status": values["status"]})
    if attestation := _attestation(values["status"], values["history"], tuple(entry.datasets)):
        text = "The result of the last verification of format 2"
        entry = entry.after(date, "attestation", text, attestation=attestation)
    # The object is validated again, because its events now have texts of the old history.
    return validate(Entry, plain(entry), what, advice=advice)


def _attestation(status: str, history: Sequence[Mapping[str, Any]], datasets: tuple[str, ...]) -> Attestation | None:
    """Return the attestation of the last verification, or None if the status does not come from one."""
    if status == "claimed":
        return None
    last = next((event for event in reversed(history) if "bound" in event["facts"]), None)
    facts = last["facts"] if last else {}
    return Attestation(
        outcome="contradicted" if status == "disputed" else "confirmed",
        is_full=status == "verified",
        bound=float(facts.get("bound", 1.0)),
        datasets=datasets,
        seed=int(facts.get("seed", 0)),
        attempt=1,
        machine="",
        environment={},
        parts=(),
        disagreements=(),
        problems=(),
    )
