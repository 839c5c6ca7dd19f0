"""Model cards: JSON files that describe a checkpoint, with functions that read, write and find them."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import package_folder, write_text
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.registry import unknown
from robustbench_vlm.core.strict_json import read_json, validate
from robustbench_vlm.models import MODELS, card_names
from robustbench_vlm.models.reference import (
    ACCEPTED,
    OPEN_CLIP,
    CardFile,
    HuggingFaceModel,
    OpenClipModel,
    parse_reference,
)

_MAX_BYTES = 2**18
"""The largest card file in bytes; bundled cards have a few thousand."""
_MAX_DEPTH = 8
"""The most levels of nested objects in a card file; bundled cards have three."""
_STRICT: ConfigDict = {"extra": "forbid", "use_attribute_docstrings": True}

Name = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(max_length=10_000)]
Pixels = tuple[float, float, float]
"""One number for each colour channel, for pixels in [0, 1]."""
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Weights:
    """A file of weights and its digest."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    file: Text
    """The path relative to the card's folder; for released weights, the file's name in the cache."""
    sha256: Text
    """The digest of the file. It may be empty for released weights: then the first download's digest is recorded."""
    url: Text = ""
    """The download address: https, or "hf:OWNER/NAME/FILE" on the Hugging Face hub; empty: beside the card."""
    page: Text = ""
    """A web page where people find the file, if programs cannot download it."""
    layout: Text = ""
    """The checkpoint format, one of `CHECKPOINT_FORMATS`; empty: recognised by the file's entries."""

    def __post_init__(self) -> None:
        if self.is_bundled and not self.sha256:
            raise ValueError(f"must name the sha256 of {self.file}, which is a file beside the card")

    @property
    def is_bundled(self) -> bool:
        """Whether the file is beside its card."""
        return not self.url and not self.page


@dataclass(frozen=True)
class Reported:
    """A number that a paper reports about the model; this project has not measured it."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    what: Text
    """The attack, eps and datasets."""
    percent: int | float
    source: Text


@dataclass(frozen=True)
class CardFields:
    """The contents of a card file; its parsing, messages and JSON schema follow from these fields."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: Name
    architecture: Name
    image: Weights | None = None
    """The image encoder, or a whole CLIP."""
    text: Weights | None = None
    """The text encoder and the logit scale; all models of a track share them."""
    defense: Name = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    """The dataset, eps, steps, seconds, parent and fingerprint of the training that made the model."""
    paper: Text = ""
    licence: Text = ""
    notes: Text = ""
    base: Text = ""
    """The model whose text encoder and logit scale are used: a name on the same track, open_clip:ARCH/TAG, or a card
    file."""
    pretrained: Name = ""
    """The tag of open_clip's weights for the architecture."""
    mean: Pixels | None = None
    """The mean that the image encoder subtracts from pixels; None: the architecture's."""
    std: tuple[Positive, Positive, Positive] | None = None
    """The standard deviation that it divides by; None: the architecture's."""
    reported: tuple[Reported, ...] = ()

    def __post_init__(self) -> None:
        if (self.text and (self.base or not self.image)) or (self.pretrained and (self.image or self.base)):
            raise ValueError(
                "must have image and text, or image and base, or pretrained: it names the same tower twice"
            )
        if bool(self.mean) != bool(self.std):
            raise ValueError("must have both mean and std, or neither")


@dataclass(frozen=True)
class ModelCard(CardFields):
    """A checkpoint and how it was made; one JSON file model_zoo/<track>/<name>.json.

    The weights are an image encoder `image` and a text encoder `text`; or an `image` and the text encoder of another
    card, `base`; or one whole CLIP as `image`; or one of open_clip's, `pretrained`. A card with none of these is a
    model whose weights were never released.
    """

    folder: str = ""
    """The folder that the card was read from and that its files are in; not a part of the card's JSON."""

    @property
    def base_reference(self) -> str:
        """The reference of the base for `find_card`; a card file is relative to this card's folder."""
        return str(Path(self.folder) / self.base) if is_card_file(self.base) else self.base

    @property
    def has_weights(self) -> bool:
        """Whether the weights were released."""
        return bool(self.image or self.pretrained)


