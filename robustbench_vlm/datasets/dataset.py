"""What a zero-shot data set is: class names, a prompt, and a source of labelled pictures."""

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from robustbench_vlm.errors import UserError


class UnreadableImage(UserError):
    """A picture that cannot be decoded; a run goes on without it only where the user said so."""


class Source(Protocol):
    """Labelled pictures, read on demand; sample i is named ids[i] and has the class labels[i]."""

    @property
    def ids(self) -> Sequence[str]:
        """The samples' names, all different."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """Each sample's class, in [0, C)."""
        ...

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return pictures, uint8 (B, 3, H, W), equal in size for all; raise UnreadableImage where one fails."""
        ...


@dataclass(frozen=True)
class Dataset:
    """A zero-shot data set. `source` is "module:callable"; called with `options` it gives a Source."""

    name: str
    classes: tuple[str, ...]
    prompt: str
    """The text whose {} the class name takes."""
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    split: str = "test"
    revision: str = "1"
    """Changes whenever a picture, a label or a class name does."""
    description: str = ""
    origin: str = ""
    """Where the pictures come from, with licence."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise UserError(f"the data set {self.name!r} has {len(self.classes)} class: zero-shot needs two or more")
        if "{}" not in self.prompt:
            raise UserError(f'the prompt {self.prompt!r} has no {{}} for the class name: write "a photo of a {{}}."')

    @property
    def chance(self) -> float:
        """The accuracy of a guess."""
        return 1 / len(self.classes)

    @property
    def prompts(self) -> tuple[str, ...]:
        """One text a class."""
        return tuple(self.prompt.replace("{}", name) for name in self.classes)

    def open(self) -> Source:
        """Return the data set's pictures."""
        module, _, name = self.source.partition(":")
        source: Source = getattr(importlib.import_module(module), name)(**self.options)
        return source


def image_sha256(image: Tensor) -> str:
    """Return the digest of a picture's uint8 pixels, (3, H, W) in C order."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
