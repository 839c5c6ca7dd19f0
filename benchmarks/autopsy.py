"""Autopsies of masked models and honest models: robust accuracy under the attack that each autopsy finds.

The models are in tests/attacks/masked_models.py. The base network has stored verdicts of the official AutoAttack, see
autoattack.py. It is the surrogate of each search. Without --models, all models are searched. A second call keeps the
rows that the report already has:

    python benchmarks/autopsy.py search --out benchmarks/autopsy.json

The part `defenses` runs `vlmbench autopsy` on the test-time defenses of the package, on the model clip:

    python benchmarks/autopsy.py defenses --out benchmarks/autopsy_defenses.json

`benchmarks/docs_tables.py` writes the tables of docs/adaptive_evaluation.md.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import autoattack
import report
import torch
from torch import Tensor, nn

from robustbench_vlm import attack
from robustbench_vlm.analysis.attack_classifier import batch_in_memory
from robustbench_vlm.analysis.autopsy import Autopsy, autopsy_classifier, entry_text, with_fixed_draws
from robustbench_vlm.attacks.attack_file import StageEntry, write_attack_file
from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.cli.main import run_command
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.numbers import percent, percent_interval
from robustbench_vlm.core.threat import Threat, parse_eps

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "attacks"))
from masked_models import HONEST, MASKED, MaskedModel

EPS = "2/255"
DEFENSES = ("clipure-cos", "csr", "ttc", "et3", "dbd", "r-tpt@16", "a-tpt@16")
KEYS = ("clean", "robust")
OPTIONS = ("--dataset", "shapes", "--dataset", "colours", "--samples", "12", "--held-out", "6", "--budget", "40000")


def search(before: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Run an autopsy of each model, and write the report after each of them."""
    data, reported, held_out = autoattack.DATA, arguments.samples, arguments.held_out
    base, batch, robust = autoattack.read_reference(data / "real", data / autoattack.WEIGHTS, EPS)
    rows = list(before.get("rows", ()))
    for model in (*HONEST, *MASKED):
        is_chosen = not arguments.models or model.name in arguments.models
        if not is_chosen or any(row["model"] == model.name for row in rows):
            continue
        known = {"model": model.name, "kind": model.expected, "budget": arguments.budget}
        rows.append({**known, **autopsy_of(model, base, batch, arguments)})
        print(rows[-1], flush=True)
        known = {"eps": EPS, "samples": reported, "held out": held_out}
        known |= {"base under the official AutoAttack": int(robust[:reported].sum())}
        report.write({**known, "machine": report.machine(), "rows": rows}, arguments.out)


def autopsy_of(model: MaskedModel, base: nn.Module, batch: Batch, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers of correct and robust samples of one model, and the attack that the autopsy found."""
    begun, count = time.process_time(), arguments.samples + arguments.held_out
    images, labels = batch.images[:count], batch.labels[:count]
    torch.manual_seed(0)
    own = model.wrap(base).eval()
    try:
        found = autopsy_classifier(
            own,
            images,
            labels,
            eps=EPS,
            surrogate=base,
            held_out=arguments.held_out,
            budget=arguments.budget,
            name=model.name,
        )
    except UserError as error:
        return {"refused": str(error)}
    seconds = round(time.process_time() - begun, 1)
    return {
        "clean": round(found.clean.value * found.clean.n),
        "robust": round(found.robust.value * found.robust.n),
        "attack": plain(found.attack.stages[0]),
        "text": entry_text(found.attack.stages[0]),
        "search passes": found.search_passes,
        "attack passes": found.attack_passes,
        "repeated": repeated(own, found, base, images[: arguments.samples], labels[: arguments.samples]),
        "rounds": [[each.passes, each.robust, each.samples] for each in found.rounds],
        "seconds": seconds,
    }


def repeated(own: nn.Module, found: Autopsy, base: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Return the number of robust samples under the attack of the file that an autopsy writes."""
    with tempfile.TemporaryDirectory() as folder:
        write_attack_file(found.attack, file := Path(folder) / "found.json")
        threat = Threat("Linf", parse_eps(EPS))
        classifier = with_fixed_draws(own, batch_in_memory(own, images, labels, threat, seed=0))
        again = attack(classifier, images, labels, eps=EPS, attack=str(file), surrogate=base)
    return int(again.robust.sum())


def defenses(before: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Run `vlmbench autopsy` on each defense, and write the report after each of them."""
    rows = dict(before.get("rows", {}))
    for defense in DEFENSES:
        if defense in rows or (arguments.models and defense not in arguments.models):
            continue
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
            found = Path(folder) / "found.json"
            code = run_command(["autopsy", f"{defense}+clip", *OPTIONS, "--out", str(found), "--json"])
        if code:
            raise SystemExit(f"vlmbench autopsy {defense}+clip ended with exit code {code}: {printed.getvalue()}")
        rows[defense] = {key: value for key, value in json.loads(printed.getvalue()).items() if key != "file"}
        report.write({"options": " ".join(OPTIONS), "machine": report.machine(), "rows": rows}, arguments.out)


def defenses_table(found: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of the table: one row for each defense."""
    yield "| defense | n | clean | robust | attack | passes of the search and the attack | seconds |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for defense, row in found["rows"].items():
        clean, robust = (
            f"{percent(row[k]['value'])} ({percent_interval(row[k]['low'], row[k]['high'])})" for k in KEYS
        )
        entry = StageEntry(**row["attack"]["stages"][0])
        passes = f"{row['search_passes']:,} + {row['attack_passes']:,}"
        about = [f"`{defense}`", row["robust"]["n"], clean, robust, entry_text(entry), passes, round(row["seconds"])]
        yield f"| {' | '.join(map(str, about))} |"


def table(found: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of the table: one row for each model."""
    yield "| model | robust samples | robust accuracy | attack | passes of the search |"
    yield "| --- | --- | --- | --- | --- |"
    base = found["base under the official AutoAttack"]
    yield f"| base network | {base} | {report.share(base, found['samples'])} | official AutoAttack | |"
    for row in found["rows"]:
        if "refused" in row:
            yield f"| {row['model']} | refused | | | |"
        else:
            about = [row["robust"], report.share(row["robust"], found["samples"]), row["text"], row["search passes"]]
            yield f"| {row['model']} | {' | '.join(map(str, about))} |"


def main() -> None:
    """Run one part, and write its results to the report."""
    parser = report.parser_of(__doc__, threads=1)
    parser.add_argument("part", choices=("search", "defenses"))
    parser.add_argument("--models", nargs="+", help="names of models; default: all")
    parser.add_argument("--samples", type=int, default=150, help="number of reported samples")
    parser.add_argument("--held-out", type=int, default=50, help="number of samples for the search")
    parser.add_argument("--budget", type=int, default=10_000, help="passes of each search")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    {"search": search, "defenses": defenses}[arguments.part](report.read(arguments.out), arguments)


if __name__ == "__main__":
    main()
