"""Correctness on a device: tests of its code paths, verdicts compared with stored CPU records, and repeated runs."""

import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_parts.settings import Settings
from robustbench_vlm.core.records import CLEAN, SampleResult
from robustbench_vlm.engine.cell import Cell, Shard
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resolve import resolve
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.shard import attack_shards
from robustbench_vlm.leaderboard.entry import board_folder, read_entry
from robustbench_vlm.leaderboard.entry_records import read_entry_records

ROOT = Path(__file__).resolve().parents[2]


def run_tests(settings: Settings, store: Callable[[Any], None]) -> dict[str, Any]:
    """Run the tests with the marker `cuda` in a separate process; raise RuntimeError if a test fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *settings.tests, str(ROOT / "tests")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    last = answer.stdout.strip().splitlines()[-1] if answer.stdout.strip() else answer.stderr[-2000:]
    failed = re.findall(r"^FAILED (.*)$", answer.stdout, re.MULTILINE)
    found = {"command": " ".join(command[2:]), "last line": last, "failed": failed, "summary": [last, *failed]}
    store(found)
    if answer.returncode:
        print(answer.stdout[-6000:])
        raise RuntimeError(f"{len(failed)} tests failed: {last}")
    return found


def compare_verdicts(settings: Settings, store: Callable[[Any], None]) -> dict[str, Any]:
    """Attack samples of bundled models on the device in each precision, and compare with the records of their entries.

    The stored records were computed on a CPU in float32. Here, too, the verdicts are computed in float32 whatever the
    precision of the attack.
    """
    rows: list[dict[str, Any]] = []
    summary: list[str] = []
    for model in settings.models:
        entry = read_entry(board_folder("mini") / f"{model}.json")
        stored = {
            (each.score.attack, each.score.dataset): {row.sample_id: row for row in each.results}
            for each in read_entry_records(entry, board_folder("mini"))
            if each.threat.eps_text == "5/255"
        }
        for attack in settings.attacks:
            cells = cells_of(settings, model, attack)
            for precision in settings.precisions:
                started = time.monotonic()
                found = attacked(cells, precision, settings)
                row = {"model": model, "attack": attack, "precision": precision}
                rows.append(row | differences(cells, found, stored) | {"seconds": round(time.monotonic() - started, 1)})
                summary.append(
                    f"{model} {attack} {precision}: {rows[-1]['different']} of {rows[-1]['samples']} verdicts differ,"
                    f" {rows[-1]['robust here']} samples robust here and {rows[-1]['robust in records']} in the records"
                )
                print(summary[-1], flush=True)
                store({"rows": rows, "summary": summary})
    return {"rows": rows, "summary": summary}


def cells_of(settings: Settings, model: str, attack: str) -> tuple[Cell, ...]:
    """Return the cells of a model under an attack at 5/255, with the first samples of the stored cells."""
    resources = Resources(device=settings.device, workers=1, batch_size=256)
    request = Request(
        models=(model,), attacks=(attack,), protocol="mini", samples=settings.samples, resources=resources
    )
    return resolve(request).cells


def attacked(cells: Sequence[Cell], precision: str, settings: Settings) -> list[list[SampleResult]]:
    """Return the records of cells. Images are attacked in the given precision and classified in float32."""
    resources = Resources(device=settings.device, workers=1, batch_size=256)
    changed = [
        dataclasses.replace(cell, protocol=dataclasses.replace(cell.protocol, precision=precision)) for cell in cells
    ]
    shards = [Shard(number, 0, len(cell), cell.fingerprint) for number, cell in enumerate(changed)]
    return [list(part.results) for part in attack_shards(changed, resources, shards)]


def differences(
    cells: Sequence[Cell],
    found: Sequence[Sequence[SampleResult]],
    stored: Mapping[tuple[str, str], Mapping[str, SampleResult]],
) -> dict[str, Any]:
    """Count the samples whose verdict (wrong when clean, broken or robust) differs from the stored one."""
    pairs = [
        (row, stored[cell.attack.name, cell.dataset.name][row.sample_id])
        for cell, rows in zip(cells, found, strict=True)
        for row in rows
    ]
    other = [
        {"sample": here.sample_id, "here": here.broken_by, "in records": there.broken_by, "margin": here.margin}
        for here, there in pairs
        if verdict(here) != verdict(there)
    ]
    return {
        "samples": len(pairs),
        "different": len(other),
        "robust here": sum(verdict(here) == "robust" for here, _ in pairs),
        "robust in records": sum(verdict(there) == "robust" for _, there in pairs),
        "which": other[:20],
    }


def verdict(row: SampleResult) -> str:
    """Return "clean" for a sample that is misclassified without an attack, else "robust" or "broken"."""
    return CLEAN if row.broken_by == CLEAN else "robust" if row.broken_by == "" else "broken"


def repeat_runs(settings: Settings, store: Callable[[Any], None]) -> dict[str, Any]:
    """Run the first attack on the first model twice, and count the records that differ in any bit."""
    cells = cells_of(settings, settings.models[0], settings.attacks[0])
    first, second = (attacked(cells, "float32", settings) for _ in range(2))
    pairs = [pair for rows in zip(first, second, strict=True) for pair in zip(*rows, strict=True)]
    records = sum(a != b for a, b in pairs)
    verdicts = sum(verdict(a) != verdict(b) for a, b in pairs)
    workers = _two_workers(settings, cells, first)
    summary = [f"{records} of {len(pairs)} records and {verdicts} verdicts differ between two equal runs"]
    summary += [f"{workers} verdicts differ with two workers on one device"]
    return {"samples": len(pairs), "records": records, "verdicts": verdicts, "two workers": workers, "summary": summary}


def _two_workers(settings: Settings, cells: Sequence[Cell], first: Sequence[Sequence[SampleResult]]) -> int:
    """Return the number of verdicts that differ if two workers share the device."""
    from robustbench_vlm import evaluate

    with tempfile.TemporaryDirectory() as folder:
        frame = evaluate(
            settings.models[0],
            settings.attacks[0],
            protocol="mini",
            samples=settings.samples,
            device=settings.device,
            workers=2,
            out=folder,
        ).samples()
    here = {(row.dataset, row.sample_id): row.broken_by for row in frame.itertuples()}
    known = {
        (cell.dataset.name, row.sample_id): row.broken_by
        for cell, rows in zip(cells, first, strict=True)
        for row in rows
    }
    return sum(here[key] != value for key, value in known.items())
