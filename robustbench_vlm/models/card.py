"""Model cards: what a checkpoint is, as a JSON file that people and programs read."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import package_folder, write_text
from robustbench_vlm.core.fingerprint import plain
from robustbench_vlm.core.registry import unknown
from robustbench_vlm.models import MODELS, card_names
from robustbench_vlm.models.reference import (
    ACCEPTED,
    OPEN_CLIP,
    CardFile,
    HuggingFaceModel,
    OpenClipModel,
    parse_reference,
)

Pixels = tuple[float, float, float]


@dataclass(frozen=True)
class Weights:
    """A file of weights, and the digest that it must have."""

    file: str
    """Relative to the card; of released weights, the file's name in the cache."""
    sha256: str
    """Empty for released weights whose digest nobody has told us: it is recorded when they are first fetched."""
    url: str = ""
    """Where they were released: https, or "hf:OWNER/NAME/FILE" on the Hugging Face hub; empty: beside the card."""
    page: str = ""
    """A web page where people find the file, if programs cannot fetch it."""
    layout: str = ""
    """How the file holds the tensors, one of `layouts.LAYOUTS`; empty: whichever it is."""

    @property
    def is_bundled(self) -> bool:
        """Whether the file lies beside its card."""
        return not self.url and not self.page


@dataclass(frozen=True)
class Reported:
    """A number that a paper reports about the model, which nobody here has measured."""

    what: str
    """Attack, radius and datasets."""
    percent: float
    source: str


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint is and how it came to be; one JSON file model_zoo/<track>/<name>.json.

    The weights are two towers, `image` and `text`; or an `image` tower and the text tower of another card, `base`; or
    one whole CLIP as `image`; or one of open_clip's, `pretrained`. A card with none of these is a model that nobody
    has released.
    """

    name: str
    architecture: str
    image: Weights | None = None
    """The image tower."""
    text: Weights | None = None
    """The text tower and the logit scale; shared by all models of a track."""
    defense: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Dataset, eps, steps, seconds, parent and fingerprint of the training that made it."""
    paper: str = ""
    licence: str = ""
    notes: str = ""
    base: str = ""
    """The model whose text tower and logit scale these are: a name on the same track, open_clip's, or a card file."""
    pretrained: str = ""
    """The tag of open_clip's weights for the architecture."""
    mean: Pixels | None = None
    """Of the pixels in [0, 1], where the model was trained with others than its architecture's."""
    std: Pixels | None = None
    reported: tuple[Reported, ...] = ()
    folder: str = ""
    """Where the card was read, and its files are; no part of the card's JSON."""

    @property
    def base_reference(self) -> str:
        """What `find_card` takes for the base; a card file is relative to this card."""
        return str(Path(self.folder) / self.base) if is_card_file(self.base) else self.base

    @property
    def has_weights(self) -> bool:
        """Whether somebody has released the weights."""
        return bool(self.image or self.pretrained)


def read_card(path: Path) -> ModelCard:
    """Read a card file; raise UserError where it is missing, no JSON, or has wrong or missing fields."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the model card {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"the model card {path} is not JSON: {error}") from error
    try:
        return parse_card(values, folder=str(path.resolve().parent))
    except ValueError as error:
        raise UserError(f"the model card {path} {error}") from None


def parse_card(values: Any, folder: str = "") -> ModelCard:
    """Return the card that JSON values are; raise ValueError that says what a card must be."""
    known = {item.name for item in dataclasses.fields(ModelCard)} - {"folder"}
    needed = {"name", "architecture"}
    if not isinstance(values, dict) or not needed <= set(values) <= known:
        raise ValueError(
            f"must be an object with {', '.join(sorted(needed))} and may have {', '.join(sorted(known - needed))},"
            " nothing else"
        )
    texts = ("name", "architecture", "defense", "paper", "licence", "notes", "base", "pretrained")
    if wrong := [key for key in texts if not isinstance(values.get(key, ""), str)]:
        raise ValueError(f"must have a text as {wrong[0]}")
    if not isinstance(values.get("training", {}), dict):
        raise ValueError("must have an object as training")
    parsed = {
        **{tower: _weights(values[tower], tower) for tower in ("image", "text") if values.get(tower) is not None},
        **{key: _pixels(values[key], key) for key in ("mean", "std") if values.get(key) is not None},
        "reported": _reported(values.get("reported", [])),
    }
    card = ModelCard(**{**values, **parsed}, folder=folder)
    if (card.text and (card.base or not card.image)) or (card.pretrained and (card.image or card.base)):
        raise ValueError("must have image and text, or image and base, or pretrained: it names the same tower twice")
    if bool(card.mean) != bool(card.std):
        raise ValueError("must have both mean and std, or neither")
    return card


def _weights(values: Any, tower: str) -> Weights:
    allowed = {item.name for item in dataclasses.fields(Weights)}
    is_object = isinstance(values, dict) and {"file", "sha256"} <= set(values) <= allowed
    if not is_object or not all(isinstance(value, str) for value in values.values()):
        raise ValueError(f'must have as {tower} an object with the texts "file" and "sha256" (url, page, layout)')
    weights = Weights(**values)
    if weights.is_bundled and not weights.sha256:
        raise ValueError(f"must name the sha256 of {weights.file}, which lies beside it")
    return weights


def _pixels(values: Any, key: str) -> Pixels:
    if not isinstance(values, list) or len(values) != 3 or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"must have three numbers as {key}, one a colour")
    if key == "std" and min(values) <= 0:
        raise ValueError("must have numbers above 0 as std")
    return (float(values[0]), float(values[1]), float(values[2]))


def _reported(values: Any) -> tuple[Reported, ...]:
    kinds = {"what": str, "percent": int | float, "source": str}
    is_list = isinstance(values, list) and all(isinstance(each, dict) and set(each) == set(kinds) for each in values)
    if not is_list or not all(isinstance(each[key], kind) for each in values for key, kind in kinds.items()):
        raise ValueError('must have as reported a list of objects with "what", "percent" and "source"')
    return tuple(Reported(**each) for each in values)


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
