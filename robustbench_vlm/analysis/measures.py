"""The diagnostics themselves, over tensors: modality gap, norm of the input gradient, effective rank of features.

Gap and gradient norm against the radius are the two diagnostics of GLADIATOR (Dong, Koniusz, Qu and Ong, KDD 2025,
doi:10.1145/3690624.3709296). All are taken on the images that an attack ends at.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_vlm.attacks.base import Attack, Batch, Stage
from robustbench_vlm.attacks.losses import cross_entropy
from robustbench_vlm.attacks.model import CountedClassifier
from robustbench_vlm.attacks.projections import project
from robustbench_vlm.core import random as randomness
from robustbench_vlm.core.classifier_interface import ClassifierLike, as_classifier
from robustbench_vlm.core.errors import UserError
from robustbench_vlm.models.classifier import ZeroShotClassifier


@dataclass(frozen=True)
class Examined:
    """What is known of B attacked images."""

    correct: Tensor
    """(B,), bool."""
    gradient_norms: Tensor
    """(B,), float64."""
    features: Tensor
    """(B, D), the unit image embeddings."""


def modality_gap(image_features: Tensor, text_features: Tensor) -> float:
    """Return the distance of the mean of unit image embeddings (N, D) from that of unit text embeddings (C, D).

    Euclidean, in [0, 2] (Liang et al., NeurIPS 2022, arXiv:2203.02053, section 4).
    """
    return float((image_features.double().mean(dim=0) - text_features.double().mean(dim=0)).norm())


def effective_rank(features: Tensor) -> float:
    """Return exp of the entropy of the normalised singular values of features (N, D), between 1 and min(N, D).

    The features are not centred (Roy and Vetterli, EUSIPCO 2007).
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def gradient_norms(classifier: ClassifierLike, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the L2 norm of each sample's gradient of the cross-entropy at the pixels, float64 (B,), and logits (B, C).

    Pixels lie in [0, 1]; the logits are taken as they are, at the model's own scale. Raises UserError where a gradient
    is not finite.
    """
    model = CountedClassifier(as_classifier(classifier))
    # The softplus of the log-odds is the cross-entropy, and keeps its slope where float32 rounds p to 1.
    found, _, gradient = model.gradient(
        images, lambda outputs: functional.softplus(cross_entropy(outputs, labels, labels))
    )
    if model.warnings:
        (wrong,) = model.warnings.values()
        raise UserError(
            f"the gradient of the loss is NaN or infinite at {int(wrong.sum())} of {len(wrong)} images, so it has no"
            " norm: run the model in float32 and look for a square root or a division at zero in it"
        )
    return gradient.double().flatten(1).norm(dim=1), found


def walk_of(attack: Attack) -> Stage:
    """Return the one stage of an attack, set to go on after a sample is broken and to give its last image.

    An image at which a walk stopped early lies at the decision boundary, wherever the radius. Raises UserError for an
    attack without that choice.
    """
    if len(attack.stages) != 1 or not attack.stages[0].chooses_iterate:
        raise UserError(
            f"the attack {attack.name!r} stops where a sample is broken, and a diagnosis needs the images at the end of"
            " one walk: take fgsm, cw, or pgd-N such as --attack pgd-10"
        )
    (stage,) = attack.stages
    return dataclasses.replace(stage, parameters={**stage.parameters, "iterate": "final"})


def attacked(classifier: ClassifierLike, batch: Batch, stage: Stage, *, batch_size: int) -> Tensor:
    """Return the image within the threat at which a stage ends for each sample of a batch, (B, 3, H, W).

    Unlike a verdict this goes on with wrongly classified samples too, and keeps the image whether it breaks or not.
    """
    if batch.threat.eps == 0:
        return batch.images
    keyed = dataclasses.replace(batch, keys=randomness.derive(batch.keys, stage.name))
    outcome = stage.run(as_classifier(classifier), keyed, batch_size)
    return project(batch.threat, batch.images, outcome.adversarial.detach().to(batch.images))


def examine(classifier: ZeroShotClassifier, batch: Batch, stage: Stage) -> Examined:
    """Attack a batch, all its samples at once, and measure the images that come out."""
    images = attacked(classifier, batch, stage, batch_size=len(batch.labels))
    norms, logits = gradient_norms(classifier, images, batch.labels)
    with torch.no_grad():
        features = classifier.image_features(images)
    return Examined(logits.argmax(dim=1) == batch.labels, norms, features)
