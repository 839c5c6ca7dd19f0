"""The attack `adaptive`: `autoattack-plus`, and APGD on a surrogate of the model (transfer).

The surrogate is given (`surrogate=` in Python), or it is the same network without its last operations
(`attacks.automatic_surrogate`). For a test-time defense, the stages attack the model without the defense first. The
attacked model decides at each step whether an image is misclassified. If there is no surrogate that differs from the
model, the stages on the surrogate do nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from robustbench_vlm.attacks.apgd import apgd
from robustbench_vlm.attacks.autoattack import AUTOATTACK
from robustbench_vlm.attacks.autoattack_plus import AUTOATTACK_PLUS, STRONGER_STAGES
from robustbench_vlm.attacks.automatic_surrogate import with_any_surrogate
from robustbench_vlm.attacks.base import Batch, Outcome, Stage, calls_per_target
from robustbench_vlm.core.classifier_interface import Classifier


def surrogate_apgd(classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
    """Attack the surrogate of a classifier with APGD. The parameters are the fields of `Apgd`."""
    pair = with_any_surrogate(classifier, batch, batch_size)
    if pair is None:
        nothing = batch.labels.new_zeros(len(batch.labels))
        return Outcome(batch.images, nothing, nothing.clone())
    return apgd(pair, batch, batch_size=batch_size, **parameters)


def surrogate_calls(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the number of calls without and with a gradient for a sample that stays robust.

    The attacked model classifies each iterate.
    """
    without, with_gradient = calls_per_target(parameters, num_classes)
    return without + with_gradient, with_gradient


def _stage(name: str, **parameters: Any) -> Stage:
    return Stage(
        name,
        "apgd-surrogate",
        f"{__name__}:surrogate_apgd",
        {"steps": 100, "restarts": 1, **parameters},
        calls=surrogate_calls,
        transfers=True,
        mixes_datasets=True,
    )


SURROGATE_STAGES = (
    _stage("surrogate-apgd-ce", loss="ce", targets=0),
    _stage("surrogate-apgd-t", loss="targeted-dlr", targets=9),
)
"""The stages of `adaptive` that `autoattack-plus` does not have."""

ADAPTIVE = replace(
    AUTOATTACK_PLUS,
    name="adaptive",
    stages=(*AUTOATTACK.stages, *SURROGATE_STAGES, *STRONGER_STAGES),
    description="the stages of autoattack-plus, and APGD on a surrogate: a given one, or the network without its last"
    " operations",
    paper="arXiv:1802.00420, arXiv:2003.01690",
    strength=1_000_002,
    continues_without_gradient=True,
)
