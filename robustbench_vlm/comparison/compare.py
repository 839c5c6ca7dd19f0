"""Comparing: models on the same samples under one attack, each pair by tests, corrected for how many there are."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations

from robustbench_vlm.comparison.align import Aligned, Source, align, kept, keys_of
from robustbench_vlm.comparison.comparison import (
    MEASURES,
    ROBUST,
    Compared,
    Comparison,
    Pair,
    PairOnSet,
    Point,
    Result,
)
from robustbench_vlm.comparison.statistics import (
    ALPHA,
    Difference,
    McNemar,
    compare_means,
    enough_draws,
    holm,
    mcnemar,
    tie_groups,
)
from robustbench_vlm.core.records import CLEAN, Accuracy, Score
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.engine.evidence import Evidence
from robustbench_vlm.engine.results import mean_of
from robustbench_vlm.tracks import Track


def compare(
    sources: Sequence[Source], track: Track, *, attack: str = "autoattack", eps: Fraction | None = None
) -> Comparison:
    """Compare models under an attack at the radius `eps` (pixel scale), the track's standard one if not given.

    Raises UserError where a model has no such records, and where there is no common sample.
    """
    threat = Threat(track.norm, track.standard_eps if eps is None else eps)
    aligned = align(sources, attack, threat, track.datasets)
    in_mean = tuple(name for name in aligned.datasets if name not in track.seen) or aligned.datasets
    pairs = tuple(
        pair for measure in MEASURES for pair in _pairs([each.name for each in sources], aligned, in_mean, measure)
    )
    return Comparison(
        track=track.name,
        attack=attack,
        norm=threat.norm,
        eps=threat.eps_text,
        datasets=aligned.datasets,
        in_mean=in_mean,
        samples={name: each.score.n for name, each in aligned.models[0].items()},
        models=_models(sources, aligned, in_mean, pairs),
        pairs=pairs,
        notes=(*aligned.notes, *_seen_notes(in_mean, track), *(note for each in sources for note in each.notes)),
    )


def _models(
    sources: Sequence[Source], aligned: Aligned, in_mean: Sequence[str], pairs: Sequence[Pair]
) -> tuple[Compared, ...]:
    means = [_means([evidence[name].score for name in in_mean]) for evidence in aligned.models]
    names = [source.name for source in sources]
    places = {measure: _places(names, [mean[measure].value for mean in means], measure, pairs) for measure in MEASURES}
    return tuple(
        Compared(
            name=source.name,
            protocol=next(iter(evidence.values())).protocol,
            clean=means[number]["clean"],
            robust=means[number]["robust"],
            clean_place=places["clean"][number],
            place=places["robust"][number],
            datasets={name: _result(each.score) for name, each in evidence.items()},
            broken_by=_broken_by(list(evidence.values())),
            curve=_curve(source, evidence, in_mean),
        )
        for number, (source, evidence) in enumerate(zip(sources, aligned.models, strict=True))
    )


def _pairs(names: Sequence[str], aligned: Aligned, in_mean: Sequence[str], measure: str) -> list[Pair]:
    right = [
        {name: [_is_right(result.broken_by, measure) for result in each.results] for name, each in evidence.items()}
        for evidence in aligned.models
    ]
    indices = list(combinations(range(len(names)), 2))
    tests = {(pair, name): mcnemar(*(right[index][name] for index in pair)) for pair in indices for name in right[0]}
    draws = enough_draws(len(indices))
    verdicts = [[each[name] for name in in_mean] for each in right]
    means = [compare_means(verdicts[first], verdicts[second], draws=draws) for first, second in indices]
    adjusted = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    return [
        _pair(
            measure,
            (names[pair[0]], names[pair[1]]),
            mean,
            p_holm,
            {name: (tests[pair, name], adjusted[pair, name]) for name in right[0]},
        )
        for pair, mean, p_holm in zip(indices, means, holm([mean.p for mean in means]), strict=True)
    ]


def _pair(
    measure: str, names: tuple[str, str], mean: Difference, p_holm: float, tests: Mapping[str, tuple[McNemar, float]]
) -> Pair:
    datasets = {
        name: PairOnSet(test.only_first, test.only_second, test.p, adjusted) for name, (test, adjusted) in tests.items()
    }
    return Pair(measure, *names, mean.difference, mean.low, mean.high, mean.p, p_holm, datasets)


def _is_right(broken_by: str, measure: str) -> bool:
    return broken_by == "" if measure == ROBUST else broken_by != CLEAN


def _places(names: Sequence[str], values: Sequence[float], measure: str, pairs: Sequence[Pair]) -> list[str]:
    apart = {frozenset((pair.first, pair.second)) for pair in pairs if pair.measure == measure and pair.p_holm <= ALPHA}
    return tie_groups(values, lambda first, second: frozenset((names[first], names[second])) in apart)


def _means(scores: Sequence[Score]) -> dict[str, Accuracy]:
    mean, n = mean_of(scores), sum(score.n for score in scores)
    assert mean is not None, "there is a dataset"
    return {
        "clean": Accuracy(mean.clean, *mean.clean_interval, n),
        "robust": Accuracy(mean.robust, *mean.robust_interval, n),
    }


def _result(score: Score) -> Result:
    clean = Accuracy(score.clean, *score.clean_interval, score.n)
    return Result(clean, Accuracy(score.robust, *score.robust_interval, score.n), score.warnings)


def _broken_by(evidence: Sequence[Evidence]) -> dict[str, int]:
    counts = Counter(result.broken_by for each in evidence for result in each.results)
    stages = [stage["name"] for each in evidence for stage in each.identity["attack"]["stages"]]
    return {CLEAN: counts[CLEAN], **{stage: counts[stage] for stage in dict.fromkeys(stages)}, ROBUST: counts[""]}


def _curve(source: Source, aligned: Mapping[str, Evidence], in_mean: Sequence[str]) -> tuple[Point, ...]:
    """Return the mean over the common samples at every radius that has all of them."""
    first = next(iter(aligned.values()))
    radii: dict[Fraction, dict[str, Evidence]] = {}
    for each in source.evidence:
        name = each.score.dataset
        is_alike = (each.score.attack, each.protocol) == (first.score.attack, first.protocol)
        is_alike = is_alike and each.threat.norm == first.threat.norm and name in in_mean
        if is_alike and set(keys_of(aligned[name])) <= set(keys_of(each)):
            radii.setdefault(each.threat.eps, {})[name] = kept(each, keys_of(aligned[name]))
    return tuple(
        Point(
            Threat(first.threat.norm, eps).eps_text,
            float(eps),
            _means([found[name].score for name in in_mean])["robust"],
        )
        for eps, found in sorted(radii.items())
        if len(found) == len(in_mean)
    )


def _seen_notes(in_mean: Iterable[str], track: Track) -> list[str]:
    if not set(in_mean) & set(track.seen):
        return []
    return ["the mean is over datasets that models of this track were trained on: there are no others"]
