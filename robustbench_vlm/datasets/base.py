"""Zero-shot datasets: class names, prompt templates and an object that reads labelled images."""

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.transform import NATIVE, Transform

if TYPE_CHECKING:
    from torch import Tensor

Prompt = str | tuple[str, ...]
"""One text, or several texts whose embeddings are averaged (a prompt ensemble, as in CLIP)."""


class UnreadableImage(UserError):
    """Raised for an image that cannot be decoded. `vlmbench run` skips such images only with --skip-unreadable."""


class Source(Protocol):
    """Labelled images that are read on demand. Sample i has the id `ids[i]` and the class index `labels[i]`."""

    @property
    def ids(self) -> Sequence[str]:
        """The unique ids of the N samples."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """The class index of each of the N samples, in [0, C)."""
        ...

    def read(self, indices: Sequence[int]) -> "Tensor":
        """Return the images at B indices as uint8 [B, 3, H, W]. All images of the dataset have one size H x W.

        Raises UnreadableImage if an image cannot be decoded.
        """
        ...


@runtime_checkable
class FileSource(Source, Protocol):
    """A source that reads image files in a folder of the user. The user may change the files between runs."""

    def path(self, index: int) -> Path:
        """Return the path of the image file of a sample."""
        ...


@dataclass(frozen=True)
class Dataset:
    """A zero-shot dataset: class names, prompts and labelled images.

    `source` is an import path of the form "module:callable". `open` calls this callable with `options`. The callable
    returns the `Source` of the images.
    """

    name: str
    classes: tuple[str, ...]
    prompt: Prompt
    """The prompt template, or several templates for a prompt ensemble. The class name replaces {}."""
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    split: str = "test"
    revision: str = "1"
    """The version of the dataset. The version must change when an image, a label or a class name changes."""
    description: str = ""
    origin: str = ""
    """The source and the licence of the images."""
    published: str = ""
    """Name of the published dataset that contains the images. The images must be prepared (decoded and resized) before
    `open` is called. The name is "" if the images are not from a published dataset.
    """
    transform: Transform = NATIVE
    """The function that converts an image of a published dataset to the pixels that are attacked."""
    merged: tuple[int, ...] = ()
    """The class index for each label of the published dataset. Several labels have the same class index if their
    classes are merged. () means that no classes are merged, so each label is its own class index.
    """

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise UserError(
                f"the dataset {self.name!r} has {len(self.classes)} class(es); zero-shot classification needs at least"
                " two: add classes"
            )
        for text in self.templates:
            if "{}" not in text:
                raise UserError(
                    f"the prompt {text!r} does not contain {{}}, which is replaced by the class name: write for"
                    ' example "a photo of a {}."'
                )

    @property
    def chance(self) -> float:
        """Accuracy of random guessing."""
        return 1 / len(self.classes)

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompt templates."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """One entry per class: a text if `prompt` is one template, and a tuple of texts if `prompt` has several."""
        filled = [tuple(text.replace("{}", name) for text in self.templates) for name in self.classes]
        return tuple(texts[0] if isinstance(self.prompt, str) else texts for texts in filled)

    def open(self) -> Source:
        """Return the images of the dataset. For a published dataset, call `prepare_dataset` first."""
        assert not self.published or self.options, f"{self.name} is not prepared"
        module, _, name = self.source.partition(":")
        source: Source = getattr(importlib.import_module(module), name)(**self.options)
        return source


def image_sha256(image: "Tensor") -> str:
    """Return the sha256 of the pixels of an image, uint8 [3, H, W] in C order, as hexadecimal digits."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
