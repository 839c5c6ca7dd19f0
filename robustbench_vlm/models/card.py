"""Model cards: JSON files that describe a model and its weights, with functions to read, write and find them."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, WithJsonSchema

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import package_folder, write_text
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.registry import unknown
from robustbench_vlm.core.strict_json import STRICT, json_schema, read_json, validate
from robustbench_vlm.models import MODELS, card_names
from robustbench_vlm.models.papers import Paper
from robustbench_vlm.models.reference import (
    ACCEPTED,
    HUGGING_FACE,
    OPEN_CLIP,
    WITH_CARD,
    CardFile,
    HuggingFaceModel,
    MemoryModel,
    OpenClipModel,
    is_repository,
    parse_reference,
)

_MAX_BYTES = 2**18
"""The largest accepted size of a card file in bytes. The largest cards of this package have a few thousand bytes."""
_MAX_DEPTH = 8
"""The largest accepted depth of nested objects in a card file. The cards of this package have three levels."""

Name = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(max_length=10_000)]
_SMALLEST_STD = 1e-3
"""The smallest accepted standard deviation. Pixels are divided by the standard deviation, so a smaller value would
cause an overflow.
"""
_Mean = Annotated[float, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]
_Std = Annotated[float, WithJsonSchema({"type": "number", "minimum": _SMALLEST_STD, "maximum": 1})]
Pixels = tuple[float, float, float]
"""One number per colour channel (red, green, blue), for pixels in [0, 1]."""


def _is_address(url: str) -> bool:
    """Return whether a text may be the address of a weights file. `core.addresses` checks the host on download."""
    if not url.startswith(HUGGING_FACE):
        return url.startswith(("https://", "http://"))
    owner, name, file = [*url.removeprefix(HUGGING_FACE).split("/", 2), "", ""][:3]
    parts = file.split("/")
    return (
        is_repository(f"{owner}/{name}") and not {"", ".", ".."} & {*parts} and file.isprintable() and "\\" not in file
    )


def check_normalisation(mean: Pixels, std: Pixels) -> None:
    """Raise ValueError if a mean or a standard deviation is impossible for pixels in [0, 1]."""
    if not (all(0 <= each <= 1 for each in mean) and all(_SMALLEST_STD <= each <= 1 for each in std)):
        raise ValueError(
            f"the mean must be in [0, 1] and the std in [{_SMALLEST_STD}, 1], got mean {list(mean)} and std"
            f" {list(std)}: if they are for pixels in [0, 255], divide them by 255"
        )


@dataclass(frozen=True)
class Weights:
    """A weights file: its location, digest and format."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    file: Text
    """The path of the file, relative to the folder of the card.

    If `url` or `page` is given, this is the name of the file in the cache.
    """
    sha256: Text
    """The sha256 digest of the file as 64 hexadecimal digits. For a file that is downloaded, the card may state "". The
    digest of the first download is then stored and later downloads are compared with it.
    """
    url: Text = ""
    """The address for the download, https or "hf:OWNER/NAME/FILE" for the Hugging Face hub. "" for a local file."""
    page: Text = ""
    """The web page of a file that only a person can download, for example because the page requires a login."""
    layout: Text = ""
    """The checkpoint format, one of `CHECKPOINT_FORMATS`. If this field is "", the format is recognised from the file.
    """

    def __post_init__(self) -> None:
        if self.url and not _is_address(self.url):
            raise ValueError(
                f"the url must be an https address or hf:OWNER/NAME/FILE without '..' and empty parts, got {self.url!r}"
            )
        if self.page and not self.page.startswith("https://"):
            raise ValueError(f"the page must be an https address, got {self.page!r}")
        if self.is_bundled and not self.sha256:
            raise ValueError(f"the card must state the sha256 of {self.file}, because the file is not downloaded")

    @property
    def is_bundled(self) -> bool:
        """Whether the file is stored in the folder of its card, so that no download is needed."""
        return not self.url and not self.page


