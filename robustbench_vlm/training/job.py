"""Fine-tuning jobs: all settings that decide the trained weights, and their fingerprint."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.fingerprint import counted, fingerprint
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.transform import Transform
from robustbench_vlm.defenses.base import Defense, Schedule
from robustbench_vlm.models.classifier import Model
from robustbench_vlm.training.data import TrainingImages

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Job:
    """One fine-tuning: the defense, the schedule, the base model, the training images and the threat model."""

    defense: Defense
    schedule: Schedule
    model: Model
    dataset: Dataset
    images: TrainingImages
    """The images of the dataset that the model is trained on."""
    eps: Fraction
    """Radius of the inner attack in the Linf norm, for pixels in [0, 1]."""
    seed: int = 0
    precision: str = "float32"
    """Precision of the image encoder in the training pass. The inner attack has its own precision. All losses are
    float32."""
    changes: tuple[str, ...] = ()
    """Sentences about published settings that were changed because they do not fit this training. The card of the
    trained model lists these sentences.
    """
    transform: Transform | None = None
    """The transform that the defense's recipe uses for the images of a folder. None if the recipe does not state one.
    """

    def __post_init__(self) -> None:
        if len(self.images) < self.schedule.batch_size:
            raise UserError(
                f"{len(self.images)} images do not fill a batch of {self.schedule.batch_size}: give more images, or a"
                f" smaller batch by --set batch_size={max(1, len(self.images))}"
            )
        if self.schedule.warmup >= self.steps:
            raise UserError(
                f"the warm-up of {self.schedule.warmup} steps is not shorter than the training of {self.steps} steps,"
                f" so the learning rate cannot reach {self.schedule.lr:g}: give a shorter warm-up by --set warmup=N, or"
                " a longer training by --epochs N"
            )
        if self.precision not in PRECISIONS:
            raise UserError(
                f"the precision {self.precision} is not supported in training: give one of {', '.join(PRECISIONS)};"
                " in float16, small gradients of the inner attack would become zero"
            )

    @property
    def epoch_steps(self) -> int:
        """Number of optimizer steps of one epoch. The images after the last full batch of an epoch are not used."""
        return len(self.images) // self.schedule.batch_size

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the whole training."""
        return self.schedule.steps or self.schedule.epochs * self.epoch_steps

    @property
    def identity(self) -> str:
        """The fingerprint (a hash) of all settings in `account`. A checkpoint with another fingerprint is not used."""
        return fingerprint(self.account)

    @property
    def account(self) -> Mapping[str, Any]:
        """All settings that decide the weights.

        The keys are names of settings. The card of the trained model lists these settings.
        """
        inner = counted(self.defense.inner)
        del inner["loss"]
        account = {
            "defense": self.defense.name,
            "defense_version": self.defense.version,
            "parent": self.model.name,
            "parent_digest": self.model.digest,
            "dataset": self.dataset.name,
            "dataset_revision": self.dataset.revision,
            "prompt": self.dataset.prompt,
            "classes": fingerprint(self.dataset.classes),
            "images": len(self.images),
            "images_digest": self.images.digest,
            "image_size": self.model.architecture.image_size,
            "eps": str(self.eps),
            **{f"inner_{name}": value for name, value in inner.items()},
            "schedule": counted(self.schedule),
            "steps": self.steps,
            "settings": dict(self.defense.settings),
            "seed": self.seed,
            "precision": self.precision,
        }
        return account | ({"transform": str(self.transform)} if self.transform else {})
