"""The command `vlmbench plan`: lists the cells of a run with their expected time, passes and memory.

A cell is one model under one attack on one dataset at one radius.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from robustbench_vlm.cli.options import HalfWidth, Json, option, points, takes_request
from robustbench_vlm.cli.render.output import Line, answer, duration
from robustbench_vlm.cli.render.progress_bar import progress
from robustbench_vlm.cli.render.text_table import Columns, table, wrapped
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.numbers import percent

if TYPE_CHECKING:
    from robustbench_vlm.comparison.sample_size import Detection
    from robustbench_vlm.engine.cost import Estimate
    from robustbench_vlm.engine.request import Request
    from robustbench_vlm.engine.resolve import Plan

_Detect = Annotated[
    str | None,
    option(
        "--detect",
        "POINTS",
        "Also state how many samples per dataset a comparison of two models needs to show a difference of this many"
        " percentage points.",
    ),
]
_GROUPS = ("model", "attack", "threat")
_COLUMNS = Columns(_GROUPS, "dataset", ("classes", "n", "passes", "time", "memory"))


@takes_request
def plan(request: "Request", half_width: HalfWidth = None, detect: _Detect = None, as_json: Json = False) -> None:
    """Estimate the time, the passes and the memory of a run.

    Takes the options of `run`. Measures the speed of the model, and attacks some samples for a few seconds.
    """
    from robustbench_vlm.engine.cost import estimate_cost
    from robustbench_vlm.engine.resolve import resolve

    request = dataclasses.replace(request, half_width=points(half_width))
    difference = points(detect, "--detect")
    if difference and len(set(request.models)) != 2:
        raise UserError(f"--detect compares two models, got {len(set(request.models))}: give --model twice")
    with progress("read", quiet=as_json) as on_progress:
        planned = resolve(request, on_progress)
    estimate = estimate_cost(planned)
    found = samples_needed(planned, difference) if difference else None
    answer(
        document(planned, estimate) | ({"detect": vars(found)} if found else {}),
        lambda width: [*lines(planned, estimate, width), *(needed(planned, estimate, found, width) if found else ())],
        as_json=as_json,
    )


def lines(plan: "Plan", estimate: "Estimate", width: int) -> list[Line]:
    """Return a table with the expected cost of each cell of a plan, and the total cost.

    A cell is one model under one attack on one dataset at one radius. The cost of a cell is for all its samples. The
    total time is only for samples that have no records on disk.
    """
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
        for cell, cost in zip(plan.cells, estimate.cells, strict=True)
    ]
    single = [group for group in _GROUPS if len({row[group] for row in rows}) == 1]
    about = ", ".join([*(rows[0][group] for group in single), f"protocol {plan.protocol.label}"])
    rows = [{key: value for key, value in row.items() if key not in single} for row in rows]
    sentences = [
        *image_sizes(plan),
        totals(plan, estimate),
        f"{estimate.passes_expected:,} forward and backward passes ({estimate.passes_range[0]:,} to"
        f" {estimate.passes_range[1]:,} in nine of ten cases), {estimate.passes_most:,} if every sample is robust",
        *estimated_run(plan, estimate),
        *time_source(estimate),
        f"about {_gibibytes(estimate.memory)} of memory in total; each process attacks {estimate.batch_size} samples"
        " at once",
    ]
    return [
        *wrapped(about, width),
        Line(""),
        *table(rows, _COLUMNS, width),
        Line(""),
        *(line for sentence in sentences for line in wrapped(sentence, width, indent="  ")),
    ]


def document(plan: "Plan", estimate: "Estimate") -> dict[str, object]:
    """Return a plan as a JSON document.

    The estimated seconds, passes and memory are those of a run that has no records on disk.
    """
    from robustbench_vlm.core.fingerprint import plain

    costs = plain(estimate)
    cells = [
        {
            "model": cell.model_name,
            "attack": cell.attack.name,
            "dataset": cell.dataset.name,
            "classes": len(cell.dataset.classes),
            "norm": cell.threat.norm,
            "eps": cell.threat.eps_text,
            "n": len(cell),
            "image_size": list(cell.image_shape),
            "input_size": plan.input_sizes[cell.model_name],
            "unreadable": list(cell.samples.unreadable),
            "fingerprint": cell.fingerprint,
            **cost,
        }
        for cell, cost in zip(plan.cells, costs.pop("cells"), strict=True)
    ]
    found = {
        "track": plan.track.name,
        "protocol": plan.protocol.label,
        "cells": cells,
        "samples": plan.samples,
        "samples_on_disk": on_disk(plan),
        "estimate": costs,
    }
    if plan.request.half_width:
        from robustbench_vlm.engine.estimated_cost import estimated_cost

        found |= {"half_width": plan.request.half_width, "estimated_run": plain(estimated_cost(plan, estimate))}
    return found


def samples_needed(plan: "Plan", difference: float) -> "Detection":
    """Return the number of samples that is needed to show a given difference in accuracy, in (0, 1), of two models.

    The number depends on the discordance: the share of samples that only one of the two models classifies correctly. It
    is computed from the records of both models for the first attack and radius of the plan. If there are no such
    records, a discordance is assumed.
    """
    from robustbench_vlm.comparison.sample_size import detection, recorded_discordance
    from robustbench_vlm.leaderboard.sources import read_sources

    first = plan.cells[0]
    datasets = list(dict.fromkeys(cell.dataset.name for cell in plan.cells))
    recorded: list[float] = []
    # The error means that a model has no records. The discordance is then assumed.
    with contextlib.suppress(UserError):
        models = read_sources(list(plan.input_sizes), plan.track.name, attack=first.attack.name, runs=plan.request.out)
        recorded = recorded_discordance(models[0], models[1], first.attack.name, first.threat, datasets)
    return detection(difference, len(datasets), recorded)


def needed(plan: "Plan", estimate: "Estimate", found: "Detection", width: int) -> list[Line]:
    """Return the lines about the samples that a comparison needs, and about the cost of these samples."""
    times = found.samples * len(plan.cells) / plan.samples
    source = "on record" if found.is_recorded else "assumed, because no records of both models were found"
    sentence = (
        f"to show a difference of {found.difference * 100:g} points with a power of {found.power * 100:g} %, a"
        f" comparison needs about {found.samples} samples per dataset (the models differ on"
        f" {percent(found.discordance)} % of the samples, {source}): about"
        f" {duration(estimate.seconds_expected * times)} and {round(estimate.passes_expected * times):,} passes for"
        " both models"
    )
    return wrapped(sentence, width, indent="  ")


def estimated_run(plan: "Plan", estimate: "Estimate") -> list[str]:
    """Return a sentence with the expected cost of an estimated run. Without --half-width, return no sentence."""
    if not plan.request.half_width:
        return []
    from robustbench_vlm.engine.estimated_cost import estimated_cost

    cost = estimated_cost(plan, estimate)
    saved = estimate.passes_expected / max(cost.passes, 1)
    return [
        f"with --half-width {plan.request.half_width * 100:g}: about {duration(cost.seconds)}"
        f" ({_times(cost.seconds_range)}) and {cost.passes:,} passes, {saved:.1f} times fewer"
    ]


def settings(plan: "Plan") -> list[str]:
    """Return sentences with the settings of a run: the protocol with the radii, and the sizes of the images."""
    radii: dict[tuple[str, ...], list[str]] = {}
    for model in plan.input_sizes:
        own = dict.fromkeys(str(cell.threat) for cell in plan.cells if cell.model_name == model)
        radii.setdefault(tuple(own), []).append(model)
    known = [f"{', '.join(own)}{f' for {_some(models)}' if len(radii) > 1 else ''}" for own, models in radii.items()]
    track = "" if plan.request.images else f"track {plan.track.name}, "
    return [f"{track}protocol {plan.protocol.label}, {'; '.join(known)}", *image_sizes(plan)]


def image_sizes(plan: "Plan") -> list[str]:
    """Return sentences with the size of the attacked images, one sentence for all models with the same input size."""
    by_size: dict[int, list[str]] = {}
    for model, size in plan.input_sizes.items():
        by_size.setdefault(size, []).append(model)
    found = []
    for size, models in by_size.items():
        shapes = dict.fromkeys(cell.image_shape for cell in plan.cells if cell.model_name == models[0])
        resized = any(shape != (size, size) for shape in shapes)
        pixels = ", ".join(f"{height} x {width}" for height, width in shapes)
        note = (
            f"resized to the input of {size} x {size}"
            if resized
            else f"{'its' if len(models) == 1 else 'their'} input size"
        )
        found.append(f"{_some(models)}: attacked at {pixels} pixels, {note}")
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def totals(plan: "Plan", estimate: "Estimate") -> str:
    """Return a sentence with the number of samples of a plan, the expected time and its range."""
    known = on_disk(plan)
    share = (plan.samples - known) / plan.samples
    done = f" ({known} of them on disk already)" if known else ""
    return (
        f"{plan.samples} samples{done}: about {duration(estimate.seconds_expected * share)}"
        f" ({_times([share * end for end in estimate.seconds_range])} in nine of ten cases) with {estimate.workers}"
        f" process{'es' if estimate.workers > 1 else ''} on {estimate.device}{_left_out(plan)}"
    )


def time_source(estimate: "Estimate") -> list[str]:
    """Return sentences about the source of the expected time, and about a file of run times that cannot be read."""
    runs = estimate.recorded_runs
    source = (
        f"the time is adapted to {runs} earlier run{'s' if runs > 1 else ''} on this machine"
        if runs
        else "no earlier run on this machine is recorded, so the time is less certain"
    )
    return [f"{source}; other programs that run at the same time make it longer", *estimate.notes]


def _times(ends: Sequence[float]) -> str:
    return f"{duration(ends[0])} to {duration(ends[1])}"


def on_disk(plan: "Plan") -> int:
    """Return the number of the plan's samples that have valid records on disk."""
    from robustbench_vlm.engine.store import cell_folder, read_finished

    found = (read_finished(cell_folder(plan.request.out, cell), cell) for cell in plan.cells)
    return sum(piece.stop - piece.start for each in found for piece in each.pieces)


def _left_out(plan: "Plan") -> str:
    """Return a hint if the folder of --images has more images than the run uses. If not, return ""."""
    cell = plan.cells[0]
    if plan.request.images is None:
        return ""
    total = len(cell.dataset.open().ids)
    chosen = len(cell) + len(cell.samples.unreadable)
    return f"; {chosen} of {total} images are used (--samples all uses all of them)" if chosen < total else ""


def _gibibytes(memory: int) -> str:
    return f"{memory / 2**30:.1f} GiB"
