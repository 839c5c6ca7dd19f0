"""Measure how robust a test-time defense is under three attacks: its paper's, a transfer attack and an adaptive one.

    python benchmarks/test_time_defenses.py --model clip --model ttc+clip --samples 24 --attack pgd-20 --out runs

The script runs the cells that are missing in the folder of records. It prints a Markdown row for each model: clean
accuracy, robust accuracy at the last image of PGD-20 on the model without the defense, under all transferred images,
and under all stages. The last two columns are passes through image encoders, for one prediction and for one record.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from robustbench_vlm.analysis.diagnose import final_image_stage, final_images
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.core.records import CLEAN, SampleResult, wilson
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.model_cache import classifier_of
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.run import run_plan
from robustbench_vlm.engine.shard import load_batch
from robustbench_vlm.engine.store import cell_folder, read_finished
from robustbench_vlm.models.precision import arithmetic

_HEADER = ("model", "attack", "n", "clean", "last image of PGD-20", "transfer", "all stages", "prediction", "record")


def records_of(cells: Sequence[Cell], out: Path) -> list[SampleResult]:
    """Return the records of finished cells below the folder `out`."""
    found = [read_finished(cell_folder(out, cell), cell) for cell in cells]
    return [row for each in found for piece in each.pieces for row in piece.results]


def left_by_last_image(cell: Cell) -> int:
    """Return how many samples are classified correctly clean and at the last image of PGD-20 on the plain model."""
    batch, _ = load_batch(cell, 0, len(cell), device="cpu")
    classifier = classifier_of(cell.model, cell.track, cell.dataset.prompts, "cpu")
    logits = classifier.of_samples(batch.keys)
    last = final_images(classifier.plain, batch, final_image_stage(load_attack("pgd-20")), batch_size=64)
    with torch.no_grad():
        right = [logits(images).argmax(dim=1) == batch.labels for images in (batch.images, last)]
    return int((right[0] & right[1]).sum())


def percent(count: int, n: int) -> str:
    """Return `count` of `n` samples in % with the 95 % Wilson interval."""
    low, high = wilson(count, n)
    return f"{100 * count / n:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def row_of(cells: Sequence[Cell], out: Path) -> list[str]:
    """Return the table row of one model."""
    records = records_of(cells, out)
    n, first = len(records), cells[0]
    with arithmetic():
        last = sum(map(left_by_last_image, cells))
    unbroken = sum(record.broken_by == "" for record in records)
    adaptive = sum(record.broken_by not in ("", CLEAN) and "transfer:" not in record.broken_by for record in records)
    classifier = classifier_of(first.model, first.track, first.dataset.prompts, "cpu")
    answer = classifier.of_samples(torch.zeros(1, dtype=torch.int64)).cost(gradient=False)
    plain = first.attack == load_attack(first.attack.name)
    return [
        first.model_name,
        first.attack.name,
        str(n),
        percent(sum(record.broken_by != CLEAN for record in records), n),
        "" if plain else percent(last, n),
        "" if plain else percent(unbroken + adaptive, n),
        percent(unbroken, n),
        f"{answer[0]} + {answer[1]}",
        f"{sum(record.forward for record in records) // n} + {sum(record.backward for record in records) // n}",
    ]


def main() -> None:
    """Read the command line, run the missing cells, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--attack", default="pgd-20")
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--dataset", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs"))
    options = parser.parse_args()
    request = Request(
        models=tuple(options.model),
        attacks=(options.attack,),
        datasets=tuple(options.dataset),
        samples=options.samples,
        out=options.out,
        resources=Resources(workers=1),
    )
    plan = resolve(request)
    run_plan(plan)
    print("", *_HEADER, "", sep=" | ")
    print("", *("---" for _ in _HEADER), "", sep=" | ")
    for model in dict.fromkeys(cell.model for cell in plan.cells):
        cells = [dataclasses.replace(cell) for cell in plan.cells if cell.model == model]
        print("", *row_of(cells, options.out), "", sep=" | ", flush=True)


if __name__ == "__main__":
    main()
