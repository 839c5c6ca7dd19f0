"""Model references: texts that identify models in `--model`, model cards, leaderboard entries and runs.

==============================  ====================================================================
`agft`                          a model of the track or of an installed plugin
`path/to/card.json`             a model card file
`open_clip:ARCH/TAG`            an architecture of open_clip with its pretrained weights
`hf:ORG/NAME[@REV]`             a model on the Hugging Face hub (it needs the package transformers)
`hf:ORG/NAME[@REV]+ADAPTER`     the same with an adapter of peft: a folder, or ORG/NAME[@REV] on the hub
`DEFENSE+MODEL`                 one of the models above, except hf:, with a test-time defense
==============================  ====================================================================
"""

import re
from dataclasses import dataclass

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import user_path

OPEN_CLIP = "open_clip:"
"""The prefix of names of open_clip architectures, in model references and in model cards."""
HUGGING_FACE = "hf:"
"""The prefix of references to models on the Hugging Face hub."""
IN_MEMORY = "memory:"
"""The prefix of references to models in the memory of a Python process. The function `evaluate` makes these references.
"""
UNPINNED = "unpinned:"
"""The prefix of a digest that does not cover the whole model. Another machine cannot check such a digest."""
WITH_CARD = "a name, a card file (path/to/card.json), or open_clip:ARCH/TAG"
"""The forms of references to models with a model card, as text for error messages."""
ACCEPTED = (
    "a name, a card file (path/to/card.json), open_clip:ARCH/TAG, hf:ORG/NAME, or DEFENSE+MODEL with a test-time"
    " defense"
)
"""All forms of references that users can write, as text for error messages."""


@dataclass(frozen=True)
class ModelName:
    """The name of a model on a track or in a plugin."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class CardFile:
    """The path of a model card file."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class OpenClipModel:
    """An architecture of open_clip and the tag of its pretrained weights."""

    architecture: str
    """The name without the prefix "open_clip:", such as "ViT-B-32"."""
    tag: str

    def __str__(self) -> str:
        return f"{OPEN_CLIP}{self.architecture}/{self.tag}"


@dataclass(frozen=True)
class HuggingFaceModel:
    """A revision of a model on the Hugging Face hub."""

    repository: str
    """The repository, ORG/NAME."""
    revision: str = ""
    """A branch, tag or commit. "" means the default branch."""
    adapter: str = ""
    """A peft adapter that changes the model: a local folder, or ORG/NAME[@REVISION] on the hub. "" means no adapter."""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HUGGING_FACE}{self.repository}{revision}{f'+{self.adapter}' if self.adapter else ''}"


@dataclass(frozen=True)
class MemoryModel:
    """A model in the memory of this process, made by `zero_shot`."""

    name: str

    def __str__(self) -> str:
        return f"{IN_MEMORY}{self.name}"


AnyReference = ModelName | CardFile | OpenClipModel | HuggingFaceModel | MemoryModel


@dataclass(frozen=True)
class ModelReference:
    """A parsed model reference. `str(reference)` returns the text from which it was parsed."""

    model: AnyReference
    """The model without a test-time defense."""
    defense: str = ""
    """The name of the test-time defense, or "". The parser does not check that a defense of this name exists."""

    def __str__(self) -> str:
        return f"{self.defense}+{self.model}" if self.defense else str(self.model)


def parse_reference(text: str) -> ModelReference:
    """Parse a model reference. The parser does not check that the model exists.

    A text such as "a+b.json" has the form DEFENSE+MODEL. If a card file with the path "a+b.json" exists, the text
    refers to that file instead.

    Raises UserError if "open_clip:" has no tag, if "hf:" has no organisation or no name, or if no adapter follows a
    plus in "hf:". Also raises UserError if there are two test-time defenses.
    """
    defense, plus, model = text.partition("+")
    # A path, an open_clip tag or a hub revision may contain a plus, which does not separate a defense from a model.
    if not plus or "/" in defense or ":" in defense or _is_card_file(text):
        return ModelReference(_parse_model(text))
    below = parse_reference(model)
    if below.defense:
        raise UserError(
            f"{text!r} has two test-time defenses, {defense!r} and {below.defense!r}, but a model can have only one:"
            " give one of them, as in DEFENSE+MODEL"
        )
    return ModelReference(below.model, defense)


def _parse_model(text: str) -> AnyReference:
    if text.startswith(IN_MEMORY):
        return MemoryModel(text.removeprefix(IN_MEMORY))
    if text.startswith(OPEN_CLIP):
        architecture, _, tag = text.removeprefix(OPEN_CLIP).partition("/")
        if not architecture or not tag:
            raise UserError(
                f"{text!r} does not name pretrained weights: add a tag, as in open_clip:ARCH/TAG"
                " (`open_clip.list_pretrained()` in Python lists all tags)"
            )
        return OpenClipModel(architecture, tag)
    if text.startswith(HUGGING_FACE):
        return _parse_hub_model(text)
    if text.endswith(".json"):
        return CardFile(str(user_path(text)) if text.startswith("~") else text)
    return ModelName(text)


def _parse_hub_model(text: str) -> HuggingFaceModel:
    model, plus, adapter = text.removeprefix(HUGGING_FACE).partition("+")
    # The name of a repository has no plus, but a revision may have a plus, as in "v1+fix".
    if plus and "@" in model and "/" not in adapter:
        model, plus, adapter = text.removeprefix(HUGGING_FACE), "", ""
    repository, _, revision = model.partition("@")
    if not is_repository(repository):
        raise UserError(
            f"{text!r} does not name a model on the Hugging Face hub: write hf:ORG/NAME or hf:ORG/NAME@REVISION, with"
            " +ADAPTER for an adapter of peft"
        )
    if plus and not adapter:
        raise UserError(
            f"{text!r} has no adapter after the plus: give the folder of the adapter or ORG/NAME, or remove the plus"
        )
    return HuggingFaceModel(repository, revision, adapter)


def is_repository(text: str) -> bool:
    """Return whether a text has the form ORG/NAME of a repository on the Hugging Face hub."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}", text) is not None


def _is_card_file(text: str) -> bool:
    try:
        return text.endswith(".json") and user_path(text).is_file()
    # A text that is too long for a file name raises an OSError.
    except OSError:
        return False
