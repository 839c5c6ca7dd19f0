"""Compare the published evaluation of each test-time defense with attacks on the model with the defense.

    python benchmarks/procedures.py --out benchmarks/procedures.json --samples 12
    python benchmarks/procedures.py --out benchmarks/procedures.json --samples 24 --models et3+clip csr+clip

A run adds the missing samples of each dataset to the report, so a stopped run continues where it stopped, and a larger
number of samples keeps the results of a smaller one. `benchmarks/docs_tables.py` writes the table of docs/procedures.md
from the report.

Each way attacks all samples, also those that another way breaks:

* clean: no attack.
* published: the evaluation of the released code (`analysis.procedures`).
* transfer: the attack follows the model without the defense, and the model with the defense classifies every iterate.
* loop: the attack differentiates through the defense.
* constant: the attack treats the results of inner loops as constants (BPDA).
* eot: `loop`, with the mean gradient over several sets of random numbers.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import report
import torch

from robustbench_vlm.analysis.procedures import correct_as_published, find_procedure
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.base import Batch, GradientMode, one_stage_attack
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.attacks.model import logits_in_batches
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.model_cache import classifier_of
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import load_batch
from robustbench_vlm.models.precision import arithmetic
from robustbench_vlm.test_time.defended_model import DefendedClassifier

MODES = {
    "transfer": GradientMode("transfer", "transfer"),
    "loop": GradientMode("loop", "loop"),
    "constant": GradientMode("constant", "constant"),
    "eot": GradientMode("eot", "loop", draws=4),
}
WAYS = ("clean", "published", *MODES)
FIXED = ("clipure-cos", "clipure-cos@short", "csr", "et3")
"""Defenses without random numbers, for which `eot` equals `loop`."""
ATTACK = "pgd-20"
MODELS = ("clip", "ttc+clip", "csr+clip", "et3+clip", "clipure-cos+clip", "clipure-cos@short+clip", "dbd+clip")
MODELS += ("r-tpt@16+clip", "a-tpt@16+clip", "tecoa", "et3+tecoa")


def ways_of(model: str) -> tuple[str, ...]:
    """Return the ways in which a model is evaluated."""
    defense, _, _ = model.rpartition("+")
    if not defense:
        return ("clean", "loop")
    return tuple(way for way in WAYS if way != "eot" or defense not in FIXED)


def evaluate(classifier: Any, batch: Batch, way: str, *, batch_size: int) -> str:
    """Return a text with "1" for each sample that is correct in one way, and "0" for the others."""
    if way == "clean":
        found = logits_in_batches(classifier, batch.images, batch_size).argmax(dim=1) == batch.labels
    elif way == "published":
        procedure = find_procedure(classifier.defense.name)
        found = correct_as_published(classifier, batch, procedure, batch_size=batch_size)
    else:
        (stage,) = load_attack(ATTACK).stages
        mode = MODES[way] if isinstance(classifier, DefendedClassifier) else None
        attack = one_stage_attack(replace(stage, gradient_mode=mode), stage.name)
        found = attack_samples(classifier, batch, attack, batch_size=batch_size).robust
    return "".join(str(int(each)) for each in found)


def missing(rows: Sequence[Mapping[str, Any]], cells: Sequence[Cell], ways: Sequence[str]) -> Iterator[Any]:
    """Yield the cell, the way and the number of known samples of each incomplete result, cheap ways first."""
    for way in ways:
        for cell in cells:
            if way not in ways_of(cell.model_name):
                continue
            known = sum(len(row["correct"]) for row in rows if key_of_row(row) == key_of(cell, way))
            if known < len(cell):
                yield cell, way, known


def key_of(cell: Cell, way: str) -> tuple[str, str, str]:
    """Return the model, the way and the dataset of a result."""
    return cell.model_name, way, cell.dataset.name


def key_of_row(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the model, the way and the dataset of a row."""
    return row["model"], row["way"], row["dataset"]


def add(rows: list[dict[str, Any]], key: tuple[str, str, str], found: str, seconds: float) -> None:
    """Add the results of more samples to the row of a model, a way and a dataset."""
    row = next((row for row in rows if key_of_row(row) == key), None)
    if row is None:
        row = {**dict(zip(("model", "way", "dataset"), key, strict=True)), "correct": "", "seconds": 0.0}
        rows.append(row)
    row["correct"] += found
    row["seconds"] = round(row["seconds"] + seconds, 2)


