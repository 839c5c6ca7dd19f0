"""Attack random test-time defenses with `autoattack-rand` and mean gradients, and judge them over fresh draws.

The command runs the cells that are missing in the folder of records. It writes the numbers of all finished datasets
after each of them, so it can be interrupted. The attack and the draws are those of `vlmbench run --draws 100 --eot 20`:

    python benchmarks/random_defenses.py --model ttc+clip --samples 4 --out benchmarks/random_defenses.json

`benchmarks/docs_tables.py` writes the table of docs/adaptive_evaluation.md.
"""

import argparse
import time
from collections.abc import Iterable, Mapping
from typing import Any

import report
import torch

import robustbench_vlm as rvlm
from robustbench_vlm.core.numbers import percent
from robustbench_vlm.core.records import Accuracy, draws_needed
from robustbench_vlm.tracks import TRACKS

ATTACK, DRAWS, EOT = "autoattack-rand", 100, 20


def attack(before: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Attack each dataset, and write the report after each of them."""
    rows = list(before.get("rows", ()))
    for dataset in arguments.datasets or TRACKS.load("mini").datasets:
        if any((row["model"], row["dataset"]) == (arguments.model, dataset) for row in rows):
            continue
        start = time.process_time()
        rows.append({**measure(arguments, dataset), "seconds": round(time.process_time() - start, 1)})
        print(rows[-1], flush=True)
        settings = {"attack": ATTACK, "draws": DRAWS, "eot": EOT, "machine": report.machine()}
        report.write({**settings, "rows": rows}, arguments.out)


def measure(arguments: argparse.Namespace, dataset: str) -> dict[str, Any]:
    """Return the numbers of correct fresh draws of each sample of a dataset, and the passes of all samples."""
    options = {"draws": DRAWS, "eot": EOT, "out": arguments.runs, "workers": 1, "device": "cpu"}
    found = rvlm.evaluate(arguments.model, ATTACK, datasets=dataset, samples=arguments.samples, **options)
    samples = found.samples()
    return {
        "model": arguments.model,
        "dataset": dataset,
        "clean": samples["clean_right"].tolist(),
        "right": samples["right"].tolist(),
        "passes": int((samples["forward"] + samples["backward"]).sum()),
    }


def table(report_of: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of the table: one row for each model."""
    yield "| model | n | clean, one draw | clean, 99 % of draws | robust, one draw | robust, 99 % of draws | passes |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for model in dict.fromkeys(row["model"] for row in report_of["rows"]):
        rows = [row for row in report_of["rows"] if row["model"] == model]
        clean, right = ([count for row in rows for count in row[name]] for name in ("clean", "right"))
        needed = draws_needed(report_of["draws"])
        both = [count for count, unchanged in zip(right, clean, strict=True) if unchanged >= needed]
        cells = (
            of_draws(clean, report_of["draws"]),
            report.share(sum(count >= needed for count in clean), len(clean)),
            of_draws(right, report_of["draws"]),
            report.share(sum(count >= needed for count in both), len(right)),
        )
        yield f"| `{model}` | {len(right)} | {' | '.join(cells)} | {sum(row['passes'] for row in rows):,} |"


def of_draws(counts: list[int], draws: int) -> str:
    """Return the mean share of correct draws in % with its 95 % interval."""
    found = Accuracy.of_shares([count / draws for count in counts])
    return f"{percent(found.value)} ({percent(found.low)}-{percent(found.high)})"


def main() -> None:
    parser = report.parser_of(__doc__, threads=1)
    parser.add_argument("--model", default="ttc+clip", help="name of a model with a random test-time defense")
    parser.add_argument("--samples", type=int, default=2, help="number of samples of each dataset")
    parser.add_argument("--datasets", nargs="+", help="names of datasets; default: all of the track mini")
    parser.add_argument("--runs", default="runs", help="folder of the records")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    attack(report.read(arguments.out), arguments)


if __name__ == "__main__":
    main()