@dataclass(frozen=True)
class Reported:
    """An accuracy that a paper reports for the model. This project has not measured the accuracy."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    what: Text
    """The attack, eps and datasets with which the paper measured the accuracy."""
    percent: int | float
    """The accuracy in percent, in [0, 100]."""
    source: Text
    """The table or page of the paper that contains the accuracy."""


@dataclass(frozen=True)
class CardFields:
    """The fields of a card file. The parser, error messages and JSON schema of cards are derived from this class."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Name
    """The name of the model."""
    architecture: Name
    """The architecture: a registered name such as "mini", or "open_clip:NAME"."""
    image: Weights | None = None
    """The weights of the image encoder, or of a whole CLIP (image encoder, text encoder and logit scale)."""
    text: Weights | None = None
    """The weights of the text encoder and the logit scale."""
    defense: Name = ""
    """The defense that the model was trained with. "" for a model that was trained without a defense."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the training, such as dataset, eps, steps, seconds, base model and fingerprint."""
    paper: Text = ""
    """The title and link of the paper."""
    licence: Text = ""
    """The licence of the weights."""
    notes: Text = ""
    """Any other facts about the model, as text."""
    base: Text = ""
    """The model from which the text encoder and the logit scale are taken. The value is a name on the same track,
    open_clip:ARCH/TAG, or the path of a card file relative to the folder of this card, and inside this folder."""
    pretrained: Name = ""
    """The tag of open_clip's pretrained weights for the architecture."""
    mean: tuple[_Mean, _Mean, _Mean] | None = None
    """The mean that the image encoder subtracts from pixels in [0, 1]. The default is the mean of the architecture."""
    std: tuple[_Std, _Std, _Std] | None = None
    """The standard deviation by which the image encoder divides pixels. The default comes from the architecture."""
    reported: tuple[Reported, ...] = ()
    """Accuracies that papers report for the model."""
    citation: Paper | None = None
    """Title, authors, venue and year of the paper. The leaderboard makes a BibTeX entry from them."""

    def __post_init__(self) -> None:
        if (self.text and (self.base or not self.image)) or (self.pretrained and (self.image or self.base)):
            raise ValueError(
                "the card must have image and text, or image and base, or pretrained: in all other combinations,"
                " the weights of an encoder are given twice or are missing"
            )
        if bool(self.mean) != bool(self.std):
            raise ValueError("the card must have both mean and std, or neither of them")
        if self.mean and self.std:
            check_normalisation(self.mean, self.std)


@dataclass(frozen=True)
class ModelCard(CardFields):
    """A model card, which describes a model, its weights and its training. The file is model_zoo/<track>/<name>.json.

    A card gives the weights in one of four ways:

    * `image` and `text`: a file for the image encoder and a file for the text encoder;
    * `image` and `base`: a file for the image encoder, and the text encoder of another model;
    * `image` only: one file with a whole CLIP;
    * `pretrained`: weights of open_clip.

    A card with none of these fields describes a model whose weights were never released.
    """

    folder: str = ""
    """The folder that contains the card file and the weights files. The JSON file does not have this field."""

    @property
    def base_reference(self) -> str:
        """The field `base` in a form that `find_card` accepts. The path of a card file starts with `folder`.

        Raises UserError if the card file is not inside `folder`, because a card may come from other people.
        """
        if not is_card_file(self.base):
            return self.base
        path = Path(self.folder) / self.base
        if Path(self.base).is_absolute() or not path.resolve().is_relative_to(Path(self.folder).resolve()):
            raise UserError(
                f"the base of {self.name!r} is {self.base!r}, but it must be a card in the folder of this card: copy"
                " the card of the base and its weights into this folder, and give the path relative to it"
            )
        return str(path)

    @property
    def has_weights(self) -> bool:
        """Whether the weights were released."""
        return bool(self.image or self.pretrained)


