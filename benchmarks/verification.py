"""Measure how often `vlmbench verify` finds a forged entry, by replays on the recorded runs of the bundled models.

    python benchmarks/verification.py measure --out benchmarks/verification.json
    python benchmarks/verification.py replay --out benchmarks/verification.json
    python benchmarks/verification.py rounding --out benchmarks/verification.json

`measure` reads the records of autoattack at 5/255 on the track mini. It attacks samples again to get their margins: the
margin of the strongest image after the first stage, and the margin of the image that breaks the sample. It takes 1 to 3
minutes for each model on one core. `--models` measures some models and keeps the margins of the others.

`replay` draws samples as `vlmbench verify` does, with new seeds, from entries that a made-up forger has changed. A
forgery is found if a recomputed sample contradicts the entry by a clear margin, or if more samples differ than rounding
on other hardware explains. It also counts the passes of a verification, from the records of the unchanged entries.

`rounding` attacks samples of two models with the vector instructions of this processor and without them. It reports how
many verdicts differ, and the largest differences of margins. It takes about 8 minutes on one core.
"""

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch

from robustbench_vlm.analysis.verdict import image_margins
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.core.records import CLEAN, SampleResult, Verdict
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.cell_records import CellRecords
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import cell_classifier, load_batch
from robustbench_vlm.leaderboard.draws import Choice, choose, nearest_number, parts_of, scaled, with_stages
from robustbench_vlm.leaderboard.entry import board_folder, entry_paths, read_entry
from robustbench_vlm.leaderboard.entry_records import read_entry_records
from robustbench_vlm.leaderboard.recompute import Task
from robustbench_vlm.leaderboard.tolerance import CLOSE_MARGIN, ROUNDING, exceeds_tolerance
from robustbench_vlm.leaderboard.verify import SAMPLES
from robustbench_vlm.tracks import MINI

EPS = "5/255"
DRAWN = 150
"""Number of robust samples, and of samples that the first stage breaks, whose margins are measured."""
TODAY = 200
"""Number of verdicts that the method of version 0.1 recomputed in each of the two parts of an entry."""
WEAKER = ("cw", "pgd-20")
FEWER = "robust as broken, -2 points"
HIDDEN = "late samples within rounding"
DATASETS = ("shapes", "colours", "fine-grained", "handwritten", "relations")
"""The datasets with which `rounding` compares instructions."""
PASSES = {1: 203, 2: 2021}
"""Passes of the first stages of autoattack for a sample that they do not break."""
NEAR = 0.002
"""A sample is near the decision boundary if the margin of its strongest image is closer to 0 than this value."""
ONE = Resources("cpu", workers=1)


