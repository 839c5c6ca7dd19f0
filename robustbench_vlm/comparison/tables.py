"""Tables of a comparison for all text formats, and rows for CSV."""

import math
import re
from collections.abc import Iterable, Sequence

from robustbench_vlm.comparison.compare import MEASURES, ROBUST, Comparison, ModelPair
from robustbench_vlm.comparison.export import Field, Report, Sheet
from robustbench_vlm.comparison.statistics import ALPHA
from robustbench_vlm.core.numbers import decimals, percent, percent_interval, percentage_points
from robustbench_vlm.core.records import Accuracy
from robustbench_vlm.engine.warnings import explain

MEAN = "mean"
_SHOWN = (ROBUST, "clean")
_LARGE = 0.25
"""A difference of two accuracies that readers expect to be significant."""


def report(found: Comparison) -> Report:
    """Return all tables of a comparison. Accuracies and differences are in %."""
    return Report(
        title=", ".join(model.name for model in found.models),
        about=about(found),
        sheets=(
            means(found),
            *(by_dataset(found, measure) for measure in _SHOWN),
            *(make(found, measure) for measure in _SHOWN if found.pairs for make in (differences, dataset_tests)),
            broken_by(found),
            curves(found),
        ),
        notes=(*legend(found, "bold"), *notes(found)),
    )


def paper_report(found: Comparison, *, intervals: bool = True) -> Report:
    """Return one table in the form of papers: models as rows, and datasets as columns with their robust accuracy.

    The table also has the mean clean accuracy and the mean robust accuracy. Accuracies are in %. If `intervals` is
    true, a mean has its 95 % interval.
    """
    best = {name: found.best(ROBUST, name) for name in (*found.datasets, "")}
    best_clean = found.best("clean")
    rows = []
    for model in found.models:
        means = [(model.clean, model.name in best_clean), (model.robust, model.name in best[""])]
        clean, robust = (
            Field(" ".join(shown(mean).split()) if intervals else percent(mean.value), is_best)
            for mean, is_best in means
        )
        fields = [
            Field(percent(model.datasets[name].robust.value), model.name in best[name]) for name in found.datasets
        ]
        rows.append((Field(model.name), clean, robust, *fields))
    sheet = Sheet(
        f"Mean clean accuracy, mean robust accuracy, and robust accuracy on each dataset, in %, under {found.attack} at"
        f" {found.norm} {found.eps}",
        ("model", "clean", "robust", *(label(found, name) for name in found.datasets)),
        tuple(rows),
        label="-".join(re.sub(r"[^0-9A-Za-z]+", "-", text) for text in (found.track, found.attack, found.eps)),
    )
    title = ", ".join(model.name for model in found.models)
    # The other sentences of the legend are about tables that papers do not have.
    return Report(title, about(found), (sheet,), (*legend(found, "bold")[:1], *notes(found)))


def about(found: Comparison) -> str:
    """Return a one-line description: track, attack, threat model, protocols, and number of samples."""
    protocols = ", ".join(dict.fromkeys(model.protocol for model in found.models))
    count = len(found.in_mean)
    return (
        f"{found.track}, {found.attack}, {found.norm} {found.eps}, protocol {protocols}: accuracies in % with 95 %"
        f" intervals on the same {sum(found.samples.values())} samples; means over {count} dataset"
        f"{'s' if count > 1 else ''}"
    )


def notes(found: Comparison) -> tuple[str, ...]:
    """Return the notes of a comparison, and one sentence for each warning code of the records."""
    raised: dict[str, dict[str, list[str]]] = {}
    for model in found.models:
        for dataset, result in model.datasets.items():
            for warning in result.warnings:
                code = warning.partition(":")[0]
                raised.setdefault(code, {}).setdefault(model.name, []).append(dataset)
    explained = (
        f"{code} ({explain(code).meaning}): "
        + "; ".join(f"{name} on {', '.join(datasets)}" for name, datasets in raised[code].items())
        for code in sorted(raised)
    )
    return (*found.notes, *(_too_few(found) or _few(found)), *explained)


