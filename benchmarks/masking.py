"""Attack masked models and honest models, and compare their robust accuracies with that of their base network.

The models are in tests/attacks/masked_models.py. The base network has stored verdicts of the official AutoAttack, see
autoattack.py. The attack has the stages of AutoAttack and then the stages on a surrogate, so one run measures both. The
surrogate is automatic, except for the models in `GIVEN`, which get their base network. Without --models, all models are
attacked. A second call keeps the rows that the report already has:

    python benchmarks/masking.py --out benchmarks/masking.json

`benchmarks/docs_tables.py` writes the table of docs/adaptive_evaluation.md.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import autoattack
import report
import torch

from robustbench_vlm import attack as attack_model
from robustbench_vlm.attacks.adaptive import ADAPTIVE, SURROGATE_STAGES
from robustbench_vlm.attacks.autoattack import AUTOATTACK
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.records import CLEAN

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "attacks"))
from masked_models import HONEST, MASKED, MaskedModel

EPS = "2/255"
GIVEN = ("thermometer", "codebook")
"""Models whose automatic surrogate has no gradient."""
ATTACK = replace(ADAPTIVE, name="autoattack and surrogate", stages=(*AUTOATTACK.stages, *SURROGATE_STAGES))


def attack(before: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Attack each model, and write the report after each of them."""
    data = autoattack.DATA
    base, batch, _ = autoattack.read_reference(data / "real", data / autoattack.WEIGHTS, EPS)
    images, labels = batch.images[: arguments.samples], batch.labels[: arguments.samples]
    rows = list(before.get("rows", ()))
    for model in (HONEST[0], *MASKED, *HONEST[1:]):
        is_known = any(row["model"] == model.name for row in rows)
        if is_known or (arguments.models and model.name not in arguments.models):
            continue
        rows.append({"model": model.name, "kind": model.expected, **measure(model, base, images, labels)})
        print(rows[-1], flush=True)
        report.write({"eps": EPS, "samples": len(labels), "machine": report.machine(), "rows": rows}, arguments.out)


def measure(model: MaskedModel, base: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Return the accuracies of one model, and its warnings. "autoattack" has no value if AutoAttack refuses the model.

    A number is the number of samples.
    """
    start, wrapped = time.process_time(), model.wrap(base).eval()
    surrogate = base if model.name in GIVEN else None
    torch.manual_seed(0)
    try:
        found = attack_model(wrapped, images, labels, eps=EPS, attack=ATTACK, surrogate=surrogate)
    except UserError as error:
        return {"refused": str(error)}
    robust = int(found.robust.sum())
    on_surrogate = sum(stage.startswith("surrogate") for stage in found.broken_by)
    return {
        "clean": sum(stage != CLEAN for stage in found.broken_by),
        "autoattack": robust + on_surrogate if has_gradient(wrapped, images) else None,
        "adaptive": robust,
        "broken by": {stage: found.broken_by.count(stage) for stage in sorted({*found.broken_by})},
        "warnings": found.warnings,
        "seconds": round(time.process_time() - start, 1),
    }


def has_gradient(model: torch.nn.Module, images: torch.Tensor) -> bool:
    """Return whether AutoAttack accepts a model: its logits have a gradient with respect to the images."""
    leaf = images[:2].clone().requires_grad_()
    logits = model(leaf).sum()
    return logits.requires_grad and torch.autograd.grad(logits, leaf, allow_unused=True)[0] is not None


def table(report_of: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of the table: one row for each model."""
    n = report_of["samples"]
    yield "| model | clean | AutoAttack | with a surrogate | warnings |"
    yield "| --- | --- | --- | --- | --- |"
    for row in report_of["rows"]:
        if "refused" in row:
            yield f"| {row['model']} | | refused | refused | |"
            continue
        counts = [row[name] for name in ("clean", "autoattack", "adaptive")]
        cells = ["refused" if count is None else report.share(count, n) for count in counts]
        codes = ", ".join(f"`{code}`" for code in row["warnings"])
        yield f"| {row['model']} | {' | '.join(cells)} | {codes} |"


def main() -> None:
    parser = report.parser_of(__doc__, threads=1)
    parser.add_argument("--models", nargs="+", help="names of models; default: all")
    parser.add_argument("--samples", type=int, default=40, help="number of samples")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    attack(report.read(arguments.out), arguments)


if __name__ == "__main__":
    main()
