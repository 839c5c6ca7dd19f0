"""Measure the coverage and the savings of estimated runs, by replays of recorded runs.

    python benchmarks/estimated_runs.py measure --out benchmarks/estimated_runs.json
    python benchmarks/estimated_runs.py replay --out benchmarks/estimated_runs.json
    python benchmarks/estimated_runs.py new-samples --replays 2000 --out benchmarks/estimated_runs.json

`measure` reads the records of the leaderboard on the track mini. For each model, radius and dataset it counts the
samples that APGD-CE and the whole first phase leave, and the samples that later stages break. It attacks only samples
that a later stage broke, so it takes about 20 minutes on one core.

`replay` draws the survivors of each model in random orders, with the stop rule of an estimated run. It reports how
often the design interval contains the number of the full attack at the stop, and how many passes are saved. It also
replays made-up populations. With 20,000 replays the coverage has an error of 0.15 percentage points.

`new-samples` draws the 200 samples of each dataset from a population with known rates, and then the survivors. It
reports how often the interval for other samples contains the robust accuracy of the population.
"""

import argparse
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch

from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.attacks.phases import divide
from robustbench_vlm.core.finite_population import Population, share_bounds
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.estimate import CHUNK, CellDraws, estimate_mean
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import cell_classifier, load_batch
from robustbench_vlm.leaderboard.entry import board_folder, read_entry
from robustbench_vlm.leaderboard.entry_records import read_entry_records

RADII = ("5/255", "10/255")
FIRST_PASSES = 2 * 101 + 2 * 101 + 3
"""Forward and backward passes of a survivor in the first phase: two runs of APGD with 100 steps."""
LATER = ("apgd-t", "fab-t", "square")
BATCH = 500
"""Number of replays that are computed together."""


def measure(threads: int) -> list[dict[str, Any]]:
    """Return the counts of each model, radius and dataset."""
    torch.set_num_threads(threads)
    folder = board_folder("mini")
    found = []
    for path in sorted(folder.glob("*.json")):
        records = [each for each in read_entry_records(read_entry(path), folder) if each.score.attack == "autoattack"]
        for eps in RADII:
            own = {each.score.dataset: each.results for each in records if each.score.eps == eps}
            request = Request(models=(path.stem,), eps=(eps,), protocol="mini", resources=Resources("cpu", 1))
            for cell in resolve(request).cells:
                found.append({"model": path.stem, "eps": eps, **counts_of(cell, own[cell.dataset.name])})
            print(
                path.stem,
                eps,
                {key: total(found, path.stem, eps, key) for key in ("after_ce", "after_first")},
                flush=True,
            )
    return found


def counts_of(cell: Cell, results: Sequence[Any]) -> dict[str, Any]:
    """Return the counts of one cell. Samples that a later stage broke are attacked with the first phase again."""
    assert [each.sample_id for each in results] == list(cell.samples.ids)
    later = [place for place, each in enumerate(results) if each.broken_by in LATER]
    left = len(later)
    if later:
        batch = load_batch(cell, 0, len(cell), device="cpu")[0].at(torch.tensor(later))
        classifier = cell_classifier(cell, "cpu").of_samples(batch.keys)
        left = int(attack_samples(classifier, batch, divide(cell.attack).first, batch_size=64).robust.sum())
    robust = [each for each in results if each.broken_by == ""]
    return {
        "dataset": cell.dataset.name,
        "samples": len(results),
        "robust": len(robust),
        "after_ce": len(later),
        "after_first": left,
        "passes_of_robust": sum(each.forward + each.backward for each in robust),
        "passes_of_others": sum(each.forward + each.backward for each in results if each.broken_by != ""),
    }


def total(rows: Sequence[Mapping[str, Any]], model: str, eps: str, key: str) -> int:
    """Return the sum of one count over the datasets of a model and radius."""
    return sum(row[key] for row in rows if (row["model"], row["eps"]) == (model, eps))


def made_up() -> Iterator[tuple[str, list[int], list[int]]]:
    """Yield made-up populations: a name, and for each stratum the numbers of survivors and of breaks."""
    yield "no break", [108] * 13, [0] * 13
    yield "0.5 % break", [108] * 13, [1 if n % 2 else 0 for n in range(13)]
    yield "1 break in all", [108] * 13, [1, *[0] * 12]
    yield "1 % break", [100] * 13, [1] * 13
    yield "one stratum with all breaks", [108] * 13, [20, *[0] * 12]
    yield "unequal strata", [4, 20, 60, 150, 180, 0, 190], [1, 0, 2, 3, 0, 0, 9]


def replay(name: str, survivors: Sequence[int], breaks: Sequence[int], half_width: float, draws: int) -> dict[str, Any]:
    """Return the coverage at the stop and the mean number of drawn survivors.

    Each dataset has 200 samples, so the survivors of all datasets are one stratum of a simple random sample.
    """
    size, failing = sum(survivors), sum(breaks)
    population = Population(np.array([size]), np.array([1 / (200 * len(survivors))]))
    truth = failing / (200 * len(survivors))
    fails = np.arange(size) < failing
    generator = np.random.default_rng(0)
    missed, drawn, widths = 0, [], []
    for _ in range(0, draws, BATCH):
        outcomes = generator.permuted(np.tile(fails, (BATCH, 1)), axis=1).cumsum(1)
        active = np.arange(BATCH)
        for stop in [*range(CHUNK, size, CHUNK), size]:
            k = outcomes[active, stop - 1][:, None]
            low, high = share_bounds(population, np.full_like(k, stop), k)
            done = ((high - low) / 2 <= half_width) | (stop == size)
            missed += int((((low > truth + 1e-9) | (high < truth - 1e-9)) & done).sum())
            drawn += [stop] * int(done.sum())
            widths += ((high - low) / 2)[done].tolist()
            active = active[~done]
            if not len(active):
                break
    return {
        "population": name,
        "survivors": size,
        "breaks": failing,
        "half_width": half_width,
        "replays": len(drawn),
        "coverage": 1 - missed / len(drawn),
        "drawn": float(np.mean(drawn)),
        "drawn_most": int(np.max(drawn)),
        "mean_half_width": float(np.mean(widths)),
    }


