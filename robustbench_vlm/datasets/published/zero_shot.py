"""The published datasets as zero-shot datasets, with class names and prompt templates from `prompts.trusted`."""

import dataclasses

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.base import Dataset
from robustbench_vlm.datasets.prepared import PREPARED_SOURCE
from robustbench_vlm.datasets.prompts import PROMPT_SOURCES
from robustbench_vlm.datasets.prompts.base import PromptSource, task_of
from robustbench_vlm.datasets.prompts.trusted import TRUSTED
from robustbench_vlm.datasets.published import PUBLISHED, class_names
from robustbench_vlm.datasets.transform import NATIVE, Transform


def has_native_size(dataset: Dataset) -> bool:
    """Return whether a published dataset has images of one small size, such as CIFAR10."""
    return bool(dataset.published) and PUBLISHED[dataset.published].native


def with_prompts(dataset: Dataset, prompt_source: str) -> Dataset:
    """Return a published dataset with the class names and prompt templates of a prompt source.

    Raises UserError if the prompt source does not have this dataset.
    """
    rows: PromptSource = PROMPT_SOURCES.load(prompt_source)
    if dataset.published not in rows:
        raise UserError(
            f"the prompt source {prompt_source!r} has no prompt template for {dataset.name}; it has the datasets"
            f" {', '.join(sorted(rows))}: choose one of them with --dataset, or use --protocol trusted"
        )
    task = task_of(rows[dataset.published], class_names(dataset.published))
    return dataclasses.replace(dataset, classes=task.classes, prompt=task.prompt, merged=task.merged)


def _zero_shot(name: str) -> Dataset:
    published = PUBLISHED[name]
    task = task_of(TRUSTED[name], class_names(name))
    return Dataset(
        name=name,
        classes=task.classes,
        prompt=task.prompt,
        source=PREPARED_SOURCE,
        split=published.split,
        description=published.title,
        origin=", ".join(filter(None, [published.origin, published.licence])),
        published=name,
        transform=NATIVE if published.native else Transform(224, 224),
        merged=task.merged,
    )


CALTECH101 = _zero_shot("caltech101")
CALTECH256 = _zero_shot("caltech256")
CIFAR10 = _zero_shot("cifar10")
CIFAR100 = _zero_shot("cifar100")
COUNTRY211 = _zero_shot("country211")
DTD = _zero_shot("dtd")
EUROSAT = _zero_shot("eurosat")
FGVC_AIRCRAFT = _zero_shot("fgvc-aircraft")
FLOWERS102 = _zero_shot("flowers102")
FOOD101 = _zero_shot("food101")
HATEFUL_MEMES = _zero_shot("hateful-memes")
IMAGENET = _zero_shot("imagenet")
IMAGENET_R = _zero_shot("imagenet-r")
IMAGENET_SKETCH = _zero_shot("imagenet-sketch")
OXFORD_PETS = _zero_shot("oxford-pets")
PCAM = _zero_shot("pcam")
STANFORD_CARS = _zero_shot("stanford-cars")
STL10 = _zero_shot("stl10")
SUN397 = _zero_shot("sun397")
TINY_IMAGENET = _zero_shot("tiny-imagenet")
