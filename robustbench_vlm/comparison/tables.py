"""The tables of a comparison: what its text formats have in common, and its rows as CSV."""

from collections.abc import Iterable, Sequence

from robustbench_vlm.comparison.comparison import MEASURES, ROBUST, Comparison, Pair
from robustbench_vlm.comparison.export import Field, Report, Sheet
from robustbench_vlm.comparison.statistics import ALPHA
from robustbench_vlm.core.records import Accuracy
from robustbench_vlm.engine.warnings import explain

MEAN = "mean"
_SHOWN = (ROBUST, "clean")


def report(found: Comparison) -> Report:
    """Return all tables of a comparison, accuracies and differences in %."""
    return Report(
        title=", ".join(model.name for model in found.models),
        about=about(found),
        sheets=(
            means(found),
            *(by_dataset(found, measure) for measure in _SHOWN),
            *(make(found, measure) for measure in _SHOWN if found.pairs for make in (differences, sets)),
            broken_by(found),
            curves(found),
        ),
        notes=(*legend(found, "bold"), *notes(found)),
    )


def about(found: Comparison) -> str:
    """Return the sentence that says what the numbers are of."""
    protocols = ", ".join(dict.fromkeys(model.protocol for model in found.models))
    count = len(found.in_mean)
    return (
        f"{found.track}, {found.attack}, {found.norm} {found.eps}, protocol {protocols}: accuracies in % with 95 %"
        f" intervals on the same {sum(found.samples.values())} samples; means over {count} dataset"
        f"{'s' if count > 1 else ''}"
    )


def notes(found: Comparison) -> tuple[str, ...]:
    """Return what differs between the models, and the warnings of the gates by code, in sentences."""
    raised: dict[str, dict[str, list[str]]] = {}
    for model in found.models:
        for dataset, result in model.datasets.items():
            for warning in result.warnings:
                code = warning.partition(":")[0]
                raised.setdefault(code, {}).setdefault(model.name, []).append(dataset)
    gates = (
        f"{code} ({explain(code).meaning}): "
        + "; ".join(f"{name} on {', '.join(datasets)}" for name, datasets in raised[code].items())
        for code in sorted(raised)
    )
    return (*found.notes, *gates)


def legend(found: Comparison, mark: str) -> tuple[str, ...]:
    """Return how to read the tables, in sentences; `mark` is what the best are marked by."""
    if not found.pairs:
        return ()
    return (
        f"{mark}: the best, and those that no better one is told apart from; between two models: told apart",
        "place: 2-4 where tests leave these places open",
        "points, sets: of the mean, and on how many datasets the first is told apart as better : as worse",
        "p: by a stratified bootstrap of the mean, and by exact McNemar tests for datasets, on the same samples;"
        f" Holm over all pairs and datasets; told apart at {ALPHA}",
    )


def means(found: Comparison) -> Sheet:
    """Return the models' means and the places that these give them."""
    best = {measure: found.best(measure) for measure in MEASURES}
    rows = (
        (
            Field(model.name),
            *(Field(model.place), Field(shown(model.robust), model.name in best[ROBUST])),
            *(Field(model.clean_place), Field(shown(model.clean), model.name in best["clean"])),
        )
        for model in found.models
    )
    return Sheet("Means", ("model", "place", "robust", "clean place", "clean"), tuple(rows))


def by_dataset(found: Comparison, measure: str) -> Sheet:
    """Return a row for each dataset and the mean, and a column for each model."""
    names = [*found.datasets, ""]
    rows = []
    for name in names:
        best = found.best(measure, name)
        accuracies = [(model.name, getattr(model.datasets[name] if name else model, measure)) for model in found.models]
        fields = [Field(shown(accuracy), model in best) for model, accuracy in accuracies]
        rows.append((Field(label(found, name) if name else MEAN), *fields))
    header = ("dataset", *(model.name for model in found.models))
    under = f", {found.attack}, {found.norm} {found.eps}" if measure == ROBUST else ""
    return Sheet(f"{measure.capitalize()} accuracy in %{under}", header, tuple(rows), last_apart=True)