def run(report_of: dict[str, Any], arguments: Any) -> None:
    """Add the missing results to a report, and write it after each one."""
    rows = report_of.setdefault("rows", [])
    cells = resolve(_request(arguments, arguments.samples)).cells
    with arithmetic():
        for cell, way, known in list(missing(rows, cells, arguments.ways)):
            start = time.process_time()
            classifier = classifier_of(cell.model, cell.track, cell.dataset.prompts, arguments.device)
            batch, _ = load_batch(cell, known, len(cell), device=arguments.device)
            found = evaluate(classifier.of_samples(batch.keys), batch, way, batch_size=arguments.batch_size)
            add(rows, key_of(cell, way), found, time.process_time() - start)
            report.write(
                {**report_of, "eps": cell.threat.eps_text, "machine": report.machine(arguments.device)}, arguments.out
            )
            print(*key_of(cell, way), known, found, flush=True)


def results_of(report_of: Mapping[str, Any], model: str) -> dict[str, dict[tuple[str, int], bool]]:
    """Return for each way whether each pair of a dataset and a number of a sample is correct."""
    found: dict[str, dict[tuple[str, int], bool]] = {}
    for row in report_of["rows"]:
        if row["model"] == model:
            numbers = {(row["dataset"], n): value == "1" for n, value in enumerate(row["correct"])}
            found.setdefault(row["way"], {}).update(numbers)
    return found


def table(report_of: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table: accuracies in % with 95 % Wilson intervals."""
    header = ["model", "n", "clean", "as published", "transfer", "loop", "BPDA", "EOT", "worst case", "passes"]
    models = dict.fromkeys(row["model"] for row in report_of["rows"])
    return header, [_row(report_of, model) for model in models]


def _row(report_of: Mapping[str, Any], model: str) -> list[str]:
    results = results_of(report_of, model)
    datasets = {dataset for dataset, _ in results["clean"]}
    # A way that did not attack all datasets is left out. All columns are about the samples of all other ways.
    needed = [way for way in ways_of(model) if {name for name, _ in results.get(way, {})} == datasets]
    samples = sorted(set.intersection(*(set(results[way]) for way in needed)))
    worst = sum(all(results[way][sample] for way in needed) for sample in samples)
    cells = [f"`{model}`", str(len(samples))]
    for way in WAYS:
        fixed = way == "eot" and way not in ways_of(model) and "+" in model
        text = "no random numbers" if fixed else "not measured" if way in ways_of(model) else ""
        if way in needed:
            text = report.share(sum(results[way][sample] for sample in samples), len(samples))
        cells.append(text)
    # Without an attack on the defense, the worst case would say nothing.
    is_complete = set(needed) >= {"transfer", "loop"} & set(ways_of(model))
    found = report.share(worst, len(samples)) if is_complete else "not measured"
    return [*cells, found, report_of["passes"].get(model, "")]


def passes_of(arguments: Any) -> dict[str, str]:
    """Return the forward and backward passes of image encoders for one prediction of each model."""
    cells = resolve(_request(arguments, samples=1)).cells
    found = {}
    for cell in {each.model_name: each for each in cells}.values():
        classifier = classifier_of(cell.model, cell.track, cell.dataset.prompts, "cpu")
        forward, backward = classifier.of_samples(torch.zeros(1, dtype=torch.int64)).cost(gradient=False)
        found[cell.model_name] = f"{forward} + {backward}"
    return found


def _request(arguments: Any, samples: int) -> Request:
    track = {"track": arguments.track} if arguments.track else {}
    resources = Resources(arguments.device, 1, arguments.batch_size)
    return Request(models=tuple(arguments.models), attacks=(ATTACK,), samples=samples, resources=resources, **track)


def main() -> None:
    parser = report.parser_of(__doc__, threads=1)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--samples", type=int, default=4, help="number of samples of each dataset")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--track", default="", help="track; default: mini")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    known = report.read(arguments.out)
    known["passes"] = {**known.get("passes", {}), **passes_of(arguments)}
    run(known, arguments)


if __name__ == "__main__":
    main()