def _too_few(found: Comparison) -> list[str]:
    """Return a sentence if some datasets have so few samples that no difference on them can be significant.

    The smallest p value of an exact McNemar test with N samples is 2 / 2**N. Holm's correction multiplies the smallest
    p value by the number of tests.
    """
    tests = sum(pair.measure == ROBUST for pair in found.pairs) * len(found.datasets)
    few = [name for name in found.datasets if found.pairs and tests * 2.0 ** (1 - found.samples[name]) > ALPHA]
    if not few:
        return []
    counts = sorted({found.samples[name] for name in few})
    sizes = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    where = "each dataset" if len(few) == len(found.datasets) else ", ".join(few)
    return [
        f"{where}: {sizes} samples are too few for a significant difference, whatever the accuracies are; compare the"
        " means, or run more samples"
    ]


def _few(found: Comparison) -> list[str]:
    """Return a sentence if a large difference on some datasets may not be significant, because they have few samples.

    An exact McNemar test needs 6 samples that only one of the models classifies correctly, because 2 / 2**5 > 0.05.
    """
    needed = math.ceil(1 - math.log2(ALPHA))
    few = [name for name in found.datasets if found.pairs and needed / found.samples[name] >= _LARGE]
    if not few:
        return []
    most = max(found.samples[name] for name in few)
    where = "each dataset" if len(few) == len(found.datasets) else ", ".join(few)
    return [
        f"{where}: at most {most} samples are too few to distinguish models that differ by less than"
        f" {percent(needed / most)} points, and a larger difference may not be significant either; compare the means,"
        " or run more samples"
    ]


def legend(found: Comparison, mark: str) -> tuple[str, ...]:
    """Return sentences that explain the tables.

    `mark` is the format of the best models in the table, such as "bold".
    """
    if not found.pairs:
        return ()
    return (
        f"{mark}: in a row for one model, no other model is significantly better; in a row for two models, the two"
        " models differ significantly",
        "rank: if several models share a range such as 2-4, the tests do not distinguish them",
        "points: the difference of the means; datasets: first the number of datasets on which the first model is"
        " significantly better, then the number on which it is significantly worse",
        "p: p values from paired tests of the means and from exact McNemar tests of each dataset, on"
        " the same samples, with Holm's correction over all pairs and datasets; a difference is significant if p"
        f" is at most {ALPHA}",
    )


def means(found: Comparison) -> Sheet:
    """Return a table with one row for each model: its mean accuracies and ranks."""
    best = {measure: found.best(measure) for measure in MEASURES}
    rows = (
        (
            Field(model.name),
            *(Field(model.rank), Field(shown(model.robust), model.name in best[ROBUST])),
            *(Field(model.clean_rank), Field(shown(model.clean), model.name in best["clean"])),
        )
        for model in found.models
    )
    return Sheet("Means", ("model", "rank", "robust", "clean rank", "clean"), tuple(rows))


def by_dataset(found: Comparison, measure: str) -> Sheet:
    """Return a table of accuracies. Each dataset and the mean have one row, and each model has one column."""
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
    """Return a table with one row for each pair of models: the difference of the means and its test.

    The last column has two numbers. The first number counts the datasets on which the first model is significantly
    better. The second number counts the datasets on which the second model is significantly better.
    """
    rows = (
        (
            Field(f"{pair.first} - {pair.second}"),
            Field(percentage_points(pair.difference), pair.p_holm <= ALPHA),
            Field(f"{percentage_points(pair.low)} to {percentage_points(pair.high):>5}"),
            Field(p_value(pair.p_holm)),
            Field(" : ".join(str(len(names)) for names in significant_datasets(pair))),
        )
        for pair in _of(found, measure)
    )
    header = ("pair", "points", "95 %", "p", "datasets")
    return Sheet(f"{measure.capitalize()} accuracy, difference of the means", header, tuple(rows))


