"""Attack the samples that the leaderboard reports as robust with the stages of `autoattack-plus`.

    python benchmarks/stronger_stages.py attack --out benchmarks/stronger_stages.json --images fallen
    python benchmarks/stronger_stages.py reference --out benchmarks/stronger_stages.json
    python benchmarks/stronger_stages.py table --out benchmarks/stronger_stages.json

`attack` starts from the records of the track mini at 5/255. Each stage attacks the samples that no recorded attack
breaks, so the counts of the stages are independent. `--samples` limits the number of these samples in each dataset. The
samples are in the order of their ids' hashes, so the first ones are a random choice. The report is written after each
dataset, and a second run of the command continues it. The images that broke a sample are written to the folder of
`--images`, one file per model, for `vlmbench dispute`.

`reference` attacks the adversarially trained CIFAR-10 network of `benchmarks/autoattack.py`, which has stored verdicts
of the official AutoAttack. `table` prints the Markdown table of docs/adaptive_evaluation.md.
"""

import argparse
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import autoattack
import report
import torch

from robustbench_vlm.analysis.adversarial_images import AdversarialImages, read_images, write_images
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.autoattack_plus import STRONGER_STAGES
from robustbench_vlm.attacks.base import Attack, one_stage_attack
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.core.numbers import percent
from robustbench_vlm.core.records import wilson
from robustbench_vlm.core.threat import parse_eps
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import cell_classifier, load_batch
from robustbench_vlm.leaderboard.entry import board_folder, read_entry
from robustbench_vlm.leaderboard.entry_records import read_entry_records

EPS = "5/255"
STAGES = {stage.name: one_stage_attack(stage, stage.name) for stage in STRONGER_STAGES}
REFERENCE = ("pgd-100", "apgd-ce", "apgd-t", "pma", "malt", "apgd-rescaled", "apgd-features")
BATCH = 64