def read_card(path: Path) -> ModelCard:
    """Read a card file; raise UserError if it is missing, is not strict JSON, or has wrong or missing fields."""
    what = f"the model card {path}"
    card = parse_card(read_json(path, "the model card", max_bytes=_MAX_BYTES, max_depth=_MAX_DEPTH), what)
    return dataclasses.replace(card, folder=str(path.resolve().parent))


def parse_card(values: Any, what: str = "the model card") -> ModelCard:
    """Convert JSON values to a card.

    Raises UserError for the first wrong field. The message starts with `what`, which names the document.
    """
    fields = validate(CardFields, values, what)
    return ModelCard(**{item.name: getattr(fields, item.name) for item in dataclasses.fields(fields)})


def card_schema() -> dict[str, Any]:
    """Return the JSON schema of card files."""
    return json_schema(CardFields)


WEIGHT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar")
"""Suffixes of file names of weights files."""
_FIRST_FIELDS = ("name", "architecture", "image", "text", "defense", "training", "paper", "licence", "notes")


def write_card(card: ModelCard, path: Path) -> None:
    """Write a card to a file as indented JSON. Empty optional fields are left out."""
    values = {key: value for key, value in plain(card).items() if key != "folder"}
    for part in ("image", "text"):
        if values[part]:
            values[part] = {key: value for key, value in values[part].items() if value or key in ("file", "sha256")}
    optional = {key for key, value in values.items() if not value and key not in _FIRST_FIELDS}
    optional |= {part for part in ("image", "text") if not values[part]}
    write_text(path, json.dumps({key: values[key] for key in values if key not in optional}, indent=2) + "\n")


def find_card(reference: str, track: str) -> ModelCard:
    """Return the card of a model. The module `models.reference` lists the accepted forms of a reference.

    The weights of some models on a track were never released. If the user has trained such a model on this machine, the
    card of the trained model is returned.

    Raises UserError if the name is unknown, if the reference has a test-time defense, or if the model is on the Hugging
    Face hub. If the name is unknown, the message suggests similar names.
    """
    parsed = parse_reference(reference)
    if parsed.defense:
        raise UserError(
            f"{reference!r} has a test-time defense, but a model without a test-time defense is expected here: give"
            f" {str(parsed.model)!r}"
        )
    match parsed.model:
        case OpenClipModel(architecture, tag):
            return ModelCard(reference, f"{OPEN_CLIP}{architecture}", pretrained=tag)
        case CardFile(path):
            return read_card(Path(path))
        case HuggingFaceModel():
            raise UserError(
                f"{reference!r} names a model on the Hugging Face hub, which does not have a model card. Expected"
                f" {WITH_CARD}: download the weights and write a card with `vlmbench convert FILE --base NAME`"
            )
        case MemoryModel():
            raise UserError(
                f"{reference!r} is a model in the memory of a Python process, which has no card. Accepted are"
                f" {WITH_CARD}: save its weights and write a card with `vlmbench convert FILE --base NAME`"
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
    if Path(reference).suffix.lower() in WEIGHT_SUFFIXES:
        raise UserError(
            f"{reference!r} is a file of weights, expected {ACCEPTED}: write a card for the weights with"
            f" `vlmbench convert {reference} --base NAME` and give the card"
        )
    allowed = [*card_names(track), *MODELS.names()]
    message = unknown("model", reference, allowed, f"vlmbench list models --track {track}")
    raise UserError(f"{message} Expected {ACCEPTED}.")


def bundled_names(track: str) -> list[str]:
    """Return the names of a track's models whose weights are part of the package, sorted."""
    folder = package_folder("model_zoo") / track
    cards = [read_card(folder / f"{name}.json") for name in card_names(track)]
    return [card.name for card in cards if card.image and card.image.is_bundled]


def trained_folder(track: str, name: str) -> Path:
    """Return the default folder in which `vlmbench train` writes the weights and the card of a model."""
    return Path("trained") / track / name
