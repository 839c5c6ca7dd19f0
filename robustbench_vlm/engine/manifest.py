"""Read and write manifest.json and scores.csv, which list the cells of a run folder, their scores and the command."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from robustbench_vlm.core.files import write_text
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.records import Score
from robustbench_vlm.core.strict_json import read_json, validate
from robustbench_vlm.core.text import csv_text
from robustbench_vlm.engine.cell import Cell
from robustbench_vlm.engine.resources import Resources

MANIFEST = "manifest.json"
SCORES = "scores.csv"
_MAX_BYTES = 2**28
"""Largest size of a manifest in bytes. A cell with 80,000 prompts takes a few megabytes."""
_ADVICE = "run the same command again to write the manifest"
_STRICT = {"extra": "forbid"}
_IDENTITY = {"weights", "dataset", "classes", "prompts", "data", "samples", "attack", "threat", "protocol"}
_PACKAGES = ("robustbench_vlm", "torch", "torchvision", "open_clip_torch", "pyautoattack", "torchattacks", "pyarrow")
_COLUMNS = (
    *("model", "attack", "dataset", "classes", "norm", "eps", "protocol", "n", "clean", "clean_low", "clean_high"),
    *("robust", "robust_low", "robust_high", "warnings", "images", "prompt", "fingerprint"),
)


@dataclass(frozen=True, kw_only=True)
class ManifestCell:
    """A cell in manifest.json. Raises ValueError if its values contradict each other."""

    __pydantic_config__ = _STRICT
    fingerprint: str
    identity: dict[str, Any]
    """`Cell.identity`, with the number of samples instead of their ids."""
    unreadable: tuple[str, ...] = ()
    """Ids of images that could not be decoded and were left out."""
    images: str = ""
    """The folder of the images, if the dataset is a local folder (--images)."""
    templates: tuple[str, ...] = ()
    """The prompt templates. Manifests of version 0.1 do not have them."""
    protocol: str
    """Name and version, such as "mini/1"."""
    score: Score | None
    """The score of the cell. It is None if the cell is unfinished."""

    def __post_init__(self) -> None:
        if len(self.fingerprint) != 64 or set(self.fingerprint) - set("0123456789abcdef"):
            raise ValueError("the fingerprint must have 64 hexadecimal digits")
        if absent := _IDENTITY - self.identity.keys():
            raise ValueError(f"the identity must have {' and '.join(sorted(absent))}")
        score = self.score
        if score and not (score.n > 0 and 0 <= score.robust <= score.clean <= 1):
            raise ValueError("a score must have n >= 1, accuracies in [0, 1], and robust <= clean")


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    __pydantic_config__ = _STRICT
    track: str
    model: str
    attack: str
    cells: dict[str, ManifestCell]
    """Cells by the names of their folders."""
    status: str = ""
    command: str = ""
    resources: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    passes: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str = ""
    machine: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """The command, resources and costs of a run. They do not affect the verdicts."""

    status: str
    """"unfinished" or "complete"."""
    command: str
    resources: Resources
    seconds: float
    """Wall time of the command in seconds, for all its cells together."""
    passes: int
    """Number of forward and backward passes for all records of these cells."""


@dataclass(frozen=True)
class ManifestRow:
    """A cell to write to a manifest: the name of its folder and, if the cell is complete, its score."""

    cell: Cell
    folder: str
    score: Score | None = None
    images: str = ""
    """The folder of the images, if the dataset is a local folder (--images)."""


def read_manifest(path: Path) -> Manifest:
    """Read manifest.json. Raises UserError if the file is missing or is not a valid manifest."""
    values = read_json(path, "the manifest", max_bytes=_MAX_BYTES, advice=_ADVICE)
    return validate(Manifest, values, str(path), advice=_ADVICE)


def write_manifest(
    folder: Path, lines: Sequence[ManifestRow], made: Provenance, earlier: Mapping[str, ManifestCell] | None = None
) -> None:
    """Write manifest.json. If a cell has a score, also write scores.csv.

    `earlier` has the cells of earlier commands. They are kept in both files.
    """
    ours = {line.folder: _entry(line) for line in lines}
    kept = {name: plain(cell) for name, cell in (earlier or {}).items() if name not in ours}
    entries = {**kept, **ours}
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
    """Return the versions of Python and of the packages that may affect results.

    The version of a package that is not installed is "".
    """
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def git_commit() -> str:
    """Return the git commit of this package's source tree, or "" if the package is not in a git repository."""
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
    """Return the platform, device name, number of CPU cores and processor of this machine.

    The processor is its model and instruction set. Runs on the CPU are equal bit by bit only if the processor is equal.
    It is "" for a GPU.
    """
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    processor = "" if device == "cuda" else f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"
    return {"platform": platform.platform(), "device": name, "cores": os.cpu_count() or 1, "processor": processor}


def _processor() -> str:
    """Return the model name of the CPU, or the name of its architecture if the system does not show the model."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.machine()


def _entry(line: ManifestRow) -> dict[str, Any]:
    identity = dict(plain(line.cell.identity))
    # The manifest does not contain the sample ids, because they are in the records. The digest "data" covers the ids.
    identity["samples"] = len(identity.pop("samples"))
    return {
        "fingerprint": line.cell.fingerprint,
        "identity": identity,
        "unreadable": list(line.cell.samples.unreadable),
        "images": line.images,
        "templates": list(line.cell.dataset.templates),
        "protocol": line.cell.protocol.label,
        "score": None if line.score is None else plain(line.score),
    }


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
            "images": entry["images"],
            "prompt": " | ".join(entry["templates"]),
            "fingerprint": entry["fingerprint"],
        }
        rows.append([row.get(column, "") for column in _COLUMNS])
    return csv_text([_COLUMNS, *rows])