def attack(report_of: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Attack all models with all stages. Rows that are in the report are not computed again."""
    rows: list[dict[str, Any]] = report_of.setdefault("rows", [])
    known = {(row["stage"], row["model"], row["dataset"]) for row in rows}
    models = sorted(path.stem for path in board_folder("mini").glob("*.json"))
    robust = {model: robust_samples(model) for model in models}
    report_of["robust"] = {model: sum(map(len, found.values())) for model, found in robust.items()}
    for stage in arguments.stages:
        for model in models:
            missing = [name for name in robust[model] if (stage, model, name) not in known]
            if not missing:
                continue
            request = Request(
                models=(model,), eps=(EPS,), datasets=tuple(missing), protocol="mini", resources=Resources("cpu", 1)
            )
            for cell in resolve(request).cells:
                ids = robust[model][cell.dataset.name][: arguments.samples]
                rows.append({"stage": stage, "model": model, **attack_cell(cell, STAGES[stage], ids, arguments.images)})
                report.write({**report_of, "machine": report.machine()}, arguments.out)
            print(stage, model, sum(len(row["fallen"]) for row in rows_of(rows, stage, model)), flush=True)


def robust_samples(model: str) -> dict[str, list[str]]:
    """Return the ids of the samples that no recorded attack of at most `EPS` breaks, for each dataset."""
    folder = board_folder("mini")
    found: dict[str, list[str]] = {}
    for each in read_entry_records(read_entry(folder / f"{model}.json"), folder):
        if each.threat.norm != "Linf" or each.threat.eps > parse_eps(EPS):
            continue
        held = [result.sample_id for result in each.results if result.broken_by == ""]
        before = found.get(each.score.dataset, held)
        found[each.score.dataset] = [sample for sample in held if sample in set(before)]
    return found


def attack_cell(cell: Cell, chosen: Attack, ids: Sequence[str], folder: Path) -> dict[str, Any]:
    """Attack some samples of a cell, and add the images that broke a sample to the file of the model."""
    if not ids:
        return {"dataset": cell.dataset.name, "attacked": 0, "fallen": [], "passes": 0, "seconds": 0.0}
    places = [cell.samples.ids.index(sample) for sample in ids]
    batch = load_batch(cell, 0, len(cell), device="cpu")[0].at(torch.tensor(places))
    start = time.process_time()
    verdicts = attack_samples(cell_classifier(cell, "cpu").of_samples(batch.keys), batch, chosen, batch_size=BATCH)
    fallen = [n for n, stage in enumerate(verdicts.broken_by) if stage]
    save(
        folder / f"{cell.model_name}.safetensors",
        cell.dataset.name,
        [ids[n] for n in fallen],
        verdicts.adversarial[fallen],
    )
    return {
        "dataset": cell.dataset.name,
        "attacked": len(ids),
        "fallen": [ids[n] for n in fallen],
        "passes": int((verdicts.forward + verdicts.backward).sum()),
        "seconds": round(time.process_time() - start, 1),
    }


def save(path: Path, dataset: str, ids: Iterable[str], images: torch.Tensor) -> None:
    """Add adversarial images to a file. A sample that has an image in the file keeps it."""
    before = read_images(path)[0] if path.exists() else None
    known = set(before.samples) if before else set()
    fresh = [(n, (dataset, sample)) for n, sample in enumerate(ids) if (dataset, sample) not in known]
    if not fresh:
        return
    added = images[[n for n, _ in fresh]]
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = (*(before.samples if before else ()), *(pair for _, pair in fresh))
    write_images(AdversarialImages("mini", pairs, torch.cat([before.images, added]) if before else added), path)


def reference(report_of: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Attack the reference network with each stage on all its samples, and compare with the official verdicts."""
    found = []
    for eps in ("2/255", "8/255"):
        data = autoattack.DATA
        model, batch, official = autoattack.read_reference(data / "real", data / autoattack.WEIGHTS, eps)
        for name in REFERENCE:
            verdicts = attack_samples(model, batch, load_attack(name), batch_size=128)
            found.append(
                {
                    "eps": eps,
                    "attack": name,
                    "samples": len(official),
                    "robust": int(verdicts.robust.sum()),
                    "official": int(official.sum()),
                    "only official": int((verdicts.robust & ~official).sum()),
                    "beyond official": int((~verdicts.robust & official).sum()),
                    "passes": int((verdicts.forward + verdicts.backward).sum()),
                }
            )
            print(found[-1], flush=True)
    report.write({**report_of, "reference": {"machine": report.machine(), "rows": found}}, arguments.out)


def rows_of(rows: Iterable[Mapping[str, Any]], stage: str, model: str) -> list[Mapping[str, Any]]:
    """Return the rows of one stage and model."""
    return [row for row in rows if (row["stage"], row["model"]) == (stage, model)]


def table(report_of: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of the table of fallen samples: one row for each model, one column for each stage."""
    rows, models = report_of["rows"], report_of["robust"]
    stages = [stage for stage in STAGES if any(row["stage"] == stage for row in rows)]
    yield f"| model | robust | {' | '.join(stages)} | all | share in % (95 % interval) |"
    yield "| --- | " + "--- | " * (len(stages) + 3)
    for model, count in models.items():
        own = [row for row in rows if row["model"] == model]
        fallen = {(row["dataset"], sample) for row in own for sample in row["fallen"]}
        cells = [_count(rows_of(rows, stage, model), count) for stage in stages]
        low, high = wilson(len(fallen), count)
        share = f"{percent(len(fallen) / count)} ({percent(low)}-{percent(high)})"
        yield f"| {model} | {count} | {' | '.join(cells)} | {len(fallen)} | {share} |"
    passes = [_mean_passes([row for row in rows if row["stage"] == stage]) for stage in stages]
    yield f"| passes per sample | | {' | '.join(f'{value:,.0f}' for value in passes)} | {sum(passes):,.0f} | |"


def reference_table(report_of: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of the table of the reference network: one row for each attack."""
    rows = report_of["reference"]["rows"]
    radii = list(dict.fromkeys(row["eps"] for row in rows))
    yield f"| attack | {' | '.join(f'robust at {eps} | passes at {eps}' for eps in radii)} |"
    yield "| --- | " + "--- | " * (2 * len(radii))
    official = [next(row["official"] for row in rows if row["eps"] == eps) for eps in radii]
    yield f"| official AutoAttack | {' | '.join(f'{count} | ' for count in official)} |"
    for name in dict.fromkeys(row["attack"] for row in rows):
        own = [next(row for row in rows if (row["attack"], row["eps"]) == (name, eps)) for eps in radii]
        cells = [f"{row['robust']} | {row['passes']:,}" for row in own]
        yield f"| `{name}` | {' | '.join(cells)} |"


def _mean_passes(rows: Sequence[Mapping[str, Any]]) -> float:
    return sum(row["passes"] for row in rows) / max(1, sum(row["attacked"] for row in rows))


def _count(rows: Sequence[Mapping[str, Any]], robust: int) -> str:
    attacked, fallen = sum(row["attacked"] for row in rows), sum(len(row["fallen"]) for row in rows)
    return str(fallen) if attacked == robust else f"{fallen} of {attacked}"


def main() -> None:
    parser = report.parser_of(__doc__, threads=1)
    parser.add_argument("part", choices=("attack", "reference", "table"))
    parser.add_argument("--images", type=Path, default=Path("fallen"), help="folder for the images that broke a sample")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--samples", type=int, help="largest number of samples of each dataset; default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    before = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else {}
    if arguments.part == "table":
        print("\n".join([*reference_table(before), "", *(table(before) if "rows" in before else ())]))
    else:
        {"attack": attack, "reference": reference}[arguments.part](before, arguments)


if __name__ == "__main__":
    main()