def dataset_tests(found: Comparison, measure: str) -> Sheet:
    """Return a table of the numbers of samples that only one model of a pair classifies correctly.

    It has one row for each dataset and one column for each pair of models.
    """
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
    title = f"{measure.capitalize()}: samples that only one of two models classifies correctly"
    return Sheet(title, header, tuple(rows))


def broken_by(found: Comparison) -> Sheet:
    """Return a table with one row for each model and one column for each stage of the attack.

    A cell has the number of samples for which the stage found the first adversarial image. Two more columns count the
    samples that are misclassified without an attack and the robust samples.
    """
    stages = tuple(dict.fromkeys(stage for model in found.models for stage in model.broken_by))
    rows = (
        (Field(model.name), *(Field(str(model.broken_by.get(stage, 0))) for stage in stages)) for model in found.models
    )
    return Sheet("Samples broken by each stage", ("model", *stages), tuple(rows))


def curves(found: Comparison) -> Sheet:
    """Return a table of mean robust accuracies with one row for each model and one column for each radius."""
    radii = {point.eps: point.radius for model in found.models for point in model.curve}
    ordered = sorted(radii, key=radii.__getitem__)
    rows = []
    for model in found.models:
        points = {point.eps: Field(percent(point.robust.value)) for point in model.curve}
        rows.append((Field(model.name), *(points.get(eps, Field("")) for eps in ordered)))
    return Sheet(f"Mean robust accuracy by {found.norm} radius", ("model", *ordered), tuple(rows))


def csv_rows(found: Comparison) -> list[dict[str, str | float]]:
    """Return rows for a CSV file. Every model has one row for each dataset and one row for the mean.

    Accuracies are in [0, 1].
    """
    rows: list[dict[str, str | float]] = []
    for model in found.models:
        common: dict[str, str | float] = {
            **{"track": found.track, "protocol": model.protocol, "model": model.name},
            **{"attack": found.attack, "norm": found.norm, "eps": found.eps},
        }
        for name in (*found.datasets, ""):
            row = {**common, "dataset": name or MEAN, "n": (model.datasets[name] if name else model).clean.n}
            for measure in MEASURES:
                row |= getattr(model.datasets[name] if name else model, measure).columns(measure)
                row[f"{measure}_best"] = "yes" if model.name in found.best(measure, name) else "no"
            row["rank"] = "" if name else model.rank
            row["warnings"] = " ".join(model.datasets[name].warnings) if name else ""
            rows.append(row)
    return rows


def label(found: Comparison, dataset: str) -> str:
    """Return the name of a dataset, with a remark if it is not in the mean."""
    return dataset if dataset in found.in_mean else f"{dataset} (not in the mean)"


def shown(accuracy: Accuracy) -> str:
    """Return an accuracy with its interval in %, padded with spaces so that a column of accuracies is aligned."""
    interval = f"({percent_interval(accuracy.low, accuracy.high)})"
    return f"{percent(accuracy.value)} {interval:>11}"


def p_value(p: float) -> str:
    """Return a p value as text, "< 0.001" or with 3 digits."""
    return "< 0.001" if p < 0.001 else decimals(p, 3)


def significant_datasets(pair: ModelPair) -> tuple[Sequence[str], Sequence[str]]:
    """Return the datasets on which two models differ significantly, in two lists.

    The first list has the datasets on which the first model is better. The second list has the datasets on which it is
    worse.
    """
    differing = {name: test for name, test in pair.datasets.items() if test.p_holm <= ALPHA}
    better = [name for name, test in differing.items() if test.only_first > test.only_second]
    return better, [name for name in differing if name not in better]


def _of(found: Comparison, measure: str) -> Iterable[ModelPair]:
    """Return the paired tests of clean accuracies or of robust accuracies. `measure` is "clean" or "robust"."""
    return (pair for pair in found.pairs if pair.measure == measure)
