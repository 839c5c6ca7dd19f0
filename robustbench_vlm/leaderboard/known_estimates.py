"""Lowest known robust accuracy at radii with unfinished samples: estimates that a board shows with a mark.

A sample of an estimated run is robust, broken or not finished. Other attacks and counterexamples may break samples that
are not finished. `leaderboard.estimates` explains the estimates of one attack.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from robustbench_vlm.core.records import Accuracy, EstimatedAccuracy, Verdict
from robustbench_vlm.core.threat import Threat, parse_eps
from robustbench_vlm.engine.cell_records import CellRecords
from robustbench_vlm.engine.estimate import CellDraws, broken_rates, draw_order, estimate_mean
from robustbench_vlm.leaderboard.board import BoardRow
from robustbench_vlm.leaderboard.entry import Counterexample, Entry, broken_samples
from robustbench_vlm.leaderboard.estimates import estimate_group, estimated_groups
from robustbench_vlm.tracks import Track


@dataclass(frozen=True)
class KnownDraws:
    """Counts for one dataset at one radius, over all attacks and counterexamples within the radius."""

    draws: CellDraws
    """Survivors are the samples that no finished attack and no first phase breaks."""
    lost_drawn: int
    """The number of drawn survivors that only a counterexample, or an estimated run at a smaller radius, breaks."""
    lost_open: int
    """The number of survivors that were not drawn and that such a counterexample or run breaks."""

    @property
    def robust(self) -> int:
        """The number of samples that are known to be robust."""
        return self.draws.robust + self.draws.drawn - self.draws.broken - self.lost_drawn


def known_draws(own: Sequence[CellRecords], broken: Collection[str], threat: Threat) -> KnownDraws:
    """Count the samples of a dataset. `own` has all its records within the radius of `threat`.

    `broken` has the ids of the samples with a counterexample within the radius.
    """
    drawn = [each.drawn or (False,) * len(each.results) for each in own]
    is_open = [bool(each.stages) and each.threat == threat for each in own]

    def outcome(place: int) -> str:
        breaks = [each.results[place].verdict is Verdict.BROKEN for each in own]
        if any(hit and not second[place] for hit, second in zip(breaks, drawn, strict=True)):
            return "broken"
        lost = any(breaks) or own[0].results[place].sample_id in broken
        if not any(is_open):
            return "broken" if lost else "robust"
        if not all(second[place] for second, unfinished in zip(drawn, is_open, strict=True) if unfinished):
            return "lost open" if lost else "open"
        if any(hit for hit, each in zip(breaks, own, strict=True) if each.threat == threat):
            return "late"
        return "lost drawn" if lost else "drawn"

    counts = Counter(outcome(place) for place in range(len(own[0].results)))
    attacked = counts["late"] + counts["lost drawn"] + counts["drawn"]
    survivors = attacked + counts["lost open"] + counts["open"]
    draws = CellDraws(len(own[0].results), survivors, attacked, counts["late"], counts["robust"])
    return KnownDraws(draws, counts["lost drawn"], counts["lost open"])


def known_estimates(
    evidence: Sequence[CellRecords],
    counterexamples: Sequence[Counterexample],
    threat: Threat,
    seen: Sequence[str],
) -> dict[str, EstimatedAccuracy]:
    """Return the estimates of the lowest known robust accuracy at a threat, or {} if all samples are finished.

    The key "" is the mean over the datasets that are not in `seen`. The other keys are the datasets with samples that
    are not finished.
    """
    groups = {key: cells for key, cells in estimated_groups(evidence).items() if key[1] == threat}
    if not groups:
        return {}
    within = [each for each in evidence if each.threat.norm == threat.norm and each.threat.eps <= threat.eps]
    counts: dict[str, KnownDraws] = {}
    for name in dict.fromkeys(each.score.dataset for each in within if each.threat == threat):
        broken = broken_samples(counterexamples, name, threat)
        counts[name] = known_draws([each for each in within if each.score.dataset == name], broken, threat)
    rates = broken_rates([each.draws for each in counts.values()])
    unseen = [name for name in counts if name not in seen] or list(counts)
    chosen = {"": unseen, **{name: [name] for name in counts if counts[name].draws.survivors}}
    return {
        key: _estimate([counts[name] for name in names], rates, [c for cells in groups.values() for c in cells], names)
        for key, names in chosen.items()
    }


def _estimate(
    counts: Sequence[KnownDraws], rates: Mapping[int, float], cells: Sequence[CellRecords], names: Sequence[str]
) -> EstimatedAccuracy:
    """Return an estimate over datasets. `cells` has the records of the estimated attacks at the threat.

    A sample that was not drawn and has a counterexample may be one that the full attack breaks, too. Such samples
    therefore lower the estimate and the lower ends of the intervals, but not the upper ends.
    """
    draws = [each.draws for each in counts]
    found = estimate_mean(draws, rates if len(counts) == 1 else None)
    weights = [1 / (len(counts) * each.draws.samples) for each in counts]
    surely = sum(weight * each.lost_drawn for weight, each in zip(weights, counts, strict=True))
    maybe = sum(weight * each.lost_open for weight, each in zip(weights, counts, strict=True))
    expected = surely + sum(
        weight * each.lost_open * (1 - rates[each.draws.samples]) for weight, each in zip(weights, counts, strict=True)
    )
    attack = [each for each in cells if each.score.dataset in names]
    cost = estimate_group(attack, ()).mean
    # Samples that are known to be robust stay robust, even if all others are broken.
    least = sum(weight * each.robust for weight, each in zip(weights, counts, strict=True))
    low, high = max(found.full_attack[0] - surely - maybe, least), found.full_attack[1] - surely
    return EstimatedAccuracy(
        min(max(found.value - expected, low), high),
        max(found.new_samples[0] - surely - maybe, 0.0),
        max(found.new_samples[1] - surely, 0.0),
        n=sum(each.samples for each in draws),
        full_attack=(low, high),
        survivors=sum(each.survivors for each in draws),
        drawn=sum(each.drawn for each in draws),
        broken=sum(each.broken for each in draws),
        passes=cost.passes,
        passes_full=cost.passes_full,
    )


def imputed(
    datasets: Sequence[tuple[str, Sequence[str], Sequence[bool], Sequence[bool]]], mean: float, seed: int
) -> list[Sequence[bool]]:
    """Declare unfinished samples robust until the mean robust accuracy is `mean`, and return the verdicts.

    `datasets` has the name, the sample ids, and for each sample whether it is known to be robust and whether it is not
    finished. Samples that are drawn earlier are declared robust first. `seed` is the seed of the protocol.
    """
    order = draw_order(
        seed,
        (
            (number, name, len(ids), sample)
            for number, (name, ids, _, unfinished) in enumerate(datasets)
            for sample, is_open in zip(ids, unfinished, strict=True)
            if is_open
        ),
    )
    places = [{sample: place for place, sample in enumerate(ids)} for _, ids, _, _ in datasets]
    verdicts = [list(robust) for _, _, robust, _ in datasets]
    found = sum(sum(robust) / len(robust) for robust in verdicts) / len(datasets)
    for number, sample in order:
        step = 1 / (len(datasets) * len(verdicts[number]))
        if found + step / 2 > mean:
            break
        verdicts[number][places[number][sample]] = True
        found += step
    return list(verdicts)


def with_estimates(row: BoardRow, entry: Entry, evidence: Sequence[CellRecords], track: Track) -> BoardRow:
    """Return the row of an entry with the estimates of its unfinished numbers, and `BoardRow.estimates`."""
    if not entry.estimates:
        return row
    seen, standard = track.training_datasets, Threat(track.norm, track.standard_eps)
    found: dict[str, EstimatedAccuracy] = {}
    for key, each in known_estimates(evidence, entry.counterexamples, standard, seen).items():
        found[f"robust_{key}" if key else "robust"] = each
    for (attack, threat), cells in estimated_groups(evidence).items():
        if threat == standard and attack in row.under:
            found[f"under_{attack}"] = estimate_group(cells, seen).mean
    for point in row.curve:
        threat = Threat(track.norm, parse_eps(point.eps))
        if estimates := known_estimates(evidence, entry.counterexamples, threat, seen):
            found[f"curve_{point.eps}"] = estimates[""]
    return dataclasses.replace(
        row,
        robust=_plain(found, "robust", row.robust),
        datasets={
            name: {**each, "robust": _plain(found, f"robust_{name}", each["robust"])}
            for name, each in row.datasets.items()
        },
        under={attack: _plain(found, f"under_{attack}", each) for attack, each in row.under.items()},
        curve=tuple(
            dataclasses.replace(point, robust=_plain(found, f"curve_{point.eps}", point.robust)) for point in row.curve
        ),
        estimates=found,
    )


def _plain(estimates: Mapping[str, EstimatedAccuracy], key: str, counted: Accuracy) -> Accuracy:
    each = estimates.get(key)
    return Accuracy(each.value, each.low, each.high, each.n) if each else counted
