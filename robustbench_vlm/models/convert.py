"""Convert a released checkpoint to safetensors with a model card that `vlmbench run --model` accepts."""

from pathlib import Path
from typing import Any

import torch

from robustbench_vlm.core.errors import UserError
from robustbench_vlm.core.files import sha256_of
from robustbench_vlm.models.card import ModelCard, find_card, is_card_file, read_card, write_card
from robustbench_vlm.models.checkpoint_formats import State, check_fit
from robustbench_vlm.models.open_clip import load_architecture
from robustbench_vlm.models.weights import load_encoders, save_weights, split_encoders


def convert(file: Path, base: str, track: str, folder: Path, *, name: str = "", defense: str = "") -> Path:
    """Write the encoders of a checkpoint into a folder, as safetensors with a card, and return the card's path.

    `base` is the model that the weights were fine-tuned from: it defines the architecture and the pixel constants, and
    its text encoder is used if the file has none. Nothing is downloaded. Raises UserError where the file is not a
    checkpoint, has an unknown format, or does not fit the base, and where the card already exists for another file.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}: give a checkpoint, such as a .pt, .pth or .pth.tar file")
    name = name or _stem(file)
    if Path(name).name != name:
        raise UserError(f"the name {name!r} is a path: give a name such as fare-1, and the folder by --out")
    parent = find_card(base, track)
    towers = load_encoders(file)
    origin = _origin(file, towers.checkpoint_format)
    _check_free(folder / f"{name}.json", origin)
    image, text = _expected(parent)
    try:
        check_fit("image", towers.image, image)
        if towers.text:
            check_fit("text", towers.text, text)
    except UserError as error:
        raise UserError(
            f"{file} does not fit {parent.architecture}, the architecture of {base!r}: {error} If it was fine-tuned"
            " from another model, give that by --base"
        ) from error
    card = ModelCard(
        name=name,
        architecture=parent.architecture,
        image=save_weights(towers.image, folder / f"{name}.safetensors"),
        text=save_weights(towers.text, folder / f"{name}-text.safetensors") if towers.text else None,
        defense=defense,
        training=origin,
        notes="converted by vlmbench",
        base="" if towers.text else _reference(parent, base),
        mean=parent.mean,
        std=parent.std,
    )
    write_card(card, folder / f"{name}.json")
    return folder / f"{name}.json"


def _expected(parent: ModelCard) -> tuple[State, State]:
    """Return the tensors of both encoders of an architecture, with shapes but without values."""
    with torch.device("meta"):
        return split_encoders(load_architecture(parent.architecture).build())


def _origin(file: Path, layout: str) -> dict[str, Any]:
    return {"converted_from": file.name, "sha256": sha256_of(file), "layout": layout}


def _check_free(card: Path, origin: dict[str, Any]) -> None:
    """Raise UserError if the card exists for another file: many releases are called "model_best"."""
    if card.is_file() and (there := read_card(card).training) != origin:
        raise UserError(
            f"{card} is there already, of {there.get('converted_from', 'another model')}: give this one a name with"
            " --name, or another folder with --out"
        )


def _stem(file: Path) -> str:
    # TeCoAmodel_best.pth.tar has two endings.
    return file.name.partition(".")[0].lower() or "model"


def _reference(parent: ModelCard, base: str) -> str:
    """Return the `base` field of a card: the model whose text encoder the parent has."""
    if parent.base:
        return parent.base_reference
    return str(Path(base).resolve()) if is_card_file(base) else base
