"""Measure CPU time and peak memory of `leaderboard build` and `compare` for many entries, and bytes per verdict.

    python benchmarks/board_size.py --entries 1000 --out benchmarks/board_size.json

The entries are made up: 13 cells of the track `mini` with 200 samples each, with verdicts of models whose robust
accuracies are between 0 and 0.6. Each command runs in its own process. The times are CPU times of this process and its
workers. The peak memory is that of the process and its largest worker.
"""

import argparse
import datetime
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from robustbench_vlm.core.fingerprint import fingerprint
from robustbench_vlm.core.records import SampleResult, Score
from robustbench_vlm.engine.cell_records import CellRecords, data_digest
from robustbench_vlm.engine.manifest import machine
from robustbench_vlm.engine.results import accuracies
from robustbench_vlm.leaderboard.entry import write_entry
from robustbench_vlm.leaderboard.entry_records import make_entry, write_records
from robustbench_vlm.protocols.mini import MINI as PROTOCOL
from robustbench_vlm.tracks import MINI

SAMPLES = 200
CLASSES = tuple(f"class {number}" for number in range(10))
STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")


def results(model: str, dataset: str, robust: float) -> Iterator[SampleResult]:
    """Yield the records of a made-up model. Samples differ in difficulty, so verdicts of two models are correlated."""
    draw = random.Random(f"{model} {dataset}")
    for number in range(SAMPLES):
        digest = hashlib.sha256(f"{dataset} {number}".encode()).hexdigest()
        chance = 0.6 * int(digest[:8], 16) / 16**8 + 0.4 * draw.random()
        broken_by = "" if chance < robust else "clean" if chance > 0.9 else draw.choice(STAGES)
        label = number % len(CLASSES)
        other = (label + draw.randrange(1, 10)) % len(CLASSES)
        distance = 0.0 if broken_by in ("", "clean") else (4.9 + 0.1 * draw.random()) / 255
        yield SampleResult(
            sample_id=f"{number:06d}",
            image_sha256=digest,
            label=label,
            clean_prediction=other if broken_by == "clean" else label,
            adversarial_prediction=label if broken_by == "" else other,
            broken_by=broken_by,
            distance=distance,
            forward=1 if broken_by == "clean" else draw.randrange(100, 6000),
            backward=0 if broken_by == "clean" else draw.randrange(100, 1000),
            margin=(-1 if broken_by == "clean" else 1) * draw.random(),
            warnings="",
        )


def cells(model: str) -> Iterator[CellRecords]:
    """Yield the records of a made-up model: one cell for each dataset of the track."""
    robust = 0.6 * random.Random(model).random()
    for dataset in MINI.datasets:
        found = tuple(results(model, dataset, robust))
        identity = {
            "weights": fingerprint(model),
            "dataset": dataset,
            "classes": CLASSES,
            "prompts": [f"a photo of {name}" for name in CLASSES],
            "data": data_digest(found),
            "attack": {"name": MINI.attack, "stages": [{"name": name, "params": {}} for name in STAGES]},
            "threat": {"norm": MINI.norm, "eps": str(MINI.standard_eps)},
            "protocol": PROTOCOL.identity,
        }
        digest = fingerprint({**identity, "samples": [each.sample_id for each in found]})
        about = (model, MINI.attack, dataset, len(CLASSES), str(MINI.standard_eps))
        score = Score(*about, warnings=(), **accuracies(found))
        yield CellRecords(MINI.name, PROTOCOL.label, identity, digest, score, found)


def write_made_up_entry(model: str, folder: Path) -> int:
    """Write the entry and the records of a made-up model. Return the size of the records in bytes."""
    card = {"name": model, "architecture": "mini", "defense": "made-up", "paper": "https://arxiv.org/abs/2103.00020"}
    entry, content = make_entry(tuple(cells(model)), card, (), PROTOCOL.identity)
    entry = entry.after("2026-01-01", "submission", "Made up for a benchmark.")
    write_records(content, folder / entry.records.file)
    write_entry(entry, folder / f"{model}.json")
    return len(content)


def measured(arguments: Sequence[str], cache: Path) -> dict[str, float]:
    """Run `vlmbench` in a process. Return its CPU seconds, wall seconds and peak memory in MB."""
    program = (
        "import json, resource, sys, time; start = time.time()\n"
        "from robustbench_vlm.cli.main import run_command\n"
        "code = run_command(sys.argv[1:])\n"
        "used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]\n"
        "cpu = sum(each.ru_utime + each.ru_stime for each in used)\n"
        "memory = sum(each.ru_maxrss for each in used) / 1000\n"
        "print(json.dumps({'cpu_s': round(cpu, 2), 'wall_s': round(time.time() - start, 2),"
        " 'peak_mb': round(memory)}))\n"
        "sys.exit(code)\n"
    )
    # An installed package has compiled modules, so they are compiled before the measurement.
    environment = {**os.environ, "VLMBENCH_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(cache / "bytecode")}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(entries: int, compared: int, work: Path) -> dict[str, Any]:
    """Write the entries, and measure each command."""
    folder, site, cache = work / "leaderboards", work / "site", work / "cache"
    names = [f"model-{number:04d}" for number in range(entries)]
    sizes = [write_made_up_entry(name, folder / MINI.name) for name in names]
    build = ["leaderboard", "build", "--folder", str(folder), "--site", str(site)]
    write_made_up_entry("model", work / "first" / MINI.name)
    measured(["leaderboard", "build", "--folder", str(work / "first"), "--site", str(work / "first-site")], cache)
    found: dict[str, Any] = {"entries": entries, "build": measured(build, cache)}
    shown = len(json.loads((site / MINI.name / "board.json").read_text())["rows"])
    if shown != entries:
        raise SystemExit(f"the board has {shown} of {entries} made-up entries: the others were refused, see the build")
    found["build_without_changes"] = measured(build, cache)
    path = folder / MINI.name / f"{names[0]}.json"
    path.write_text(path.read_text().replace('"note": ""', '"note": "A changed note."'))
    found["build_after_one_change"] = measured(build, cache)
    pages = [each.stat().st_size for each in site.rglob("*.html")]
    found |= {"pages": len(pages), "largest_page_bytes": max(pages)}
    chosen = [str(folder / MINI.name / f"{name}.json") for name in names[:compared]]
    found["compare"] = {"models": len(chosen), **measured(["compare", *chosen, "--json"], cache)}
    found["record_bytes_per_verdict"] = round(sum(sizes) / entries / SAMPLES / len(MINI.datasets), 1)
    return found


def main() -> None:
    """Print the measurements, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--compared", type=int, default=30)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = []
    for entries in options.entries:
        with tempfile.TemporaryDirectory() as work:
            found.append(measure(entries, min(options.compared, entries), Path(work)))
        print(json.dumps(found[-1]), flush=True)
    document = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine("cpu"),
        "runs": found,
    }
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