def read_card(path: Path) -> ModelCard:
    """Read a card file; raise UserError where it is missing, not strict JSON, or has wrong or missing fields."""
    what = f"the model card {path}"
    card = parse_card(read_json(path, "the model card", max_bytes=_MAX_BYTES, max_depth=_MAX_DEPTH), what)
    return dataclasses.replace(card, folder=str(path.resolve().parent))


def parse_card(values: Any, what: str = "the model card") -> ModelCard:
    """Return the card that JSON values describe.

    Raises UserError that names the place of the first problem, after `what`.
    """
    fields = validate(CardFields, values, what)
    return ModelCard(**{item.name: getattr(fields, item.name) for item in dataclasses.fields(fields)})


def card_schema() -> dict[str, Any]:
    """Return the JSON schema of card files."""
    return TypeAdapter(CardFields).json_schema()


_FIRST_FIELDS = ("name", "architecture", "image", "text", "defense", "training", "paper", "licence", "notes")


def write_card(card: ModelCard, path: Path) -> None:
    """Write a card as readable JSON; fields that most cards do not need are left out where they are empty."""
    values = {key: value for key, value in plain(card).items() if key != "folder"}
    for tower in ("image", "text"):
        if values[tower]:
            values[tower] = {key: value for key, value in values[tower].items() if value or key in ("file", "sha256")}
    optional = {key for key, value in values.items() if not value and key not in _FIRST_FIELDS}
    optional |= {tower for tower in ("image", "text") if not values[tower]}
    write_text(path, json.dumps({key: values[key] for key in values if key not in optional}, indent=2) + "\n")


def find_card(reference: str, track: str) -> ModelCard:
    """Return the card of a model reference, see `models.reference`.

    If the weights of a named model were never released, the card of a local training is returned where there is one.
    Raises UserError for an unknown name (with the nearest ones), for a reference with a test-time defense, and for a
    model on the Hugging Face hub.
    """
    parsed = parse_reference(reference)
    if parsed.defense:
        raise UserError(
            f"{reference!r} has a test-time defense, but this needs the weights of a model only: give the model without"
            f" it, {str(parsed.model)!r}"
        )
    match parsed.model:
        case OpenClipModel(architecture, tag):
            return ModelCard(reference, f"{OPEN_CLIP}{architecture}", pretrained=tag)
        case CardFile(path):
            return read_card(Path(path))
        case HuggingFaceModel():
            raise UserError(
                f"{reference!r} is on the Hugging Face hub, and a model cannot be loaded from there by its name yet."
                f" Accepted are {ACCEPTED}: download the weights and write a card with `vlmbench convert FILE --base"
                " NAME`"
            )
        case _:
            return _named_card(reference, track)


def is_card_file(reference: str) -> bool:
    """Return whether a reference names a card file."""
    return isinstance(parse_reference(reference).model, CardFile)


def _named_card(reference: str, track: str) -> ModelCard:
    path = package_folder("model_zoo") / track / f"{reference}.json"
    if reference in card_names(track) and path.is_file():
        card = read_card(path)
        own = trained_folder(track, reference) / f"{reference}.json"
        return read_card(own) if not card.has_weights and own.is_file() else card
    if reference in MODELS.names():
        plugin: ModelCard = MODELS.load(reference)
        return plugin
    allowed = [*card_names(track), *MODELS.names()]
    message = unknown("model", reference, allowed, f"vlmbench list models --track {track}")
    raise UserError(f"{message} Accepted are {ACCEPTED}.")


def bundled_names(track: str) -> list[str]:
    """Return the names of the models of a track whose weights come with the package, sorted."""
    folder = package_folder("model_zoo") / track
    cards = [read_card(folder / f"{name}.json") for name in card_names(track)]
    return [card.name for card in cards if card.image and card.image.is_bundled]


def trained_folder(track: str, name: str) -> Path:
    """Return where a training puts a model's weights and card, unless it is told another place."""
    return Path("trained") / track / name
