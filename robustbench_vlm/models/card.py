"""Model cards: what a checkpoint is, as a JSON file that people and programs read."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustbench_vlm.errors import UserError
from robustbench_vlm.files import package_folder, write_text
from robustbench_vlm.models import MODELS
from robustbench_vlm.records import plain
from robustbench_vlm.registry import unknown


@dataclass(frozen=True)
class Weights:
    """A file of weights, relative to its card, and the digest that it must have."""

    file: str
    sha256: str


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint is and how it came to be; one JSON file model_zoo/<track>/<name>.json."""

    name: str
    architecture: str
    image: Weights
    """The image tower."""
    text: Weights
    """The text tower and the logit scale; shared by all models of a track."""
    defense: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Data set, eps, steps, seconds, parent and fingerprint of the training that made it."""
    paper: str = ""
    licence: str = ""
    notes: str = ""
    folder: str = ""
    """Where the card was read, and its files are; no part of the card's JSON."""


def read_card(path: Path) -> ModelCard:
    """Read a card file; raise UserError where it is missing, no JSON, or has wrong or missing fields."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the model card {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"the model card {path} is not JSON: {error}") from error
    fields = {item.name for item in dataclasses.fields(ModelCard)} - {"folder"}
    needed = {"name", "architecture", "image", "text"}
    if not isinstance(values, dict) or not needed <= set(values) <= fields:
        raise UserError(
            f"the model card {path} must be an object with {', '.join(sorted(needed))}"
            f" and may have {', '.join(sorted(fields - needed))}, nothing else"
        )
    try:
        image, text = Weights(**values.pop("image")), Weights(**values.pop("text"))
    except TypeError:
        raise UserError(f'in the model card {path}, image and text are objects with "file" and "sha256"') from None
    return ModelCard(**values, image=image, text=text, folder=str(path.resolve().parent))


def write_card(card: ModelCard, path: Path) -> None:
    """Write a card as readable JSON."""
    values = {key: value for key, value in plain(card).items() if key != "folder"}
    write_text(path, json.dumps(values, indent=2) + "\n")


def find_card(reference: str, track: str) -> ModelCard:
    """Return the card of a name on a track, of another package's model, or of a card file.

    Raises UserError for an unknown name, with the nearest ones.
    """
    if reference.endswith(".json"):
        return read_card(Path(reference))
    path = package_folder("model_zoo") / track / f"{reference}.json"
    if reference in card_names(track) and path.is_file():
        return read_card(path)
    if reference in MODELS.names():
        card: ModelCard = MODELS.load(reference)
        return card
    allowed = [*card_names(track), *MODELS.names()]
    advice = " A card file (path/to/card.json) or open_clip:ARCH/PRETRAINED is taken too."
    raise UserError(unknown("model", reference, allowed) + advice)


def card_names(track: str) -> list[str]:
    """Return the names of the bundled models of a track, sorted."""
    return sorted(path.stem for path in (package_folder("model_zoo") / track).glob("*.json"))