def replays(rows: Sequence[Mapping[str, Any]], half_width: float, draws: int) -> Iterator[dict[str, Any]]:
    """Yield the results of all models and of the made-up populations."""
    for model, eps in dict.fromkeys((row["model"], row["eps"]) for row in rows):
        own = [row for row in rows if (row["model"], row["eps"]) == (model, eps)]
        survivors = [row["robust"] + row["after_first"] for row in own]
        found = replay(f"{model} {eps}", survivors, [row["after_first"] for row in own], half_width, draws)
        robust, full = sum(row["robust"] for row in own), sum(row["passes_of_robust"] for row in own)
        second = full / robust - FIRST_PASSES
        whole = full + sum(row["passes_of_others"] for row in own)
        spent = whole - (found["survivors"] - found["drawn"]) * second
        yield found | {"passes_full": whole, "passes_saved": whole / spent}
    for name, survivors, breaks in made_up():
        yield replay(name, survivors, breaks, half_width, draws)


def new_samples(name: str, rates: np.ndarray, half_width: float, draws: int) -> dict[str, Any]:
    """Return the coverage of the interval for other samples at the stop.

    `rates` is float64 [H, 3]. For each dataset, it has the probabilities that a sample is robust, that a later stage
    breaks it, and that it is not a survivor.
    """
    generator = np.random.default_rng(0)
    truth, covered, drawn = float(rates[:, 0].mean()), 0, 0
    for _ in range(draws):
        counts = np.array([generator.multinomial(200, own) for own in rates])
        survivors = counts[:, 0] + counts[:, 1]
        # Each survivor is the number of its dataset, and whether a later stage breaks it.
        datasets = np.repeat(np.arange(len(rates)), survivors)
        fails = np.concatenate([np.arange(left) < later for left, later in zip(survivors, counts[:, 1], strict=True)])
        order = generator.permutation(len(datasets))
        size = len(order)
        for stop in [*range(CHUNK, size, CHUNK), size]:
            if _half_width(size, stop, int(fails[order[:stop]].sum()), len(rates)) <= half_width:
                break
        taken = order[:stop]
        seen, broken = (np.bincount(datasets[some], minlength=len(rates)) for some in (taken, taken[fails[taken]]))
        cells = [CellDraws(200, *map(int, own)) for own in zip(survivors, seen, broken, strict=True)]
        low, high = estimate_mean(cells).new_samples
        covered += low <= truth <= high
        drawn += stop
    return {
        "population": name,
        "robust": truth,
        "half_width": half_width,
        "replays": draws,
        "coverage": covered / draws,
        "drawn": drawn / draws,
    }


@functools.cache
def _half_width(size: int, drawn: int, broken: int, datasets: int) -> float:
    """Return half the width of the design interval. It depends only on these counts, because the datasets are equal."""
    population = Population(np.array([size]), np.array([1 / (200 * datasets)]))
    low, high = share_bounds(population, [drawn], [broken])
    return float(high - low) / 2


def populations(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the rates of each dataset for each model and radius, and for made-up populations."""
    for model, eps in dict.fromkeys((row["model"], row["eps"]) for row in rows):
        own = [row for row in rows if (row["model"], row["eps"]) == (model, eps)]
        yield f"{model} {eps}", _rates([(row["robust"], row["after_first"]) for row in own])
    for name, survivors, breaks in made_up():
        yield name, _rates([(left - later, later) for left, later in zip(survivors, breaks, strict=True)])


def _rates(counts: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array([(robust, later, 200 - robust - later) for robust, later in counts]) / 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("measure", "replay", "new-samples"))
    parser.add_argument("--replays", type=int, default=20_000)
    parser.add_argument("--half-width", type=float, nargs="*", default=[0.01])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file for the report; replay reads the counts from it"
    )
    arguments = parser.parse_args()
    before = report.read(arguments.out)
    if arguments.part == "measure":
        report.write(
            {**before, "measured": {"machine": report.machine(), "cells": measure(arguments.threads)}}, arguments.out
        )
        return
    rows, key = before["measured"]["cells"], arguments.part.replace("-", "_").replace("replay", "replayed")
    # Rows with other half-widths are kept.
    found = [row for row in before.get(key, {}).get("rows", []) if row["half_width"] not in arguments.half_width]
    for half_width in arguments.half_width:
        if arguments.part == "replay":
            new = replays(rows, half_width, arguments.replays)
        else:
            new = (new_samples(*each, half_width, arguments.replays) for each in populations(rows))
        for row in new:
            found.append(row)
            print(row, flush=True)
            report.write({**before, key: {"machine": report.machine(), "rows": found}}, arguments.out)


if __name__ == "__main__":
    main()
