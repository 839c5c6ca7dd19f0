"""Measure how often `vlmbench verify` finds a forged entry, by replays on the recorded runs of the bundled models.

    python benchmarks/verification.py measure --out benchmarks/verification.json
    python benchmarks/verification.py replay --out benchmarks/verification.json
    python benchmarks/verification.py rounding --out benchmarks/verification.json

`measure` reads the records of autoattack at 5/255 on the track mini. It attacks samples again to get their margins: the
margin of the strongest image after the first stage, and the margin of the image that breaks the sample. It takes about
15 minutes on one core.

`replay` draws samples as `vlmbench verify` does, with new seeds, from entries that a made-up forger has changed. A
forgery is found if a recomputed sample contradicts the entry by a clear margin, or if more samples differ than rounding
on other hardware explains.

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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch

from robustbench_vlm.analysis.verdict import image_margins
from robustbench_vlm.attacks.evaluate import attack_samples
from robustbench_vlm.core.records import CLEAN, SampleResult
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import cell_classifier, load_batch
from robustbench_vlm.leaderboard.draws import NEAREST, OTHERS, scaled
from robustbench_vlm.leaderboard.entry import board_folder, entry_paths, read_entry
from robustbench_vlm.leaderboard.entry_records import read_entry_records
from robustbench_vlm.leaderboard.findings import CLOSE_MARGIN
from robustbench_vlm.leaderboard.tolerance import ROUNDING, exceeds_tolerance
from robustbench_vlm.leaderboard.verify import SAMPLES

EPS = "5/255"
DRAWN = 150
"""Number of robust samples, and of samples that the first stage breaks, whose margins are measured."""
TODAY = 200
"""Number of verdicts that the method of version 0.1 recomputed in each of the two parts of an entry."""
WEAKER = ("cw", "pgd-20")
HIDDEN = "late samples within rounding"
DATASETS = ("shapes", "colours", "fine-grained", "handwritten", "relations")
"""The datasets with which `rounding` compares instructions."""
NEAR = 0.002
"""A sample is near the decision boundary if the margin of its strongest image is closer to 0 than this value."""
ONE = Resources("cpu", workers=1)


def measure(threads: int) -> Iterator[dict[str, Any]]:
    """Yield the counts, passes and margins of each model."""
    torch.set_num_threads(threads)
    folder = board_folder("mini")
    for path in entry_paths(folder):
        evidence = read_entry_records(read_entry(path), folder)
        own = {
            attack: {each.score.dataset: each.results for each in evidence if _is(each, attack)}
            for attack in ("autoattack", *WEAKER)
        }
        request = Request(models=(path.stem,), eps=(EPS,), protocol="mini", resources=ONE)
        cells = resolve(request).cells
        found = counts_of(own)
        found["passes_of_others"] = _passes_of_others(evidence)
        found["margins"] = margins_of(cells, own["autoattack"])
        yield {"model": path.stem, **found}


def _is(evidence: Any, attack: str) -> bool:
    return (evidence.score.attack, evidence.score.eps) == (attack, EPS)


def counts_of(own: Mapping[str, Mapping[str, Sequence[SampleResult]]]) -> dict[str, Any]:
    """Return the number of samples and the mean passes for each value of `broken_by`.

    Also return, for each weaker attack, the values of `broken_by` under autoattack of samples that the weaker attack
    does not break.
    """
    rows = [row for results in own["autoattack"].values() for row in results]
    groups = {stage: [row for row in rows if row.broken_by == stage] for stage in {row.broken_by for row in rows}}
    weaker = {}
    for attack in WEAKER:
        stages = [
            row.broken_by
            for name, results in own["autoattack"].items()
            for row, other in zip(results, own[attack][name], strict=True)
            if row.broken_by != other.broken_by == ""
        ]
        weaker[attack] = {stage: stages.count(stage) for stage in sorted(set(stages))}
    return {
        "samples": {stage: len(some) for stage, some in sorted(groups.items())},
        "passes": {stage: float(np.mean([_passes(row) for row in some])) for stage, some in sorted(groups.items())},
        "weaker": weaker,
    }


def _passes(row: SampleResult) -> int:
    return row.forward + row.backward


def _passes_of_others(evidence: Sequence[Any]) -> dict[str, float]:
    """Return the mean passes per sample in the other attacks and radii, and the expected passes of their checks."""
    others = [each for each in evidence if not _is(each, "autoattack")]
    rows = [row for each in others for row in each.results]
    checks = 0.0
    for key in {(each.score.attack, each.score.eps) for each in others}:
        own = [r for each in others if (each.score.attack, each.score.eps) == key for r in each.results]
        robust, broken = [r for r in own if r.broken_by == ""], [r for r in own if r.broken_by not in ("", CLEAN)]
        whole = float(np.mean([_passes(row) for row in robust])) if robust else 0.0
        first = min(whole, 203.0)
        checks += min(SAMPLES, len(robust)) * first + min(SAMPLES, len(broken)) * float(
            np.mean([_passes(row) for row in broken])
        )
        number = scaled(SAMPLES, len(robust), len(own)) // OTHERS
        checks += min(number, len(robust)) * whole if whole > first else 0.0
    return {"mean": float(np.mean([_passes(row) for row in rows])), "checks": checks}


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


def forgeries(row: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Yield the forgeries of an entry.

    Each has a name, the number of forged samples that the first stage breaks, and the number of forged samples that
    later stages break.
    """
    later, first = len(row["margins"]["later"]), row["samples"]["apgd-ce"]
    total = sum(row["samples"].values())
    for points in (1, 2):
        count = round(points / 100 * total)
        own = round(count * later / (first + later))
        yield f"random samples, +{points} points", count - own, own
        if later >= count:
            yield f"late samples, +{points} points", 0, count
    yield "all late samples", 0, later
    yield HIDDEN, 0, sum(abs(final) <= CLOSE_MARGIN for _, final, _ in row["margins"]["later"])
    for attack, stages in row["weaker"].items():
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
        near = np.sort(np.concatenate([others, hidden[:, 0]]))[: NEAREST * SAMPLES]
        whole = generator.random(late) < number / max(robust + late, number)
        broken = whole | ((hidden[:, 0] <= near.max(initial=-np.inf)) & (hidden[:, 2] <= 2))
        is_clear = (hidden[broken, 1] < -CLOSE_MARGIN).any() or (generator.random(early) < clear).any()
        found += bool(is_clear or early + broken.sum() >= at_boundary)
        left += late - int(broken.sum())
    return {"found": found / draws, "left": left / draws}


