"""Zero-shot datasets: class names, prompt templates and a source of labelled images."""

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.datasets.transform import NATIVE, Transform

Prompt = str | tuple[str, ...]
"""One text for a class, or several whose embeddings are averaged (CLIP's prompt ensembles)."""


class UnreadableImage(UserError):
    """An image that cannot be decoded; a run skips it only if the user asks for that."""


class Source(Protocol):
    """Labelled images, read on demand; sample i is named ids[i] and has the class labels[i]."""

    @property
    def ids(self) -> Sequence[str]:
        """The samples' names, all different."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """Each sample's class, in [0, C)."""
        ...

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return images, uint8 (B, 3, H, W), equal in size for all; raise UnreadableImage if one fails."""
        ...


@dataclass(frozen=True)
class Dataset:
    """A zero-shot dataset. `source` is "module:callable"; called with `options` it returns a Source."""

    name: str
    classes: tuple[str, ...]
    prompt: Prompt
    """The prompt template, or several; the class name replaces {}."""
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    split: str = "test"
    revision: str = "1"
    """Changes with every change of an image, a label or a class name."""
    description: str = ""
    origin: str = ""
    """Source of the images, with licence."""
    published: str = ""
    """Name of the published dataset whose images must be prepared before this one can be opened; "" for others."""
    transform: Transform = NATIVE
    """Turns images of a published dataset into the pixels that are attacked."""
    merged: tuple[int, ...] = ()
    """The class of each label of the published dataset; () if they are the same."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise UserError(f"the dataset {self.name!r} has {len(self.classes)} class: zero-shot needs two or more")
        for text in self.templates:
            if "{}" not in text:
                raise UserError(f'the prompt {text!r} has no {{}} for the class name: write "a photo of a {{}}."')

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
        """The prompts of each class: one text if there is one template, else one text per template."""
        filled = [tuple(text.replace("{}", name) for text in self.templates) for name in self.classes]
        return tuple(texts[0] if isinstance(self.prompt, str) else texts for texts in filled)

    def open(self) -> Source:
        """Return the dataset's images; a published one must be prepared first, see `prepare_dataset`."""
        assert not self.published or self.options, f"{self.name} is not prepared"
        module, _, name = self.source.partition(":")
        source: Source = getattr(importlib.import_module(module), name)(**self.options)
        return source


def image_sha256(image: Tensor) -> str:
    """Return the digest of an image's uint8 pixels, (3, H, W) in C order."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
