"""Artificial cells and records for tests that need no model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from robustbench_vlm.attacks.base import Attack, Stage
from robustbench_vlm.core.records import CLEAN, SampleResult
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.engine.cell import Cell, Samples
from robustbench_vlm.protocols.base import Protocol

ATTACK = Attack(
    "two",
    (Stage("first", "a", "a:b", {"steps": 3}), Stage("square", "b", "a:c", {"queries": 5}, gradient_free=True)),
    "an artificial attack",
)


def cell_of(size: int, **changes: Any) -> Cell:
    """Return an artificial cell of `size` samples and three classes."""
    samples = Samples(
        indices=tuple(range(size)),
        ids=tuple(f"{n:04d}" for n in range(size)),
        labels=tuple(n % 3 for n in range(size)),
        image_digests=tuple(f"{n:064x}" for n in range(size)),
    )
    cell = Cell(
        track="mini",
        model="path/to/card.json",
        model_name="made-up",
        weights="0" * 64,
        dataset=Dataset("letters", ("a", "b", "c"), "the letter {}.", "nowhere:source"),
        attack=ATTACK,
        threat=Threat("Linf", Fraction(8, 255)),
        protocol=Protocol("test", 1, None),
        samples=samples,
    )
    return replace(cell, **changes)


def results_of(cell: Cell, verdicts: Sequence[str] | None = None) -> list[SampleResult]:
    """Return artificial records of a cell. A verdict is the stage that broke the sample, or "" if it is robust."""
    samples = cell.samples
    verdicts = verdicts or [""] * len(cell)
    return [
        SampleResult(
            sample_id=sample,
            image_sha256=digest,
            label=label,
            clean_prediction=(label + 1) % 3 if verdict == CLEAN else label,
            adversarial_prediction=label if verdict == "" else (label + 1) % 3,
            broken_by=verdict,
            distance=0.0,
            forward=7,
            backward=3,
            margin=0.25,
            warnings="",
        )
        for sample, digest, label, verdict in zip(
            samples.ids, samples.image_digests, samples.labels, verdicts, strict=True
        )
    ]


@pytest.fixture
def make_cell() -> Callable[..., Cell]:
    return cell_of


@pytest.fixture
def make_results() -> Callable[..., list[SampleResult]]:
    return results_of