def measure(models: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the margins of each model, with the number of samples for each value of `broken_by`."""
    for model in models:
        own = verdicts_of(evidence_of(model))
        request = Request(models=(model,), eps=(EPS,), protocol="mini", resources=ONE)
        margins = margins_of(resolve(request).cells, own["autoattack"])
        yield {"model": model, "machine": report.machine(), "samples": samples_of(own), "margins": margins}


def evidence_of(model: str) -> tuple[CellRecords, ...]:
    """Return the records of the entry of a model."""
    folder = board_folder("mini")
    return read_entry_records(read_entry(folder / f"{model}.json"), folder)


def verdicts_of(evidence: Sequence[CellRecords]) -> dict[str, dict[str, Sequence[SampleResult]]]:
    """Return the records at `EPS` of autoattack and of the weaker attacks, by attack and dataset."""
    return {
        attack: {
            each.score.dataset: each.results
            for each in evidence
            if (each.score.attack, each.score.eps) == (attack, EPS)
        }
        for attack in ("autoattack", *WEAKER)
    }


def samples_of(own: Mapping[str, Mapping[str, Sequence[SampleResult]]]) -> dict[str, int]:
    """Return the number of samples for each value of `broken_by` under autoattack."""
    counts = Counter(row.broken_by for results in own["autoattack"].values() for row in results)
    return dict(sorted(counts.items()))


def weaker_of(own: Mapping[str, Mapping[str, Sequence[SampleResult]]]) -> dict[str, dict[str, int]]:
    """Return, for each weaker attack, the stages of autoattack that break samples which the weaker attack leaves."""
    found = {}
    for attack in WEAKER:
        stages = Counter(
            row.broken_by
            for name, results in own["autoattack"].items()
            for row, other in zip(results, own[attack][name], strict=True)
            if row.broken_by != other.broken_by == ""
        )
        found[attack] = dict(sorted(stages.items()))
    return found


def margins_of(cells: Sequence[Cell], own: Mapping[str, Sequence[SampleResult]]) -> dict[str, list[Any]]:
    """Return margins of some robust samples, of some that the first stage breaks, and of all that a later one breaks.

    A robust sample has its margin after the first stage, a sample that the first stage breaks the margin of the broken
    image, and another broken sample both margins and the number of the stage.
    """
    draw = random.Random(0)
    first = cells[0].attack.stages[0].name
    places = [(n, at) for n, cell in enumerate(cells) for at in range(len(own[cell.dataset.name]))]
    broken = {(n, at): own[cells[n].dataset.name][at].broken_by for n, at in places}
    kept = {place for place in places if broken[place] not in ("", CLEAN, first)}
    for stage in ("", first):
        some = [place for place in places if broken[place] == stage]
        kept |= set(draw.sample(some, min(DRAWN, len(some))))
    found: dict[str, list[Any]] = {"robust": [], "first": [], "later": []}
    for n, cell in enumerate(cells):
        positions = sorted(at for number, at in kept if number == n)
        names = [stage.name for stage in cell.attack.stages]
        for at, margin in zip(positions, _margins(cell, positions, 1), strict=True):
            if broken[n, at] in ("", first):
                found["first" if broken[n, at] else "robust"].append(margin)
            else:
                stages = names.index(broken[n, at]) + 1
                found["later"].append([margin, _margins(cell, [at], stages)[0], stages])
    return found


def _margins(cell: Cell, positions: Sequence[int], stages: int) -> list[float]:
    """Return the margins of the strongest images that the first stages of the attack find."""
    if not positions:
        return []
    attack = dataclasses.replace(cell.attack, stages=cell.attack.stages[:stages])
    batch = load_batch(cell, 0, len(cell), device="cpu")[0].at(torch.tensor(positions))
    classifier = cell_classifier(cell, "cpu").of_samples(batch.keys)
    strongest = attack_samples(classifier, batch, attack, batch_size=64).strongest
    return [
        image_margins(cell, at, image[None], device="cpu")[0] for at, image in zip(positions, strongest, strict=True)
    ]


def forgeries(row: Mapping[str, Any], weaker: Mapping[str, Mapping[str, int]]) -> Iterator[tuple[str, int, int]]:
    """Yield the forgeries of an entry.

    Each has a name, the number of forged samples that the first stage breaks, and the number of forged samples that
    later stages break. `weaker` is the result of `weaker_of`.
    """
    later, first = len(row["margins"]["later"]), row["samples"]["apgd-ce"]
    total = sum(row["samples"].values())
    yield FEWER, 0, round(0.02 * total)
    for points in (1, 2):
        count = round(points / 100 * total)
        own = round(count * later / (first + later))
        yield f"random samples, +{points} points", count - own, own
        if later >= count:
            yield f"late samples, +{points} points", 0, count
    yield "all late samples", 0, later
    yield HIDDEN, 0, sum(abs(final) <= CLOSE_MARGIN for _, final, _ in row["margins"]["later"])
    for attack, stages in weaker.items():
        early = stages.get("apgd-ce", 0)
        yield f"{attack} as autoattack", early, sum(stages.values()) - early


def replay(row: Mapping[str, Any], early: int, late: int, draws: int, *, only_hidden: bool = False) -> dict[str, float]:
    """Return the results of verifications of an entry with `early` and `late` forged samples.

    The forger knows the method. Of the samples that a later stage breaks, the forger takes those with the largest
    margins after the first stage, because they are chosen last. If `only_hidden` is true, the forger takes only samples
    whose broken images are so near to the decision boundary that rounding may explain them.

    "found" is the share of verifications that contradict the entry. "left" is the mean number of forged verdicts that
    the verification does not lower. It lowers a verdict if an image breaks the sample, whatever its margin.
    """
    margins = row["margins"]
    generator = np.random.default_rng(0)
    robust = row["samples"].get("", 0)
    number = scaled(SAMPLES, robust + early + late, sum(row["samples"].values()))
    total = sum(count for stage, count in row["samples"].items() if stage != CLEAN)
    # A sample that the first stage breaks is always attacked. It is found if its margin is clear.
    clear = np.mean([margin < -CLOSE_MARGIN for margin in margins["first"]])
    later = [each for each in margins["later"] if not only_hidden or abs(each[1]) <= CLOSE_MARGIN]
    hidden = np.array(sorted(later, reverse=True)[:late]).reshape(-1, 3)
    at_boundary = next(count for count in range(total) if exceeds_tolerance(count, total, ROUNDING))
    found, left = 0, 0
    for _ in range(draws):
        # The margins of all robust samples are drawn from the measured ones.
        others = generator.choice(margins["robust"], robust) if robust else np.array([])
        near = np.sort(np.concatenate([others, hidden[:, 0]]))[: nearest_number(SAMPLES, robust + early + late)]
        whole = generator.random(late) < number / max(robust + late, number)
        broken = whole | ((hidden[:, 0] <= near.max(initial=-np.inf)) & (hidden[:, 2] <= 2))
        is_clear = (hidden[broken, 1] < -CLOSE_MARGIN).any() or (generator.random(early) < clear).any()
        found += bool(is_clear or early + broken.sum() >= at_boundary)
        left += late - int(broken.sum())
    return {"found": found / draws, "left": left / draws}


def replay_lower(row: Mapping[str, Any], forged: int, draws: int) -> dict[str, float]:
    """Return the results of verifications of an entry in which `forged` robust samples are broken by a late stage.

    The samples that a late stage breaks are drawn at random, so a rival names a late stage. A forged sample is found if
    the margin of its strongest image is clear.
    """
    generator = np.random.default_rng(0)
    honest = len(row["margins"]["later"])
    hits = generator.hypergeometric(forged, honest, min(SAMPLES, forged + honest), draws)
    clear = np.mean([margin > CLOSE_MARGIN for margin in row["margins"]["robust"]])
    return {"found": float((generator.random(draws) < 1 - (1 - clear) ** hits).mean())}


def cost(evidence: Sequence[CellRecords]) -> dict[str, float]:
    """Return the passes of a verification by this method, and by the method of version 0.1."""
    parts = parts_of(evidence, MINI)
    cells = [[n for part in parts if part.is_ranked == is_ranked for n in part.cells] for is_ranked in (True, False)]
    means = [np.mean([row.forward + row.backward for n in some for row in evidence[n].results]) for some in cells]
    choices = [choose(evidence, part, SAMPLES, random.Random(0)) for part in parts]
    return {
        "samples": sum(len(evidence[n].results) for n in cells[0]),
        "passes": float(sum(_first_step(evidence, choice) + _second_step(evidence, choice) for choice in choices)),
        "passes_before": float(TODAY * sum(means)),
    }


def _first_step(evidence: Sequence[CellRecords], choice: Choice) -> int:
    return sum(_passes(evidence, task) for task in (*choice.robust, *choice.others))


def _second_step(evidence: Sequence[CellRecords], choice: Choice) -> float:
    """Return the passes of the attacks with later stages, if the first step does not run the whole attack."""
    robust = len(choice.robust)
    if not robust or choice.robust[0] == with_stages(evidence, choice.robust[0]):
        return 0.0
    drawn = min(choice.number, robust)
    whole = np.mean([_passes(evidence, with_stages(evidence, task)) for task in choice.robust])
    # The random samples are left out of the nearest ones.
    return drawn * float(whole) + choice.nearest * (1 - drawn / robust) * PASSES[2]


def _passes(evidence: Sequence[CellRecords], task: Task) -> int:
    """Return the passes of a task, from the record of the sample."""
    row = evidence[task.cell].results[task.position]
    passes = row.forward + row.backward
    is_whole = row.verdict is Verdict.BROKEN or task == with_stages(evidence, task)
    return passes if is_whole else min(passes, PASSES[task.stages])


def rounding(threads: int) -> dict[str, Any]:
    """Return the differences between attacks with and without vector instructions, which round differently."""
    if os.environ.get("ATEN_CPU_CAPABILITY") == "default":
        print(json.dumps(list(_attacked())))
        return {}
    scalar = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    command = [sys.executable, __file__, "rounding", "--out", os.devnull, "--threads", str(threads)]
    found = subprocess.run(command, env={**os.environ, **scalar}, capture_output=True, text=True, check=True)
    pairs = list(zip(_attacked(), json.loads(found.stdout), strict=True))
    same = [(first, second) for first, second in pairs if first[0] == second[0]]
    gaps = [(abs(first[1] - second[1]), abs(first[1])) for first, second in same if first[0] != CLEAN]
    return {
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "samples": len(pairs),
        "verdicts_differ": len(pairs) - len(same),
        "strongest_margin": max(gap for gap, _ in gaps),
        "near_samples": sum(margin < NEAR for _, margin in gaps),
        "near_strongest_margin": max(gap for gap, margin in gaps if margin < NEAR),
        "clean_margin": max(abs(first[2] - second[2]) for first, second in pairs),
    }


def _attacked() -> Iterator[tuple[str, float, float]]:
    """Yield `broken_by`, the margin of the strongest image and the margin of the clean image of each sample."""
    for model in ("fare", "clip"):
        for attack, samples in (("pgd-20", 200), ("autoattack", 60)):
            about: dict[str, Any] = {"eps": (EPS,), "protocol": "mini", "datasets": DATASETS, "resources": ONE}
            request = Request(models=(model,), attacks=(attack,), **about)
            for cell in resolve(request).cells:
                batch = load_batch(cell, 0, samples, device="cpu")[0]
                classifier = cell_classifier(cell, "cpu")
                first = dataclasses.replace(cell.attack, stages=cell.attack.stages[:1])
                found = attack_samples(classifier.of_samples(batch.keys), batch, first, batch_size=64)
                margins = image_margins(cell, 0, found.strongest, device="cpu")
                yield from zip(found.broken_by, margins, (found.margin / classifier.scale).tolist(), strict=True)


def main() -> None:
    """Run one part, and write its results to the report. The results of the other parts are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("measure", "replay", "rounding"))
    parser.add_argument("--models", nargs="+", default=[path.stem for path in entry_paths(board_folder("mini"))])
    parser.add_argument("--replays", type=int, default=2_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file for the report; replay reads margins from it"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    before = report.read(arguments.out)
    rows: dict[str, dict[str, Any]] = {row["model"]: row for row in before.get("measured", [])}
    if arguments.part == "rounding":
        if found := rounding(arguments.threads):
            report.write({**before, "rounding": {"machine": report.machine(), **found}}, arguments.out)
    elif arguments.part == "measure":
        for row in measure(arguments.models):
            print(row["model"], row["samples"], flush=True)
            rows[row["model"]] = row
            report.write({**before, "measured": [rows[name] for name in sorted(rows)]}, arguments.out)
    else:
        settings = {"machine": report.machine(), "replays": arguments.replays, "samples": SAMPLES}
        found = replays([rows[name] for name in sorted(rows)], arguments.replays)
        report.write({**before, "replayed": {**settings, **found}}, arguments.out)


def replays(rows: Sequence[Mapping[str, Any]], draws: int) -> dict[str, Any]:
    """Return the results of `replay` for each forgery of each measured model, and the cost of each verification."""
    found, costs = [], {}
    for row in rows:
        model, evidence = row["model"], evidence_of(row["model"])
        own = verdicts_of(evidence)
        if samples_of(own) != row["samples"]:
            raise SystemExit(f"the records of {model} have changed: run `measure --models {model}` first")
        costs[model] = cost(evidence)
        for name, early, late in forgeries(row, weaker_of(own)):
            about = {"model": model, "forgery": name, "samples": early + late}
            is_lower = name == FEWER
            own = (
                replay_lower(row, late, draws)
                if is_lower
                else replay(row, early, late, draws, only_hidden=name == HIDDEN)
            )
            found.append(about | own)
            print(found[-1], flush=True)
    return {"cost": costs, "rows": found}


if __name__ == "__main__":
    main()
