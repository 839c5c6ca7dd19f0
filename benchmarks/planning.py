"""Compare the predictions of `vlmbench plan` with recorded passes and measured times.

    python benchmarks/planning.py passes --out benchmarks/planning.json
    python benchmarks/planning.py times --out benchmarks/planning.json

For each model, attack and radius on the leaderboard of the track mini, `passes` predicts the passes of the run and
compares them with the passes of the records. `times` runs some attacks on a few samples of each dataset, and compares
the measured with the predicted time. Both times are times of the processor, because other processes may use the
machine. The ranges should contain nine of ten results.
"""

import argparse
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import report
import torch

from robustbench_vlm.engine.cost import estimate_cost
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import Plan, resolve
from robustbench_vlm.engine.resources import Resources, cores
from robustbench_vlm.engine.run_times import calibrate
from robustbench_vlm.engine.shard import run_group
from robustbench_vlm.engine.shard_groups import missing_groups
from robustbench_vlm.engine.store import Finished
from robustbench_vlm.leaderboard.entry import board_folder, read_entry
from robustbench_vlm.leaderboard.entry_records import read_entry_records

RUNS = (("pgd-20", 48), ("apgd-ce", 16), ("fab-t", 8), ("autoattack", 8))
"""Attacks whose time is measured, with the number of samples of each dataset."""


def plan_of(model: str, attacks: Sequence[str], eps: str, samples: int | None = None) -> Plan:
    """Return the plan of a model at one radius on the datasets of mini."""
    # One worker per core, so that each of them has one thread, as the runs in this script.
    resources = Resources("cpu", cores())
    request = Request(
        models=(model,), attacks=tuple(attacks), eps=(eps,), protocol="mini", samples=samples, resources=resources
    )
    return resolve(request)


def passes() -> Iterator[dict[str, Any]]:
    """Yield the predicted and the recorded passes of each result on the leaderboard."""
    folder = board_folder("mini")
    for path in sorted(folder.glob("*.json")):
        recorded: dict[tuple[str, str], int] = {}
        for each in read_entry_records(read_entry(path), folder):
            key = each.score.attack, each.score.eps
            recorded[key] = recorded.get(key, 0) + sum(row.forward + row.backward for row in each.results)
        for eps in sorted({eps for _, eps in recorded}):
            plan = plan_of(path.stem, sorted(attack for attack, own in recorded if own == eps), eps)
            for attack, cells in itertools.groupby(plan.cells, lambda cell: cell.attack.name):
                estimate = estimate_cost(replace(plan, cells=tuple(cells)))
                row = {"model": path.stem, "attack": attack, "eps": eps, "passes": recorded[attack, eps]}
                yield row | {"expected": estimate.passes_expected, "range": estimate.passes_range}


def times(models: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the predicted and the measured time of some runs, in seconds of one processor core."""
    for (attack, samples), model in itertools.product(RUNS, models):
        plan = plan_of(model, (attack,), "5/255", samples)
        estimate = estimate_cost(plan)
        resources = plan.request.resources
        groups = missing_groups(plan.cells, [Finished((), ())] * len(plan.cells), resources)
        begun = time.process_time()
        results = [row for group in groups for rows in run_group(plan.cells, resources, group) for row in rows]
        spent = time.process_time() - begun
        found = sum(row.forward + row.backward for row in results)
        # The prediction without the ratio for this machine, for all workers together.
        expected = estimate.seconds_most / estimate.passes_most / estimate.time_ratio * estimate.workers
        row = {"model": model, "attack": attack, "samples": len(results), "passes": found, "seconds": spent}
        yield row | {
            "predicted_seconds": expected * found,
            "ratio": spent / (expected * found),
            "expected_passes": estimate.passes_expected,
        }


def judged(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows with the result divided by the prediction, and whether the result is in the predicted range.

    The range of a time is that of `calibrate` for the earlier runs, as `vlmbench plan` computes it.
    """
    for number, row in enumerate(rows):
        if "range" in row:
            low, high = row["range"]
            inside = low <= row["passes"] <= high
            yield row | {"ratio": row["passes"] / row["expected"], "inside": inside}
        else:
            found = calibrate([each["ratio"] for each in rows[:number]][-10:])
            yield row | {"inside": abs(math.log(row["ratio"] / found.ratio)) <= math.log(found.spread)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the report")
    parser.add_argument("part", choices=("passes", "times"))
    parser.add_argument("--models", nargs="*", default=["agft", "clip", "fare"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before = report.read(arguments.out)
    rows = []
    for row in passes() if arguments.part == "passes" else times(arguments.models):
        rows.append(row)
        print(row, flush=True)
        found = {"machine": report.machine(), "rows": list(judged(rows))}
        report.write({**before, arguments.part: found}, arguments.out)
    print(f"{sum(row['inside'] for row in judged(rows))} of {len(rows)} results are in the range")


if __name__ == "__main__":
    main()
