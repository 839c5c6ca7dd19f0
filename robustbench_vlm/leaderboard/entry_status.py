"""Status of an entry, computed from its digests, its history and its counterexamples. The status is never stored."""

from collections.abc import Callable, Sequence

from robustbench_vlm.leaderboard.history import Attestation, Event, Subject

STATUSES = ("claimed", "reproduced", "verified", "disputed")
"""The statuses of an entry. `status_of` defines them."""
REPRODUCED = 0.05
"""An attestation counts as a reproduction if at most this share of the verdicts is wrong, with 95 % confidence."""
_MACHINES = 2
"""Number of machines that must reproduce an entry independently, so that it is "verified"."""


def status_of(subject: Subject, datasets: Sequence[str], history: Sequence[Event], *, is_refuted: bool) -> str:
    """Return the status of an entry, one of `STATUSES`.

    Only attestations with the digests of the entry count, so a change of weights, protocol or records gives "claimed".

    "disputed": a verification contradicts the entry, or `is_refuted` is true. If records were changed after the
    contradiction, the status stays "disputed" until a later verification reproduces the new records. If `is_refuted`
    is true, the status is "disputed" until a verification after the last submission of counterexamples reproduces the
    records. It attacks the samples of the counterexamples in full, so the records are right, and the counterexamples
    are from a stronger attack.
    "verified": each dataset was attacked again in full, or was reproduced on two machines.
    "reproduced": each dataset was reproduced on one machine, with a bound of at most `REPRODUCED`.
    "claimed": all other entries.

    `datasets` has the names of the entry's datasets. `is_refuted` is true if the entry has more counterexamples than
    rounding explains.
    """
    contradictions = [n for n, event in enumerate(history) if _contradicts(event)]
    if any(history[n].subject == subject for n in contradictions):
        return "disputed"
    if is_refuted and _level(_confirmations(subject, _after(history, _submits_counterexamples)), datasets) == "claimed":
        return "disputed"
    level = _level(_confirmations(subject, _after(history, _contradicts)), datasets)
    return "disputed" if contradictions and level == "claimed" else level


def _level(own: Sequence[Attestation], datasets: Sequence[str]) -> str:
    """Return the status that confirming attestations of the current results give together."""

    def machines(name: str, counts: Callable[[Attestation], bool]) -> set[str]:
        return {each.machine for each in own if name in each.datasets and counts(each)}

    full = [bool(machines(name, lambda each: each.is_full)) for name in datasets]
    reproduced = [machines(name, lambda each: each.is_full or each.bound <= REPRODUCED) for name in datasets]
    if all(is_full or len(found - {""}) >= _MACHINES for is_full, found in zip(full, reproduced, strict=True)):
        return "verified"
    return "reproduced" if all(reproduced) else "claimed"


def _confirmations(subject: Subject, history: Sequence[Event]) -> list[Attestation]:
    """Return the attestations that confirm the results with the digests `subject`."""
    return [
        event.attestation
        for event in history
        if event.attestation and event.subject == subject and not _contradicts(event)
    ]


def _after(history: Sequence[Event], is_chosen: Callable[[Event], bool]) -> Sequence[Event]:
    """Return the events after the last chosen event, or all events if none is chosen."""
    return history[max((n + 1 for n, event in enumerate(history) if is_chosen(event)), default=0) :]


def _contradicts(event: Event) -> bool:
    return event.attestation is not None and event.attestation.outcome == "contradicted"


def _submits_counterexamples(event: Event) -> bool:
    return event.kind == "counterexamples"
