"""Attack the samples that the leaderboard reports as robust with the stages of `autoattack-plus`.

    python benchmarks/stronger_stages.py attack --out benchmarks/stronger_stages.json --images fallen
    python benchmarks/stronger_stages.py reference --out benchmarks/stronger_stages.json

`attack` starts from the records of the track mini at 5/255. Each stage attacks the samples that no recorded attack
breaks, so the counts of the stages are independent. `--samples` limits the number of these samples in each dataset. The
samples are in the order of their ids' hashes, so the first ones are a random choice. The report is written after each
model, and a second run of the command continues it. The images that broke a sample are written to the folder of
`--images`, one file per model, for `vlmbench dispute`.

`reference` attacks the adversarially trained CIFAR-10 network of `benchmarks/autoattack.py`, which has stored verdicts
of the official AutoAttack. `benchmarks/docs_tables.py` writes the tables of
docs/adaptive_evaluation.md.
"""

import argparse
import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import autoattack
import report
import torch

from robustbench_vlm.analysis.adversarial_images import AdversarialImages, joined, read_images, write_images
from robustbench_vlm.attacks import load_attack
from robustbench_vlm.attacks.autoattack_plus import STRONGER_STAGES
from robustbench_vlm.attacks.base import one_stage_attack
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.core.records import Verdict
from robustbench_vlm.core.threat import parse_eps
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import attack_shards
from robustbench_vlm.leaderboard.entry import board_folder, read_entry
from robustbench_vlm.leaderboard.entry_records import read_entry_records

EPS = "5/255"
STAGES = {stage.name: one_stage_attack(stage, stage.name) for stage in STRONGER_STAGES}
REFERENCE = ("pgd-100", "apgd-ce", "apgd-t", "pma", "malt", "apgd-rescaled", "apgd-features")
BATCH = 64


def attack(report_of: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Attack the chosen models with the chosen stages. A row with enough samples is not computed again."""
    rows: list[dict[str, Any]] = report_of.setdefault("rows", [])
    models = arguments.models or sorted(path.stem for path in board_folder("mini").glob("*.json"))
    robust = {model: robust_samples(model) for model in models}
    report_of.setdefault("robust", {}).update({model: sum(map(len, found.values())) for model, found in robust.items()})
    request = Request(models=tuple(models), eps=(EPS,), protocol="mini", resources=Resources("cpu", 1, BATCH))
    cells = resolve(request).cells
    for stage in arguments.stages:
        for model in models:
            chosen = {name: ids[: arguments.samples] for name, ids in robust[model].items()}
            known = rows_of(rows, stage, model)
            if any(row["attacked"] >= sum(map(len, chosen.values())) for row in known):
                continue
            rows[:] = [row for row in rows if row not in known]
            own = [dataclasses.replace(cell, attack=STAGES[stage]) for cell in cells if cell.model_name == model]
            rows.append({"stage": stage, "model": model, **attack_model(own, chosen, arguments.images)})
            report.write({**report_of, "machine": report.machine()}, arguments.out)
            print(stage, model, rows[-1], flush=True)


def robust_samples(model: str) -> dict[str, list[str]]:
    """Return the ids of the samples that no recorded attack of at most `EPS` breaks, for each dataset.

    A sample that an estimated run at a smaller radius did not finish counts by the full attack at `EPS`.
    """
    folder = board_folder("mini")
    found: dict[str, list[str]] = {}
    for each in read_entry_records(read_entry(folder / f"{model}.json"), folder):
        if each.threat.norm != "Linf" or each.threat.eps > parse_eps(EPS):
            continue
        held = [result.sample_id for result in each.results if result.verdict is not Verdict.BROKEN]
        before = found.get(each.score.dataset, held)
        found[each.score.dataset] = [sample for sample in held if sample in set(before)]
    return found


def attack_model(cells: Sequence[Cell], ids: Mapping[str, Sequence[str]], folder: Path) -> dict[str, Any]:
    """Attack some samples of a model's cells together, and add the images that broke a sample to a file."""
    start = time.process_time()
    pairs = [(number, sample) for number, cell in enumerate(cells) for sample in ids[cell.dataset.name]]
    places = [cells[number].samples.ids.index(sample) for number, sample in pairs]
    shards = [
        Shard(number, place, place + 1, cells[number].fingerprint)
        for (number, _), place in zip(pairs, places, strict=True)
    ]
    found = joined(attack_shards(cells, Resources("cpu", 1, BATCH), shards))
    fallen = [n for n, result in enumerate(found.results) if result.broken_by]
    names = [(cells[pairs[n][0]].dataset.name, pairs[n][1]) for n in fallen]
    save(folder / f"{cells[0].model_name}.safetensors", names, found.images[fallen])
    return {
        "attacked": len(pairs),
        "fallen": names,
        "passes": sum(result.forward + result.backward for result in found.results),
        "seconds": round(time.process_time() - start, 1),
    }


def save(path: Path, pairs: Sequence[tuple[str, str]], images: torch.Tensor) -> None:
    """Add adversarial images to a file. A sample that has an image in the file keeps it."""
    before = read_images(path)[0] if path.exists() else None
    known = set(before.samples) if before else set()
    fresh = [n for n, pair in enumerate(pairs) if pair not in known]
    if not fresh:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    names = (*(before.samples if before else ()), *(pairs[n] for n in fresh))
    added = torch.cat([before.images, images[fresh]]) if before else images[fresh]
    write_images(AdversarialImages("mini", names, added), path)


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
    yield f"| model | robust | {' | '.join(stages)} | all | share of the attacked in % (95 % interval) |"
    yield "| --- " * (len(stages) + 4) + "|"
    for model in dict.fromkeys(row["model"] for row in rows):
        count, own = models[model], [row for row in rows if row["model"] == model]
        fallen = {tuple(pair) for row in own for pair in row["fallen"]}
        cells = [_count(rows_of(rows, stage, model), count) for stage in stages]
        # A sample that only one stage attacked is part of the share too.
        attacked = max(row["attacked"] for row in own)
        share = report.share(len(fallen), attacked)
        yield f"| {model} | {count} | {' | '.join(cells)} | {len(fallen)} | {share} |"
    passes = [_mean_passes([row for row in rows if row["stage"] == stage]) for stage in stages]
    yield f"| passes per sample | | {' | '.join(f'{value:,.0f}' for value in passes)} | {sum(passes):,.0f} | |"


def reference_table(report_of: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of the table of the reference network: one row for each attack."""
    rows = report_of["reference"]["rows"]
    radii = list(dict.fromkeys(row["eps"] for row in rows))
    yield f"| attack | {' | '.join(f'robust at {eps} | passes at {eps}' for eps in radii)} |"
    yield "| --- " * (2 * len(radii) + 1) + "|"
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
    if not attacked:
        return "not measured"
    return str(fallen) if attacked == robust else f"{fallen} of {attacked}"


def main() -> None:
    parser = report.parser_of(__doc__, threads=1)
    parser.add_argument("part", choices=("attack", "reference"))
    parser.add_argument("--images", type=Path, default=Path("fallen"), help="folder for the images that broke a sample")
    parser.add_argument("--models", nargs="+", help="models of the leaderboard; default: all")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--samples", type=int, help="largest number of samples of each dataset; default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    {"attack": attack, "reference": reference}[arguments.part](report.read(arguments.out), arguments)


if __name__ == "__main__":
    main()