def cost(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the passes of a verification by this method, and by the method of version 0.1."""
    samples, passes = row["samples"], row["passes"]
    robust, whole = samples.get("", 0), passes.get("", 0.0)
    number = scaled(SAMPLES, robust, sum(samples.values()))
    second = min(NEAREST * SAMPLES, robust) * 2021 + min(number, robust) * whole
    broken = sum(samples[stage] * passes[stage] for stage in samples if stage not in ("", CLEAN))
    mean = sum(samples[stage] * passes[stage] for stage in samples) / sum(samples.values())
    return {
        "samples": sum(samples.values()),
        "passes": robust * 203 + broken + second + row["passes_of_others"]["checks"],
        "passes_before": TODAY * (mean + row["passes_of_others"]["mean"]),
    }


def rounding(threads: int) -> dict[str, Any]:
    """Return the differences between attacks with and without vector instructions, which round differently."""
    torch.set_num_threads(threads)
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
    for model in ("fare", "sim-clip"):
        for attack, samples in (("pgd-20", 200), ("autoattack", 60)):
            request = Request((model,), (attack,), eps=(EPS,), protocol="mini", datasets=DATASETS, resources=ONE)
            for cell in resolve(request).cells:
                batch = load_batch(cell, 0, samples, device="cpu")[0]
                classifier = cell_classifier(cell, "cpu")
                first = dataclasses.replace(cell.attack, stages=cell.attack.stages[:1])
                found = attack_samples(classifier.of_samples(batch.keys), batch, first, batch_size=64)
                margins = image_margins(cell, 0, found.strongest, device="cpu")
                yield from zip(found.broken_by, margins, (found.margin / classifier.scale).tolist(), strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("measure", "replay", "rounding"))
    parser.add_argument("--replays", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file for the report; replay reads margins from it"
    )
    arguments = parser.parse_args()
    before = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    if arguments.part == "rounding":
        if found := rounding(arguments.threads):
            report.write({**before, "rounding": {"machine": report.machine(), **found}}, arguments.out)
        return
    rows: list[dict[str, Any]] = []
    if arguments.part == "measure":
        for row in measure(arguments.threads):
            rows.append(row)
            print(row["model"], row["samples"], flush=True)
            report.write({**before, "measured": {"machine": report.machine(), "models": rows}}, arguments.out)
        return
    for row in before["measured"]["models"]:
        for name, early, late in forgeries(row):
            about = {"model": row["model"], "forgery": name, "samples": early + late}
            rows.append(about | replay(row, early, late, arguments.replays, only_hidden=name == HIDDEN))
            print(rows[-1], flush=True)
    costs = {row["model"]: cost(row) for row in before["measured"]["models"]}
    settings = {"machine": report.machine(), "replays": arguments.replays, "samples": SAMPLES}
    report.write({**before, "replayed": {**settings, "cost": costs, "rows": rows}}, arguments.out)


if __name__ == "__main__":
    main()
