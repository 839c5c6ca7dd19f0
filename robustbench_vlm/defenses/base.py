"""Training recipes: per-sample loss, inner attack, schedule and settings of a defense."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from torch import Tensor
from torch.nn import functional

from robustbench_vlm.defenses.schedule import Schedule as Schedule

EncodeImages = Callable[[Tensor], Tensor]
"""Type of an image encoder: images (B, 3, H, W) in [0, 1] to features (B, D) that are not normalised."""

EncodeDense = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Type of a dense image encoder: images to features (B, D) and to features of T patches in a square, (B, T, D)."""


def _no_dense_features(images: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("this context has no dense features")


def _sum_of_one_process(total: Tensor) -> Tensor:
    return total


@dataclass(frozen=True)
class LossContext:
    """The inputs of a loss besides the attacked images, for one batch or for one process's part of it."""

    images: Tensor
    """The clean images, (B, 3, H, W)."""
    labels: Tensor
    """The classes, (B,), int64."""
    keys: Tensor
    """Keys of the random numbers (see `core.random`) of each sample in this step, (B,), int64."""
    student: EncodeImages
    """The image encoder that is trained."""
    teacher: EncodeImages
    """The frozen image encoder that the training started from."""
    teacher_clean: Callable[[], Tensor]
    """Returns the teacher's features of the clean images, (B, D), without gradient; computed once per batch on use."""
    text_features: Tensor
    """Unit text features of the training classes, (C, D), without gradient."""
    settings: Mapping[str, float]
    """The defense's settings, by their names in the paper."""
    student_dense: EncodeDense = _no_dense_features
    teacher_dense: EncodeDense = _no_dense_features
    total: Callable[[Tensor], Tensor] = _sum_of_one_process
    """Sums a tensor over the processes that share the batch; gradients flow back to each process's part."""


Loss = Callable[[LossContext, Tensor], Tensor]
"""Type of a loss: a context and images (B, 3, H, W) to one number per sample, (B,)."""


@dataclass(frozen=True)
class InnerAttack:
    """PGD with signed gradients on a per-sample loss, from a uniform random start in the ball."""

    loss: Loss
    steps: int
    step_size: Fraction
    """In units of the training eps."""
    momentum: float = 0.0
    """Heavy-ball momentum on signs, as in FARE's code: v = sign(momentum v + sign(gradient))."""


@dataclass(frozen=True)
class Defense:
    """A training recipe. Only the image encoder is trained; text encoder, logit scale and teacher are frozen."""

    name: str
    loss: Loss
    inner: InnerAttack
    schedule: Schedule
    """The published schedule, used on the real track."""
    settings: Mapping[str, float] = field(default_factory=dict)
    version: int = 1
    """Version of the recipe. Raise it whenever a change of the code can change the trained weights."""
    prompt: str = "This is a photo of a {}"
    """Prompt template for training images from a folder; the default is TeCoA's, which most recipes use."""
    batchwise: bool = False
    """Whether the loss has a term that depends on the whole batch; the inner attack's loss never has one."""
    paper: str = ""
    fidelity: str = "paper"
    """The source that the recipe follows: "official code", "paper" or "reconstruction"."""
    deviations: tuple[str, ...] = ()
    """Known differences from that source."""


def logits(features: Tensor, text_features: Tensor, scale: float) -> Tensor:
    """Return scale times the cosine of features (B, D) with unit text features (C, D), (B, C)."""
    return scale * functional.normalize(features, dim=-1) @ text_features.T
