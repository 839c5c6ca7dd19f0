"""Attack files: attacks as JSON documents, which name the algorithms of this package and their parameters.

An attack file is data. It cannot name functions, so an attack file from another person cannot run code. `vlmbench
autopsy` writes attack files, and `vlmbench run --attack FILE` reads them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from robustbench_vlm.attacks import is_registered
from robustbench_vlm.attacks.apgd import apgd_stage
from robustbench_vlm.attacks.autoattack import FAB_T, SQUARE
from robustbench_vlm.attacks.base import Attack, GradientMode, GradientWay, Stage
from robustbench_vlm.attacks.feature_attack import FEATURE_STAGE
from robustbench_vlm.attacks.losses import LOSSES, TARGETED_LOSSES
from robustbench_vlm.attacks.malt import MALT_STAGE
from robustbench_vlm.attacks.objective_attack import OBJECTIVE_STAGE
from robustbench_vlm.attacks.other_sample_start import OTHER_START_STAGE
from robustbench_vlm.attacks.pgd import pgd_stage
from robustbench_vlm.attacks.probability_margin_attack import PMA_STAGE
from robustbench_vlm.attacks.rescaled import RESCALED_STAGE
from robustbench_vlm.attacks.transfer_start import TRANSFER_START_STAGE
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import write_text
from robustbench_vlm.core.registry import unknown
from robustbench_vlm.core.strict_json import read_json, validate

_STAGES = (
    pgd_stage("pgd", steps=50, loss="margin", iterate="best", random_start=True, relative_step=0.25),
    apgd_stage("apgd", loss="margin", steps=100, targets=0, restarts=1),
    TRANSFER_START_STAGE,
    OTHER_START_STAGE,
    OBJECTIVE_STAGE,
    RESCALED_STAGE,
    FEATURE_STAGE,
    PMA_STAGE,
    MALT_STAGE,
    *FAB_T.stages,
    *SQUARE.stages,
)
ALGORITHMS: Mapping[str, Stage] = {stage.name: stage for stage in _STAGES}
"""The algorithms of attack files, with the default values of their parameters."""

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,59}")
_ADVICE = "see the section on attack files in docs/write_an_attack.md, and correct the file"
_CHOICES: Mapping[str, tuple[str, ...]] = {"loss": tuple(LOSSES), "iterate": ("best", "final")}
_RANGES: Mapping[str, tuple[float, float]] = {
    "steps": (1, 10_000),
    "targets": (0, 1000),
    "restarts": (1, 100),
    "candidates": (1, 1000),
    "queries": (1, 1_000_000),
    "p_init": (1e-6, 1),
    "relative_step": (1e-6, 2),
    "eta": (1, 2),
    "beta": (0, 1),
    "alpha_max": (0, 1),
    "weight": (0, 100),
}


@dataclass(frozen=True)
class StageEntry:
    """One stage of an attack file."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    name: str
    """The name of the stage in records."""
    algorithm: str
    """A key of `ALGORITHMS`."""
    parameters: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Parameters of the algorithm. The others have their default values."""
    gradient: GradientWay | None = None
    """The way to compute the gradient of a test-time defense. Without it, the stage runs as the stages of other attacks
    do: as a transfer attack and in every gradient mode of the defense."""
    draws: int = 1
    """The number of gradients of which the mean is taken, in 1 to 1000. It needs `gradient`."""


@dataclass(frozen=True)
class AttackFile:
    """The content of an attack file."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    attack_file: Literal[1]
    """The version of the format."""
    name: str
    """The name of the attack in tables and records: lower case letters, digits, hyphens and dots."""
    stages: tuple[StageEntry, ...]
    description: str = ""


def read_attack_file(path: Path) -> Attack:
    """Return the attack of an attack file.

    Raises UserError if the file cannot be read, has an unknown field, algorithm or parameter, or has a value outside
    the allowed range.
    """
    what = f"the attack file {path}"
    values = read_json(path, "the attack file", max_bytes=2**16, max_depth=6, advice=_ADVICE)
    return attack_of(validate(AttackFile, values, what, advice=_ADVICE), what)


