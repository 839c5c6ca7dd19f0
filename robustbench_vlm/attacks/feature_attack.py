"""APGD on image embeddings: maximises the distance to the embedding of the clean image, without labels or text.

FARE (arXiv:2402.12336) uses this objective in its inner attack during fine-tuning. Embeddings have unit length here,
so the squared distance is 2 - 2 * cos. If a classifier has no image embeddings, as a torch module in memory, its logits
are used in their place. The true label decides only whether an image is misclassified.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from robustbench_vlm.attacks.apgd import apgd
from robustbench_vlm.attacks.base import Batch, Outcome, Stage, calls_per_target, one_stage_attack
from robustbench_vlm.attacks.model import MultiDatasetClassifier, SurrogateClassifier, checked_logits, draws_at
from robustbench_vlm.core.classifier_interface import Classifier


@runtime_checkable
class HasImageFeatures(Protocol):
    """A classifier with image embeddings."""

    def image_features(self, images: Tensor) -> Tensor:
        """Return the embeddings, float32 (B, D), of unit length, of images (B, 3, H, W)."""


@dataclass(frozen=True)
class FeatureDistance:
    """A classifier that is misclassified more clearly, the further an embedding is from the clean embedding.

    The logit of the label is minus the squared distance of the embeddings. The other logits are zero.
    """

    classifier: Classifier
    labels: Tensor
    """True classes, int64 (B,)."""
    clean: Tensor
    """Embeddings of the clean images, float32 (B, D)."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return logits, float32 (B, C), of images (B, 3, H, W), one for each sample."""
        distance = (features(self.classifier, images) - self.clean).square().sum(dim=1)
        nothing = distance.new_zeros(len(images), int(self.labels.max()) + 2)
        return nothing.scatter(1, self.labels[:, None], -distance[:, None])

    def select(self, index: Tensor) -> "FeatureDistance":
        """Return a copy for only the samples at the positions `index`, int64 (N,)."""
        return FeatureDistance(self.classifier.select(index), self.labels[index], self.clean[index])

    def cost(self, *, gradient: bool) -> tuple[int, int]:
        """Return the forward and backward passes of one call. They equal the passes of `classifier`."""
        return self.classifier.cost(gradient=gradient)

    def draws_at(self, images: Tensor) -> Sequence[Classifier]:
        """Return one classifier for each draw of the gradient at images (B, 3, H, W)."""
        return [replace(self, classifier=each) for each in draws_at(self.classifier, images)]


def features(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the embeddings of images (B, 3, H, W), float32 (B, D). Without embeddings, return the logits."""
    if isinstance(classifier, SurrogateClassifier):
        return features(classifier.surrogate, images)
    encoder = classifier.union if isinstance(classifier, MultiDatasetClassifier) else classifier
    if isinstance(encoder, HasImageFeatures):
        return encoder.image_features(images)
    logits = checked_logits(classifier, images)
    return logits.masked_fill(logits.isneginf(), 0)


def feature_apgd(classifier: Classifier, batch: Batch, *, batch_size: int, **parameters: Any) -> Outcome:
    """Attack all samples of a batch with APGD on image embeddings. The parameters are the fields of `Apgd`."""
    parts = torch.arange(len(batch.labels), device=batch.labels.device).split(batch_size)
    with torch.no_grad():
        clean = torch.cat([features(classifier.select(part), batch.images[part]) for part in parts])
    judge = classifier.judge if isinstance(classifier, SurrogateClassifier) else classifier
    pair = SurrogateClassifier(FeatureDistance(classifier, batch.labels, clean), judge)
    outcome = apgd(pair, batch, batch_size=batch_size, **parameters)
    forward, backward = classifier.cost(gradient=False)
    return replace(outcome, forward=outcome.forward + forward, backward=outcome.backward + backward)


def feature_calls(parameters: Mapping[str, Any], num_classes: int) -> tuple[int, int]:
    """Return the number of calls without and with a gradient for a sample that stays robust.

    The embedding of the clean image is computed once, and every iterate is also classified.
    """
    without, with_gradient = calls_per_target(parameters, num_classes)
    return without + with_gradient, with_gradient


FEATURE_STAGE = Stage(
    "apgd-features",
    "apgd-features",
    f"{__name__}:feature_apgd",
    {"loss": "margin", "steps": 100, "targets": 0, "restarts": 1},
    calls=feature_calls,
    mixes_datasets=True,
)
APGD_FEATURES = one_stage_attack(
    FEATURE_STAGE, "APGD, 100 steps away from the image embedding of the clean image", paper="arXiv:2402.12336"
)
