"""What a defense is: a per-sample loss, the loss that its inner attack ascends, and a schedule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from torch import Tensor
from torch.nn import functional

from robustbench_vlm.defenses.schedule import Schedule as Schedule

Features = Callable[[Tensor], Tensor]
"""An image tower: images (B, 3, H, W) in [0, 1] to embeddings (B, D) that are not normalised."""


Dense = Callable[[Tensor], tuple[Tensor, Tensor]]
"""An image tower with its places: images to embeddings (B, D), and to those of a square of T places, (B, T, D)."""


def _no_places(images: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("this context was made without embeddings of places")


def _alone(total: Tensor) -> Tensor:
    return total


@dataclass(frozen=True)
class LossContext:
    """What a loss may use beside the images it is given; all of one batch, or of one process's part of it."""

    images: Tensor
    """The clean images, (B, 3, H, W)."""
    labels: Tensor
    """(B,), int64."""
    keys: Tensor
    """(B,), int64: the samples' keys in this step, for noise that belongs to them (`randomness`)."""
    student: Features
    """The tower being trained."""
    teacher: Features
    """The frozen tower that it started from."""
    teacher_clean: Callable[[], Tensor]
    """Gives the teacher's embeddings of the clean images, (B, D), without gradient; one pass a batch, when asked."""
    text_features: Tensor
    """Unit text embeddings of the training classes, (C, D); no gradient."""
    settings: Mapping[str, float]
    """The defense's numbers, by their names in the paper."""
    student_dense: Dense = _no_places
    teacher_dense: Dense = _no_places
    total: Callable[[Tensor], Tensor] = _alone
    """Sums a tensor over the processes that share the batch; the gradient goes to this process's part."""


Loss = Callable[[LossContext, Tensor], Tensor]
"""A loss of images (B, 3, H, W) in a context: one number a sample, (B,)."""


@dataclass(frozen=True)
class InnerAttack:
    """PGD on the sign of the gradient of a per-sample loss, from a uniform start in the ball."""

    loss: Loss
    steps: int
    step_size: Fraction
    """In units of the training eps."""
    momentum: float = 0.0
    """Of the heavy ball on signs that FARE's authors use: v = sign(momentum v + sign(gradient))."""


@dataclass(frozen=True)
class Defense:
    """A training recipe. Only the image tower is trained; text tower, logit scale and teacher are frozen."""

    name: str
    loss: Loss
    inner: InnerAttack
    schedule: Schedule
    """The published setting, for the real track."""
    settings: Mapping[str, float] = field(default_factory=dict)
    version: int = 1
    """Version of the recipe. Raise it whenever a change of the code can change the trained weights."""
    prompt: str = "This is a photo of a {}"
    """What is said of a class where the training images are a folder's; TeCoA's, which most recipes keep."""
    batchwise: bool = False
    """Whether the loss has a term of the whole batch; the inner attack's loss never has one."""
    paper: str = ""
    fidelity: str = "paper"
    """"official code", "paper" or "reconstruction"."""
    deviations: tuple[str, ...] = ()


def logits(features: Tensor, text_features: Tensor, scale: float) -> Tensor:
    """Return scale times the cosine between embeddings (B, D) and unit text embeddings (C, D): (B, C)."""
    return scale * functional.normalize(features, dim=-1) @ text_features.T