def attack_of(content: AttackFile, what: str = "the attack file") -> Attack:
    """Return the attack that the content of an attack file describes. Raises the errors of `read_attack_file`."""
    _check(what, "name", content.name, _NAME.fullmatch(content.name), "lower case letters, digits, hyphens and dots")
    if is_registered(content.name):
        raise UserError(f"{what}: the name {content.name!r} belongs to an attack of this package: choose another name")
    names = [entry.name for entry in content.stages]
    _check(
        what,
        "stages",
        names,
        0 < len(names) <= 100 and len({*names}) == len(names),
        "1 to 100 stages, each with its own name",
    )
    return Attack(content.name, tuple(_stage(entry, what) for entry in content.stages), content.description)


def write_attack_file(content: AttackFile, path: Path) -> None:
    """Write an attack file, after a check that `read_attack_file` accepts its content."""
    attack_of(content)
    stages = [
        {key: value for key, value in vars(entry).items() if key != "gradient" or value} for entry in content.stages
    ]
    document = {"attack_file": 1, "name": content.name, "description": content.description, "stages": stages}
    write_text(path, json.dumps(document, indent=2) + "\n")


def check_file_name(path: Path) -> None:
    """Raise UserError if `path` does not end in .json or is in a folder that does not exist."""
    if path.suffix != ".json" or path.is_dir() or not path.parent.is_dir():
        raise UserError(f"an attack file must end in .json and be in an existing folder, got {path}: give found.json")


def _stage(entry: StageEntry, what: str) -> Stage:
    where = f"{what}: stage {entry.name!r}"
    _check(where, "name", entry.name, _NAME.fullmatch(entry.name), "lower case letters, digits, hyphens and dots")
    if entry.algorithm not in ALGORITHMS:
        raise UserError(f"{where}: {unknown('algorithm', entry.algorithm, ALGORITHMS)} For the rules, {_ADVICE}")
    template = ALGORITHMS[entry.algorithm]
    for name, value in entry.parameters.items():
        if name not in template.parameters:
            raise UserError(f"{where}: {unknown('parameter', name, template.parameters)} For the rules, {_ADVICE}")
        _check_value(where, name, value, template.parameters[name])
    _check(where, "draws", entry.draws, 1 <= entry.draws <= 1000, "an integer from 1 to 1000")
    if entry.draws > 1 and entry.gradient in (None, "transfer", "straight-through", "identity"):
        raise UserError(
            f"{where}: draws is {entry.draws}, but a mean over draws needs the gradient of the attacked model: set"
            ' gradient to "loop", "truncated", "constant" or "estimated"'
        )
    mode = None if entry.gradient is None else GradientMode(entry.gradient, entry.gradient, entry.draws)
    parameters = {**template.parameters, **entry.parameters}
    if parameters.get("loss") in TARGETED_LOSSES and not parameters.get("targets"):
        raise UserError(
            f"{where}: the loss {parameters['loss']!r} needs target classes, but the stage has none: set targets of the"
            ' algorithm apgd to 1 or more, or use the loss "dlr" or "margin"'
        )
    mixes = template.mixes_datasets and mode is None
    # A protocol must not change the parameters that the file states.
    return replace(
        template, name=entry.name, parameters=parameters, gradient_mode=mode, mixes_datasets=mixes, adjustable=()
    )


def _check_value(where: str, name: str, value: Any, default: Any) -> None:
    if name in _CHOICES:
        _check(where, name, value, value in _CHOICES[name], f"one of {', '.join(_CHOICES[name])}")
    elif name in _RANGES:
        low, high = _RANGES[name]
        if name == "targets" and default:
            low = 1  # Without targets, such an algorithm would attack no sample.
        kinds = (int,) if isinstance(default, int) else (int, float)
        is_right = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
        _check(where, name, value, is_right, f"{'an integer' if kinds == (int,) else 'a number'} from {low} to {high}")
    else:
        _check(where, name, value, isinstance(value, bool), "true or false")


def _check(where: str, name: str, value: Any, is_right: Any, expected: str) -> None:
    if not is_right:
        raise UserError(f"{where}: {name} must be {expected}, got {value!r}: {_ADVICE}")