def differences(found: Comparison, measure: str) -> Sheet:
    """Return the difference of the means of every pair, and on how many datasets the first is better and worse."""
    rows = (
        (
            Field(f"{pair.first} - {pair.second}"),
            Field(_points(pair.difference), pair.p_holm <= ALPHA),
            Field(f"{_points(pair.low)} to {_points(pair.high):>5}"),
            Field(p_value(pair.p_holm)),
            Field(" : ".join(str(len(names)) for names in told_apart(pair))),
        )
        for pair in _of(found, measure)
    )
    header = ("pair", "points", "95 %", "p", "sets")
    return Sheet(f"{measure.capitalize()} accuracy, difference of the means", header, tuple(rows))


def sets(found: Comparison, measure: str) -> Sheet:
    """Return a row for each dataset and a column for each pair: on how many samples only one of the two is right."""
    pairs = list(_of(found, measure))
    tests = {name: [pair.datasets[name] for pair in pairs] for name in found.datasets}
    rows = (
        (
            Field(name),
            *(Field(f"{test.only_first} : {test.only_second}", test.p_holm <= ALPHA) for test in tests[name]),
        )
        for name in tests
    )
    header = ("dataset", *(f"{pair.first} : {pair.second}" for pair in pairs))
    return Sheet(f"{measure.capitalize()}: samples that only one of two models is right on", header, tuple(rows))


def broken_by(found: Comparison) -> Sheet:
    """Return how many samples each stage of the attack broke."""
    stages = tuple(dict.fromkeys(stage for model in found.models for stage in model.broken_by))
    rows = (
        (Field(model.name), *(Field(str(model.broken_by.get(stage, 0))) for stage in stages)) for model in found.models
    )
    return Sheet("What broke the samples", ("model", *stages), tuple(rows))


def curves(found: Comparison) -> Sheet:
    """Return the mean robust accuracy of every model at every radius that one of them has."""
    radii = {point.eps: point.radius for model in found.models for point in model.curve}
    ordered = sorted(radii, key=radii.__getitem__)
    rows = []
    for model in found.models:
        points = {point.eps: Field(f"{100 * point.robust.value:.1f}") for point in model.curve}
        rows.append((Field(model.name), *(points.get(eps, Field("")) for eps in ordered)))
    return Sheet(f"Mean robust accuracy by {found.norm} radius", ("model", *ordered), tuple(rows))


def csv_rows(found: Comparison) -> list[dict[str, str | float]]:
    """Return a row for every model and dataset, and the model's mean; accuracies are shares in [0, 1]."""
    rows: list[dict[str, str | float]] = []
    for model in found.models:
        common: dict[str, str | float] = {
            **{"track": found.track, "protocol": model.protocol, "model": model.name},
            **{"attack": found.attack, "norm": found.norm, "eps": found.eps},
        }
        for name in (*found.datasets, ""):
            row = {**common, "dataset": name or MEAN, "n": (model.datasets[name] if name else model).clean.n}
            for measure in MEASURES:
                accuracy = getattr(model.datasets[name] if name else model, measure)
                row |= {measure: accuracy.value, f"{measure}_low": accuracy.low, f"{measure}_high": accuracy.high}
                row[f"{measure}_best"] = "yes" if model.name in found.best(measure, name) else "no"
            row["place"] = "" if name else model.place
            row["warnings"] = " ".join(model.datasets[name].warnings) if name else ""
            rows.append(row)
    return rows


def label(found: Comparison, dataset: str) -> str:
    """Return a dataset's name, with a word if the mean leaves it out."""
    return dataset if dataset in found.in_mean else f"{dataset} (not in the mean)"


def shown(accuracy: Accuracy) -> str:
    """Return an accuracy with its interval, in %; of one width below 100, so that digits stand below digits."""
    interval = f"({100 * accuracy.low:.1f}-{100 * accuracy.high:.1f})"
    return f"{100 * accuracy.value:.1f} {interval:>11}"


def p_value(p: float) -> str:
    """Return a p value as papers print it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def told_apart(pair: Pair) -> tuple[Sequence[str], Sequence[str]]:
    """Return the datasets on which the first model is better than the second, and those on which it is worse."""
    apart = {name: test for name, test in pair.datasets.items() if test.p_holm <= ALPHA}
    better = [name for name, test in apart.items() if test.only_first > test.only_second]
    return better, [name for name in apart if name not in better]


def _points(difference: float) -> str:
    # Adding 0 makes a positive one of a zero that was rounded from below.
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def _of(found: Comparison, measure: str) -> Iterable[Pair]:
    return (pair for pair in found.pairs if pair.measure == measure)
