"""Adapter for the attacks of the optional library torchattacks (arXiv:2010.01950).

Attacks keep their default parameters, with three exceptions. Eps and the norm are set to the values of the threat
model. Step sizes are scaled in proportion to eps. A parameter for the number of classes is set to the number of classes
of the dataset.

The library draws its random numbers for a whole batch. Therefore a different batch size may change a verdict.
"""

import inspect
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from robustbench_vlm.attacks.base import Attack, Batch, Outcome, Stage, one_stage_attack
from robustbench_vlm.attacks.library_model import LibraryModel, seed_of
from robustbench_vlm.core.classifier_interface import Classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.registry import unknown
from robustbench_vlm.core.threat import NORMS

_EPS_NAMES = ("eps", "max_epsilon")
_STEP_NAMES = ("alpha",)
_MINIMAL = ("CW", "DeepFool")
"""Names of the attacks that search for the misclassified image with the smallest L2 distance."""
_GRADIENT_FREE = ("Square", "OnePixel", "Pixle", "GN")
_COUNTING = ("JSMA", "OnePixel", "Pixle", "SparseFool")
"""Names of the attacks that limit the number of changed pixels, but not the size of the changes."""


def attack_class(name: str) -> type:
    """Return the attack class `name` of torchattacks.

    Raises UserError if the library is not installed or does not have this attack. Also raises UserError if the
    constructor of the attack requires further arguments in addition to the model.
    """
    library = _library()
    classes = {key: value for key, value in vars(library).items() if isinstance(value, type)}
    if name not in classes:
        raise UserError(unknown("attack of torchattacks", name, sorted(classes)))
    found = classes[name]
    required = [p.name for p in _parameters(found).values() if p.default is p.empty and p.name != "model"]
    if required:
        raise UserError(
            f"torchattacks:{name} is not supported, because its constructor requires {', '.join(required)}, and"
            " only a model can be given: name another attack, such as torchattacks:PGD"
        )
    return found


def norms_of(name: str) -> tuple[str, ...]:
    """Return the norms for which an attack of torchattacks is designed.

    Attacks with a `norm` parameter support Linf and L2. Attacks that limit the number of changed pixels also support
    both norms, because their images are projected into the ball.
    """
    parameters = _parameters(attack_class(name))
    if "norm" in parameters or name in _COUNTING:
        return NORMS
    return ("L2",) if name.endswith("L2") or name in _MINIMAL else ("Linf",)


def run_torchattacks(classifier: Classifier, batch: Batch, *, batch_size: int, attack: str) -> Outcome:
    """Attack all samples of a batch with one attack of torchattacks, `batch_size` samples at a time."""
    network = LibraryModel(classifier, batch.images.device)
    made = attack_class(attack)(network, **_settings(attack_class(attack), batch))
    devices = [batch.images.device] if batch.images.device.type == "cuda" else []
    adversarial: list[Tensor] = []
    for images, labels in zip(batch.images.split(batch_size), batch.labels.split(batch_size), strict=True):
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            # SparseFool converts arrays in a way that newer versions of numpy warn about. The warnings do not help
            # users, so they are hidden.
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.manual_seed(seed_of(batch))
            adversarial.append(made(images.contiguous(), labels).detach().to(images))
    return Outcome(torch.cat(adversarial), *network.passes_each(batch))


def torchattacks_stage(attack: str) -> Stage:
    """Return a stage that runs one attack of torchattacks. `attack` is the name of its class."""
    return Stage(
        f"torchattacks:{attack}",
        "torchattacks",
        f"{__name__}:run_torchattacks",
        {"attack": attack},
        version=1,
        gradient_free=attack in _GRADIENT_FREE,
    )


def torchattacks_named(name: str) -> Attack:
    """Return the attack "torchattacks:NAME".

    Raises UserError if the library is not installed or lacks an attack of this name.
    """
    norms = norms_of(name)
    return one_stage_attack(torchattacks_stage(name), f"{name} of torchattacks", norms=norms)


def _settings(attack: type, batch: Batch) -> dict[str, Any]:
    parameters, eps = _parameters(attack), float(batch.threat.eps)
    known = {"norm": batch.threat.norm, "n_classes": int(batch.num_classes[0]), "seed": seed_of(batch)}
    settings = {name: value for name, value in known.items() if name in parameters}
    for eps_name in _EPS_NAMES:
        if eps_name in parameters:
            settings[eps_name] = eps
            ratio = eps / parameters[eps_name].default
            steps = [name for name in _STEP_NAMES if name in parameters]
            settings |= {name: parameters[name].default * ratio for name in steps}
    return settings


def _parameters(attack: type) -> dict[str, inspect.Parameter]:
    return {name: value for name, value in inspect.signature(attack).parameters.items() if name != "self"}


def _library() -> ModuleType:
    try:
        import torchattacks
    except ImportError:
        raise UserError(
            "the package torchattacks is not installed: run `pip install --no-deps torchattacks` (without"
            " --no-deps, pip would install old versions of other packages)"
        ) from None
    library: ModuleType = torchattacks
    return library
