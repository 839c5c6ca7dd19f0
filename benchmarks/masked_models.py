"""Attack masked models and honest models, and compare their robust accuracies with that of their base network.

The models are in tests/attacks/masked_models.py. The base network has stored verdicts of the official AutoAttack, see
autoattack.py. Without --models, all models are attacked. A second call keeps the rows that the report already has:

    python benchmarks/masked_models.py attack --out benchmarks/masked_models.json
    python benchmarks/masked_models.py table --out benchmarks/masked_models.json
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import autoattack
import report
import torch

from robustbench_vlm import attack as attack_model
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.numbers import percent
from robustbench_vlm.core.records import wilson

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "attacks"))
from masked_models import HONEST, MASKED, MaskedModel

EPS = "2/255"
POINTS = 0.02
"""Largest accepted difference of a robust accuracy from the base network."""


def attack(before: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Attack each model with each attack, and write the report after each of them."""
    data = autoattack.DATA
    base, batch, _ = autoattack.read_reference(data / "real", data / autoattack.WEIGHTS, EPS)
    images, labels = batch.images[: arguments.samples], batch.labels[: arguments.samples]
    rows = list(before.get("rows", ()))
    for model in (HONEST[0], *MASKED, *HONEST[1:]):
        for name in arguments.attacks:
            if arguments.models and model.name not in arguments.models:
                continue
            if arguments.again:
                rows = [row for row in rows if (row["model"], row["attack"]) != (model.name, name)]
            if any((row["model"], row["attack"]) == (model.name, name) for row in rows):
                continue
            found = measure(model, name, base, images, labels)
            rows.append({"model": model.name, "expected": model.expected, **found})
            print(rows[-1], flush=True)
            stored = {"eps": EPS, "samples": len(labels), "machine": report.machine(), "rows": rows}
            report.write(stored, arguments.out)


def measure(
    model: MaskedModel, name: str, base: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> dict[str, Any]:
    """Return the clean and the robust accuracy of one model under one attack, and its warnings."""
    start = time.process_time()
    torch.manual_seed(0)
    try:
        found = attack_model(model.wrap(base).eval(), images, labels, eps=EPS, attack=name)
    except UserError as error:
        return {"attack": name, "refused": str(error)}
    return {
        "attack": name,
        "clean": found.clean_accuracy.value,
        "robust": int(found.robust.sum()),
        "broken by": {stage: found.broken_by.count(stage) for stage in sorted({*found.broken_by})},
        "warnings": found.warnings,
        "seconds": round(time.process_time() - start, 1),
    }


def table(report_of: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of the table: one row for each model."""
    rows, n = report_of["rows"], report_of["samples"]
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    yield f"| model | {' | '.join(attacks)} | warnings |"
    yield "| --- " * (len(attacks) + 2) + "|"
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {row["attack"]: row for row in rows if row["model"] == model}
        cells = [_cell(own[name], n) if name in own else "not measured" for name in attacks]
        yield f"| {model} | {' | '.join(cells)} | {', '.join(_warnings(own.values()))} |"


def _cell(row: Mapping[str, Any], samples: int) -> str:
    if "refused" in row:
        return "refused"
    low, high = wilson(row["robust"], samples)
    return f"{percent(row['robust'] / samples)} ({percent(low)}-{percent(high)})"


def _warnings(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({f"`{code}`" for row in rows for code in row.get("warnings", ())})


def main() -> None:
    parser = report.parser_of(__doc__, threads=1)
    parser.add_argument("part", choices=("attack", "table"))
    parser.add_argument("--attacks", nargs="+", default=["autoattack"], help="names of attacks")
    parser.add_argument("--models", nargs="+", help="names of models; default: all")
    parser.add_argument("--samples", type=int, default=40, help="number of samples")
    parser.add_argument("--again", action="store_true", help="measure the rows again that the report already has")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    before = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else {}
    if arguments.part == "table":
        print("\n".join(table(before)))
    else:
        attack(before, arguments)


if __name__ == "__main__":
    main()
