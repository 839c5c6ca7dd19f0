"""Adapter for pyautoattack, the official AutoAttack package (arXiv:2003.01690).

The package draws its random numbers for a whole batch. Therefore a different batch size may change a verdict.

This module works around these problems of the package:

* With fewer than 10 classes, the package asks for more target classes than exist. With fewer than 4 classes (3 for the
  DLR loss), the package asks for logits that do not exist.
* The package takes views of inputs and gradients that may not be contiguous, and writes into the logits.
* Its default device is the CPU, and it seeds torch's global random generator.
* Its loop over the attacks sets Python's trace function, and it cannot read its own state files. Each attack is
  therefore a separate stage here.
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
"""The attacks of the package. The keys are the names of the attacks. Each value has three items:

1. The name of an attribute of the official `AutoAttack` object. This attribute is the attack.
2. The settings of the attack.
3. The name of its loss. Some losses need 3 or 4 classes, and a warning names datasets with fewer classes.
"""


def official(classifier: Classifier, batch: Batch, *, batch_size: int, attack: str) -> Outcome:
    """Attack all samples of a batch with one attack of pyautoattack, `batch_size` samples at a time.

    `attack` is a key of `PARTS`. The attack has the parameters of the standard version of AutoAttack.
    """
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
    # The package logs a warning about zero gradients. The warning is not printed, but returned to the caller.
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
    """Return the number of calls without and with a gradient for a sample that stays robust under one attack."""
    return _CALLS[parameters["attack"]]


def pyautoattack_stage(attack: str) -> Stage:
    """Return a stage that runs one attack of pyautoattack: "apgd-ce", "apgd-dlr", "apgd-t", "fab-t" or "square"."""
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
    "the standard version of the official AutoAttack package",
    paper=_PAPER,
)


def pyautoattack_named(name: str) -> Attack:
    """Return the attack "pyautoattack:NAME" for a `name` in `PARTS` or "standard". Raises UserError for other names."""
    if name == "standard":
        return PYAUTOATTACK
    if name not in PARTS:
        raise UserError(unknown("attack of pyautoattack", name, [*PARTS, "standard"]))
    return one_stage_attack(
        pyautoattack_stage(name), f"the attack {name} of the official AutoAttack package", paper=_PAPER
    )
