"""The command `vlmbench run`: measures clean and robust accuracy, and prints a table of both."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from robustbench_vlm.cli.options import EpsCurve, HalfWidth, Json, points, takes_request
from robustbench_vlm.cli.plan import estimated_run, settings, time_source, totals
from robustbench_vlm.cli.render.output import Line, answer, duration, note
from robustbench_vlm.cli.render.progress_bar import progress
from robustbench_vlm.cli.render.text_table import Columns, Row, table, wrapped
from robustbench_vlm.core.numbers import percent, percent_interval
from robustbench_vlm.core.records import estimate_text

if TYPE_CHECKING:
    from robustbench_vlm.core.records import Score
    from robustbench_vlm.engine.eps_curve import CurvePoint
    from robustbench_vlm.engine.fresh_draws import DrawnScore
    from robustbench_vlm.engine.request import Request
    from robustbench_vlm.engine.results import RunResult, ScoreTable

_GROUPS = ("model", "attack", "threat")
_INTERVAL, _FULL_ATTACK = "95 % interval", "full attack"
_CLEAN_DRAW, _ROBUST_DRAW, _DRAW_INTERVAL = "clean draw", "robust draw", "95 % (draw)"
_COLUMNS = Columns(
    _GROUPS,
    "dataset",
    ("classes", "n", "clean", "robust", _FULL_ATTACK, _INTERVAL, _CLEAN_DRAW, _ROBUST_DRAW, _DRAW_INTERVAL),
    "warnings",
)


@takes_request
def run(request: "Request", half_width: HalfWidth = None, eps_curve: EpsCurve = False, as_json: Json = False) -> None:
    """Measure clean and robust accuracy.

    Samples that have records on disk are not attacked again. If the command is stopped, run it again to continue.
    """
    from robustbench_vlm.engine.backends import ENGINES
    from robustbench_vlm.engine.cost import estimate_cost
    from robustbench_vlm.engine.eps_curve import curve_request
    from robustbench_vlm.engine.resolve import resolve
    from robustbench_vlm.engine.run import run_plan

    request = dataclasses.replace(request, half_width=points(half_width))
    if eps_curve:
        request = curve_request(request)
    note("reading models and images", quiet=as_json)
    ENGINES.load(request.resources.engine).prepare(request.resources)
    with progress("read", quiet=as_json) as on_progress:
        plan = resolve(request, on_progress)
    for sentence in settings(plan):
        note(sentence, quiet=as_json)
    estimate = estimate_cost(plan)
    for sentence in (totals(plan, estimate), *estimated_run(plan, estimate), *time_source(estimate)):
        note(sentence, quiet=as_json)
    with progress("samples", quiet=as_json) as on_progress:
        result = run_plan(plan, estimate, on_progress=on_progress)
    if not eps_curve:
        answer(result.to_json(), lambda width: lines(result, width), as_json=as_json)
        return
    points_found = result.eps_points()
    document = {**result.to_json(), "curve": [point.columns() for point in points_found]}
    answer(document, lambda width: curve_lines(result, points_found, width), as_json=as_json)


def lines(result: "RunResult", width: int) -> list[Line]:
    """Return the lines of a run's output.

    The lines have a table of accuracies with the means at the end, explanations of the warnings, the protocol and the
    folders of the records.
    """
    tables = result.tables
    single = {group for group in _GROUPS if len({_group(each)[group] for each in tables}) == 1}
    rows: list[Row] = [
        {
            **_score_row(each, score),
            **_design_cell(each.estimate.scores[number] if each.estimate else None),
            **_draw_cells(each.draws.scores[number] if each.draws else None),
        }
        for each in tables
        for number, score in enumerate(each.scores)
    ]
    rows += [row for each in tables for row in _mean_rows(each)]
    rows = [{key: value for key, value in row.items() if key not in single} for row in rows]
    about = ", ".join([*(_group(tables[0])[group] for group in _GROUPS if group in single), "accuracies in %"])
    return [
        *wrapped(about, width),
        Line(""),
        *table(rows, _COLUMNS, width),
        *_explained((code for each in tables for score in each.scores for code in score.warnings), width),
        Line(""),
        *(line for sentence in _footer(result) for line in wrapped(sentence, width, indent="  ")),
    ]


def curve_lines(result: "RunResult", points_found: "Sequence[CurvePoint]", width: int) -> list[Line]:
    """Return the lines of a run with --eps-curve: the mean robust accuracy of each model at each radius."""
    several = len({point.model for point in points_found}) > 1
    rows: list[Row] = [
        {
            **({"model": point.model} if several else {}),
            "eps": point.eps,
            "robust": percent(point.robust.value),
            _INTERVAL: percent_interval(point.robust.low, point.robust.high),
        }
        for point in points_found
        if point.dataset == "mean"
    ]
    first = result.tables[0]
    names = ([] if several else [first.model]) + [first.attack, first.norm, "mean over datasets, accuracies in %"]
    return [
        *wrapped(", ".join(names), width),
        Line(""),
        *table(rows, Columns(("model",), "eps", ("robust", _INTERVAL)), width),
        Line(""),
        *(line for sentence in _footer(result) for line in wrapped(sentence, width, indent="  ")),
    ]


def _group(found: "ScoreTable") -> dict[str, str]:
    return {"model": found.model, "attack": found.attack, "threat": f"{found.norm} {found.eps}"}


def _score_row(found: "ScoreTable", score: "Score") -> Row:
    return {
        **_group(found),
        "dataset": score.dataset,
        "classes": str(score.classes),
        "n": str(score.n),
        "clean": percent(score.clean),
        "robust": percent(score.robust),
        _INTERVAL: percent_interval(*score.robust_interval),
        "warnings": " ".join(score.warnings),
    }


def _mean_rows(found: "ScoreTable") -> list[Row]:
    means = {"mean": found.mean, "mean as published": found.mean_as_published}
    estimate = found.estimate
    design = {"mean": estimate.mean, "mean as published": estimate.mean_as_published} if estimate else {}
    return [
        {
            **_group(found),
            "dataset": name,
            "clean": percent(mean.clean),
            "robust": percent(mean.robust),
            _INTERVAL: percent_interval(*mean.robust_interval),
            **_design_cell(design.get(name)),
            **_draw_cells(found.draws.mean if found.draws and name == "mean" else None),
        }
        for name, mean in means.items()
        if mean is not None
    ]


def _design_cell(interval: tuple[float, float] | None) -> dict[str, str]:
    """Return the table column with the interval for the result of the full attack. Only estimated runs have it."""
    return {_FULL_ATTACK: percent_interval(*interval)} if interval else {}


def _draw_cells(found: "DrawnScore | None") -> dict[str, str]:
    """Return the table columns with the accuracies of one random draw. Only runs with --draws have them."""
    if found is None:
        return {}
    return {
        _CLEAN_DRAW: percent(found.clean.value),
        _ROBUST_DRAW: percent(found.robust.value),
        _DRAW_INTERVAL: percent_interval(found.robust.low, found.robust.high),
    }


def _explained(warnings: Iterable[str], width: int) -> list[Line]:
    from robustbench_vlm.engine.warnings import explain

    explained = {warning.partition(":")[0]: explain(warning) for warning in warnings}
    if not explained:
        return []
    lines = [Line(""), Line("warnings (code:N means that N samples have the warning)", "bold")]
    for code in sorted(explained):
        lines += wrapped(f"{code}: {explained[code].meaning}; {explained[code].advice}", width, indent="  ")
    return lines


def _footer(result: "RunResult") -> Iterable[str]:
    yield f"protocol {result.tables[0].protocol}, fingerprint {result.fingerprint[:12]}"
    yield f"{duration(result.seconds)}, {result.passes:,} forward and backward passes"
    yield f"records in {', '.join(dict.fromkeys(str(each.folder) for each in result.tables))}"
    for each in result.tables:
        yield from _estimate_sentences(each)
    if draws := result.tables[0].draws:
        yield f"clean, robust: share of samples that are right in at least 99 % of {draws.draws} fresh draws"
        yield f"{_CLEAN_DRAW}, {_ROBUST_DRAW}: mean accuracy over the draws; {_DRAW_INTERVAL} is for {_ROBUST_DRAW}"
        yield f"gradients are means over {draws.eot} draws" if draws.eot > 1 else "each gradient is that of one draw"
    yield from (f"note: {warning}" for warning in result.warnings)


def _estimate_sentences(found: "ScoreTable") -> Iterable[str]:
    """Yield sentences about an estimated run: what was estimated, and the meaning of the two intervals."""
    if not (each := found.estimate):
        return
    text = estimate_text(each.drawn, each.survivors, each.passes_full / max(found.passes, 1))
    yield f"{found.model}, {found.attack}, {found.eps} is estimated: {text}"
    yield f"{_FULL_ATTACK}: with 95 % confidence, the result of the full attack on these samples is in this interval"
    yield f"{_INTERVAL}: for other samples of the same datasets; it contains both errors"
    yield "the same command without --half-width attacks the remaining samples"
