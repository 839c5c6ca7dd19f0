"""What contracts are checked on: made-up classifiers and batches, and a few images of a track."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustbench_vlm.attacks.base import Batch
from robustbench_vlm.core.classifier_interface import Classifier, as_classifier
from robustbench_vlm.core.random import sample_keys
from robustbench_vlm.core.threat import Threat
from robustbench_vlm.datasets import DATASETS
from robustbench_vlm.datasets.base import Prompt
from robustbench_vlm.defenses.base import Defense, LossContext
from robustbench_vlm.protocols import PROTOCOLS
from robustbench_vlm.protocols.base import Protocol
from robustbench_vlm.tracks import Track

PICTURES = 8
"""Images of a dataset that a contract looks at."""


def toy(threat: Threat, *, num_classes: int) -> tuple[Classifier, Batch]:
    """Return a linear classifier of 8 x 8 images, and images labelled as it classifies them.

    It adds up in float64, whatever it is given: rounding would make verdicts depend on the batch size.
    """
    random = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 8, 8, generator=random)
    weight = torch.randn(num_classes, 3 * 8 * 8, generator=random, dtype=torch.float64)

    def classifier(pictures: Tensor) -> Tensor:
        return ((pictures.flatten(1).to(torch.float64) - 0.5) @ weight.T).to(pictures.dtype)

    keys = sample_keys(0, "contract", [str(n) for n in range(len(images))])
    labels = classifier(images).argmax(dim=1)
    return as_classifier(classifier), Batch(images, labels, keys, threat, torch.full_like(labels, num_classes))


def pictures_of(track: Track) -> tuple[Batch, tuple[Prompt, ...]]:
    """Return a few images of a track's first dataset and the prompts of its classes.

    They are made up where it has none, or one that may not be there.
    """
    if not track.datasets or DATASETS.load(track.datasets[0]).published:
        made_up = toy(Threat(track.norm, track.standard_eps), num_classes=5)[1]
        return made_up, tuple(f"a photo of {thing}." for thing in ("a cat", "a dog", "a ship", "a tree", "bread"))
    protocol: Protocol = PROTOCOLS.load(track.protocols[0])
    dataset = protocol.adapt_dataset(DATASETS.load(track.datasets[0]))
    source = dataset.open()
    chosen = protocol.select(source.ids, source.labels)[:PICTURES]
    images = source.read(chosen).to(torch.float32) / 255
    labels = torch.tensor([source.labels[index] for index in chosen])
    keys = sample_keys(0, dataset.name, [source.ids[index] for index in chosen])
    num_classes = torch.full_like(labels, len(dataset.classes))
    batch = Batch(images, labels, keys, Threat(track.norm, track.standard_eps), num_classes)
    return batch, dataset.prompts


def lesson(defense: Defense) -> LossContext:
    """Return a batch for a defense's losses: linear towers in float64, four images, five classes."""
    random = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3 * 8 * 8, 6, generator=random, dtype=torch.float64)
    images = torch.rand(4, 3, 8, 8, generator=random, dtype=torch.float64)
    text = nn.functional.normalize(torch.randn(5, 6, generator=random, dtype=torch.float64), dim=1)
    places = torch.randn(2, 3 * 8 * 8, 4 * 6, generator=random, dtype=torch.float64)

    def dense(tower: Tensor, places: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return lambda pictures: (pictures.flatten(1) @ tower, (pictures.flatten(1) @ places).unflatten(1, (4, 6)))

    return LossContext(
        images=images,
        labels=torch.tensor([0, 4, 2, 2]),
        keys=sample_keys(0, "contract", list("abcd")),
        student=lambda pictures: pictures.flatten(1) @ student,
        teacher=lambda pictures: pictures.flatten(1) @ teacher,
        teacher_clean=lambda: images.detach().flatten(1) @ teacher,
        text_features=text,
        settings=defense.settings,
        student_dense=dense(student, places[0]),
        teacher_dense=dense(teacher, places[1]),
    )
