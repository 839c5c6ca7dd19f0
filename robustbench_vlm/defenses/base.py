"""Data classes and types of defenses: per-sample loss, inner attack and settings."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional

from robustbench_vlm.core.fingerprint import LATER
from robustbench_vlm.defenses.schedule import Schedule as Schedule

EncodeImages = Callable[[Tensor], Tensor]
"""Type of an image encoder: images float32 (B, 3, H, W) in [0, 1] to features float32 (B, D). Features are not
normalised."""

EncodeDense = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Type of a dense image encoder: images (B, 3, H, W) to image features (B, D) and patch features (B, T, D).

The T patches form a square of sqrt(T) rows and columns.
"""


def _no_dense_features(images: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("dense features need a dense image encoder: set student_dense and teacher_dense")


def _sum_of_one_process(total: Tensor) -> Tensor:
    return total


@dataclass(frozen=True)
class LossContext:
    """The arguments of a loss, except the adversarial images.

    All arguments are for the same samples: a batch, or the part of a batch that one process trains on.
    """

    images: Tensor
    """The clean images, float32 (B, 3, H, W) in [0, 1]."""
    labels: Tensor
    """The true classes, int64 (B,)."""
    keys: Tensor
    """The key of each sample's random numbers in this step, int64 (B,). The module `core.random` explains keys."""
    student: EncodeImages
    """The image encoder that is trained."""
    teacher: EncodeImages
    """The frozen copy of the image encoder from before the training."""
    teacher_clean: Callable[[], Tensor]
    """Returns the features of the clean images from the frozen copy, float32 (B, D), without a gradient. The first call
    computes the features, and later calls return the same features."""
    text_features: Tensor
    """Text features of the training classes, float32 (C, D) of norm 1, without a gradient."""
    settings: Mapping[str, float]
    """The settings of the defense. Their names follow the paper."""
    student_dense: EncodeDense = _no_dense_features
    """The dense features of the image encoder that is trained."""
    teacher_dense: EncodeDense = _no_dense_features
    """The dense features of the frozen copy."""
    total: Callable[[Tensor], Tensor] = _sum_of_one_process
    """Returns the sum of a tensor over all processes that share the batch. The gradient of the sum flows back to every
    process."""


Loss = Callable[[LossContext, Tensor], Tensor]
"""Type of a loss: a context and adversarial images (B, 3, H, W) to losses float32 (B,)."""


@dataclass(frozen=True)
class InnerAttack:
    """The attack during training.

    It is PGD with signed gradients on a per-sample loss. It starts at a uniform random point of the eps ball.
    """

    loss: Loss
    steps: int
    step_size: Fraction
    """The step size in the unit `step_unit`."""
    momentum: float = 0.0
    """Momentum of the step direction v. FARE's code uses the same formula: v = sign(momentum * v + sign(gradient))."""
    step_unit: Literal["eps", "pixel range"] = field(default="eps", metadata=LATER)
    """The unit of the step size. "eps": the training eps. "pixel range": the distance from black to white."""
    clamp_start: bool = field(default=True, metadata=LATER)
    """Whether the pixels of the random start are clamped to [0, 1]. If not, the first pass gets pixels outside [0, 1].
    The points after the start are always clamped."""
    precision: str = field(default="float32", metadata=LATER)
    """Precision of the image encoder and of the logits in the attack, a name in `models.precision.PRECISIONS`."""
    mean_loss: bool = field(default=False, metadata=LATER)
    """Whether the attack maximises the mean loss of the batch. If not, it maximises the sum. Both have the same
    gradient signs. In half precision there is one difference: the gradients of the mean are smaller, so more of them
    are rounded to 0."""

    def step(self, eps: Fraction) -> Fraction:
        """Return the step size for a training eps. Both are for pixels in [0, 1]."""
        return self.step_size * eps if self.step_unit == "eps" else self.step_size


@dataclass(frozen=True)
class Resize:
    """The resize of training images from a folder. A centre crop to the input size of the image encoder follows."""

    interpolation: Literal["bicubic", "bilinear"]
    ratio: Fraction = Fraction(1)
    """The shorter side after the resize, divided by the input size of the image encoder."""


@dataclass(frozen=True)
class Defense:
    """A recipe of adversarial training.

    Only the image encoder is trained. The text encoder and logit scale are frozen.
    """

    name: str
    loss: Loss
    inner: InnerAttack
    schedule: Schedule
    """The schedule of the paper. A track (a benchmark setting) may replace it by its own schedule."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """Settings of the loss. Their names follow the paper. `vlmbench train --set` can change them."""
    version: int = 1
    """Version of the recipe. Increase it if a change of the code can change the trained weights."""
    prompt: str = "This is a photo of a {}"
    """The prompt template for training images from a folder. The default is TeCoA's prompt template."""
    resize: Resize | None = None
    """The resize of training images from a folder. None: the largest centre square is resized (bicubic) to the input
    size of the image encoder, and the rotation in the EXIF data is applied."""
    batchwise: bool = False
    """True if the loss has a term that depends on the whole batch. The loss of the inner attack must not have such a
    term."""
    paper: str = ""
    """URL of the paper."""
    fidelity: str = "paper"
    """The source of the recipe: "official code", "paper" or "reconstruction". It is "reconstruction" if code and
    formulas are not public."""
    deviations: tuple[str, ...] = ()
    """Known differences between the recipe and its source."""

    def as_in_code(
        self,
        deviations: tuple[str, ...],
        *,
        inner: Mapping[str, Any] = MappingProxyType({}),
        schedule: Mapping[str, Any] = MappingProxyType({}),
        **changes: Any,
    ) -> "Defense":
        """Return the recipe NAME@code: this recipe with additional details of the released code.

        `inner` has the new values of fields of the inner attack, and `schedule` has those of the schedule. `changes`
        has the new values of other fields of the recipe. `deviations` are the differences from the released code that
        remain.
        """
        return dataclasses.replace(
            self,
            name=f"{self.name}@code",
            inner=dataclasses.replace(self.inner, **inner),
            schedule=dataclasses.replace(self.schedule, **schedule),
            fidelity="official code",
            deviations=deviations,
            **changes,
        )


def logits(features: Tensor, text_features: Tensor, scale: float) -> Tensor:
    """Return `scale` times the cosines of image features (B, D) with text features (C, D) of norm 1, (B, C)."""
    return scale * functional.normalize(features, dim=-1) @ text_features.T
