"""The attacks that an autopsy searches: ways to differentiate, losses, starts, restarts, step sizes and draws."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import get_args

from robustbench_vlm.attacks.attack_file import ALGORITHMS, StageEntry
from robustbench_vlm.attacks.base import GradientWay

MAX_STEPS = 100
"""The largest number of steps of an attack, as in AutoAttack."""
DRAWS = 4
"""The number of draws of the mean gradients."""
_RESTARTS = 3
_TARGETS, _MOST_TARGETS = 3, 9
_APGD_LOSSES = ("ce", "margin", "soft-ce")
_NEVER = "starts at adversarial images of other samples, universal perturbations"
_STARTS = {"apgd-transfer-start": ", transferred images", "apgd-other-start": ", images of other classes"}
"""The starting points of algorithms that do not start at random points."""
_NEEDS_GRADIENT = ("loop", "truncated", "constant")
"""The ways that differentiate the defense itself. Only they have a mean over draws."""


def search_space(
    ways: Sequence[GradientWay], *, is_random: bool, has_objective: bool = False
) -> tuple[StageEntry, ...]:
    """Return the attacks to compare, without a number of steps.

    `ways` are the ways to differentiate that the model supports. A random model is also attacked with mean gradients,
    and a defense with an objective with losses that have this objective.
    """
    has_surrogate = "transfer" in ways
    lists = {
        way: list(_of_way(way, is_random=is_random, has_surrogate=has_surrogate, has_objective=has_objective))
        for way in ways
    }
    # A search may end before the last attack. It therefore compares all ways with one loss before the next loss, and
    # estimates gradients last, because they are expensive.
    last = lists.pop("estimated", [])
    first = [each for row in itertools.zip_longest(*lists.values()) for each in row if each is not None]
    return (*first, *last)


def _of_way(way: GradientWay, *, is_random: bool, has_surrogate: bool, has_objective: bool) -> Iterator[StageEntry]:
    def entry(name: str, algorithm: str, *, draws: int = 1, **parameters: int | float | str | bool) -> StageEntry:
        suffix = f"-{draws}-draws" if draws > 1 else ""
        return StageEntry(f"{way}.{name}{suffix}", algorithm, parameters, way, draws)

    if way == "estimated":
        # Each gradient needs 33 calls of the model.
        yield entry("apgd-margin", "apgd", loss="margin")
        yield entry("pgd-margin", "pgd", loss="margin", iterate="final", relative_step=0.25)
        return
    for loss in _APGD_LOSSES:
        yield entry(f"apgd-{loss}", "apgd", loss=loss)
    yield entry("apgd-targeted-dlr", "apgd", loss="targeted-dlr", targets=_TARGETS)
    if has_objective:
        yield entry("apgd-objective", "apgd-objective", loss="margin")
    yield entry("apgd-margin-3-restarts", "apgd", loss="margin", restarts=_RESTARTS)
    yield entry("apgd-margin-other-start", "apgd-other-start", loss="margin", restarts=_RESTARTS)
    yield entry("pma", "pma")
    yield entry("pgd-margin", "pgd", loss="margin", iterate="final", relative_step=0.25)
    yield entry("pgd-ce-small-steps", "pgd", loss="ce", iterate="final", relative_step=0.0625)
    if way == "transfer":
        yield entry("apgd-features", "apgd-features")
    elif has_surrogate:
        yield entry("apgd-margin-transfer-start", "apgd-transfer-start", loss="margin")
    if is_random and way in _NEEDS_GRADIENT:
        yield entry("apgd-margin", "apgd", loss="margin", draws=DRAWS)
        yield entry("pgd-margin", "pgd", loss="margin", iterate="final", relative_step=0.25, draws=DRAWS)


def with_steps(entry: StageEntry, steps: int) -> StageEntry:
    """Return the attack with a number of steps in each run."""
    return replace(entry, parameters={**entry.parameters, "steps": steps})


def steps_of(entry: StageEntry) -> int:
    """Return the number of steps in each run of an attack."""
    return int(entry.parameters["steps"])


def smaller(entry: StageEntry) -> Iterator[StageEntry]:
    """Yield attacks that need fewer passes: with one draw, one restart, one target, and half the steps."""
    if entry.draws > 1:
        yield replace(entry, draws=1)
    for name, least in (("restarts", 1), ("targets", 1)):
        if int(entry.parameters.get(name, 0)) > least:
            yield replace(entry, parameters={**entry.parameters, name: least})
    if steps_of(entry) > 1:
        yield with_steps(entry, steps_of(entry) // 2)


def with_margin_of_safety(entry: StageEntry, *, robust: int) -> StageEntry:
    """Return the attack with twice the steps, because other samples may need more steps than the held-out samples.

    If `robust` held-out samples are robust under the attack, other samples may also need more runs. The attack then
    gets three restarts, or nine targets if it is targeted.
    """
    longer = with_steps(entry, min(2 * steps_of(entry), MAX_STEPS))
    if not robust:
        return longer
    is_targeted = entry.parameters.get("targets", 0)
    runs: dict[str, int] = {"targets": _MOST_TARGETS} if is_targeted else {"restarts": _RESTARTS}
    has_runs = is_targeted or "restarts" in ALGORITHMS[entry.algorithm].parameters
    return replace(longer, parameters={**longer.parameters, **runs}) if has_runs else longer


def tried(space: Sequence[StageEntry]) -> str:
    """Return a sentence about the attacks that were compared."""
    ways = dict.fromkeys(str(each.gradient) for each in space)
    losses = dict.fromkeys(_loss_text(each) for each in space)
    algorithms = {each.algorithm for each in space}
    starts = "".join(text for name, text in _STARTS.items() if name in algorithms)
    draws = max(each.draws for each in space)
    return (
        f"{len(space)} attacks with the gradients {', '.join(ways)}; the losses {', '.join(losses)};"
        f" starts at random points{starts}; 1 and {_RESTARTS} restarts; step sizes of eps/4 and eps/16, and adaptive"
        f" ones; {_draws_text(draws)}; up to {MAX_STEPS} steps"
    )


def not_tried(space: Sequence[StageEntry], left_out: Sequence[StageEntry]) -> str:
    """Return a sentence about attacks that were not compared.

    `left_out` are attacks for which the budget did not suffice.
    """
    ways = dict.fromkeys(each.gradient for each in (*space, *left_out))
    missing = [way for way in get_args(GradientWay) if way not in ways]
    unsupported = f"the gradients {', '.join(missing)}, which this model does not have; " if missing else ""
    most = max(each.draws for each in space)
    total = len(space) + len(left_out)
    rest = f"{len(left_out)} of {total} attacks, because the budget was spent; " if left_out else ""
    return (
        f"{unsupported}{rest}{_NEVER}, Square Attack, and more than {MAX_STEPS} steps or {most} draw{'s' * (most > 1)}"
    )


def _loss_text(entry: StageEntry) -> str:
    if entry.algorithm == "apgd-objective":
        return "the objective of the defense"
    return str(entry.parameters.get("loss", entry.algorithm))


def _draws_text(draws: int) -> str:
    return f"1 and {draws} draws" if draws > 1 else "1 draw"
