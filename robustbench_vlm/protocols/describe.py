"""Protocols in words: what each of their fields says to people, and a protocol read back from its identity."""

from collections.abc import Callable, Mapping
from typing import Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.transform import Transform
from robustbench_vlm.protocols.base import Protocol

FIELDS: Mapping[str, tuple[str, Callable[[Protocol], str]]] = {
    "datasets": ("datasets", lambda protocol: ", ".join(protocol.datasets) or "the track's"),
    "missing_datasets": (
        "datasets of its table that are not here",
        lambda protocol: ", ".join(protocol.missing_datasets) or "none",
    ),
    "samples": ("samples a dataset", lambda protocol: str(protocol.samples or "all")),
    "precision": ("precision of the image tower under attack", lambda protocol: protocol.precision),
    "verdict_precision": ("precision of the image tower in verdicts", lambda protocol: protocol.verdict_precision),
    "logit_precision": ("precision of the products with the texts", lambda protocol: protocol.logit_precision),
    "iterate": ("which iterate of PGD counts", lambda protocol: protocol.iterate),
    "step_size": ("step of PGD", lambda protocol: protocol.step_size or "eps / 4"),
    "mean_over": ("samples that share PGD's mean loss", lambda protocol: str(protocol.mean_over)),
    "transform": ("pictures", lambda protocol: str(protocol.transform or "each dataset's own way")),
    "small_transform": ("CIFAR and STL10", lambda protocol: str(protocol.small_transform or "each dataset's own way")),
    "image_size": ("side of other images", lambda protocol: str(protocol.image_size or "the model's")),
    "seed": ("seed", lambda protocol: str(protocol.seed)),
}


def read_protocol(identity: Mapping[str, Any]) -> Protocol:
    """Return the protocol that has this identity; raise UserError where none can have it."""
    transforms = {key: identity[key] for key in ("transform", "small_transform") if identity.get(key) is not None}
    try:
        values = {**identity, **{key: Transform(**value) for key, value in transforms.items()}}
        values |= {key: tuple(values[key]) for key in ("datasets", "missing_datasets") if key in values}
        protocol = Protocol(**values)
        same = protocol.identity == dict(identity)
    except (TypeError, ValueError) as error:
        raise UserError(f"no protocol of this version has the identity given: {error}") from error
    if not same:
        raise UserError("no protocol of this version has the identity given: it says more or less than one does")
    return protocol
