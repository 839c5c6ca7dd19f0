"""Manifests: what a run's folder holds, what made it, and the table of its scores as scores.csv."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from robustbench_vlm.core.files import write_text
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.records import Score
from robustbench_vlm.core.text import csv_text
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.resources import Resources

MANIFEST = "manifest.json"
SCORES = "scores.csv"
_PACKAGES = ("robustbench_vlm", "torch", "torchvision", "open_clip_torch", "pyautoattack", "torchattacks", "pyarrow")
_COLUMNS = (
    *("model", "attack", "dataset", "classes", "norm", "eps", "protocol", "n", "clean", "clean_low", "clean_high"),
    *("robust", "robust_low", "robust_high", "warnings", "fingerprint"),
)


@dataclass(frozen=True)
class Made:
    """How the records of one command came to be; no number depends on it."""

    status: str
    """"unfinished" or "complete"."""
    command: str
    resources: Resources
    seconds: float
    """Wall time of the command, all its cells together."""
    passes: int
    """Forward and backward passes on record for the cells of this folder that the command names."""


@dataclass(frozen=True)
class Line:
    """A cell as a manifest lists it: where its records lie, and its score once there is one."""

    cell: Cell
    folder: str
    score: Score | None = None


def write_manifest(folder: Path, lines: Sequence[Line], made: Made) -> None:
    """Write manifest.json, and scores.csv where there are scores; cells of earlier commands stay listed in both."""
    ours = {line.folder: _entry(line) for line in lines}
    earlier = {
        name: entry
        for name, entry in _listed(folder / MANIFEST).items()
        if name not in ours and (folder / name).is_dir()
    }
    entries = {**earlier, **ours}
    document = {
        "track": lines[0].cell.track,
        "model": lines[0].cell.model_name,
        "attack": lines[0].cell.attack.name,
        **plain(made),
        "versions": versions(),
        "git_commit": git_commit(),
        "machine": machine(made.resources.device),
        "cells": entries,
    }
    write_text(folder / MANIFEST, json.dumps(document, indent=1) + "\n")
    if any(entry["score"] for entry in entries.values()):
        write_text(folder / SCORES, _table([entry for entry in entries.values() if entry["score"]]))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a number could depend on; "" for those not installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def git_commit() -> str:
    """Return the commit of the source tree that this package runs from; "" where it is installed or there is no git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def machine(device: str) -> dict[str, str | int]:
    """Return what the run ran on."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"platform": platform.platform(), "device": name, "cores": os.cpu_count() or 1}


def _entry(line: Line) -> dict[str, Any]:
    identity = dict(plain(line.cell.identity))
    # The ids stand in the records, and "data" is their digest.
    identity["samples"] = len(identity.pop("samples"))
    return {
        "fingerprint": line.cell.fingerprint,
        "identity": identity,
        "unreadable": list(line.cell.samples.unreadable),
        "protocol": line.cell.protocol.label,
        "score": None if line.score is None else plain(line.score),
    }


def _listed(path: Path) -> dict[str, dict[str, Any]]:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        # There is none yet, or somebody damaged it: it only repeats what the records say.
        return {}
    return {name: entry for name, entry in cells.items() if isinstance(entry, dict) and "score" in entry}


def _table(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for entry in entries:
        score = entry["score"]
        row = {
            **score,
            "clean_low": score["clean_interval"][0],
            "clean_high": score["clean_interval"][1],
            "robust_low": score["robust_interval"][0],
            "robust_high": score["robust_interval"][1],
            "warnings": " ".join(score["warnings"]),
            "norm": entry["identity"]["threat"]["norm"],
            "protocol": entry["protocol"],
            "fingerprint": entry["fingerprint"],
        }
        rows.append([row.get(column, "") for column in _COLUMNS])
    return csv_text([_COLUMNS, *rows])
