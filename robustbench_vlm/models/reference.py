"""Model references: the one parser of what users write for `--model`, and of what cards, entries and runs name.

====================  ======================================================
`agft`                a model of the track, or of an installed plugin
`path/to/card.json`   a model card file
`open_clip:ARCH/TAG`  an architecture of open_clip with its pretrained weights
`hf:ORG/NAME[@REV]`   a model on the Hugging Face hub (parsed, cannot be loaded yet)
`DEFENSE+MODEL`       a test-time defense on one of the models above
====================  ======================================================
"""

from dataclasses import dataclass
from pathlib import Path

from robustbench_vlm.core.errors import UserError

OPEN_CLIP = "open_clip:"
"""The prefix of open_clip's architectures, in references and in cards."""
HUGGING_FACE = "hf:"
"""The prefix of models on the Hugging Face hub."""
ACCEPTED = "a name, a card file (path/to/card.json), open_clip:ARCH/TAG, or DEFENSE+MODEL with a test-time defense"
"""The references that can be loaded, for messages."""


@dataclass(frozen=True)
class ModelName:
    """The name of a model on a track, or of a plugin's model."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class CardFile:
    """A model card file."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class OpenClipModel:
    """An architecture of open_clip and the tag of its pretrained weights."""

    architecture: str
    """Without the prefix "open_clip:", such as "ViT-B-32"."""
    tag: str

    def __str__(self) -> str:
        return f"{OPEN_CLIP}{self.architecture}/{self.tag}"


@dataclass(frozen=True)
class HuggingFaceModel:
    """A model on the Hugging Face hub, at a revision (a branch, tag or commit; "" is the default branch)."""

    repository: str
    """ORG/NAME."""
    revision: str = ""

    def __str__(self) -> str:
        return f"{HUGGING_FACE}{self.repository}{f'@{self.revision}' if self.revision else ''}"


@dataclass(frozen=True)
class ModelReference:
    """A parsed reference; `str` gives the text that it was parsed from."""

    model: ModelName | CardFile | OpenClipModel | HuggingFaceModel
    """The model without a test-time defense."""
    defense: str = ""
    """The name of the test-time defense; "" for a model without one. Whether it is registered is not checked here."""

    def __str__(self) -> str:
        return f"{self.defense}+{self.model}" if self.defense else str(self.model)


def parse_reference(text: str) -> ModelReference:
    """Return the parsed reference; it looks at the disk only to tell the card file "a+b.json" from a defense "a".

    Raises UserError for open_clip: without a tag, for hf: without an organisation and a name, and for two test-time
    defenses on top of each other. Names are not looked up.
    """
    defense, plus, model = text.partition("+")
    # A card's path, an open_clip tag and a hub revision may contain a plus as well.
    if not plus or "/" in defense or ":" in defense or _is_card_file(text):
        return ModelReference(_parse_model(text))
    below = parse_reference(model)
    if below.defense:
        raise UserError(
            f"{text!r} has two test-time defenses, {defense!r} and {below.defense!r}, but a test-time defense runs on a"
            " model without one: keep one of them, as in DEFENSE+MODEL"
        )
    return ModelReference(below.model, defense)


def _parse_model(text: str) -> ModelName | CardFile | OpenClipModel | HuggingFaceModel:
    if text.startswith(OPEN_CLIP):
        architecture, _, tag = text.removeprefix(OPEN_CLIP).partition("/")
        if not architecture or not tag:
            raise UserError(
                f"{text!r} has no pretrained weights, expected open_clip:ARCH/TAG: add a tag that open_clip has for the"
                " architecture (`open_clip.list_pretrained()` in Python lists them)"
            )
        return OpenClipModel(architecture, tag)
    if text.startswith(HUGGING_FACE):
        repository, _, revision = text.removeprefix(HUGGING_FACE).partition("@")
        if not all(repository.partition("/")) or repository.count("/") > 1:
            raise UserError(f"{text!r} does not name a model on the Hugging Face hub: write hf:ORG/NAME[@REVISION]")
        return HuggingFaceModel(repository, revision)
    return CardFile(text) if text.endswith(".json") else ModelName(text)


def _is_card_file(text: str) -> bool:
    try:
        return text.endswith(".json") and Path(text).is_file()
    except OSError:  # the text is too long for a file name
        return False
