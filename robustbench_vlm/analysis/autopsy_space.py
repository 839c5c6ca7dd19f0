"""The attacks that an autopsy searches: ways to differentiate, losses, starts, restarts, step sizes and draws."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from robustbench_vlm.attacks.attack_file import StageEntry
from robustbench_vlm.attacks.base import GradientWay

MAX_STEPS = 100
"""The largest number of steps of an attack, as in AutoAttack."""
DRAWS = 4
"""The number of draws of the mean gradients."""
_RESTARTS = 3
_TARGETS = 3
_APGD_LOSSES = ("ce", "margin", "soft-ce")
_NEVER = "starts from images of other samples, the objective of the defense itself, universal perturbations"
_NEEDS_GRADIENT = ("loop", "truncated", "constant")
"""The ways that differentiate the defense itself. Only they have a mean over draws."""


def search_space(ways: Sequence[GradientWay], *, is_random: bool) -> tuple[StageEntry, ...]:
    """Return the attacks to compare, without a number of steps.

    `ways` are the ways to differentiate that the model supports. A random model is also attacked with mean gradients.
    """
    has_surrogate = "transfer" in ways
    lists = {way: list(_of_way(way, is_random=is_random, has_surrogate=has_surrogate)) for way in ways}
    # A search may end before the last attack. It therefore compares all ways with one loss before the next loss, and
    # estimates gradients last, because they are expensive.
    last = lists.pop("estimated", [])
    first = [each for row in itertools.zip_longest(*lists.values()) for each in row if each is not None]
    return (*first, *last)


def _of_way(way: GradientWay, *, is_random: bool, has_surrogate: bool) -> Iterator[StageEntry]:
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
    yield entry("apgd-margin-3-restarts", "apgd", loss="margin", restarts=_RESTARTS)
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


def with_margin_of_safety(entry: StageEntry) -> StageEntry:
    """Return the attack with twice the steps, because other samples may need more steps than the held-out samples."""
    return with_steps(entry, min(2 * steps_of(entry), MAX_STEPS))


def tried(space: Sequence[StageEntry]) -> str:
    """Return a sentence about the attacks that were compared."""
    ways = dict.fromkeys(str(each.gradient) for each in space)
    losses = dict.fromkeys(str(each.parameters.get("loss", each.algorithm)) for each in space)
    starts = "random points" + (
        " and transferred images" if any(each.algorithm == "apgd-transfer-start" for each in space) else ""
    )
    draws = max(each.draws for each in space)
    return (
        f"{len(space)} attacks with the gradients {', '.join(ways)}; the losses {', '.join(losses)};"
        f" starts at {starts}; 1 and {_RESTARTS} restarts; step sizes of eps/4 and eps/16, and adaptive ones;"
        f" {_draws_text(draws)}; up to {MAX_STEPS} steps"
    )


def not_tried(space: Sequence[StageEntry], left_out: Sequence[StageEntry]) -> str:
    """Return a sentence about attacks that were not compared.

    `left_out` are attacks for which the budget did not suffice.
    """
    ways = dict.fromkeys(each.gradient for each in space)
    missing = [way for way in ("loop", "truncated", "constant", "straight-through", "transfer") if way not in ways]
    unsupported = f"the gradients {', '.join(missing)}, which this model does not have; " if missing else ""
    most = max(each.draws for each in space)
    total = len(space) + len(left_out)
    rest = f"{len(left_out)} of {total} attacks, because the budget was spent; " if left_out else ""
    return (
        f"{unsupported}{rest}{_NEVER}, Square Attack, and more than {MAX_STEPS} steps or {most} draw{'s' * (most > 1)}"
    )


def _draws_text(draws: int) -> str:
    return f"1 and {draws} draws" if draws > 1 else "1 draw"
