"""What a plan and a run look like on a terminal."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from robustbench_vlm.cli.render.layout import Columns, Row, table, wrapped
from robustbench_vlm.cli.render.screen import Line, duration
from robustbench_vlm.core.records import Score, plain
from robustbench_vlm.engine.resolve import Plan
from robustbench_vlm.engine.results import RunResult, Table
from robustbench_vlm.engine.store import cell_folder, read_finished
from robustbench_vlm.engine.warnings import explain

_GROUPS = ("model", "attack", "threat")
_RUN = Columns(_GROUPS, "dataset", ("classes", "n", "clean", "robust", "95 % interval"), "warnings")
_PLAN = Columns(_GROUPS, "dataset", ("classes", "n", "passes", "time", "memory"))


def run_lines(result: RunResult, width: int) -> list[Line]:
    """Return a run's table, the means of all its models, attacks and eps together at the end, and what it rests on."""
    tables = result.tables
    single = {group for group in _GROUPS if len({_group(each)[group] for each in tables}) == 1}
    rows = [_score_row(each, score) for each in tables for score in each.scores]
    rows += [row for each in tables for row in _mean_rows(each)]
    rows = [{key: value for key, value in row.items() if key not in single} for row in rows]
    about = ", ".join([*(_group(tables[0])[group] for group in _GROUPS if group in single), "accuracies in %"])
    return [
        *wrapped(about, width),
        Line(""),
        *table(rows, _RUN, width),
        *_explained((code for each in tables for score in each.scores for code in score.warnings), width),
        Line(""),
        *(line for sentence in _footer(result) for line in wrapped(sentence, width, indent="  ")),
    ]


def plan_lines(plan: Plan, width: int) -> list[Line]:
    """Return a plan's cells and what each, and all together, are expected to cost from nothing."""
    rows = [
        {
            "model": cell.model_name,
            "attack": cell.attack.name,
            "threat": str(cell.threat),
            "dataset": cell.dataset.name,
            "classes": str(len(cell.dataset.classes)),
            "n": str(len(cell)),
            "passes": f"{cost.passes_expected:,}",
            "time": duration(cost.seconds_expected),
            "memory": _gibibytes(cost.memory),
        }
        for cell, cost in zip(plan.cells, plan.estimate.cells, strict=True)
    ]
    single = [group for group in _GROUPS if len({row[group] for row in rows}) == 1]
    about = ", ".join([*(rows[0][group] for group in single), f"protocol {plan.protocol.label}"])
    rows = [{key: value for key, value in row.items() if key not in single} for row in rows]
    sentences = [totals(plan), *_memory(plan)]
    return [
        *wrapped(about, width),
        Line(""),
        *table(rows, _PLAN, width),
        Line(""),
        *(line for sentence in sentences for line in wrapped(sentence, width, indent="  ")),
    ]


def plan_document(plan: Plan) -> dict[str, object]:
    """Return a plan as a JSON document; seconds, passes and memory are those from nothing on disk."""
    estimate = plain(plan.estimate)
    cells = [
        {
            "model": cell.model_name,
            "attack": cell.attack.name,
            "dataset": cell.dataset.name,
            "classes": len(cell.dataset.classes),
            "norm": cell.threat.norm,
            "eps": cell.threat.eps_text,
            "n": len(cell),
            "unreadable": list(cell.samples.unreadable),
            "fingerprint": cell.fingerprint,
            **cost,
        }
        for cell, cost in zip(plan.cells, estimate.pop("cells"), strict=True)
    ]
    return {
        "track": plan.track.name,
        "protocol": plan.protocol.label,
        "cells": cells,
        "samples": plan.samples,
        "samples_on_disk": on_disk(plan),
        "estimate": estimate,
    }


def totals(plan: Plan) -> str:
    """Return the sentence that says how much a plan has to do and how long that takes."""
    estimate, known = plan.estimate, on_disk(plan)
    share = (plan.samples - known) / plan.samples
    done = f" ({known} of them on disk already)" if known else ""
    return (
        f"{plan.samples} samples{done}: about {duration(estimate.seconds_expected * share)} with {estimate.workers}"
        f" process{'es' if estimate.workers > 1 else ''} on {estimate.device},"
        f" {duration(estimate.seconds_most * share)} if every sample is robust{_left_out(plan)}"
    )


def on_disk(plan: Plan) -> int:
    """Return how many of a plan's samples have sound records already."""
    found = (read_finished(cell_folder(plan.request.out, cell), cell) for cell in plan.cells)
    return sum(piece.stop - piece.start for each in found for piece in each.pieces)


def _left_out(plan: Plan) -> str:
    """Return a hint where a folder has more images than the protocol takes."""
    cell = plan.cells[0]
    if plan.request.images is None:
        return ""
    total = len(cell.dataset.open().ids)
    chosen = len(cell) + len(cell.samples.unreadable)
    return f"; {chosen} of {total} images (--samples all takes every one)" if chosen < total else ""


def _memory(plan: Plan) -> Iterable[str]:
    estimate = plan.estimate
    yield f"{estimate.passes_expected:,} passes through the network, {estimate.passes_most:,} if every sample is robust"
    yield f"about {_gibibytes(estimate.memory)} of memory, {estimate.batch_size} samples at once in each process"


def _gibibytes(memory: int) -> str:
    return f"{memory / 2**30:.1f} GiB"


def _group(found: Table) -> dict[str, str]:
    return {"model": found.model, "attack": found.attack, "threat": f"{found.norm} {found.eps}"}


def _score_row(found: Table, score: Score) -> Row:
    return {
        **_group(found),
        "dataset": score.dataset,
        "classes": str(score.classes),
        "n": str(score.n),
        "clean": _percent(score.clean),
        "robust": _percent(score.robust),
        "95 % interval": _interval(score.robust_interval),
        "warnings": " ".join(score.warnings),
    }


def _interval(bounds: tuple[float, float]) -> str:
    return "-".join(map(_percent, bounds))


def _mean_rows(found: Table) -> list[Row]:
    means = {"mean": found.mean, "mean as published": found.mean_as_published}
    return [
        {
            **_group(found),
            "dataset": name,
            "clean": _percent(mean.clean),
            "robust": _percent(mean.robust),
            "95 % interval": _interval(mean.robust_interval),
        }
        for name, mean in means.items()
        if mean is not None
    ]


def _explained(warnings: Iterable[str], width: int) -> list[Line]:
    gates = {warning.partition(":")[0]: explain(warning) for warning in warnings}
    if not gates:
        return []
    lines = [Line(""), Line("warnings (code:N counts samples)", "bold")]
    for code in sorted(gates):
        lines += wrapped(f"{code}: {gates[code].meaning}; {gates[code].advice}", width, indent="  ")
    return lines


def _footer(result: RunResult) -> Iterable[str]:
    yield f"protocol {result.tables[0].protocol}, fingerprint {result.fingerprint[:12]}"
    yield f"{duration(result.seconds)}, {result.passes:,} passes through the network"
    yield f"records in {_folders([each.folder for each in result.tables])}"
    yield from (f"note: {warning}" for warning in result.warnings)


def _folders(folders: Sequence[Path]) -> str:
    return ", ".join(dict.fromkeys(str(folder) for folder in folders))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
