"""Descriptions of the fields of a protocol for tables and pages, and a function that reads a recorded protocol."""

from collections.abc import Callable, Mapping
from typing import Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.transform import Transform
from robustbench_vlm.protocols.base import SMALL_INPUT, Protocol

_TUPLES = ("datasets", "missing_datasets", "eps", "small_eps")
"""Fields that are tuples in `Protocol` and lists in JSON documents."""

_RESOLUTIONS = {"protocol": "one size for all models", "native": "the input size of each model"}

FIELDS: Mapping[str, tuple[str, Callable[[Protocol], str]]] = {
    "datasets": ("datasets", lambda protocol: ", ".join(protocol.datasets) or "those of the track"),
    "missing_datasets": (
        "datasets of the published table that are not available here",
        lambda protocol: ", ".join(protocol.missing_datasets) or "none",
    ),
    "samples": ("samples per dataset", lambda protocol: str(protocol.samples or "all")),
    "precision": ("precision of the image encoder under attack", lambda protocol: protocol.precision),
    "verdict_precision": (
        "precision of the image encoder in the final classification",
        lambda protocol: protocol.verdict_precision,
    ),
    "logit_precision": ("precision of the logits", lambda protocol: protocol.logit_precision),
    "iterate": ("iterate that PGD returns", lambda protocol: protocol.iterate),
    "step_size": ("step size of PGD", lambda protocol: protocol.step_size or "eps / 4"),
    "mean_over": ("samples per mean loss of PGD", lambda protocol: str(protocol.mean_over)),
    "transform": ("images", lambda protocol: str(protocol.transform or "transform of each dataset")),
    "small_transform": (
        "images of CIFAR and STL10",
        lambda protocol: str(protocol.small_transform or "transform of each dataset"),
    ),
    "eps": ("radii", lambda protocol: ", ".join(protocol.eps) or "the standard eps of the track"),
    "small_eps": (
        f"radii of models with an input of less than {SMALL_INPUT} pixels",
        lambda protocol: ", ".join(protocol.small_eps or protocol.eps) or "the standard eps of the track",
    ),
    "resolution": ("resolution of published datasets", lambda protocol: _RESOLUTIONS[protocol.resolution]),
    "image_size": ("side of other images", lambda protocol: str(protocol.image_size or "that of the model")),
    "draws": ("fresh draws of random models", lambda protocol: str(protocol.draws) if protocol.draws > 1 else "none"),
    "eot": ("draws of each gradient", lambda protocol: str(protocol.eot)),
    "seed": ("seed", lambda protocol: str(protocol.seed)),
}
"""Labels of the fields of `Protocol` in tables, with functions that return the value of a field as text."""


GROUPS: Mapping[str, str] = {
    **dict.fromkeys(("eps", "small_eps", "iterate", "step_size", "mean_over", "draws", "eot", "seed"), "Attack"),
    **dict.fromkeys(("precision", "verdict_precision", "logit_precision"), "Numerics"),
}
"""Headings under which pages show fields of a protocol. A field without a heading is under "Data"."""


def read_protocol(identity: Mapping[str, Any]) -> Protocol:
    """Convert the field values of a recorded protocol, such as those in a run folder, to a `Protocol`.

    Raises UserError if this version of the package cannot read the values.
    """
    transforms = {key: identity[key] for key in ("transform", "small_transform") if identity.get(key) is not None}
    try:
        values = {**identity, **{key: Transform(**value) for key, value in transforms.items()}}
        values |= {key: tuple(values[key]) for key in _TUPLES if key in values}
        protocol = Protocol(**values)
        same = protocol.identity == dict(identity)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"cannot read the recorded protocol {identity.get('name')!r}: {error}; it was written by another version of"
            " robustbench_vlm or edited: use the version that wrote it"
        ) from error
    if not same:
        raise UserError(
            f"the recorded protocol {identity.get('name')!r} has missing or unknown fields; it was written by another"
            " version of robustbench_vlm or edited: use the version that wrote it"
        )
    return protocol
