"""Test run folders: all readers return the same records, and an invalid manifest raises UserError or is ignored."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.engine.cell_records import read_run
from robustbench_vlm.engine.manifest import read_manifest
from robustbench_vlm.engine.request import Request
from robustbench_vlm.engine.resources import Resources
from robustbench_vlm.engine.results import RunResult
from robustbench_vlm.engine.run import run


@pytest.fixture
def ran(taught_card: Path, tmp_path: Path) -> tuple[Request, RunResult]:
    request = Request(
        models=(str(taught_card),),
        attacks=("fgsm",),
        datasets=("colours",),
        samples=8,
        out=tmp_path,
        resources=Resources(device="cpu", workers=1, shard_size=4),
    )
    return request, run(request)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


@pytest.mark.parametrize("name", ["{stem} (copy).parquet", "000008-000012.parquet", "notes.parquet"])
def test_all_readers_ignore_an_unrelated_or_copied_file_with_a_warning(
    ran: tuple[Request, RunResult], name: str
) -> None:
    request, result = ran
    folder = result.tables[0].folder
    (before,), records = read_run(folder), result.samples()
    first = shards(folder)[0]
    extra = first.with_name(name.format(stem=first.stem))
    if name == "notes.parquet":
        extra.write_text("mine")
    else:
        shutil.copy(first, extra)
    again = run(request)
    assert again.tables[0].scores == result.tables[0].scores and extra.name in again.warnings[0]
    with pytest.warns(UserWarning, match="was ignored"):
        assert again.samples().equals(records)
    with pytest.warns(UserWarning, match="was ignored"):
        (found,) = read_run(folder)
    assert found == before and len(found.results) == len(records) == found.score.n == 8


def test_all_readers_name_a_damaged_file_in_their_error(ran: tuple[Request, RunResult]) -> None:
    request, result = ran
    folder = result.tables[0].folder
    first = shards(folder)[0]
    first.write_bytes(first.read_bytes()[:100])
    for read in (result.samples, lambda: read_run(folder)):
        with pytest.raises(UserError, match=rf"{first.name} cannot be used: it is damaged"):
            read()
    assert first.name in run(request).warnings[0]
    assert len(result.samples()) == 8


def test_all_readers_raise_user_error_for_missing_records(ran: tuple[Request, RunResult]) -> None:
    folder = ran[1].tables[0].folder
    shards(folder)[1].unlink()
    for read in (ran[1].samples, lambda: read_run(folder)):
        with pytest.raises(UserError, match=r"has 4 records, but 8 are expected: run the same command again"):
            read()


def of_first_cell(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda document: change(next(iter(document["cells"].values())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(cells=[]), "cells: "),
        (lambda document: document.pop("cells"), "cells: this field is required"),
        (lambda document: document.update(surprise=1), "surprise: unknown field"),
        (lambda document: document.update(seconds=float("nan")), "NaN"),
        (of_first_cell(lambda cell: cell.update(fingerprint="0")), "64 hexadecimal digits"),
        (of_first_cell(lambda cell: cell["identity"].pop("data")), "the identity must have data"),
        (of_first_cell(lambda cell: cell["score"].update(robust=1.5)), "must have n >= 1, accuracies in"),
        (of_first_cell(lambda cell: cell["score"].update(n="8")), "score/n"),
    ],
)
def test_an_invalid_manifest_raises_user_error(
    ran: tuple[Request, RunResult], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = ran[1].tables[0].folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=rf"{message}.*run the same command again"):
        read_run(path.parent)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cells": []}', "run the same command"),
        ('{"cells": {}, "cells": {}}', "repeats the key 'cells'"),
        ('{"seconds": 1e999}', "larger than any 64-bit float"),
        ('{"track": "\\ud83d"}', "lone surrogate"),
        ("[" * 100 + "]" * 100, "nested deeper"),
        ("not JSON", "is not JSON"),
    ],
)
def test_a_file_that_is_not_a_manifest_raises_user_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_manifest(path)


def test_a_score_that_does_not_match_its_records_is_not_kept(ran: tuple[Request, RunResult]) -> None:
    request, result = ran
    folder = result.tables[0].folder
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    ((name, cell),) = document["cells"].items()
    cell["score"]["robust"] = cell["score"]["clean"]
    cell["score"]["robust_interval"] = cell["score"]["clean_interval"]
    path.write_text(json.dumps(document))
    (warning,) = run(replace(request, datasets=("textures",))).warnings
    assert f"{name} was removed from" in warning and "different accuracies" in warning
    assert name not in read_manifest(path).cells
    (row,) = (folder / "scores.csv").read_text().splitlines()[1:]
    assert "textures" in row
    run(request)
    assert len(read_manifest(path).cells) == 2
    assert len((folder / "scores.csv").read_text().splitlines()) == 3
