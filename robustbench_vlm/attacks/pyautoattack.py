"""Adapter for the official AutoAttack package, pyautoattack (arXiv:2003.01690), and its attacks as data.

Problems of the package that this file works around: below 10 classes it looks for targets that do not exist, and below
4 (DLR: 3) for logits that do not exist; it takes views of inputs and gradients that need not be contiguous; it writes
into the logits; its device is the CPU by default; it reseeds torch's global generator; its own loop sets Python's trace
function, and its state files cannot be read again, so our harness runs its attacks one by one, and our shards resume.
Its random numbers belong to a batch, not to a sample: the batch size may change a verdict.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Attack, Batch, Outcome, Stage, one_stage_attack
from robustbench_vlm.attacks.library_model import LibraryModel, seed_of
from robustbench_vlm.attacks.losses import loss_warnings, margin, targeted_margin
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.registry import unknown

_PAPER = "arXiv:2003.01690"
PARTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "apgd-ce": ("apgd", {"loss": "ce"}, "ce"),
    "apgd-dlr": ("apgd", {"loss": "dlr"}, "dlr"),
    "apgd-t": ("apgd_targeted", {}, "targeted-dlr"),
    "fab-t": ("fab", {"targeted": True}, "ce"),
    "square": ("square", {}, "ce"),
}
"""Our name -> attribute of the official object, its settings, and the loss that limits the number of classes."""


def official(classifier: Classifier, batch: Batch, *, batch_size: int, attack: str) -> Outcome:
    """Run one official attack with the parameters of its standard version, `batch_size` samples at a time."""
    network = LibraryModel(classifier, batch.images.device)
    with _flags() as flags:
        adversarial = [
            _perturbed(network, batch, attack, slice(start, start + batch_size))
            for start in range(0, len(batch.labels), batch_size)
        ]
    warnings = {flag: torch.ones_like(batch.labels, dtype=torch.bool) for flag in flags}
    warnings |= loss_warnings(PARTS[attack][2], batch.num_classes)
    return Outcome(torch.cat(adversarial), *network.passes_each(batch), warnings=warnings)


def _perturbed(network: LibraryModel, batch: Batch, attack: str, chunk: slice) -> Tensor:
    images, labels = batch.images[chunk].contiguous(), batch.labels[chunk]
    part = _part(network, batch, attack)
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        return part.perturb(images, labels).detach().to(images)  # type: ignore[no-any-return]


def _part(network: LibraryModel, batch: Batch, attack: str) -> Any:
    from pyautoattack import AutoAttack

    whole = AutoAttack(
        network, norm=batch.threat.norm, eps=float(batch.threat.eps), device=batch.images.device, version="standard"
    )
    attribute, settings, _ = PARTS[attack]
    num_classes = int(batch.num_classes[0])
    part = getattr(whole, attribute)
    settings = settings | {"seed": seed_of(batch)}
    if hasattr(part, "n_target_classes"):
        settings["n_target_classes"] = min(9, num_classes - 1)
    if num_classes < 3:
        settings["dlr_loss"] = lambda logits, labels: margin(logits, labels, labels)
    if num_classes < 4:
        settings["dlr_loss_targeted"] = lambda logits, labels: targeted_margin(logits, labels, part.y_target)
    for name, value in settings.items():
        setattr(part, name, value)
    return part


@contextmanager
def _flags() -> Iterator[set[str]]:
    # Its only warning outside its own loop is about zero gradients. It goes into the record, not onto the screen.
    logger, flags = logging.getLogger("auto-attack"), set[str]()

    def note(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        flags.add("zero-gradient" if "zero gradient" in record.getMessage() else "pyautoattack-warning")
        return False

    logger.addFilter(note)
    try:
        yield flags
    finally:
        logger.removeFilter(note)


_CALLS = {"apgd-ce": (0, 101), "apgd-dlr": (0, 101), "apgd-t": (1, 909), "fab-t": (901, 900), "square": (5001, 0)}


def pyautoattack_calls(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the calls of an official attack, in its standard version, for a sample that stays robust."""
    return _CALLS[parameters["attack"]]


def pyautoattack_stage(attack: str) -> Stage:
    """Return a stage that runs one official attack: "apgd-ce", "apgd-dlr", "apgd-t", "fab-t" or "square"."""
    return Stage(
        f"pyautoattack:{attack}",
        "pyautoattack",
        f"{__name__}:official",
        {"attack": attack},
        version=1,
        calls=pyautoattack_calls,
        gradient_free=attack == "square",
    )


PYAUTOATTACK = Attack(
    "pyautoattack",
    tuple(pyautoattack_stage(name) for name in ("apgd-ce", "apgd-t", "fab-t", "square")),
    "the official AutoAttack package, its standard version",
    paper=_PAPER,
)


def pyautoattack_named(name: str) -> Attack:
    """Return one attack of the official package, or its standard version; raise UserError for another name."""
    if name == "standard":
        return PYAUTOATTACK
    if name not in PARTS:
        raise UserError(unknown("attack of pyautoattack", name, [*PARTS, "standard"]))
    return one_stage_attack(pyautoattack_stage(name), f"{name} of the official AutoAttack package", paper=_PAPER)
